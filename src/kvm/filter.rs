//! The SMCCC filter of a VM: calls that are kept from it, or that are for whoever runs it.
//!
//! Source: Linux, Documentation/virt/kvm/devices/vm.rst, KVM_ARM_VM_SMCCC_FILTER. Ranges of function ids are put in until a
//! vCPU has run; none may overlap another, or the Arm architecture calls, which every guest needs.

use super::{Errno, uapi::SmcccFilter};
use crate::hypercall::{FilterAction, smccc::FunctionId};
use alloc::vec::Vec;

/// Function ids of the Arm architecture calls, first and last: no filter's.
const RESERVED: [(u32, u32); 2] = [(0x8000_0000, 0x8000_ffff), (0xc000_0000, 0xc000_ffff)];

/// The ranges of one VM: first and last id, and what becomes of calls in between.
#[derive(Clone, Debug, Default)]
pub struct Filter(Vec<(u32, u32, FilterAction)>);

impl Filter {
    /// Whether no range was put in.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What becomes of a call.
    #[inline]
    pub fn action(&self, function: FunctionId) -> FilterAction {
        let range = self.0.iter().find(|(first, last, _)| (*first..=*last).contains(&function.0));
        range.map_or(FilterAction::Handle, |(.., action)| *action)
    }

    /// Puts in a range; `ran`: a vCPU has run.
    ///
    /// # Errors
    ///
    /// `EINVAL` for padding that is not zero, no functions, a range beyond the last id or an unknown action; `EBUSY` if a
    /// vCPU has run; `EEXIST` if it overlaps a range put in before or the architecture's.
    pub fn insert(&mut self, range: &SmcccFilter, ran: bool) -> Result<(), Errno> {
        let action = match range.action {
            _ if range.pad != [0; 15] => return Err(Errno::EINVAL),
            0 => FilterAction::Handle,
            1 => FilterAction::Deny,
            2 => FilterAction::Forward,
            _ => return Err(Errno::EINVAL),
        };
        let beyond = range.nr_functions.checked_sub(1).ok_or(Errno::EINVAL)?;
        let (first, last) = (range.base, range.base.checked_add(beyond).ok_or(Errno::EINVAL)?);
        if ran {
            return Err(Errno::EBUSY);
        }
        let taken = RESERVED.into_iter().chain(self.0.iter().map(|&(first, last, _)| (first, last)));
        if taken.into_iter().any(|(other_first, other_last)| first <= other_last && other_first <= last) {
            return Err(Errno::EEXIST);
        }
        self.0.push((first, last, action));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(base: u32, nr_functions: u32, action: u8) -> SmcccFilter {
        SmcccFilter { base, nr_functions, action, pad: [0; 15] }
    }

    #[test]
    fn ranges_are_checked() {
        let mut filter = Filter::default();
        assert_eq!(filter.insert(&range(0x8400_0050, 4, 1), false), Ok(()));
        assert_eq!(filter.insert(&range(0xc600_0100, 1, 2), false), Ok(()));
        for (base, count, action, errno) in [
            (0x8000_0000, 1, 1, Errno::EEXIST),
            (0x7fff_ffff, 2, 1, Errno::EEXIST),
            (0xc000_ffff, 1, 0, Errno::EEXIST),
            (0x8400_0053, 1, 0, Errno::EEXIST),
            (0x8400_0000, 0x51, 0, Errno::EEXIST),
            (0x8400_0000, 0, 0, Errno::EINVAL),
            (0xffff_ffff, 2, 0, Errno::EINVAL),
            (0x8400_0000, 1, 3, Errno::EINVAL),
        ] {
            assert_eq!(filter.insert(&range(base, count, action), false), Err(errno), "{base:#x} {count} {action}");
        }
        assert_eq!(filter.insert(&range(0x8400_0000, 1, 1), true), Err(Errno::EBUSY));
        assert_eq!(filter.insert(&range(0x8400_0000, 0, 1), true), Err(Errno::EINVAL), "comes first");
        let mut padded = range(0x8400_0000, 1, 1);
        padded.pad[14] = 1;
        assert_eq!(filter.insert(&padded, false), Err(Errno::EINVAL));
        assert_eq!(filter.insert(&range(0xffff_ffff, 1, 1), false), Ok(()));
        assert_eq!(filter.action(FunctionId(0x8400_0050)), FilterAction::Deny);
        assert_eq!(filter.action(FunctionId(0x8400_0053)), FilterAction::Deny);
        assert_eq!(filter.action(FunctionId(0x8400_0054)), FilterAction::Handle);
        assert_eq!(filter.action(FunctionId(0xc600_0100)), FilterAction::Forward);
        assert_eq!(filter.action(FunctionId(0xffff_ffff)), FilterAction::Deny);
    }

    proptest! {
        /// What is put in holds for exactly its ids, and nothing overlaps.
        #[test]
        fn ids_have_one_range(
            ranges in proptest::collection::vec((0x8400_0000u32..0x8400_0040, 0u32..0x10, 0u8..4), 1..20)
        ) {
            let mut filter = Filter::default();
            let mut model = [None; 0x50];
            for (base, count, action) in ranges {
                let first = (base - 0x8400_0000) as usize;
                let covered = &mut model[first..first + count as usize];
                let expected = if count == 0 || action == 3 {
                    Err(Errno::EINVAL)
                } else if covered.iter().any(Option::is_some) {
                    Err(Errno::EEXIST)
                } else {
                    covered.fill(Some(action));
                    Ok(())
                };
                prop_assert_eq!(filter.insert(&range(base, count, action), false), expected);
            }
            for (n, action) in model.into_iter().enumerate() {
                let expected = [FilterAction::Handle, FilterAction::Deny, FilterAction::Forward][usize::from(action.unwrap_or(0))];
                prop_assert_eq!(filter.action(FunctionId(0x8400_0000 + n as u32)), expected);
            }
        }
    }
}
