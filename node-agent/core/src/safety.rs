//! What may never be done, checked before every step, whatever the planner thought.
//!
//! Rests on one look at the host. What the look does not show is not assumed: unknown refuses.

use crate::memory::Memory;
use crate::observed::{HostView, StopAction, VmSettings, VmView};
use crate::step::Step;
use berth_model::VmId;
use berth_model::desired::{DesiredGpu, DesiredPlacement, Intent};
use berth_model::gpu::{Fingerprint, GpuHealth, GpuState, HostDriver, Verdict};
use berth_model::pci::DeviceAddress;
use berth_model::placement::{StepError, StepErrorClass};
use berth_model::vm::{VmDevice, VmState};

/// Why a step must not be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The placement only wants to be watched, or wants the opposite.
    #[error("the placement does not want this step")]
    NotWanted,
    /// The placement is about another VM.
    #[error("VM {0} is not the placement's VM")]
    OtherVm(VmId),
    /// The VM is not on the host.
    #[error("VM {0} is not on this host")]
    NoVm(VmId),
    /// The placement does not name this device.
    #[error("device {0} is not of this placement")]
    NotNamed(DeviceAddress),
    /// The device did not answer, so nothing is known of it.
    #[error("device {0} did not answer; nothing is known of it")]
    UnknownDevice(DeviceAddress),
    /// The device is not there.
    #[error("device {0} is not in its slot")]
    NoDevice(DeviceAddress),
    /// Another card sits at the address.
    #[error("another card is at {address}: expected {expected}, found {found}")]
    WrongCard {
        /// Where.
        address: DeviceAddress,
        /// The card that was chosen.
        expected: Fingerprint,
        /// The card that answers.
        found: Fingerprint,
    },
    /// Another VM's configuration lists the device.
    #[error("device {address} is in VM {vm}")]
    HeldByOther {
        /// Which device.
        address: DeviceAddress,
        /// That VM.
        vm: VmId,
    },
    /// A VM's configuration lists the device, so it cannot go back to the host.
    #[error("device {address} is still in VM {vm}")]
    StillListed {
        /// Which device.
        address: DeviceAddress,
        /// That VM.
        vm: VmId,
    },
    /// The device is not where this step takes it from.
    #[error("device {address} is {state}, the step cannot start there")]
    WrongState {
        /// Which device.
        address: DeviceAddress,
        /// Where it was seen.
        state: &'static str,
    },
    /// The device must not be handed out.
    #[error("device {address} must not be used: {why}")]
    Unfit {
        /// Which device.
        address: DeviceAddress,
        /// Why.
        why: String,
    },
    /// The VM is not surely off, and the step needs it off.
    #[error("VM {vm} is {state}, it must be off")]
    NotOff {
        /// Which VM.
        vm: VmId,
        /// What it does.
        state: &'static str,
    },
    /// The VM is in between, or could not be observed.
    #[error("VM {vm} is {state}")]
    Unsettled {
        /// Which VM.
        vm: VmId,
        /// What it does.
        state: &'static str,
    },
    /// A VM does not show; it may list the device.
    #[error("VM {0} did not show; nobody knows which devices it has")]
    UnseenVm(VmId),
    /// The VM has a saved state that the step would destroy.
    #[error("VM {0} has a saved state that would be lost; start it or delete the saved state first")]
    Saved(VmId),
    /// The VM has checkpoints that hold a saved state: whoever applies one brings back a machine that runs without the
    /// device, and a VM with a device can be neither saved nor restored.
    #[error(
        "VM {vm} has {count} checkpoints that hold a saved state, which no VM with a device can go back to; delete them first \
         (Get-VMSnapshot, Remove-VMSnapshot), or place another VM"
    )]
    SavedCheckpoints {
        /// Which VM.
        vm: VmId,
        /// How many.
        count: u32,
    },
    /// The VM has a device that Berth did not give it.
    #[error("VM {vm} has device {address}, which Berth did not give it; take it out first")]
    ForeignDevice {
        /// Which VM.
        vm: VmId,
        /// That device.
        address: DeviceAddress,
    },
    /// The host's own cluster gives the VM devices from a pool.
    #[error("VM {vm} has a device from the cluster's own pool {pool:?}; one of the two must give it GPUs, not both")]
    NativePool {
        /// Which VM.
        vm: VmId,
        /// The pool's name.
        pool: String,
    },
    /// The VM has a record of a device that is gone and that is none of this placement's.
    #[error("VM {0} has a record of a device that is gone and was not Berth's; remove the record first")]
    ForeignRecord(VmId),
    /// Not all of the placement's devices are in the VM.
    #[error("device {address} is not in VM {vm}")]
    NotAttached {
        /// Which VM.
        vm: VmId,
        /// That device.
        address: DeviceAddress,
    },
    /// Nothing of this placement is in the VM: there is no reason to stop it.
    #[error("VM {0} has no device of this placement; it is left alone")]
    NothingInVm(VmId),
    /// The settings would break what is assigned.
    #[error("the settings would break assigned devices of VM {vm}: {why}")]
    Settings {
        /// Which VM.
        vm: VmId,
        /// In which way.
        why: &'static str,
    },
}

impl Violation {
    /// Whether looking again later can clear it without anyone's doing.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::UnknownDevice(_) | Self::Unsettled { .. } | Self::UnseenVm(_) => true,
            Self::NotWanted
            | Self::OtherVm(_)
            | Self::NoVm(_)
            | Self::NotNamed(_)
            | Self::NoDevice(_)
            | Self::WrongCard { .. }
            | Self::HeldByOther { .. }
            | Self::StillListed { .. }
            | Self::WrongState { .. }
            | Self::Unfit { .. }
            | Self::NotOff { .. }
            | Self::Saved(_)
            | Self::SavedCheckpoints { .. }
            | Self::ForeignDevice { .. }
            | Self::ForeignRecord(_)
            | Self::NativePool { .. }
            | Self::NotAttached { .. }
            | Self::NothingInVm(_)
            | Self::Settings { .. } => false,
        }
    }
}

impl From<Violation> for StepError {
    fn from(violation: Violation) -> Self {
        Self { class: StepErrorClass::Forbidden, text: violation.to_string() }
    }
}

/// What can be said of a desired GPU's slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The chosen card is there; all its functions, the GPU first.
    Here(Vec<DeviceAddress>),
    /// Surely nothing is there.
    Empty,
    /// Another card is there.
    Other(Fingerprint),
    /// It did not answer.
    Unknown,
}

/// What can be said of a desired GPU's slot.
pub fn slot(gpu: &DesiredGpu, view: &HostView) -> Slot {
    let Some(seen) = view.gpus.get(&gpu.address) else { return Slot::Unknown };
    match &seen.state {
        GpuState::Unknown => Slot::Unknown,
        GpuState::Missing | GpuState::Stale { .. } => Slot::Empty,
        GpuState::Host { .. } | GpuState::Pooled | GpuState::Attached { .. } => {
            if seen.survey.fingerprint.matches(&gpu.fingerprint) {
                let mut functions = vec![gpu.address.clone()];
                functions.extend(seen.survey.companions.iter().cloned());
                Slot::Here(functions)
            } else {
                Slot::Other(seen.survey.fingerprint.clone())
            }
        }
    }
}

/// The desired GPU whose card a device belongs to, unless another card sits there.
fn owner<'a>(address: &DeviceAddress, desired: &'a DesiredPlacement, view: &HostView) -> Option<&'a DesiredGpu> {
    let card = address.card();
    desired.gpus.iter().find(|gpu| gpu.address.card() == card && !matches!(slot(gpu, view), Slot::Other(_)))
}

/// Functions of this placement that a VM's configuration lists.
pub(crate) fn listed(vm: &VmView, desired: &DesiredPlacement, view: &HostView) -> Vec<DeviceAddress> {
    let at = vm.vm.devices.iter().filter_map(|device| match device {
        VmDevice::At(address) => Some(address),
        // What the cluster gave it is not this placement's, whatever it is.
        VmDevice::Stale | VmDevice::Pool { .. } => None,
    });
    at.filter(|address| owner(address, desired, view).is_some()).cloned().collect()
}

/// Records of a VM whose device is gone.
pub(crate) fn stale(vm: &VmView) -> usize {
    vm.vm.devices.iter().filter(|device| matches!(device, VmDevice::Stale)).count()
}

/// Whether every stale record of a VM can be one of this placement's: no more than its absent cards have functions.
pub(crate) fn stale_are_ours(vm: &VmView, desired: &DesiredPlacement, view: &HostView, memory: &Memory) -> bool {
    let functions = |gpu: &DesiredGpu| match slot(gpu, view) {
        Slot::Empty | Slot::Other(_) => {
            1 + memory
                .known
                .get(&gpu.address)
                .filter(|known| known.fingerprint.matches(&gpu.fingerprint))
                .map_or(0, |known| known.companions.len())
        }
        Slot::Here(_) | Slot::Unknown => 0,
    };
    stale(vm) <= desired.gpus.iter().map(functions).sum()
}

fn foreign(vm: &VmView, desired: &DesiredPlacement, view: &HostView) -> Option<DeviceAddress> {
    vm.vm.devices.iter().find_map(|device| match device {
        VmDevice::At(address) if owner(address, desired, view).is_none() => Some(address.clone()),
        VmDevice::At(_) | VmDevice::Stale | VmDevice::Pool { .. } => None,
    })
}

/// Checks one step of one placement against one look.
///
/// # Errors
/// The first rule that forbids it.
pub fn check(step: &Step, desired: &DesiredPlacement, view: &HostView, memory: &Memory) -> Result<(), Violation> {
    wanted(step, desired.intent)?;
    let rules = Rules { desired, view, memory };
    let vm = step.vm().map(|id| rules.vm(id)).transpose()?;
    let functions = step.device().map(|address| rules.device(step, address)).transpose()?;
    match (step, vm) {
        (Step::MakeStandalone { .. }, Some(vm)) => {
            rules.settled(vm)?;
            rules.no_foreign(vm)?;
            if desired.allow_standalone { Ok(()) } else { Err(Violation::NotWanted) }
        }
        (Step::StopVm { .. }, Some(vm)) => rules.stop(vm),
        (Step::ConfigureVm { settings, .. }, Some(vm)) => {
            off(vm)?;
            no_saved_state(vm)?;
            rules.no_foreign(vm)?;
            keeps_devices(vm, settings)
        }
        (Step::RestoreVm { .. }, Some(vm)) => {
            off(vm)?;
            rules.no_foreign(vm)?;
            if vm.vm.devices.is_empty() {
                Ok(())
            } else {
                Err(Violation::Settings { vm: vm.vm.id.clone(), why: "it still has some" })
            }
        }
        (Step::Attach { address, .. }, Some(vm)) => {
            off(vm)?;
            no_saved_state(vm)?;
            rules.no_foreign(vm)?;
            fit(address, desired, view)?;
            // The whole card must be in the pool, or in this very VM.
            for function in functions.iter().flatten() {
                let state = view.state(function);
                if state != GpuState::Pooled && state.vm() != Some(&vm.vm.id) {
                    return Err(wrong_state(function, &state));
                }
            }
            in_state(view, address, |state| *state == GpuState::Pooled)
        }
        (Step::StartVm { .. }, Some(vm)) => rules.start(vm),
        (Step::Verify { .. } | Step::InstallDriver { .. }, Some(vm)) => rules.settled(vm),
        (Step::Detach { .. }, Some(vm)) => off(vm),
        (Step::DetachStale { .. }, Some(vm)) => {
            off(vm)?;
            if stale_are_ours(vm, desired, view, memory) {
                Ok(())
            } else {
                Err(Violation::ForeignRecord(vm.vm.id.clone()))
            }
        }
        (Step::Disable { address }, _) => {
            match desired.intent {
                // Only what was so before.
                Intent::Detached if !memory.was_disabled(address) => return Err(Violation::NotWanted),
                Intent::Detached => {}
                Intent::Attached | Intent::Kept => fit(address, desired, view)?,
            }
            in_state(view, address, |state| matches!(state, GpuState::Host { .. }))
        }
        (Step::Dismount { address }, _) => {
            fit(address, desired, view)?;
            in_state(view, address, |state| {
                matches!(state, GpuState::Host { driver: HostDriver::Disabled | HostDriver::None })
            })
        }
        (Step::Mount { address }, _) => in_state(view, address, |state| *state == GpuState::Pooled),
        (Step::Enable { address }, _) => in_state(view, address, |state| matches!(state, GpuState::Host { .. })),
        // A step about a VM always names one; `rules.vm` has refused an unknown one.
        (
            Step::MakeStandalone { vm, .. }
            | Step::StopVm { vm }
            | Step::ConfigureVm { vm, .. }
            | Step::RestoreVm { vm, .. }
            | Step::Attach { vm, .. }
            | Step::StartVm { vm }
            | Step::Verify { vm }
            | Step::InstallDriver { vm, .. }
            | Step::Detach { vm, .. }
            | Step::DetachStale { vm },
            None,
        ) => Err(Violation::NoVm(vm.clone())),
    }
}

fn wanted(step: &Step, intent: Intent) -> Result<(), Violation> {
    let fits = match step {
        Step::StopVm { .. } | Step::Disable { .. } => matches!(intent, Intent::Attached | Intent::Detached),
        Step::MakeStandalone { .. }
        | Step::ConfigureVm { .. }
        | Step::Dismount { .. }
        | Step::Attach { .. }
        | Step::StartVm { .. }
        | Step::Verify { .. }
        | Step::InstallDriver { .. } => intent == Intent::Attached,
        Step::Detach { .. }
        | Step::DetachStale { .. }
        | Step::Mount { .. }
        | Step::Enable { .. }
        | Step::RestoreVm { .. } => intent == Intent::Detached,
    };
    if fits { Ok(()) } else { Err(Violation::NotWanted) }
}

struct Rules<'a> {
    desired: &'a DesiredPlacement,
    view: &'a HostView,
    memory: &'a Memory,
}

impl<'a> Rules<'a> {
    fn vm(&self, id: &VmId) -> Result<&'a VmView, Violation> {
        if *id != self.desired.vm {
            return Err(Violation::OtherVm(id.clone()));
        }
        self.view.vms.get(id).ok_or_else(|| Violation::NoVm(id.clone()))
    }

    /// What holds for every step on a device. Gives the functions of its card.
    fn device(&self, step: &Step, address: &DeviceAddress) -> Result<Vec<DeviceAddress>, Violation> {
        let card = address.card();
        let gpu = self.desired.gpus.iter().find(|gpu| gpu.address.card() == card);
        let gpu = gpu.ok_or_else(|| Violation::NotNamed(address.clone()))?;
        // Taking a record out of the placement's own VM touches no card: it is right for a card that is gone or that
        // another VM has as well.
        let record_only = matches!(step, Step::Detach { .. });
        let functions = match slot(gpu, self.view) {
            Slot::Unknown => return Err(Violation::UnknownDevice(gpu.address.clone())),
            Slot::Other(found) => {
                let (address, expected) = (gpu.address.clone(), gpu.fingerprint.clone());
                return Err(Violation::WrongCard { address, expected, found });
            }
            Slot::Empty if record_only => vec![address.clone()],
            Slot::Empty => return Err(Violation::NoDevice(address.clone())),
            Slot::Here(functions) => functions,
        };
        if !functions.contains(address) {
            return Err(Violation::NotNamed(address.clone()));
        }
        if !record_only {
            self.all_seen()?;
        }
        let holders = functions.iter().flat_map(|f| self.view.holders(f).map(move |holder| (f, &holder.vm.id)));
        for (function, holder) in holders {
            let to_host = matches!(step, Step::Mount { .. } | Step::Enable { .. });
            if to_host && function == address {
                return Err(Violation::StillListed { address: function.clone(), vm: holder.clone() });
            }
            if *holder != self.desired.vm && !record_only {
                return Err(Violation::HeldByOther { address: function.clone(), vm: holder.clone() });
            }
        }
        Ok(functions)
    }

    /// Who holds a device is only known when every VM shows.
    fn all_seen(&self) -> Result<(), Violation> {
        self.view.unseen.first().map_or(Ok(()), |vm| Err(Violation::UnseenVm(vm.clone())))
    }

    fn settled(&self, vm: &VmView) -> Result<(), Violation> {
        match vm.vm.state {
            VmState::Changing | VmState::Unknown => {
                Err(Violation::Unsettled { vm: vm.vm.id.clone(), state: vm.vm.state.name() })
            }
            VmState::Running | VmState::Off | VmState::Saved | VmState::Paused => Ok(()),
        }
    }

    fn no_foreign(&self, vm: &VmView) -> Result<(), Violation> {
        for device in &vm.vm.devices {
            if let VmDevice::Pool { pool, .. } = device {
                return Err(Violation::NativePool { vm: vm.vm.id.clone(), pool: pool.clone() });
            }
        }
        if let Some(address) = foreign(vm, self.desired, self.view) {
            return Err(Violation::ForeignDevice { vm: vm.vm.id.clone(), address });
        }
        if !stale_are_ours(vm, self.desired, self.view, self.memory) {
            return Err(Violation::ForeignRecord(vm.vm.id.clone()));
        }
        Ok(())
    }

    fn stop(&self, vm: &VmView) -> Result<(), Violation> {
        self.settled(vm)?;
        self.no_foreign(vm)?;
        let id = || vm.vm.id.clone();
        match self.desired.intent {
            // To turn it off would throw its memory away, and no look tells whether it was saved before it had the device.
            // A person decides.
            Intent::Attached | Intent::Detached if vm.vm.state == VmState::Saved => Err(Violation::Saved(id())),
            Intent::Detached if listed(vm, self.desired, self.view).is_empty() && stale(vm) == 0 => {
                Err(Violation::NothingInVm(id()))
            }
            Intent::Attached | Intent::Detached => Ok(()),
            Intent::Kept => Err(Violation::NotWanted),
        }
    }

    fn start(&self, vm: &VmView) -> Result<(), Violation> {
        self.settled(vm)?;
        self.all_seen()?;
        self.no_foreign(vm)?;
        if stale(vm) > 0 {
            return Err(Violation::ForeignRecord(vm.vm.id.clone()));
        }
        for gpu in &self.desired.gpus {
            let functions = match slot(gpu, self.view) {
                Slot::Here(functions) => functions,
                Slot::Unknown => return Err(Violation::UnknownDevice(gpu.address.clone())),
                Slot::Empty => return Err(Violation::NoDevice(gpu.address.clone())),
                Slot::Other(found) => {
                    let (address, expected) = (gpu.address.clone(), gpu.fingerprint.clone());
                    return Err(Violation::WrongCard { address, expected, found });
                }
            };
            for function in functions {
                let mut ours = false;
                for holder in self.view.holders(&function) {
                    if holder.vm.id != vm.vm.id {
                        let (address, vm) = (function.clone(), holder.vm.id.clone());
                        return Err(Violation::HeldByOther { address, vm });
                    }
                    ours = true;
                }
                if !ours {
                    return Err(Violation::NotAttached { vm: vm.vm.id.clone(), address: function });
                }
            }
        }
        Ok(())
    }
}

/// Whether a card may be handed out at all.
pub(crate) fn fit(address: &DeviceAddress, desired: &DesiredPlacement, view: &HostView) -> Result<(), Violation> {
    let card = address.card();
    let gpus = desired.gpus.iter().filter(|gpu| gpu.address.card() == card);
    for seen in gpus.filter_map(|gpu| view.gpus.get(&gpu.address)) {
        let unfit = |why: String| Err(Violation::Unfit { address: seen.address.clone(), why });
        match &seen.health {
            GpuHealth::Ok => {}
            GpuHealth::Quarantined(reason) => return unfit(reason.to_string()),
            GpuHealth::NeedsHostReboot => return unfit("its host must be restarted first".to_owned()),
        }
        match &seen.survey.verdict {
            // Findings that the node's policy accepts are none any more: the driver takes them out. The gravest first.
            Verdict::Blocked(findings) => {
                let hard = findings.iter().find(|finding| !finding.overridable());
                let why = hard.or(findings.first()).map(ToString::to_string);
                return unfit(why.unwrap_or_else(|| "its survey says so".to_owned()));
            }
            Verdict::Assignable | Verdict::NotMeasured => {}
        }
    }
    Ok(())
}

/// A VM that is to get a device has no saved state: neither its own nor one in a checkpoint. Checkpoints without one
/// (production ones, and those of a VM that was off) hold disks and settings, and stay.
///
/// Source: Microsoft's plan for devices by Discrete Device Assignment lists saving and restoring a VM among what such a VM
/// cannot do.
pub(crate) fn no_saved_state(vm: &VmView) -> Result<(), Violation> {
    let id = || vm.vm.id.clone();
    match (vm.vm.state, vm.saved_checkpoints) {
        (VmState::Saved, _) => Err(Violation::Saved(id())),
        (VmState::Running | VmState::Off | VmState::Paused | VmState::Changing | VmState::Unknown, 0) => Ok(()),
        (VmState::Running | VmState::Off | VmState::Paused | VmState::Changing | VmState::Unknown, count) => {
            Err(Violation::SavedCheckpoints { vm: id(), count })
        }
    }
}

fn off(vm: &VmView) -> Result<(), Violation> {
    match vm.vm.state {
        VmState::Off => Ok(()),
        VmState::Unknown | VmState::Changing => {
            Err(Violation::Unsettled { vm: vm.vm.id.clone(), state: vm.vm.state.name() })
        }
        VmState::Running | VmState::Saved | VmState::Paused => {
            Err(Violation::NotOff { vm: vm.vm.id.clone(), state: vm.vm.state.name() })
        }
    }
}

/// Settings for a VM that has or gets devices must carry them.
fn keeps_devices(vm: &VmView, settings: &VmSettings) -> Result<(), Violation> {
    let wrong = |why| Err(Violation::Settings { vm: vm.vm.id.clone(), why });
    if settings.stop_action == StopAction::Save {
        return wrong("its state cannot be saved");
    }
    let lowers =
        settings.mmio_low_bytes < vm.settings.mmio_low_bytes || settings.mmio_high_bytes < vm.settings.mmio_high_bytes;
    if lowers && !vm.vm.devices.is_empty() { wrong("less address space than now") } else { Ok(()) }
}

fn wrong_state(address: &DeviceAddress, state: &GpuState) -> Violation {
    match state {
        GpuState::Unknown => Violation::UnknownDevice(address.clone()),
        GpuState::Missing => Violation::NoDevice(address.clone()),
        GpuState::Host { .. } | GpuState::Pooled | GpuState::Attached { .. } | GpuState::Stale { .. } => {
            Violation::WrongState { address: address.clone(), state: state.name() }
        }
    }
}

fn in_state(view: &HostView, address: &DeviceAddress, right: impl Fn(&GpuState) -> bool) -> Result<(), Violation> {
    let state = view.state(address);
    if right(&state) { Ok(()) } else { Err(wrong_state(address, &state)) }
}

#[cfg(test)]
mod tests;
