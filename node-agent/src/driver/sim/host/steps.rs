//! The steps as a Hyper-V host carries them out, and how each goes wrong.

use super::{Host, Outcome, Record, Vm};
use crate::driver::DriverError;
use crate::driver::sim::faults::StepFault;
use berth_agent_core::observed::VmSettings;
use berth_agent_core::step::Step;
use berth_model::VmId;
use berth_model::pci::DeviceAddress;
use berth_model::vm::VmState;

fn failed(text: impl Into<String>) -> DriverError {
    DriverError::Failed(text.into())
}

impl Host {
    pub(super) fn act_with(&mut self, step: &Step, fault: Option<StepFault>) -> Outcome<()> {
        Outcome::Ended(match fault {
            None => self.carry_out(step),
            Some(StepFault::Fails(why)) => Err(failed(why)),
            Some(StepFault::Hangs { effect }) => {
                if effect {
                    // Nobody hears whether it worked.
                    let _ = self.carry_out(step);
                }
                return Outcome::Hangs;
            }
            Some(StepFault::Lingers { looks }) => {
                self.carry_out_late(step, looks);
                return Outcome::Hangs;
            }
            Some(StepFault::NoEffect) => Ok(()),
            Some(StepFault::HalfDone) => self
                .carry_out(&half(step, self.settings_of(step)))
                .and_then(|()| Err(failed(format!("{step}: failed in the middle (simulated)")))),
        })
    }

    fn settings_of(&self, step: &Step) -> Option<&VmSettings> {
        step.vm().and_then(|vm| self.vms.get(vm)).map(|vm| &vm.settings)
    }

    pub(super) fn carry_out(&mut self, step: &Step) -> Result<(), DriverError> {
        if let Some(address) = step.device().filter(|address| self.is_lingering(address)) {
            // Neither cmdlet finds it. What matches nothing succeeds silently.
            let silent = matches!(step, Step::Mount { .. } | Step::Detach { .. });
            let missing = || DriverError::NotThere(format!("No matching device found at {address}"));
            return if silent { Ok(()) } else { Err(missing()) };
        }
        match step {
            Step::MakeStandalone { vm, .. } => {
                self.find(vm)?.clustered = false;
                Ok(())
            }
            Step::StopVm { vm } => {
                let vm = self.find(vm)?;
                if vm.state == VmState::Saved {
                    // As the script of the Hyper-V driver has it.
                    return Err(DriverError::Forbidden("the VM has a saved state, which would be lost".to_owned()));
                }
                vm.turn_off();
                Ok(())
            }
            Step::ConfigureVm { vm, settings } | Step::RestoreVm { vm, settings } => {
                let vm = self.find_off(vm)?;
                vm.settings = settings.clone();
                Ok(())
            }
            Step::Disable { address } => self.disable(address),
            Step::Dismount { address } => self.dismount(address),
            Step::Attach { vm, address } => self.attach(vm, address),
            Step::StartVm { vm } => self.start(vm),
            Step::Verify { vm } => {
                let vm = self.find(vm)?;
                if vm.state != VmState::Running {
                    return Err(failed("A remote session might have ended: the VM is not running"));
                }
                vm.asked = true;
                Ok(())
            }
            // Nothing is run in what is no guest; the port's own answer says so.
            Step::InstallDriver { .. } => Ok(()),
            Step::Detach { vm, address } => {
                let live: Vec<_> =
                    self.vms.get(vm).into_iter().flat_map(|vm| &vm.devices).map(|r| self.is_live(r)).collect();
                let vm = self.find_off(vm)?;
                // What matches nothing succeeds silently.
                let mut live = live.into_iter();
                vm.devices.retain(|record| !(live.next().unwrap_or(false) && record.address == *address));
                Ok(())
            }
            Step::DetachStale { vm } => {
                let live: Vec<_> =
                    self.vms.get(vm).into_iter().flat_map(|vm| &vm.devices).map(|r| self.is_live(r)).collect();
                let mut live = live.into_iter();
                self.find_off(vm)?.devices.retain(|_| live.next().unwrap_or(false));
                Ok(())
            }
            Step::Mount { address } => {
                if let Some(vm) = self.holders(address).next() {
                    return Err(failed(format!("The device is in use: VM {vm} has it")));
                }
                // What matches nothing succeeds silently. What was disabled before it was dismounted still is.
                if let Some(function) = self.card_mut(address).and_then(|card| card.functions.get_mut(address)) {
                    function.dismounted = false;
                }
                Ok(())
            }
            Step::Enable { address } => {
                let function = self.in_host(address)?;
                function.disabled = false;
                Ok(())
            }
        }
    }

    fn find(&mut self, id: &VmId) -> Result<&mut Vm, DriverError> {
        let missing = || DriverError::NotThere(format!("Hyper-V was unable to find a virtual machine with id {id}"));
        self.vms.get_mut(id).ok_or_else(missing)
    }

    fn find_off(&mut self, id: &VmId) -> Result<&mut Vm, DriverError> {
        let vm = self.find(id)?;
        if vm.state == VmState::Off {
            Ok(vm)
        } else {
            Err(failed("The operation cannot be performed while the virtual machine is in its current state"))
        }
    }

    /// A function that the host's device manager shows.
    fn in_host(&mut self, address: &DeviceAddress) -> Result<&mut super::Function, DriverError> {
        let function = self.card_mut(address).and_then(|card| card.functions.get_mut(address));
        function
            .filter(|function| !function.dismounted)
            .ok_or_else(|| DriverError::NotThere(format!("No matching device found at {address}")))
    }

    fn disable(&mut self, address: &DeviceAddress) -> Result<(), DriverError> {
        self.in_host(address)?.disabled = true;
        Ok(())
    }

    fn dismount(&mut self, address: &DeviceAddress) -> Result<(), DriverError> {
        let driven = self.card(address).is_some_and(|card| card.spec.driver == berth_model::gpu::HostDriver::Bound);
        let function = self.in_host(address)?;
        if driven && !function.disabled {
            return Err(failed("The operation failed: the device is in use by its driver; disable it first"));
        }
        function.dismounted = true;
        Ok(())
    }

    fn attach(&mut self, vm: &VmId, address: &DeviceAddress) -> Result<(), DriverError> {
        let not_found = || DriverError::NotThere(format!("The specified device '{address}' was not found"));
        let dismounted = self.function(address).is_some_and(|function| function.dismounted);
        let card = self.card(address).filter(|_| dismounted).ok_or_else(not_found)?.fingerprint().clone();
        let record = Record { address: address.clone(), card };
        let vm = self.find_off(vm)?;
        if vm.devices.contains(&record) {
            return Err(failed("The device is already assigned to this virtual machine"));
        }
        // That another VM has it as well shows only when one of them starts.
        vm.devices.push(record);
        Ok(())
    }

    pub(super) fn start(&mut self, id: &VmId) -> Result<(), DriverError> {
        let state = self.find(id)?.state;
        if state == VmState::Running {
            return Ok(());
        }
        if let Some(why) = self.start_problem(id) {
            return Err(failed(format!("'{}' failed to start. {why}", self.find(id)?.name)));
        }
        self.find(id)?.state = VmState::Running;
        Ok(())
    }
}

impl Vm {
    pub(super) fn turn_off(&mut self) {
        self.state = VmState::Off;
        self.asked = false;
    }
}

/// A step as far as it gets when it fails in the middle. Settings are set one after the other.
fn half(step: &Step, present: Option<&VmSettings>) -> Step {
    let halfway = |wanted: &VmSettings| {
        let present = present.unwrap_or(wanted);
        VmSettings { stop_action: wanted.stop_action, guest_cache_types: wanted.guest_cache_types, ..present.clone() }
    };
    match step {
        Step::ConfigureVm { vm, settings } => Step::ConfigureVm { vm: vm.clone(), settings: halfway(settings) },
        Step::RestoreVm { vm, settings } => Step::RestoreVm { vm: vm.clone(), settings: halfway(settings) },
        // One thing each: the effect is there, the error all the same.
        Step::MakeStandalone { .. }
        | Step::StopVm { .. }
        | Step::Disable { .. }
        | Step::Dismount { .. }
        | Step::Attach { .. }
        | Step::StartVm { .. }
        | Step::Verify { .. }
        | Step::InstallDriver { .. }
        | Step::Detach { .. }
        | Step::DetachStale { .. }
        | Step::Mount { .. }
        | Step::Enable { .. } => step.clone(),
    }
}
