//! The commands of the ITS (IHI 0069 §5.3), as a table.
//!
//! `None` from a command: it cannot be carried out, and was skipped. Operands beyond what a field of the architecture
//! has are ignored.

use super::tables::{Device, Event, ITT_ADDRESS};
use super::{Its, LONG_COMMAND};
use crate::vdev::vgic::{ID_BITS, Vgic, VgicHost};

/// Bytes of a command.
pub(super) const COMMAND_BYTES: u64 = 32;

/// One command, and what it works on.
struct Command<'a> {
    words: &'a [u64; 4],
    vgic: &'a Vgic,
    host: &'a dyn VgicHost,
}

impl Command<'_> {
    fn device(&self) -> u32 {
        (self.words[0] >> 32) as u32
    }

    fn event(&self) -> u32 {
        self.words[1] as u32
    }

    /// MAPTI's pINTID.
    fn intid(&self) -> u32 {
        (self.words[1] >> 32) as u32
    }

    fn collection(&self) -> u16 {
        self.words[2] as u16
    }

    fn valid(&self) -> bool {
        self.words[2] >> 63 != 0
    }

    /// RDbase in `word`: the number of a vCPU (GITS_TYPER.PTA is 0).
    fn vcpu(&self, word: usize) -> Option<usize> {
        let vcpu = (self.words[word] >> 16) as usize & 0xf_ffff_ffff;
        (vcpu < self.vgic.vcpus()).then_some(vcpu)
    }
}

type Execute = fn(&Its, &Command<'_>) -> Option<()>;

/// The number of a command, how much of a turn it takes, and what it does.
const COMMANDS: &[(u8, u32, Execute)] = &[
    /* MOVI    */ (0x01, 1, move_event),
    /* INT     */ (0x03, 1, interrupt),
    /* CLEAR   */ (0x04, 1, clear),
    /* SYNC    */ (0x05, 1, |_, _| Some(())), // each command has taken effect when the next is read
    /* MAPD    */ (0x08, 1, map_device),
    /* MAPC    */ (0x09, 1, map_collection),
    /* MAPTI   */ (0x0a, 1, |its, command| map_event(its, command, command.intid())),
    /* MAPI    */ (0x0b, 1, |its, command| map_event(its, command, command.event())),
    /* INV     */ (0x0c, 1, invalidate),
    /* INVALL  */ (0x0d, LONG_COMMAND, invalidate_all),
    /* MOVALL  */ (0x0e, LONG_COMMAND, move_all),
    /* DISCARD */ (0x0f, 1, discard),
];

impl Its {
    /// Carries a command out; how much of a turn that took.
    pub(super) fn execute(&self, words: &[u64; 4], vgic: &Vgic, host: &dyn VgicHost) -> u32 {
        let number = words[0] as u8;
        match COMMANDS.iter().find(|(known, ..)| *known == number) {
            Some((_, cost, execute)) => {
                // What cannot be carried out is skipped.
                let _ = execute(self, &Command { words, vgic, host });
                *cost
            }
            None => 1,
        }
    }

    /// What an event of a device leads to: the LPI, and its vCPU.
    fn translate(&self, device: u32, event: u32, vgic: &Vgic) -> Option<(u32, usize)> {
        let device = self.device(device)?;
        let event = self.event(&device, event).filter(|event| vgic.is_lpi(event.intid))?;
        let vcpu = self.collection(event.collection).filter(|vcpu| *vcpu < vgic.vcpus())?;
        Some((event.intid, vcpu))
    }

    pub(super) fn translate_and_pend(&self, device: u32, event: u32, vgic: &Vgic, host: &dyn VgicHost) -> Option<()> {
        let (intid, vcpu) = self.translate(device, event, vgic)?;
        vgic.pend_lpi(vcpu, intid, host);
        Some(())
    }
}

fn map_device(its: &Its, command: &Command<'_>) -> Option<()> {
    let device = if command.valid() {
        let event_bits = (command.words[1] & 0x1f) as u32 + 1;
        (event_bits <= ID_BITS).then_some(())?;
        Some(Device { itt: command.words[2] & ITT_ADDRESS, event_bits })
    } else {
        None
    };
    its.set_device(command.device(), device)
}

fn map_collection(its: &Its, command: &Command<'_>) -> Option<()> {
    let vcpu = if command.valid() { Some(command.vcpu(2)?) } else { None };
    its.set_collection(command.collection(), vcpu)
}

/// Maps an event to an LPI. One that is mapped already stays as it is: UNPREDICTABLE, and KVM's choice.
fn map_event(its: &Its, command: &Command<'_>, intid: u32) -> Option<()> {
    let device = its.device(command.device())?;
    let collection = command.collection();
    (command.vgic.is_lpi(intid) && its.has_room_for_collection(collection)).then_some(())?;
    if its.event(&device, command.event()).is_some() {
        return None;
    }
    its.set_event(&device, command.event(), Some(Event { intid, collection }))?;
    command.vgic.invalidate_lpi(intid, command.host);
    Some(())
}

fn move_event(its: &Its, command: &Command<'_>) -> Option<()> {
    let (intid, from) = its.translate(command.device(), command.event(), command.vgic)?;
    let collection = command.collection();
    let to = its.collection(collection).filter(|vcpu| *vcpu < command.vgic.vcpus())?;
    let device = its.device(command.device())?;
    its.set_event(&device, command.event(), Some(Event { intid, collection }))?;
    command.vgic.move_lpi(from, to, intid, command.host);
    Some(())
}

fn move_all(_: &Its, command: &Command<'_>) -> Option<()> {
    let (from, to) = (command.vcpu(2)?, command.vcpu(3)?);
    command.vgic.move_all_lpis(from, to, command.host);
    Some(())
}

fn discard(its: &Its, command: &Command<'_>) -> Option<()> {
    // Its collection must be mapped (IHI 0069 §5.3.6).
    let (intid, vcpu) = its.translate(command.device(), command.event(), command.vgic)?;
    let device = its.device(command.device())?;
    its.set_event(&device, command.event(), None)?;
    command.vgic.clear_lpi(vcpu, intid, command.host);
    Some(())
}

fn interrupt(its: &Its, command: &Command<'_>) -> Option<()> {
    its.translate_and_pend(command.device(), command.event(), command.vgic, command.host)
}

fn clear(its: &Its, command: &Command<'_>) -> Option<()> {
    let (intid, vcpu) = its.translate(command.device(), command.event(), command.vgic)?;
    command.vgic.clear_lpi(vcpu, intid, command.host);
    Some(())
}

fn invalidate(its: &Its, command: &Command<'_>) -> Option<()> {
    let (intid, _) = its.translate(command.device(), command.event(), command.vgic)?;
    command.vgic.invalidate_lpi(intid, command.host);
    Some(())
}

fn invalidate_all(its: &Its, command: &Command<'_>) -> Option<()> {
    let vcpu = its.collection(command.collection()).filter(|vcpu| *vcpu < command.vgic.vcpus())?;
    command.vgic.invalidate_all_lpis(vcpu, command.host);
    Some(())
}
