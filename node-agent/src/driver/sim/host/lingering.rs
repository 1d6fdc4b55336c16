//! Devices on their way between host and pool, after whoever asked for it was cut off: the host goes on by itself.

use super::Host;
use berth_agent_core::step::Step;
use berth_model::pci::DeviceAddress;

impl Host {
    /// Whether a function shows neither in the host nor in the pool, although it is there.
    pub fn is_lingering(&self, address: &DeviceAddress) -> bool {
        self.lingering.contains_key(address)
    }

    /// Functions on their way.
    pub fn lingering(&self) -> impl Iterator<Item = &DeviceAddress> {
        self.lingering.keys()
    }

    /// Takes a step that takes effect late. Nobody hears whether it worked.
    pub(super) fn carry_out_late(&mut self, step: &Step, looks: u32) {
        let done = self.carry_out(step).is_ok();
        let address = match step {
            Step::Dismount { address } | Step::Mount { address } => address,
            Step::MakeStandalone { .. }
            | Step::StopVm { .. }
            | Step::ConfigureVm { .. }
            | Step::Disable { .. }
            | Step::Attach { .. }
            | Step::StartVm { .. }
            | Step::Verify { .. }
            | Step::InstallDriver { .. }
            | Step::Detach { .. }
            | Step::DetachStale { .. }
            | Step::Enable { .. }
            | Step::RestoreVm { .. } => return,
        };
        // Where it will be when it arrives is settled; until then nothing shows it.
        if done && self.function(address).is_some() && !self.is_lingering(address) {
            self.lingering.insert(address.clone(), looks);
        }
    }

    /// A look was taken: what has been on its way for long enough arrives.
    pub(super) fn linger(&mut self) {
        self.lingering.retain(|_, looks| {
            *looks = looks.saturating_sub(1);
            *looks > 0
        });
    }

    /// What is on its way arrives now: the host is restarted, or the card moved.
    pub(super) fn arrive_all(&mut self) {
        self.lingering.clear();
    }
}
