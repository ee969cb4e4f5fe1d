//! The numbers of the calls (Linux, uapi `linux/kvm.h`), and of keel's two beside them.
//!
//! A number means something only on one kind of object: [`ARM_SET_DEVICE_ADDR`] of a VM is [`GET_ONE_REG`] of a vCPU.

/// KVM's letter in its numbers.
const KVM: u32 = 0xae;
/// keel's letter.
const KEEL: u32 = b'k' as u32;

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;
const BOTH: u32 = 3;

/// A number, as Linux's `_IOC` makes it: who writes the argument, its size, whose it is, and which.
const fn number(direction: u32, size: usize, letter: u32, sequence: u32) -> u32 {
    direction << 30 | (size as u32) << 16 | letter << 8 | sequence
}

macro_rules! numbers {
    ($($name:ident = $direction:ident $size:literal $sequence:literal, $doc:literal;)*) => {
        $(#[doc = $doc] pub const $name: u32 = number($direction, $size, KVM, $sequence);)*

        /// The name of a number, if it is one of KVM's for arm64. Of two with the same number, the VM's.
        pub const fn name(number: u32) -> Option<&'static str> {
            $(if number == $name { return Some(stringify!($name)); })*
            None
        }
    };
}

numbers! {
    GET_API_VERSION = NONE 0 0x00, "System: 12.";
    CREATE_VM = NONE 0 0x01, "System: a VM with this many IPA bits; 0 for 40.";
    CHECK_EXTENSION = NONE 0 0x03, "System and VM: how much there is of a capability.";
    GET_VCPU_MMAP_SIZE = NONE 0 0x04, "System: bytes of `struct kvm_run` and what follows it.";
    CREATE_VCPU = NONE 0 0x41, "VM: a vCPU of this number.";
    GET_DIRTY_LOG = WRITE 16 0x42, "VM: which pages of a slot were written to.";
    SET_USER_MEMORY_REGION = WRITE 32 0x46, "VM: makes, moves or removes a slot.";
    SET_USER_MEMORY_REGION2 = WRITE 160 0x49, "VM: as before, with room for more.";
    CREATE_IRQCHIP = NONE 0 0x60, "VM: a vGICv2.";
    IRQ_LINE = WRITE 8 0x61, "VM: raises or lowers an interrupt line.";
    IRQ_LINE_STATUS = BOTH 8 0x67, "VM: as before.";
    REGISTER_COALESCED_MMIO = WRITE 16 0x67, "VM: collects writes to a range.";
    UNREGISTER_COALESCED_MMIO = WRITE 16 0x68, "VM: no longer.";
    SET_GSI_ROUTING = WRITE 8 0x6a, "VM: what an interrupt number of user space stands for.";
    IRQFD = WRITE 32 0x76, "VM: binds a file to an interrupt.";
    IOEVENTFD = WRITE 64 0x79, "VM: binds a store to a file.";
    ENABLE_CAP = WRITE 104 0xa3, "VM: turns a capability on.";
    SIGNAL_MSI = WRITE 32 0xa5, "VM: writes a message for the ITS.";
    ARM_SET_DEVICE_ADDR = WRITE 16 0xab, "VM: where the vGICv2 is.";
    ARM_PREFERRED_TARGET = READ 32 0xaf, "VM: what to initialise a vCPU with.";
    ARM_MTE_COPY_TAGS = READ 48 0xb4, "VM: copies tags of memory.";
    ARM_SET_COUNTER_OFFSET = WRITE 16 0xb5, "VM: moves its counters.";
    ARM_GET_REG_WRITABLE_MASKS = READ 64 0xb6, "VM: which fields of ID registers can be written.";
    CLEAR_DIRTY_LOG = BOTH 24 0xc0, "VM: forgets that pages were written to.";
    RESET_DIRTY_RINGS = NONE 0 0xc7, "VM: takes rings of dirty pages back.";
    GET_STATS_FD = NONE 0 0xce, "VM and vCPU: a file of statistics.";
    CREATE_DEVICE = BOTH 12 0xe0, "VM: a device.";
    SET_DEVICE_ATTR = WRITE 24 0xe1, "VM, vCPU and device: writes an attribute.";
    GET_DEVICE_ATTR = WRITE 24 0xe2, "vCPU and device: reads an attribute.";
    HAS_DEVICE_ATTR = WRITE 24 0xe3, "VM, vCPU and device: whether there is such an attribute.";
    RUN = NONE 0 0x80, "vCPU: runs until there is something to do.";
    GET_REGS = READ 864 0x81, "vCPU: not on arm64.";
    SET_REGS = WRITE 864 0x82, "vCPU: not on arm64.";
    GET_SREGS = READ 0 0x83, "vCPU: not on arm64.";
    SET_SREGS = WRITE 0 0x84, "vCPU: not on arm64.";
    TRANSLATE = BOTH 24 0x85, "vCPU: not on arm64.";
    INTERRUPT = WRITE 4 0x86, "vCPU: not on arm64.";
    SET_SIGNAL_MASK = WRITE 4 0x8b, "vCPU: signals that end a run.";
    GET_FPU = READ 0 0x8c, "vCPU: not on arm64.";
    SET_FPU = WRITE 0 0x8d, "vCPU: not on arm64.";
    GET_MP_STATE = READ 4 0x98, "vCPU: whether it is on.";
    SET_MP_STATE = WRITE 4 0x99, "vCPU: turns it on or off.";
    SET_GUEST_DEBUG = WRITE 520 0x9b, "vCPU: who its debug exceptions belong to.";
    GET_VCPU_EVENTS = READ 64 0x9f, "vCPU: its pending exceptions.";
    SET_VCPU_EVENTS = WRITE 64 0xa0, "vCPU: makes exceptions pending.";
    GET_ONE_REG = WRITE 16 0xab, "vCPU: reads a register.";
    SET_ONE_REG = WRITE 16 0xac, "vCPU: writes a register.";
    ARM_VCPU_INIT = WRITE 32 0xae, "vCPU: features, and a reset.";
    GET_REG_LIST = BOTH 8 0xb0, "vCPU: all registers there are.";
    ARM_VCPU_FINALIZE = WRITE 4 0xc2, "vCPU: completes a feature.";
}

/// keel: gives a handle back. What `close` is on Linux.
pub const CLOSE: u32 = number(NONE, 0, KEEL, 0);
/// keel, system: bytes of memory that keel has left.
pub const FREE_MEMORY: u32 = number(NONE, 0, KEEL, 2);
/// keel, vCPU: the page of `struct kvm_run`. What `mmap` is on Linux.
pub const SET_RUN_PAGE: u32 = number(NONE, 0, KEEL, 1);
