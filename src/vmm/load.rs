//! A VM's images into its RAM.
//!
//! [`load`] does all there is to do before a VM's first instruction: it checks the hashes, finds a place for
//! everything, writes it and says where to start. It keeps nothing, so a restart calls it again and gets the same
//! layout. An uncompressed image is written with one call a segment; a compressed one goes through a window of 32 KiB.
//! Needs about 32 KiB of heap and 16 KiB of stack for the decompressor.

use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;

use super::config::{Feature, VmConfig};
use super::error::{ConfigError, OutsideRam};
use super::guest_tree::{self, Entropy, TREE_MAX};
use super::image::Image;
use super::kernel::{Executable, Format};
use super::layout::{Layout, Wish};
use crate::mm::Ipa;
use crate::mm::addr::{BLOCK_1G, BLOCK_2M, PAGE_SIZE};
use crate::vdev::platform::GuestMachine;

/// A VM's RAM, which may be in pieces.
pub trait GuestMemory {
    /// Copies `bytes` to `address`.
    ///
    /// # Errors
    ///
    /// [`OutsideRam`] if any of them would not be in RAM; what has been written by then is not said.
    fn write(&mut self, address: Ipa, bytes: &[u8]) -> Result<(), OutsideRam>;

    /// Clears `size` bytes at `address`.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    fn zero(&mut self, address: Ipa, size: u64) -> Result<(), OutsideRam>;
}

/// Where a loaded VM starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Address of its first instruction.
    pub entry: Ipa,
    /// Address of its device tree, for x0, in AArch32 r2.
    pub dtb: Ipa,
    /// Where its RAM disk is.
    pub ramdisk: Option<Range<u64>>,
    /// The format of its kernel.
    pub format: Format,
}

/// At most this far from the start of RAM the RAM disk and the tree begin, if the kernel leaves room: QEMU's choice
/// (`hw/arm/boot.c`), far enough for a kernel that unpacks or moves itself.
const PREFERRED: u64 = 128 << 20;
/// Kernel and RAM disk have to be in one window of this size, 1 GiB aligned (Linux's arm64 booting document).
const WINDOW: u64 = 32 << 30;

/// Loads `vm` into `memory`, which must be the RAM of `machine` and `vm.memory` bytes long. Bytes of RAM that no image
/// covers are left alone.
///
/// # Errors
///
/// [`ConfigError`]; the VM's RAM may have been written to by then.
pub fn load(
    vm: &VmConfig,
    memory: &mut impl GuestMemory,
    machine: &GuestMachine,
    entropy: &mut Entropy,
) -> Result<Loaded, ConfigError> {
    for image in [Some(&vm.kernel), vm.ramdisk.as_ref(), vm.fdt.as_ref()].into_iter().flatten() {
        image.verify()?;
    }
    let kernel = &*vm.kernel;
    let executable = if vm.features.contains(&Feature::Aarch32) {
        Executable::examine_aarch32(kernel, machine.ram_base, vm.memory)?
    } else {
        Executable::examine(kernel, machine.ram_base)?
    };
    let mut layout = Layout::new(machine.ram_base, vm.memory);
    for segment in &executable.segments {
        layout.claim(&kernel.node, segment.address.0, segment.memory)?;
    }
    load_beside(vm, &executable, layout, memory, |ramdisk| guest_tree::build(vm, machine, ramdisk, entropy))
}

/// Finds RAM disk and device tree a place in `layout`, where the kernel has its own already, and writes all three. `tree` is
/// told where the RAM disk is.
///
/// # Errors
///
/// [`ConfigError`], as [`load`].
pub(super) fn load_beside(
    vm: &VmConfig,
    executable: &Executable,
    mut layout: Layout,
    memory: &mut impl GuestMemory,
    tree: impl FnOnce(Option<Range<u64>>) -> Result<Vec<u8>, ConfigError>,
) -> Result<Loaded, ConfigError> {
    let kernel = &*vm.kernel;
    let Range { start, end } = layout.ram();
    let kernel_start = executable.segments.iter().map(|segment| segment.address.0).min().unwrap_or(start);
    let ends = executable.segments.iter().map(|segment| segment.address.0.saturating_add(segment.memory));
    let kernel_end = ends.max().unwrap_or(start);
    let preferred = kernel_end.max(start + (end.saturating_sub(start) / 2).min(PREFERRED));

    let ramdisk = match vm.ramdisk.as_deref() {
        None => None,
        Some(image) => Some(place_ramdisk(image, &mut layout, preferred, kernel_end)?),
    };
    if let (Some(image), Some(range)) = (vm.ramdisk.as_deref(), &ramdisk) {
        let window = kernel_start.min(range.start) / BLOCK_1G * BLOCK_1G;
        if executable.format == Format::Arm64Image && kernel_end.max(range.end) - window > WINDOW {
            let reason = format!("would be at {:#x}, with the kernel at {kernel_start:#x}", range.start);
            return Err(image.bad(reason, "both in one 1 GiB-aligned window of 32 GiB"));
        }
    }
    let tree = tree(ramdisk.clone())?;
    let after = ramdisk.as_ref().map_or(preferred, |range| range.end.max(preferred));
    let dtb = place_tree(vm, &mut layout, tree.len() as u64, after, kernel_end)?;

    // Everything has its place: from here on RAM is written.
    write_executable(kernel, executable, memory)?;
    if let (Some(image), Some(range)) = (vm.ramdisk.as_deref(), &ramdisk) {
        image.stream(|offset, bytes| write(image, memory, Ipa(range.start.saturating_add(offset)), bytes))?;
    }
    write(kernel, memory, dtb, &tree)?;
    // Firmware and bare-metal programs made for QEMU's `virt` look for the tree at the start of RAM (U-Boot's
    // qemu_arm64 does), where QEMU puts it for everything but Linux.
    let size = tree.len() as u64;
    let is_linux = matches!(executable.format, Format::Arm64Image | Format::ZImage);
    if !is_linux && layout.claim("device tree", start, size).is_ok() {
        write(kernel, memory, Ipa(start), &tree)?;
    }
    Ok(Loaded { entry: executable.entry, dtb, ramdisk, format: executable.format })
}

fn place_ramdisk(
    image: &Image,
    layout: &mut Layout,
    preferred: u64,
    kernel_end: u64,
) -> Result<Range<u64>, ConfigError> {
    let size = image.size()?;
    if size == 0 {
        return Err(image.bad("is empty", "a RAM disk, or no ramdisk property"));
    }
    let start = match image.load {
        Some(start) => {
            layout.claim(&image.node, start, size)?;
            Ipa(start)
        }
        None => {
            let lowest = layout.ram().start;
            let wish = |from| Wish { from, alignment: PAGE_SIZE, room: size };
            layout.place(&image.node, size, &[preferred, kernel_end, lowest].map(wish))?
        }
    };
    Ok(start.0..start.0.saturating_add(size))
}

/// The tree's place: alone in a 2 MiB block if there is one, else any page; above the kernel if there is room.
fn place_tree(vm: &VmConfig, layout: &mut Layout, size: u64, after: u64, kernel_end: u64) -> Result<Ipa, ConfigError> {
    let name = vm.fdt.as_ref().map_or("the generated device tree", |image| &image.node);
    if size > TREE_MAX {
        return Err(ConfigError::NoRoom { image: name.into(), size, memory: TREE_MAX });
    }
    if let Some(load) = vm.fdt.as_ref().and_then(|image| image.load) {
        if !load.is_multiple_of(8) {
            return Err(ConfigError::BadProperty {
                node: name.into(),
                property: super::config::LOAD.into(),
                found: format!("{load:#x}"),
                expected: "a multiple of 8".into(),
            });
        }
        layout.claim(name, load, size)?;
        return Ok(Ipa(load));
    }
    let lowest = layout.ram().start;
    let block = |from| Wish { from, alignment: BLOCK_2M, room: BLOCK_2M };
    let page = |from| Wish { from, alignment: PAGE_SIZE, room: size };
    layout.place(name, size, &[block(after), block(kernel_end), page(after), page(kernel_end), page(lowest)])
}

fn write_executable(image: &Image, executable: &Executable, memory: &mut impl GuestMemory) -> Result<(), ConfigError> {
    image.stream(|offset, bytes| {
        for segment in &executable.segments {
            if let Some((address, part)) = segment.part(offset, bytes) {
                write(image, memory, address, part)?;
            }
        }
        Ok(())
    })?;
    for segment in executable.segments.iter().filter(|segment| segment.zero) {
        let in_file = segment.file.end.saturating_sub(segment.file.start);
        let rest = segment.memory.saturating_sub(in_file);
        if rest != 0 {
            let start = Ipa(segment.address.0.saturating_add(in_file));
            memory.zero(start, rest).map_err(|error| outside(image, error))?;
        }
    }
    Ok(())
}

fn write(image: &Image, memory: &mut impl GuestMemory, address: Ipa, bytes: &[u8]) -> Result<(), ConfigError> {
    memory.write(address, bytes).map_err(|error| outside(image, error))
}

/// The layout is inside RAM, so this is only reached if `memory` is not the RAM it was made for.
fn outside(image: &Image, error: OutsideRam) -> ConfigError {
    image.bad(format!("{error}"), "the RAM the VM was configured with")
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::vdev::platform::VIRT;
    use crate::vmm::image::{Compression, Expected, Hash};
    use crate::vmm::test_support::{Mutations, arm64_image, elf, gzip, vm};
    use crate::vmm::tree::Tree;

    const BASE: u64 = VIRT.ram_base.0;
    const MIB: u64 = 1 << 20;

    /// RAM that remembers what was written and refuses to be written twice.
    #[derive(Debug)]
    struct Ram {
        bytes: Vec<u8>,
        written: Vec<Range<u64>>,
    }

    impl Ram {
        fn new(size: u64) -> Self {
            Self { bytes: vec![0xee; size as usize], written: Vec::new() }
        }

        fn slot(&mut self, address: Ipa, size: u64) -> Result<&mut [u8], OutsideRam> {
            let outside = OutsideRam { address, size };
            let start = address.0.checked_sub(BASE).ok_or(outside)?;
            let range = start..start.checked_add(size).ok_or(outside)?;
            if range.end > self.bytes.len() as u64 {
                return Err(outside);
            }
            assert!(
                !self.written.iter().any(|old| old.start < range.end && range.start < old.end),
                "{range:#x?} twice: {:#x?}",
                self.written
            );
            self.written.push(range.clone());
            Ok(&mut self.bytes[range.start as usize..range.end as usize])
        }

        fn at(&self, address: u64, size: usize) -> &[u8] {
            &self.bytes[(address - BASE) as usize..][..size]
        }
    }

    impl GuestMemory for Ram {
        fn write(&mut self, address: Ipa, bytes: &[u8]) -> Result<(), OutsideRam> {
            self.slot(address, bytes.len() as u64)?.copy_from_slice(bytes);
            Ok(())
        }

        fn zero(&mut self, address: Ipa, size: u64) -> Result<(), OutsideRam> {
            self.slot(address, size)?.fill(0);
            Ok(())
        }
    }

    fn boot(vm: &VmConfig) -> Result<(Loaded, Ram), ConfigError> {
        let mut ram = Ram::new(vm.memory);
        let loaded = load(vm, &mut ram, &VIRT, &mut |bytes| bytes.fill(0x5a))?;
        Ok((loaded, ram))
    }

    fn tree<'r>(loaded: &Loaded, ram: &'r Ram) -> Tree<'r> {
        Tree::parse(&ram.bytes[(loaded.dtb.0 - BASE) as usize..]).unwrap()
    }

    #[test]
    fn a_linux_guest() {
        let (kernel, disk) = (arm64_image(0, 40 * MIB, 30 << 20), vec![0xdd; 5 << 20]);
        let mut config = vm(Image::new("/images/kernel", &kernel), 512 * MIB);
        config.ramdisk = Some(Arc::new(Image::new("/images/disk", &disk)));
        config.bootargs = Some("console=ttyAMA0");
        let (loaded, ram) = boot(&config).unwrap();
        assert_eq!(loaded.entry, Ipa(BASE));
        assert_eq!(loaded.ramdisk, Some(BASE + 128 * MIB..BASE + 133 * MIB));
        assert_eq!(loaded.dtb, Ipa(BASE + 134 * MIB));
        assert_eq!(ram.at(BASE, kernel.len()), kernel);
        assert_eq!(ram.at(BASE + 128 * MIB, disk.len()), disk);
        assert_eq!(ram.written.len(), 3, "each image with one write: {:x?}", ram.written);
        let tree = tree(&loaded, &ram);
        let chosen = tree.find("/chosen").unwrap();
        assert_eq!(chosen.string("bootargs"), Some("console=ttyAMA0"));
        assert_eq!(chosen.property("linux,initrd-start"), Some(&(BASE + 128 * MIB).to_be_bytes()[..]));
        assert_eq!(chosen.property("linux,initrd-end"), Some(&(BASE + 133 * MIB).to_be_bytes()[..]));
        let (again, same) = boot(&config).unwrap();
        assert_eq!((again, same.bytes), (loaded, ram.bytes), "a restart is the same");
    }

    #[test]
    fn small_machines() {
        for (memory, length) in [(4 * MIB, 0x10_0000), (4 * MIB, 0x37_0000), (16 * MIB, 0x40_0000)] {
            let (flat, disk) = (vec![1; length], vec![2; 0x4000]);
            let mut config = vm(Image::new("/images/flat", &flat), memory);
            config.ramdisk = Some(Arc::new(Image::new("/images/disk", &disk)));
            let (loaded, ram) = boot(&config).unwrap();
            let end = loaded.entry.0 + length as u64;
            assert_eq!(loaded.entry, Ipa(BASE + 0x8_0000));
            assert!(loaded.dtb.0 >= end && loaded.ramdisk.as_ref().unwrap().start >= end, "{loaded:x?}");
            assert_eq!(tree(&loaded, &ram).bytes(), Tree::parse(&ram.bytes).unwrap().bytes(), "also where QEMU has it");
        }
    }

    #[test]
    fn an_elf_file_is_scattered_and_cleared() {
        let data =
            elf(0x1010, &[(0x1000, BASE + 0x20_0000, 0x8000, 0x8000), (0x9000, BASE + 0x21_0000, 0x9000, 0xc000)]);
        let packed = gzip(&data);
        let plain = Image::new("/images/k", &data);
        let mut squeezed = Image::new("/images/k", &packed);
        squeezed.compression = Compression::Gzip;
        let mut images = Vec::new();
        for image in [plain, squeezed] {
            let (loaded, ram) = boot(&vm(image, 8 * MIB)).unwrap();
            assert_eq!(loaded.entry, Ipa(BASE + 0x20_0010));
            let start = data.len() - 0x1_1000;
            assert_eq!(ram.at(BASE + 0x20_0000, 0x8000), &data[start..start + 0x8000]);
            assert_eq!(ram.at(BASE + 0x21_0000, 0x9000), &data[start + 0x8000..]);
            assert_eq!(ram.at(BASE + 0x21_9000, 0x3000), [0; 0x3000]);
            assert_eq!(ram.at(BASE + 0x21_c000, 1), [0xee], "and no further");
            images.push(ram.bytes);
        }
        assert_eq!(images[0], images[1]);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let error = |config: &VmConfig| boot(config).unwrap_err().to_string();
        let kernel = arm64_image(0, 40 * MIB, 100);
        assert_eq!(
            error(&vm(Image::new("/images/k", &kernel), 16 * MIB)),
            "/images/k: wants 0x40000000 to 0x42800000, but the VM's RAM is 0x40000000 to 0x41000000; link or load it \
             inside, or raise keel,memory"
        );
        let (flat, disk) = (vec![1; 0x10_0000], vec![2; 3 << 20]);
        let mut config = vm(Image::new("/images/k", &flat), 4 * MIB);
        config.ramdisk = Some(Arc::new(Image::new("/images/disk", &disk)));
        assert_eq!(
            error(&config),
            "/images/disk: needs 0x300000 bytes in one piece, but nothing that large is left of the VM's 0x400000 \
             bytes; raise keel,memory"
        );
        // The half mebibyte below a flat image is still there for a small tree.
        let full = vec![1; 0x38_0000];
        assert_eq!(boot(&vm(Image::new("/images/k", &full), 4 * MIB)).unwrap().0.dtb, Ipa(BASE));
        let mut image = Image::new("/images/k", &full);
        image.load = Some(BASE);
        let all = vec![1; 4 << 20];
        image.data = &all;
        let message = error(&vm(image, 4 * MIB));
        assert!(message.starts_with("the generated device tree: needs "), "{message}");
    }

    #[test]
    fn wishes_of_images_are_obeyed_or_refused() {
        let (flat, disk) = (vec![1; 0x1000], vec![2; 0x1000]);
        let with = |load| {
            let mut config = vm(Image::new("/images/k", &flat), 16 * MIB);
            let mut image = Image::new("/images/disk", &disk);
            image.load = Some(load);
            config.ramdisk = Some(Arc::new(image));
            boot(&config).map(|(loaded, _)| loaded.ramdisk.unwrap().start).map_err(|error| error.to_string())
        };
        assert_eq!(with(BASE + 0x10_0000), Ok(BASE + 0x10_0000));
        assert!(with(BASE + 0x8_0800).unwrap_err().contains("overlaps /images/k at 0x40080000 to 0x40081000"));
        assert!(with(0x100_0000).unwrap_err().starts_with("/images/disk: wants 0x1000000 to 0x1001000, but"));
    }

    #[test]
    fn a_wrong_hash_or_crc_stops_it() {
        let data = arm64_image(0, MIB, 0x2000);
        let mut image = Image::new("/images/k", &data);
        image.hashes.push(Hash { node: "/images/k/hash-1".into(), expected: Expected::Crc32(1) });
        assert!(matches!(boot(&vm(image, 4 * MIB)), Err(ConfigError::HashMismatch { .. })));
        let mut packed = gzip(&data);
        let at = packed.len() - 8;
        packed[at] ^= 1;
        let mut image = Image::new("/images/k", &packed);
        image.compression = Compression::Gzip;
        let message = boot(&vm(image, 4 * MIB)).err().unwrap().to_string();
        assert!(message.starts_with("/images/k: the gzip trailer says CRC"), "{message}");
    }

    #[test]
    fn memory_that_is_not_the_configured_is_noticed() {
        let data = arm64_image(0, MIB, 0x2000);
        let mut ram = Ram::new(0x1000);
        let error = load(&vm(Image::new("/images/k", &data), 4 * MIB), &mut ram, &VIRT, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("0x2000 bytes at 0x40000000 are not inside the VM's RAM"), "{error}");
    }

    /// RAM that only looks at addresses.
    struct Bounds(u64);

    impl GuestMemory for Bounds {
        fn write(&mut self, address: Ipa, bytes: &[u8]) -> Result<(), OutsideRam> {
            self.zero(address, bytes.len() as u64)
        }

        fn zero(&mut self, address: Ipa, size: u64) -> Result<(), OutsideRam> {
            let end = address.0.checked_add(size);
            assert!(address.0 >= BASE && end.is_some_and(|end| end <= BASE + self.0), "{size:#x} at {address}");
            Ok(())
        }
    }

    #[test]
    fn mutants_stay_inside_ram() {
        let plain = elf(BASE + 0x20_0000, &[(BASE + 0x20_0000, BASE + 0x20_0000, 0x100, 0x4000)]);
        let (image, packed) = (arm64_image(0x8_0000, 0x10_0000, 0x100), gzip(&plain));
        let mut loaded = [0; 3];
        for (index, original) in [&plain, &image, &packed].into_iter().enumerate() {
            for mutant in Mutations::new(original, 5_000) {
                let mut kernel = Image::new("/images/k", &mutant);
                kernel.compression = if index == 2 { Compression::Gzip } else { Compression::None };
                let config = vm(kernel, 4 * MIB);
                loaded[index] += usize::from(load(&config, &mut Bounds(4 * MIB), &VIRT, &mut |_| {}).is_ok());
            }
        }
        assert!(loaded[..2].iter().all(|&count| count > 500) && loaded[2] < 5_000, "{loaded:?}");
    }

    proptest! {
        /// Whatever the sizes: nothing is written twice (`Ram` sees to that), the rules for Linux hold, or it is said
        /// that there is no room.
        #[test]
        fn layouts_hold(
            memory in 2u64..24, text in prop::sample::select(vec![0u64, 0x8_0000]), length in 64usize..0x60_0000,
            bss in 0u64..0x80_0000, disk in prop::option::of(1usize..0x80_0000), linux: bool,
        ) {
            let kernel = if linux { arm64_image(text, length as u64 + bss, length) } else { vec![3; length] };
            let disk = disk.map(|size| vec![2; size]);
            let mut config = vm(Image::new("/images/k", &kernel), 2 * MIB * memory);
            config.ramdisk = disk.as_ref().map(|data| Arc::new(Image::new("/images/disk", data)));
            match boot(&config) {
                Ok((loaded, ram)) => {
                    let end = loaded.entry.0 + length as u64 + if linux { bss } else { 0 };
                    prop_assert!(loaded.dtb.is_aligned(8));
                    let tree = tree(&loaded, &ram).bytes().len() as u64;
                    prop_assert!(loaded.dtb.0 >= end || loaded.dtb.0 + tree <= loaded.entry.0);
                    if let Some(disk) = loaded.ramdisk {
                        prop_assert!(disk.start >= end || disk.end <= loaded.entry.0);
                        prop_assert_eq!(ram.at(disk.start, 1), [2]);
                    }
                }
                Err(error) => prop_assert!(
                    matches!(error, ConfigError::OutsideRam { .. } | ConfigError::NoRoom { .. }), "{}", error
                ),
            }
        }
    }
}
