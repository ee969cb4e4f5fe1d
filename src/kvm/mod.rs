//! The KVM API: VMs and vCPUs with KVM's calls, structures and error numbers.
pub mod errno;

pub use errno::Errno;
