//! Register by register, rule by rule.

use super::fake::{FakeVm, PHYSICAL_TIMER, TIMER};
use super::lr::{self, Control};
use super::*;
use crate::vdev::mmio::AccessSize::{self, Byte, Double, Half, Word};

/// The SGI frame's registers, by the offset that the distributor has them at.
const SGI_FRAME: u64 = 0x1_0000;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;
const IROUTER: u64 = 0x6000;

fn read(vm: &FakeVm, offset: u64) -> u64 {
    vm.vgic.dist_read(offset, Word, vm)
}

fn write(vm: &FakeVm, offset: u64, value: u64) {
    vm.vgic.dist_write(offset, Word, value, vm);
    vm.settle();
}

fn read_sgi(vm: &FakeVm, vcpu: usize, offset: u64) -> u64 {
    vm.vgic.redist_read(vcpu, SGI_FRAME + offset, Word, vm)
}

fn write_sgi(vm: &FakeVm, vcpu: usize, offset: u64, value: u64) {
    vm.vgic.redist_write(vcpu, SGI_FRAME + offset, Word, value, vm);
    vm.settle();
}

fn line(vm: &FakeVm, intid: u32, level: bool) {
    vm.vgic.set_spi(intid, level, vm);
    vm.settle();
}

/// The valid list registers of a vCPU.
fn loaded(vm: &FakeVm, vcpu: usize) -> Vec<u64> {
    let valid = |lr: &u64| lr & (lr::PENDING | lr::ACTIVE) != 0;
    vm.cpus[vcpu].borrow().vif.lrs.iter().copied().filter(valid).collect()
}

fn control(vm: &FakeVm, vcpu: usize) -> Control {
    vm.cpus[vcpu].borrow().vif.control
}

mod configuration {
    use super::*;

    #[test]
    fn is_checked() {
        let make = |mpidrs: &[u64], spis| Vgic::new(&VgicConfig { mpidrs, spis }).err();
        assert_eq!(make(&[0], 32), None);
        assert_eq!(make(&[0], 960), None);
        assert_eq!(make(&[], 32), Some(VgicConfigError::Vcpus(0)));
        assert_eq!(make(&[0; 513], 32), Some(VgicConfigError::Vcpus(513)));
        for spis in [0, 31, 33, 961, 992] {
            assert_eq!(make(&[0], spis), Some(VgicConfigError::Spis(spis)));
        }
        assert_eq!(make(&[0x100, 0, 0x8000_0100], 32), Some(VgicConfigError::DuplicateAffinity(0x100)));
    }

    #[test]
    fn affinities_of_any_numbering_are_found() {
        let numberings: [&[u64]; 4] =
            [&[0, 1, 2, 3], &[0x0, 0x100, 0x200, 0x300], &[0x1_0000_0000, 5, 0x1_0000, 1], &[0x8000_0001, 0x8000_0000]];
        for mpidrs in numberings {
            let vgic = Vgic::new(&VgicConfig { mpidrs, spis: 32 }).unwrap();
            for (index, mpidr) in mpidrs.iter().enumerate() {
                assert_eq!(vgic.vcpu_with_affinity(mpidr & AFFINITY_MASK), Some(index), "{mpidr:#x}");
            }
            assert_eq!(vgic.vcpu_with_affinity(0xff), None);
        }
    }
}

mod distributor {
    use super::*;

    #[test]
    fn resets_to_the_documented_values() {
        let vgic = Vgic::new(&VgicConfig { mpidrs: &[0], spis: DEFAULT_SPIS }).unwrap();
        let vm = FakeVm::new(1, 4);
        let read = |offset| vgic.dist_read(offset, Word, &vm);
        let expected = [
            (0x0000, 0x50),
            (0x0004, 0x0048_0007),
            (0x0008, 0x4b00_343b),
            (0x000c, 0),
            (0x0010, 0xffff_ffff),
            (0x0080, 0),
            (0x0084, 0xffff_ffff),
            (0x009c, 0xffff_ffff),
            (0x00a0, 0),
            (0x0100, 0),
            (0x0104, 0),
            (0x0204, 0),
            (0x0304, 0),
            (0x0420, 0),
            (0x0820, 0),
            (0x0c00, 0),
            (0x0c08, 0),
            (0x0d04, 0),
            (0x6100, 0),
            (0xffd0, 0),
            (0xffe8, 0x3b),
            (0xfffc, 0),
            (0x1_0000, 0),
        ];
        for (offset, value) in expected {
            assert_eq!(read(offset), value, "{offset:#x}");
        }
    }

    #[test]
    fn type_counts_the_interrupts() {
        for (spis, typer) in [(32, 0x0048_0001), (64, 0x0048_0002), (960, 0x0048_001e)] {
            let vgic = Vgic::new(&VgicConfig { mpidrs: &[0], spis }).unwrap();
            assert_eq!(vgic.dist_read(4, Word, &Quiet), typer);
            vgic.dist_write(0, Word, 2, &Quiet);
            assert_eq!(vgic.dist_read(0, Word, &Quiet), 0x52);
        }
    }

    #[test]
    fn control_keeps_only_group_1() {
        let vm = FakeVm::new(1, 4);
        write(&vm, 0, 0xffff_ffff);
        assert_eq!(read(&vm, 0), 0x52);
        write(&vm, 0, 0xffff_fffd);
        assert_eq!(read(&vm, 0), 0x50);
    }

    #[test]
    fn wrong_widths_and_offsets_are_ignored() {
        let vm = FakeVm::new(1, 4);
        for (offset, size) in [
            (ISENABLER + 4, Byte),
            (ISENABLER + 4, Half),
            (ISENABLER + 4, Double),
            (ISENABLER + 5, Word),
            (IPRIORITYR + 32, Half),
            (IPRIORITYR + 32, Double),
            (IROUTER + 32 * 8, Byte),
            (IROUTER + 32 * 8 + 4, Double),
            (0x40, Word),
            (0xe00, Word),
            (0x1_0000, Word),
            (u64::MAX - 3, Word),
        ] {
            vm.vgic.dist_write(offset, size, u64::MAX, &vm);
            assert_eq!(vm.vgic.dist_read(offset, size, &vm), 0, "{offset:#x} {size:?}");
        }
        assert_eq!(read(&vm, ISENABLER + 4), 0);
        assert_eq!(read(&vm, IPRIORITYR + 32), 0);
        assert_eq!(vm.vgic.dist_read(4, Double, &vm), 0, "TYPER has 32 bits");
    }

    #[test]
    fn private_interrupts_are_not_in_it() {
        let vm = FakeVm::new(1, 4);
        for offset in [0x80, ISENABLER, ISPENDR, ISACTIVER, IPRIORITYR, ICFGR, IROUTER + 31 * 8] {
            write(&vm, offset, 0xffff_ffff);
            assert_eq!(read(&vm, offset), 0, "{offset:#x}");
        }
        // Nor those beyond ITLinesNumber.
        for offset in [0x8c, ISENABLER + 12, ISPENDR + 12, IPRIORITYR + 96, ICFGR + 24, IROUTER + 96 * 8] {
            write(&vm, offset, 0xffff_ffff);
            assert_eq!(read(&vm, offset), 0, "{offset:#x}");
        }
    }

    #[test]
    fn set_and_clear_registers() {
        let vm = FakeVm::new(1, 4);
        for (set, clear) in [(ISENABLER, ICENABLER), (ISPENDR, ICPENDR), (ISACTIVER, ICACTIVER)] {
            write(&vm, set + 4, 0xf0f0);
            write(&vm, set + 4, 0x0f00);
            assert_eq!(read(&vm, set + 4), 0xfff0);
            write(&vm, clear + 4, 0x00f0);
            assert_eq!((read(&vm, set + 4), read(&vm, clear + 4)), (0xff00, 0xff00), "{set:#x}");
            write(&vm, clear + 4, 0xffff_ffff);
            assert_eq!(read(&vm, set + 4), 0);
        }
    }

    #[test]
    fn priorities_have_five_bits_and_bytes() {
        let vm = FakeVm::new(1, 4);
        write(&vm, IPRIORITYR + 64, 0xffa0_0701);
        assert_eq!(read(&vm, IPRIORITYR + 64), 0xf8a0_0000);
        vm.vgic.dist_write(IPRIORITYR + 65, Byte, 0x8f, &vm);
        assert_eq!(vm.vgic.dist_read(IPRIORITYR + 65, Byte, &vm), 0x88);
        assert_eq!(read(&vm, IPRIORITYR + 64), 0xf8a0_8800);
    }

    #[test]
    fn configuration_is_the_odd_bits() {
        let vm = FakeVm::new(1, 4);
        write(&vm, ICFGR + 8, 0xffff_ffff);
        assert_eq!(read(&vm, ICFGR + 8), 0xaaaa_aaaa);
        write(&vm, ICFGR + 12, 0x0000_0008);
        assert_eq!((read(&vm, ICFGR + 8), read(&vm, ICFGR + 12)), (0xaaaa_aaaa, 8));
        write(&vm, ICFGR + 8, 0x5555_5555);
        assert_eq!((read(&vm, ICFGR + 8), read(&vm, ICFGR + 12)), (0, 8));
    }

    #[test]
    fn routes_keep_24_bits() {
        let vm = FakeVm::new(1, 4);
        let route = IROUTER + 40 * 8;
        vm.vgic.dist_write(route, Double, 0xffff_ffff_ffff_ffff, &vm);
        assert_eq!(vm.vgic.dist_read(route, Double, &vm), 0x00ff_ffff);
        write(&vm, route + 4, 0xff);
        assert_eq!((read(&vm, route), read(&vm, route + 4)), (0x00ff_ffff, 0));
        write(&vm, route, 1);
        assert_eq!(vm.vgic.dist_read(route, Double, &vm), 1);
    }

    #[test]
    fn save_and_restore_differ_where_kvm_s_do() {
        let vm = FakeVm::new(1, 4);
        vm.unload(0);
        let frame = Frame::Distributor;
        vm.vgic.set_spi(40, true, &vm);
        assert_eq!(read(&vm, ISPENDR + 4), 0x100);
        assert_eq!(vm.vgic.user_read(frame, ISPENDR + 4), Ok(0), "the latch, not the line");
        vm.vgic.user_write(frame, ISPENDR + 4, 0x3).unwrap();
        vm.vgic.user_write(frame, ISPENDR + 4, 0x6).unwrap();
        assert_eq!(vm.vgic.user_read(frame, ISPENDR + 4), Ok(6));
        vm.vgic.user_write(frame, ICPENDR + 4, 0xff).unwrap();
        assert_eq!((vm.vgic.user_read(frame, ICPENDR + 4), vm.vgic.user_read(frame, ISPENDR + 4)), (Ok(0), Ok(6)));
        for (value, result) in [
            (0x4b00_243b, Ok(())),
            (0x4b00_143b, Err(UserAccessError::Invalid)),
            (0x4b00_443b, Err(UserAccessError::Invalid)),
            (0x4a00_343b, Err(UserAccessError::Invalid)),
        ] {
            assert_eq!(vm.vgic.user_write(frame, 8, value), result, "{value:#x}");
        }
        assert_eq!(vm.vgic.user_read(frame, 8), Ok(0x4b00_243b));
        assert_eq!(vm.vgic.redist_read(0, 0, Word, &vm), 0, "revision 2 has no IR and CES");
        vm.vgic.user_write(frame, 4, 0).unwrap();
        assert_eq!(vm.vgic.user_read(frame, 4), Ok(0x0048_0002), "read-only registers ignore writes");
        for (frame, offset) in [
            (frame, 0x40),
            (frame, 5),
            (frame, 0x1_0000),
            (Frame::Redistributor(1), 0),
            (Frame::Redistributor(0), 0x18),
        ] {
            assert_eq!(vm.vgic.user_read(frame, offset), Err(UserAccessError::Unknown));
            assert_eq!(vm.vgic.user_write(frame, offset, 0), Err(UserAccessError::Unknown));
        }
    }
}

mod redistributor {
    use super::*;

    #[test]
    fn resets_to_the_documented_values() {
        let vm = FakeVm::new(3, 4);
        let expected = [
            (0x0000, 6),
            (0x0004, 0x4b00_043b),
            (0x0010, 0),
            (0x0014, 0),
            (0x0070, 0),
            (0xffe8, 0x3b),
            (0x1_0080, 0xffff_ffff),
            (0x1_0100, 0x0000_ffff),
            (0x1_0180, 0x0000_ffff),
            (0x1_0200, 0),
            (0x1_0300, 0),
            (0x1_0400, 0),
            (0x1_0c00, 0xaaaa_aaaa),
            (0x1_0c04, 0),
            (0x1_0d00, 0),
            (0x1_0e00, 0),
            (0x2_0000, 0),
        ];
        for (offset, value) in expected {
            assert_eq!(vm.vgic.redist_read(1, offset, Word, &vm), value, "{offset:#x}");
            assert_eq!(vm.vgic.redist_read(3, offset, Word, &vm), 0, "no such vCPU");
        }
    }

    #[test]
    fn type_tells_who_it_is() {
        let mpidrs = [0x8000_0000, 0x8000_0001, 0x12_8003_0201];
        let vgic = Vgic::new(&VgicConfig { mpidrs: &mpidrs, spis: 32 }).unwrap();
        let vm = FakeVm::new(1, 4);
        let typers = [0x0000_0000_0000_0000, 0x0000_0001_0000_0100, 0x0003_0201_0000_0210];
        for (vcpu, typer) in typers.into_iter().enumerate() {
            assert_eq!(vgic.redist_read(vcpu, 8, Double, &vm), typer);
            assert_eq!(vgic.redist_read(vcpu, 8, Word, &vm), typer & 0xffff_ffff);
            assert_eq!(vgic.redist_read(vcpu, 12, Word, &vm), typer >> 32);
        }
    }

    #[test]
    fn the_triggers_of_private_interrupts_are_fixed() {
        let vm = FakeVm::new(1, 4);
        write_sgi(&vm, 0, ICFGR, 0);
        write_sgi(&vm, 0, ICFGR + 4, 0xffff_ffff);
        assert_eq!((read_sgi(&vm, 0, ICFGR), read_sgi(&vm, 0, ICFGR + 4)), (0xaaaa_aaaa, 0));
    }

    #[test]
    fn vcpus_do_not_share_private_interrupts() {
        let vm = FakeVm::new(2, 4);
        write_sgi(&vm, 1, ISENABLER, 0x00ff_0000);
        vm.vgic.redist_write(1, SGI_FRAME + IPRIORITYR + 20, Byte, 0x80, &vm);
        assert_eq!((read_sgi(&vm, 0, ISENABLER), read_sgi(&vm, 1, ISENABLER)), (0xffff, 0x00ff_ffff));
        assert_eq!((read_sgi(&vm, 0, IPRIORITYR + 20), read_sgi(&vm, 1, IPRIORITYR + 20)), (0, 0x80));
    }
}

mod sgis {
    use super::*;

    fn pending(vm: &FakeVm) -> Vec<u64> {
        (0..vm.vgic.vcpus()).map(|vcpu| read_sgi(vm, vcpu, ISPENDR)).collect()
    }

    #[test]
    fn reach_the_list_or_all_others() {
        let vm = FakeVm::new(3, 4);
        vm.vgic.send_sgi(0, SgiRegister::Sgi1r, 3 << 24 | 0b1000_0000_0000_0011, &vm);
        vm.settle();
        assert_eq!(pending(&vm), [8, 8, 0]);
        vm.vgic.send_sgi(1, SgiRegister::Sgi1r, 1 << 40 | 5 << 24 | 0xffff, &vm);
        assert_eq!(pending(&vm), [0x28, 8, 0x20]);
        // Another cluster: nobody.
        for cluster in [1 << 16, 1 << 32, 1 << 48] {
            vm.vgic.send_sgi(0, SgiRegister::Sgi1r, cluster | 7, &vm);
        }
        assert_eq!(pending(&vm), [0x28, 8, 0x20]);
    }

    #[test]
    fn of_group_1_take_sgi1r() {
        let vm = FakeVm::new(1, 4);
        write_sgi(&vm, 0, 0x80, 0xffff_fffd);
        for register in [SgiRegister::Sgi0r, SgiRegister::Asgi1r, SgiRegister::Sgi1r] {
            vm.vgic.send_sgi(0, register, 1, &vm);
            vm.vgic.send_sgi(0, register, 1 << 24 | 1, &vm);
            let expected = if register == SgiRegister::Sgi1r { 3 } else { 2 };
            assert_eq!(pending(&vm), [expected], "{register:?}");
            write_sgi(&vm, 0, ICPENDR, 3);
        }
    }

    #[test]
    fn of_another_cluster_are_found() {
        let mpidrs = [0x0, 0x100, 0x1_0203, 0x55_0000_0000];
        let vgic = Vgic::new(&VgicConfig { mpidrs: &mpidrs, spis: 32 }).unwrap();
        let vm = FakeVm::new(1, 4);
        let targets = [1, 1 << 16 | 1, 1 << 32 | 2 << 16 | 8, 0x55 << 48 | 1];
        for (vcpu, target) in targets.into_iter().enumerate() {
            vgic.send_sgi(0, SgiRegister::Sgi1r, target, &Quiet);
            assert_eq!(vgic.redist_read(vcpu, SGI_FRAME + ISPENDR, Word, &vm), 1);
        }
    }
}

/// A host without vCPUs.
struct Quiet;

impl VgicHost for Quiet {
    fn kick(&self, _: usize) {}
    fn sync(&self, _: usize) {}
}

mod delivery {
    use super::*;

    #[test]
    fn a_level_is_delivered_while_it_is_high() {
        let vm = FakeVm::new(1, 4);
        write(&vm, ISENABLER + 4, 1);
        line(&vm, 32, true);
        assert_eq!(loaded(&vm, 0), [lr::PENDING | lr::GROUP1 | lr::EOI | 32]);
        for _ in 0..3 {
            assert_eq!(vm.acknowledge(0), Some(32));
            assert_eq!(vm.highest_pending(0), None);
            vm.end(0, 32);
            assert_eq!(vm.highest_pending(0), Some((0, 32)), "the line is still high");
        }
        line(&vm, 32, false);
        assert_eq!(loaded(&vm, 0), [0; 0], "withdrawn");
        // Lowered in the handler: no maintenance exit is asked for at the end.
        line(&vm, 32, true);
        vm.acknowledge(0);
        line(&vm, 32, false);
        assert_eq!(loaded(&vm, 0), [lr::ACTIVE | lr::GROUP1 | 32]);
        vm.end(0, 32);
        assert_eq!(loaded(&vm, 0), [0; 0]);
    }

    /// Whatever is in a list register when it ends, and in either mode.
    #[test]
    fn ends_of_what_is_watched_are_told() {
        for (list_registers, split) in [(4, false), (4, true), (1, false), (1, true)] {
            let vm = FakeVm::new(1, list_registers);
            if split {
                vm.cpus[0].borrow_mut().vif.vmcr |= lr::VMCR_EOIM;
            }
            let told = || core::mem::take(&mut *vm.ended.borrow_mut());
            // 33 and 35 are edge-triggered; 34 and 35 are not watched.
            write(&vm, ICFGR + 8, 0b10_00_10_00);
            write(&vm, ISENABLER + 4, 0xf);
            for n in 0..4 {
                vm.vgic.dist_write(IPRIORITYR + 32 + n, Byte, 0x80 - 8 * n, &vm);
            }
            [32, 33, 31, 96, u32::MAX].into_iter().for_each(|intid| vm.vgic.watch_spi(intid));
            for round in 0..3 {
                for intid in 32..36 {
                    line(&vm, intid, true);
                    assert_eq!(vm.acknowledge(0), Some(intid), "{list_registers} {split} {round}");
                    line(&vm, intid, false);
                    vm.settle();
                }
                assert_eq!(told(), [0; 0]);
                for intid in (32..36).rev() {
                    vm.end(0, intid);
                    if split {
                        assert_eq!(told(), [0; 0]);
                        vm.deactivate(0, intid);
                    }
                    vm.settle();
                    let expected: &[u32] = if intid < 34 { &[intid] } else { &[] };
                    assert_eq!(told(), expected, "{list_registers} {split} {round}");
                }
                vm.unload(0);
                vm.load(0);
                vm.settle();
                assert_eq!(told(), [0; 0]);
            }
            // What is taken back has not ended.
            line(&vm, 33, true);
            write(&vm, ICPENDR + 4, 2);
            assert_eq!((vm.acknowledge(0), told()), (None, Vec::new()));
        }
    }

    #[test]
    fn an_edge_is_delivered_once() {
        let vm = FakeVm::new(1, 4);
        write(&vm, ICFGR + 8, 2);
        write(&vm, ISENABLER + 4, 1);
        line(&vm, 32, true);
        assert_eq!(loaded(&vm, 0), [lr::PENDING | lr::GROUP1 | 32]);
        line(&vm, 32, false);
        assert_eq!(vm.acknowledge(0), Some(32), "the line does not matter any more");
        line(&vm, 32, true);
        assert_eq!(loaded(&vm, 0), [lr::PENDING | lr::ACTIVE | lr::GROUP1 | 32]);
        vm.end(0, 32);
        assert_eq!(vm.acknowledge(0), Some(32), "the second edge");
        vm.end(0, 32);
        assert_eq!(loaded(&vm, 0), [0; 0]);
    }

    #[test]
    fn withdrawing_loses_no_edge() {
        let vm = FakeVm::new(2, 4);
        write(&vm, ISENABLER + 4, 1);
        write(&vm, ICFGR + 8, 2);
        let check = |vcpu, expected: Option<(u32, u32)>| {
            assert_eq!(vm.highest_pending(vcpu), expected);
            assert_eq!(vm.highest_pending(1 - vcpu), None);
            assert_eq!(read(&vm, ISPENDR + 4), 1);
            vm.settle();
        };
        line(&vm, 32, true);
        check(0, Some((0, 32)));
        write(&vm, ICENABLER + 4, 1);
        check(0, None);
        write(&vm, ISENABLER + 4, 1);
        check(0, Some((0, 32)));
        write(&vm, IROUTER + 32 * 8, 1);
        check(1, Some((0, 32)));
        write(&vm, IPRIORITYR + 32, 0x50);
        check(1, Some((0x50, 32)));
        write(&vm, IROUTER + 32 * 8, 7);
        check(1, None);
        write(&vm, IROUTER + 32 * 8, 0);
        check(0, Some((0x50, 32)));
        write(&vm, 0, 0);
        check(0, None);
        write(&vm, 0, 2);
        check(0, Some((0x50, 32)));
        vm.unload(0);
        vm.settle();
        check(0, None);
        write(&vm, IROUTER + 32 * 8, 1);
        check(1, Some((0x50, 32)));
        write(&vm, ICPENDR + 4, 1);
        assert_eq!((vm.highest_pending(1), read(&vm, ISPENDR + 4)), (None, 0));
    }

    #[test]
    fn an_active_spi_stays_where_it_is() {
        let vm = FakeVm::new(2, 4);
        write(&vm, ISENABLER + 4, 1);
        line(&vm, 32, true);
        vm.acknowledge(0);
        write(&vm, IROUTER + 32 * 8, 1);
        assert_eq!((loaded(&vm, 0).len(), loaded(&vm, 1).len()), (1, 0));
        vm.end(0, 32);
        assert_eq!((vm.highest_pending(0), vm.highest_pending(1)), (None, Some((0, 32))));
        // Made inactive by MMIO while its vCPU is elsewhere.
        vm.acknowledge(1);
        write(&vm, IROUTER + 32 * 8, 0);
        vm.unload(1);
        assert_eq!((read(&vm, ISACTIVER + 4), vm.highest_pending(0)), (1, None));
        write(&vm, ICACTIVER + 4, 1);
        assert_eq!((read(&vm, ISACTIVER + 4), vm.highest_pending(0)), (0, Some((0, 32))));
    }

    #[test]
    fn the_guest_can_write_the_active_state() {
        let vm = FakeVm::new(1, 4);
        write_sgi(&vm, 0, ISENABLER, 1 << 20);
        vm.vgic.set_ppi(0, 20, true, &vm);
        vm.settle();
        write_sgi(&vm, 0, ISACTIVER, 1 << 20);
        assert_eq!(vm.highest_pending(0), None);
        assert_eq!(loaded(&vm, 0), [lr::ACTIVE | lr::GROUP1 | lr::EOI | 20]);
        write_sgi(&vm, 0, ICACTIVER, 1 << 20);
        assert_eq!(vm.acknowledge(0), Some(20));
        assert_eq!(read_sgi(&vm, 0, ISACTIVER), 1 << 20);
        vm.settle();
        vm.vgic.set_ppi(0, 20, false, &vm);
        write_sgi(&vm, 0, ICACTIVER, 1 << 20);
        assert_eq!(loaded(&vm, 0), [0; 0]);
    }

    #[test]
    fn state_in_list_registers_is_read() {
        /// The other CPU is back in its guest by the time that the reader looks.
        struct Fast<'a>(&'a FakeVm);
        impl VgicHost for Fast<'_> {
            fn kick(&self, _: usize) {}
            fn sync(&self, vcpu: usize) {
                self.0.sync(vcpu);
                self.0.enter(vcpu);
            }
        }
        let vm = FakeVm::new(1, 4);
        let host = Fast(&vm);
        let state = || {
            let spi = |offset| vm.vgic.dist_read(offset + 4, Word, &host);
            let sgi = |offset| vm.vgic.redist_read(0, SGI_FRAME + offset, Word, &host);
            ((spi(ISPENDR), spi(ISACTIVER)), (sgi(ISPENDR), sgi(ISACTIVER)))
        };
        write(&vm, ICFGR + 8, 2);
        write(&vm, ISENABLER + 4, 1);
        assert_eq!(state(), ((0, 0), (0, 0)));
        line(&vm, 32, true);
        vm.vgic.send_sgi(0, SgiRegister::Sgi1r, 3 << 24 | 1, &vm);
        vm.settle();
        assert_eq!(state(), ((1, 0), (8, 0)));
        assert_eq!(vm.acknowledge(0), Some(3));
        assert_eq!(state(), ((1, 0), (0, 8)));
        vm.end(0, 3);
        assert_eq!(vm.acknowledge(0), Some(32));
        assert_eq!(state(), ((0, 1), (0, 0)));
        line(&vm, 32, true);
        assert_eq!(state(), ((1, 1), (0, 0)));
    }

    #[test]
    fn lines_that_are_none_are_ignored() {
        let vm = FakeVm::new(1, 4);
        for intid in [0, 15, 31, 96, 1019, 1020, 8192, u32::MAX] {
            vm.vgic.set_spi(intid, true, &Quiet);
        }
        for intid in [0, 15, 32, TIMER, u32::MAX] {
            vm.vgic.set_ppi(0, intid, true, &Quiet);
        }
        vm.vgic.set_ppi(1, 20, true, &Quiet);
        for intid in [0, 20, 32, 64, u32::MAX] {
            vm.vgic.raise_hw(0, intid);
            vm.vgic.set_hw_level(0, intid, true);
        }
        for offset in [ISPENDR + 4, ISPENDR + 8] {
            assert_eq!(read(&vm, offset), 0);
        }
        assert_eq!(read_sgi(&vm, 0, ISPENDR), 0);
    }

    #[test]
    fn kicks_go_to_those_concerned() {
        let vm = FakeVm::new(3, 4);
        vm.kicks.borrow_mut().clear();
        write(&vm, IROUTER + 32 * 8, 2);
        write(&vm, ISENABLER + 4, 3);
        assert!(vm.kicks.borrow().is_empty(), "nothing is pending");
        line(&vm, 32, true);
        assert_eq!(vm.kicks.take(), [2]);
        line(&vm, 32, true);
        assert!(vm.kicks.borrow().is_empty(), "nothing has changed");
        vm.vgic.send_sgi(0, SgiRegister::Sgi1r, 2, &vm);
        assert_eq!(vm.kicks.take(), [1]);
        assert!(vm.vgic.dirty(1) && !vm.vgic.dirty(0));
    }

    #[test]
    fn reset_forgets_everything() {
        let vm = FakeVm::new(2, 4);
        write(&vm, ISENABLER + 4, 1);
        write(&vm, IROUTER + 32 * 8, 1);
        line(&vm, 32, true);
        vm.acknowledge(1);
        vm.unload(0);
        vm.unload(1);
        vm.vgic.reset();
        for offset in [ISENABLER + 4, ISPENDR + 4, ISACTIVER + 4, IROUTER + 32 * 8] {
            assert_eq!(read(&vm, offset), 0);
        }
        assert_eq!(read(&vm, 0), 0x50);
        for vcpu in 0..2 {
            vm.cpus[vcpu].borrow_mut().cpu = VgicCpu::new();
            vm.load(vcpu);
        }
        vm.settle();
        assert_eq!((loaded(&vm, 0), loaded(&vm, 1)), (vec![], vec![]));
    }
}

mod mapped {
    use super::*;

    fn timer_vm() -> FakeVm {
        let vm = FakeVm::new(1, 4);
        write_sgi(&vm, 0, ISENABLER, 1 << TIMER);
        vm
    }

    fn physical_active(vm: &FakeVm) -> bool {
        vm.cpus[0].borrow().vif.physical_active.contains(&PHYSICAL_TIMER)
    }

    const LOADED: u64 = lr::HW | lr::GROUP1 | (PHYSICAL_TIMER as u64) << lr::PINTID_SHIFT | TIMER as u64;

    #[test]
    fn the_end_deactivates_both() {
        let vm = timer_vm();
        for _ in 0..3 {
            vm.set_timer(0, true);
            assert_eq!(loaded(&vm, 0), [lr::PENDING | LOADED]);
            assert_eq!(vm.acknowledge(0), Some(TIMER));
            vm.set_timer(0, false);
            assert!(physical_active(&vm));
            vm.end(0, TIMER);
            assert!(!physical_active(&vm));
            assert!(!vm.vgic.dirty(0), "no exit");
        }
    }

    #[test]
    fn nothing_else_to_do_means_no_flush() {
        let vm = timer_vm();
        let inject = |vcpu: usize| {
            let super::super::fake::FakeCpu { vif, cpu, .. } = &mut *vm.cpus[vcpu].borrow_mut();
            vif.physical_active.insert(PHYSICAL_TIMER);
            vm.vgic.inject_hw(vcpu, TIMER, cpu, vif);
            vif.check_entry();
        };
        for _ in 0..3 {
            inject(0);
            assert!(!vm.vgic.dirty(0));
            assert_eq!(loaded(&vm, 0), [lr::PENDING | LOADED]);
            assert_eq!(vm.acknowledge(0), Some(TIMER));
            vm.end(0, TIMER);
        }
        // Disabled, or something else is to be done: the long way.
        write_sgi(&vm, 0, ICENABLER, 1 << TIMER);
        inject(0);
        assert!(vm.vgic.dirty(0));
        assert_eq!(loaded(&vm, 0), [0; 0]);
    }

    #[test]
    fn a_line_that_stays_high_fires_again() {
        let vm = timer_vm();
        vm.set_timer(0, true);
        for _ in 0..3 {
            assert_eq!(vm.acknowledge(0), Some(TIMER));
            assert_eq!(vm.highest_pending(0), None);
            vm.end(0, TIMER);
        }
        vm.set_timer(0, false);
        assert_eq!((loaded(&vm, 0).len(), physical_active(&vm)), (0, false), "switched off before it was taken");
    }

    #[test]
    fn software_keeps_the_state_while_the_vcpu_is_away() {
        let vm = timer_vm();
        vm.set_timer(0, true);
        vm.unload(0);
        assert!(vm.vgic.pending(0, &vm.cpus[0].borrow().cpu));
        vm.load(0);
        // The line is still high, but the interrupt is loaded before it can fire.
        {
            let FakeVm { vgic, cpus, .. } = &vm;
            let super::super::fake::FakeCpu { vif, cpu, .. } = &mut *cpus[0].borrow_mut();
            vgic.flush(0, cpu, vif, &vm);
        }
        assert_eq!((loaded(&vm, 0), physical_active(&vm)), (vec![lr::PENDING | LOADED], true));
        vm.acknowledge(0);
        vm.unload(0);
        assert!(!vm.vgic.pending(0, &vm.cpus[0].borrow().cpu));
        vm.load(0);
        vm.settle();
        assert_eq!((loaded(&vm, 0), physical_active(&vm)), (vec![lr::ACTIVE | LOADED], true));
        vm.unload(0);
        vm.set_timer(0, false);
        vm.load(0);
        vm.settle();
        vm.end(0, TIMER);
        assert_eq!((loaded(&vm, 0).len(), physical_active(&vm)), (0, false));
    }

    #[test]
    fn a_disabled_one_does_not_storm() {
        let vm = FakeVm::new(1, 4);
        vm.set_timer(0, true);
        assert!(physical_active(&vm), "it fired once, and is kept from firing again");
        assert_eq!(read_sgi(&vm, 0, ISPENDR), 1 << TIMER);
        vm.settle();
        write_sgi(&vm, 0, ISENABLER, 1 << TIMER);
        assert_eq!(vm.highest_pending(0), Some((0, TIMER)));
        write_sgi(&vm, 0, ICENABLER, 1 << TIMER);
        assert_eq!((loaded(&vm, 0).len(), physical_active(&vm)), (0, true));
        // The guest switches the timer off: no exit, but the next look at it tells.
        vm.cpus[0].borrow_mut().vif.lines.clear();
        assert_eq!(read_sgi(&vm, 0, ISPENDR), 0);
        assert!(!physical_active(&vm));
        write_sgi(&vm, 0, ISENABLER, 1 << TIMER);
        assert_eq!(vm.highest_pending(0), None);
    }

    #[test]
    fn the_guest_can_pend_and_unpend_it() {
        let vm = timer_vm();
        write_sgi(&vm, 0, ISPENDR, 1 << TIMER);
        assert_eq!((loaded(&vm, 0), physical_active(&vm)), (vec![lr::PENDING | LOADED], true));
        write_sgi(&vm, 0, ICPENDR, 1 << TIMER);
        assert_eq!((loaded(&vm, 0).len(), physical_active(&vm)), (0, false));
        vm.set_timer(0, true);
        write_sgi(&vm, 0, ICPENDR, 1 << TIMER);
        assert_eq!(vm.highest_pending(0), Some((0, TIMER)), "the line is high");
        vm.acknowledge(0);
        vm.set_timer(0, false);
        write_sgi(&vm, 0, ISPENDR, 1 << TIMER);
        // Pending and active: not with HW.
        let both = lr::PENDING | lr::ACTIVE | lr::GROUP1 | lr::EOI | u64::from(TIMER);
        assert_eq!((loaded(&vm, 0), physical_active(&vm)), (vec![both], true));
        vm.end(0, TIMER);
        assert_eq!(vm.acknowledge(0), Some(TIMER));
        vm.end(0, TIMER);
        assert_eq!((loaded(&vm, 0).len(), physical_active(&vm)), (0, false));
        vm.set_timer(0, true);
        assert_eq!(vm.highest_pending(0), Some((0, TIMER)));
    }
}

mod overflow {
    use super::*;

    #[test]
    fn twelve_interrupts_through_four_list_registers() {
        let vm = FakeVm::new(1, 4);
        for n in 0..12 {
            vm.vgic.dist_write(IPRIORITYR + 40 + n, Byte, 0xa0 - 8 * n, &vm);
        }
        write(&vm, ICFGR + 8, 0xffff_ffff);
        write(&vm, ICFGR + 12, 0xffff_ffff);
        write(&vm, ISPENDR + 4, 0xfff << 8);
        write(&vm, ISENABLER + 4, 0xfff << 8);
        assert!(control(&vm, 0).contains(Control::NO_PENDING));
        for n in (0..12).rev() {
            assert_eq!(vm.acknowledge(0), Some(40 + n), "in order of priority");
            vm.end(0, 40 + n);
        }
        assert_eq!((vm.acknowledge(0), control(&vm, 0)), (None, Control::empty()));
    }

    #[test]
    fn nested_handlers_without_list_registers() {
        for list_registers in 1..=3 {
            let vm = FakeVm::new(1, list_registers);
            write(&vm, ISENABLER + 4, 0xff);
            for n in 0..8 {
                vm.vgic.dist_write(IPRIORITYR + 32 + n, Byte, 0x80 - 8 * n, &vm);
                line(&vm, 32 + n as u32, true);
                assert_eq!(vm.acknowledge(0), Some(32 + n as u32));
                line(&vm, 32 + n as u32, false);
            }
            assert_eq!(control(&vm, 0), Control::ENTRY_NOT_PRESENT | Control::TRAP_DEACTIVATE);
            assert_eq!(read(&vm, ISACTIVER + 4), 0xff);
            vm.settle();
            for n in (0..8).rev() {
                vm.end(0, 32 + n);
                assert_eq!(read(&vm, ISACTIVER + 4), (1 << n) - 1, "{list_registers}");
                vm.settle();
            }
            assert_eq!(control(&vm, 0), Control::empty());
        }
    }

    #[test]
    fn eoi_mode_1_does_not_block() {
        let vm = FakeVm::new(1, 2);
        vm.cpus[0].borrow_mut().vif.vmcr |= lr::VMCR_EOIM;
        write(&vm, ICFGR + 8, 0xffff_ffff);
        write(&vm, ISENABLER + 4, 0xff);
        write(&vm, ISPENDR + 4, 0xff);
        // All are taken and ended, none deactivated.
        for n in 0..8 {
            assert_eq!(vm.acknowledge(0), Some(32 + n));
            vm.end(0, 32 + n);
        }
        assert_eq!(read(&vm, ISACTIVER + 4), 0xff);
        vm.settle();
        for (count, n) in [5, 0, 7, 1, 6, 2, 4, 3].into_iter().enumerate() {
            vm.deactivate(0, 32 + n);
            assert_eq!(read(&vm, ISACTIVER + 4).count_ones() as usize, 7 - count);
            vm.settle();
        }
        assert_eq!(control(&vm, 0), Control::empty());
    }

    #[test]
    fn ends_of_nothing_are_not_counted() {
        let vm = FakeVm::new(1, 1);
        write(&vm, ISENABLER + 4, 3);
        vm.vgic.dist_write(IPRIORITYR + 32, Byte, 0x80, &vm);
        // Ends of interrupts that are not active, while there is room for all.
        for _ in 0..3 {
            vm.end(0, 40);
        }
        for intid in [32, 33] {
            line(&vm, intid, true);
            assert_eq!(vm.acknowledge(0), Some(intid));
            line(&vm, intid, false);
        }
        assert_eq!(read(&vm, ISACTIVER + 4), 3);
        vm.settle();
        vm.end(0, 33);
        assert_eq!(read(&vm, ISACTIVER + 4), 1);
    }

    #[test]
    fn pending_again_keeps_nobody_out() {
        let vm = FakeVm::new(1, 2);
        write_sgi(&vm, 0, ISENABLER, 1 << 20);
        let sgi = |intid: u64| {
            vm.vgic.send_sgi(0, SgiRegister::Sgi1r, intid << 24 | 1, &vm);
            vm.settle();
        };
        sgi(2);
        assert_eq!(vm.acknowledge(0), Some(2));
        // SGI 2 moves to group 0, which is off, and becomes pending again; two others of group 1 wait.
        write_sgi(&vm, 0, 0x80, !4 & 0xffff_ffff);
        sgi(0);
        vm.vgic.set_ppi(0, 20, true, &vm);
        vm.settle();
        sgi(2);
        vm.end(0, 2);
        assert_eq!(vm.acknowledge(0), Some(0));
        vm.end(0, 0);
        assert_eq!(vm.acknowledge(0), Some(20));
    }

    #[test]
    fn a_group_that_is_off_keeps_nobody_out() {
        let vm = FakeVm::new(1, 2);
        write(&vm, 0x84, 0xffff_fff0);
        write(&vm, ISENABLER + 4, 0xff);
        write(&vm, IPRIORITYR + 36, 0x0808_0808);
        write(&vm, ISPENDR + 4, 0x1f);
        assert_eq!(vm.acknowledge(0), Some(36), "of group 1, behind four of group 0");
        vm.end(0, 36);
        vm.cpus[0].borrow_mut().vif.vmcr |= lr::VMCR_ENG0;
        vm.settle();
        for intid in 32..36 {
            assert_eq!(vm.acknowledge(0), Some(intid));
            vm.end(0, intid);
        }
    }
}

mod waiting {
    use super::*;

    #[test]
    fn wakes_for_what_would_be_signalled() {
        let vm = FakeVm::new(2, 4);
        vm.unload(0);
        let pending = || vm.vgic.pending(0, &vm.cpus[0].borrow().cpu);
        write(&vm, IPRIORITYR + 64, 0x80);
        line(&vm, 64, true);
        assert!(!pending(), "disabled");
        write(&vm, ISENABLER + 8, 1);
        assert!(pending());
        vm.cpus[0].borrow_mut().cpu.vmcr = lr::VMCR_ENG1 | 0x80 << lr::VMCR_PMR_SHIFT;
        assert!(!pending(), "masked");
        vm.cpus[0].borrow_mut().cpu.vmcr = lr::VMCR_ENG0 | 0xf0 << lr::VMCR_PMR_SHIFT;
        assert!(!pending(), "group 1 is off");
        vm.cpus[0].borrow_mut().cpu.vmcr = lr::VMCR_ENG1 | 0x88 << lr::VMCR_PMR_SHIFT;
        assert!(pending());
        write(&vm, 0, 0);
        assert!(!pending(), "the distributor is off");
        write(&vm, 0, 2);
        assert!(pending());
        write(&vm, IROUTER + 64 * 8, 1);
        assert!(!pending(), "it goes elsewhere");
        vm.vgic.send_sgi(1, SgiRegister::Sgi1r, 1, &vm);
        assert!(pending());
        assert!(!vm.vgic.pending(2, &VgicCpu::new()), "no such vCPU");
    }
}

#[test]
fn any_access_is_answered() {
    let vm = FakeVm::new(2, 2);
    let sizes = [Byte, Half, Word, Double];
    let check = |offset, size: AccessSize| {
        vm.vgic.dist_write(offset, size, u64::MAX, &vm);
        vm.vgic.redist_write(1, offset, size, u64::MAX, &vm);
        assert!(vm.vgic.dist_read(offset, size, &vm) <= size.mask());
        assert!(vm.vgic.redist_read(1, offset, size, &vm) <= size.mask());
    };
    for offset in 0..0x2_0010 {
        for size in sizes {
            check(offset, size);
        }
        if offset % 64 == 0 {
            vm.settle();
        }
    }
    check(u64::MAX, Byte);
    check(u64::MAX - 7, Double);
}
