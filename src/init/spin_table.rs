//! CPUs that firmware holds in a spin-table pen: each waits for its `cpu-release-addr` to say where to go.
//!
//! Contract (Linux, Documentation/arch/arm64/booting): the word is 8-byte aligned, zero, in memory that is reserved, and
//! polled with the caches off; a CPU that sees an address there goes to it at EL2 without arguments.

use crate::{
    arch::{cache, image, mmu, sysreg},
    mm::{Pa, addr::PAGE_SIZE, el2},
};
use alloc::{format, string::String};

/// Lets the CPU that waits for the word at `release` go to what `entry` answers. `entry` is asked when nothing can go wrong
/// any more.
///
/// # Errors
///
/// Why the word cannot be written.
pub fn release(release: Pa, entry: impl FnOnce() -> Pa) -> Result<(), String> {
    let whole = image::whole();
    if whole.contains(&release) {
        return Err(format!("its cpu-release-addr, {release}, is in the image: load one of them elsewhere"));
    }
    // Reserved memory is not mapped. As a device, because nobody may fetch from it ahead of time.
    let page = release.align_down(PAGE_SIZE);
    if !mmu::allows(release, false) && el2::map_device(page..Pa(page.0 + PAGE_SIZE)).is_err() {
        return Err(format!("its cpu-release-addr, {release}, is beyond the CPU's physical address space"));
    }
    if !mmu::allows(release, true) {
        return Err(format!(
            "its cpu-release-addr, {release}, is in the device tree or the bundle: load them elsewhere"
        ));
    }
    let word = release..Pa(release.0 + 8);
    // What firmware may have left in the caches must not be written back over what is written now.
    cache::clean_invalidate(word.clone());
    // SAFETY: mapped writable, aligned (`Start::SpinTable`), and given to nobody (`start::reserved`): the tree says that the
    // CPU waits for this word.
    unsafe { (release.0 as *mut u64).write_volatile(entry().0) };
    cache::clean(word);
    sysreg::sev();
    Ok(())
}
