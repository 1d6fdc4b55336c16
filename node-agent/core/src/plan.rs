//! What to do next for one placement: decided anew from what is wanted and what is seen, never from what was done.
//!
//! Must be given a settled view: a VM that it lacks is surely gone, a GPU that is surely gone is `Missing` in it.

use crate::guest::{self, Shortfall};
use crate::memory::Memory;
use crate::mmio;
use crate::observed::{Checkpoints, HostView, StopAction, VmMemory, VmSettings, VmView};
use crate::safety::{self, Slot, Violation};
use crate::step::Step;
use berth_model::desired::{DesiredPlacement, Intent};
use berth_model::gpu::{GpuState, HostDriver, MmioSize};
use berth_model::pci::DeviceAddress;
use berth_model::placement::{StepError, StepErrorClass, StepKind};
use berth_model::request::ReturnTo;
use berth_model::vm::VmState;

/// What is next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Take this step, then look again.
    Do(Step),
    /// What is wanted is so. For [`Intent::Detached`]: nothing of the placement is in its VM any more, and everything
    /// that can be given back was; a card that is gone, or that another VM or another card took the place of, is told
    /// by the inventory, not by this.
    Done,
    /// Nothing can be done until something shows itself; look again later.
    Wait(String),
    /// It cannot be reached as things are.
    Impossible(StepKind, StepError),
}

fn impossible(step: StepKind, class: StepErrorClass, text: impl Into<String>) -> Next {
    Next::Impossible(step, StepError { class, text: text.into() })
}

/// Decides the next step. It has passed [`safety::check`] on the same view.
pub fn plan(desired: &DesiredPlacement, view: &HostView, memory: &Memory) -> Next {
    let next = match desired.intent {
        Intent::Kept => Next::Done,
        Intent::Attached => attached(desired, view, memory),
        Intent::Detached => detached(desired, view, memory),
    };
    let Next::Do(step) = next else { return next };
    match safety::check(&step, desired, view, memory) {
        Ok(()) => Next::Do(step),
        Err(violation) => refused(step.kind(), violation),
    }
}

fn refused(step: StepKind, violation: Violation) -> Next {
    if violation.may_pass() { Next::Wait(violation.to_string()) } else { Next::Impossible(step, violation.into()) }
}

/// The settings a VM must have for `devices`.
pub fn wanted_settings(present: &VmSettings, devices: &[MmioSize]) -> VmSettings {
    let (mmio_low_bytes, mmio_high_bytes) = mmio::merged(present, devices);
    VmSettings {
        stop_action: StopAction::TurnOff,
        guest_cache_types: true,
        mmio_low_bytes,
        mmio_high_bytes,
        memory: VmMemory::Static,
        checkpoints: Checkpoints::NONE,
    }
}

fn attached(desired: &DesiredPlacement, view: &HostView, memory: &Memory) -> Next {
    let check = |class, text: String| impossible(StepKind::Check, class, text);
    let Some(vm) = view.vms.get(&desired.vm) else {
        return check(StepErrorClass::NotThere, format!("VM {} is not on this host", desired.vm));
    };
    if desired.gpus.is_empty() {
        return check(StepErrorClass::Forbidden, "the placement names no GPU".to_owned());
    }
    let mut cards = Vec::new();
    for gpu in &desired.gpus {
        match safety::slot(gpu, view) {
            Slot::Here(functions) => cards.push(functions),
            Slot::Unknown => return Next::Wait(Violation::UnknownDevice(gpu.address.clone()).to_string()),
            Slot::Empty => {
                return check(StepErrorClass::NotThere, Violation::NoDevice(gpu.address.clone()).to_string());
            }
            Slot::Other(found) => {
                let (address, expected) = (gpu.address.clone(), gpu.fingerprint.clone());
                return refused(StepKind::Check, Violation::WrongCard { address, expected, found });
            }
        }
    }
    for function in cards.iter().flatten() {
        if let Some(holder) = view.holders(function).find(|holder| holder.vm.id != vm.vm.id) {
            let (address, vm) = (function.clone(), holder.vm.id.clone());
            return refused(StepKind::Check, Violation::HeldByOther { address, vm });
        }
        match view.state(function) {
            GpuState::Unknown => return Next::Wait(Violation::UnknownDevice(function.clone()).to_string()),
            GpuState::Missing | GpuState::Stale { .. } => {
                return check(StepErrorClass::NotThere, Violation::NoDevice(function.clone()).to_string());
            }
            GpuState::Host { .. } | GpuState::Pooled | GpuState::Attached { .. } => {}
        }
    }
    let in_vm = |function: &DeviceAddress| view.holders(function).any(|holder| holder.vm.id == vm.vm.id);
    for gpu in desired.gpus.iter().filter(|gpu| !in_vm(&gpu.address)) {
        if let Err(violation) = safety::fit(&gpu.address, desired, view) {
            return refused(StepKind::Check, violation);
        }
    }
    let sizes: Vec<_> = desired.gpus.iter().map(|gpu| gpu.mmio).collect();
    let settings = wanted_settings(&vm.settings, &sizes);
    let ready = !vm.vm.clustered && vm.settings == settings && cards.iter().flatten().all(in_vm);
    // Before anything is done to it: nobody's guest is shut down, and no role removed, for a VM that is then refused.
    if !ready && let Err(violation) = safety::no_saved_state(vm) {
        return refused(StepKind::Check, violation);
    }
    if vm.vm.clustered {
        if !desired.allow_standalone {
            let text = format!(
                "VM {} is a clustered role, which fails over, and the request does not allow that to be changed",
                vm.vm.id
            );
            return check(StepErrorClass::Forbidden, text);
        }
        // Before the guest is shut down. While it is a role the VM is the cluster's: it may start again what somebody else
        // stopped, move it to another node, or save it, which is what it does to a role that it takes offline unless told
        // otherwise (FailoverClusters: OfflineAction 1). Nobody but Berth stops it afterwards. Whatever speaks against
        // removing the role shows while the guest still runs; and if removing it should save a running VM after all (no
        // source says so), nothing is lost: what is saved is left to people.
        return Next::Do(Step::MakeStandalone { vm: vm.vm.id.clone(), role: vm.role.clone() });
    }
    if ready {
        return run(desired, vm, memory);
    }
    match vm.vm.state {
        VmState::Off => prepare(vm, settings, &cards, view),
        VmState::Running | VmState::Paused | VmState::Saved => Next::Do(Step::StopVm { vm: vm.vm.id.clone() }),
        VmState::Changing | VmState::Unknown => wait_for(vm),
    }
    .or_forbidden(desired, view, memory)
}

impl Next {
    /// Before the VM or a card is touched at all, a forbidden beginning is a failed check, not a failed step.
    fn or_forbidden(self, desired: &DesiredPlacement, view: &HostView, memory: &Memory) -> Self {
        match self {
            Self::Do(Step::StopVm { vm }) => {
                let step = Step::StopVm { vm };
                match safety::check(&step, desired, view, memory) {
                    Ok(()) => Self::Do(step),
                    Err(violation) => refused(StepKind::Check, violation),
                }
            }
            Self::Do(_) | Self::Done | Self::Wait(_) | Self::Impossible(..) => self,
        }
    }
}

fn wait_for(vm: &VmView) -> Next {
    Next::Wait(Violation::Unsettled { vm: vm.vm.id.clone(), state: vm.vm.state.name() }.to_string())
}

/// The VM is off: settings first, then each card from the host into the pool, then all into the VM.
fn prepare(vm: &VmView, settings: VmSettings, cards: &[Vec<DeviceAddress>], view: &HostView) -> Next {
    let id = || vm.vm.id.clone();
    if vm.settings != settings {
        return Next::Do(Step::ConfigureVm { vm: id(), settings });
    }
    for card in cards {
        let driver = |function: &DeviceAddress| match view.state(function) {
            GpuState::Host { driver } => Some(driver),
            GpuState::Pooled
            | GpuState::Attached { .. }
            | GpuState::Stale { .. }
            | GpuState::Missing
            | GpuState::Unknown => None,
        };
        let enabled = |f: &&DeviceAddress| matches!(driver(f), Some(HostDriver::Bound | HostDriver::None));
        if let Some(address) = card.iter().find(enabled).cloned() {
            return Next::Do(Step::Disable { address });
        }
        if let Some(address) = card.iter().find(|f| driver(f).is_some()).cloned() {
            return Next::Do(Step::Dismount { address });
        }
    }
    let missing = |f: &&DeviceAddress| view.holders(f).all(|holder| holder.vm.id != vm.vm.id);
    match cards.iter().flatten().find(missing).cloned() {
        Some(address) => Next::Do(Step::Attach { vm: id(), address }),
        None => Next::Do(Step::StartVm { vm: id() }),
    }
}

/// Everything is in the VM: start it and verify.
fn run(desired: &DesiredPlacement, vm: &VmView, memory: &Memory) -> Next {
    match vm.vm.state {
        VmState::Off => Next::Do(Step::StartVm { vm: vm.vm.id.clone() }),
        VmState::Running => match guest::shortfall(desired, vm.guest.as_ref()) {
            None => Next::Done,
            Some(lack) => show(desired, vm, &lack, memory),
        },
        // Saved with its devices in it, it cannot go on: whoever waits for that, waits for ever.
        VmState::Saved => refused(StepKind::StartVm, Violation::Saved(vm.vm.id.clone())),
        VmState::Paused | VmState::Changing | VmState::Unknown => wait_for(vm),
    }
}

/// The guest does not show what it should: ask it again, unless something must be done there first.
fn show(desired: &DesiredPlacement, vm: &VmView, lack: &Shortfall, memory: &Memory) -> Next {
    let ask = Next::Do(Step::Verify { vm: vm.vm.id.clone() });
    // One that runs some of the devices is installed; what keeps it from the others, no installer puts right.
    let (Shortfall::NoDriver { bound: 0, .. }, Some(command)) = (lack, &desired.install_driver) else { return ask };
    match memory.installs.get(&desired.uid) {
        None => Next::Do(Step::InstallDriver { vm: vm.vm.id.clone(), command: command.clone() }),
        // What the guest showed before it is forgotten when it begins: this was asked afterwards.
        Some(run) if run.end.is_failure() => {
            let said = run.output.last_line().map(|line| format!(", saying {line}")).unwrap_or_default();
            let text = format!("{run}{said}; {lack}");
            impossible(StepKind::InstallDriver, StepErrorClass::Failed, text)
        }
        // It may take the driver a while to start, and a command that nobody saw ending may still be running.
        Some(_) => ask,
    }
}

fn detached(desired: &DesiredPlacement, view: &HostView, memory: &Memory) -> Next {
    let vm = view.vms.get(&desired.vm);
    if view.unseen.contains(&desired.vm) {
        // It may list more than it did when it was last seen.
        return Next::Wait(Violation::UnseenVm(desired.vm.clone()).to_string());
    }
    if let Some(vm) = vm
        && let Some(next) = leave_vm(desired, vm, view, memory)
    {
        return next;
    }
    let mut unknown = None;
    for gpu in &desired.gpus {
        match safety::slot(gpu, view) {
            // Somebody gave it away by hand: it is no longer ours to move, any function of it.
            Slot::Here(functions) if functions.iter().any(|f| view.holders(f).any(|h| h.vm.id != desired.vm)) => {}
            Slot::Here(functions) => {
                for function in functions {
                    match give_back(&function, desired.return_to, view, memory) {
                        GiveBack::Step(step) => return Next::Do(step),
                        GiveBack::Unknown => unknown = Some(function),
                        GiveBack::Settled => {}
                    }
                }
            }
            Slot::Unknown => unknown = Some(gpu.address.clone()),
            // It cannot be given back, and what sits there instead is not ours to touch.
            Slot::Empty | Slot::Other(_) => {}
        }
    }
    if let Some(address) = unknown {
        return Next::Wait(Violation::UnknownDevice(address).to_string());
    }
    match (vm, memory.original.get(&desired.vm)) {
        // A VM that somebody started meanwhile is not stopped for its settings; they are kept for the next time.
        (Some(vm), Some(original))
            if vm.vm.state == VmState::Off && vm.vm.devices.is_empty() && vm.settings != *original =>
        {
            Next::Do(Step::RestoreVm { vm: vm.vm.id.clone(), settings: original.clone() })
        }
        (Some(vm), Some(_)) if vm.vm.state == VmState::Changing || vm.vm.state == VmState::Unknown => wait_for(vm),
        (Some(_) | None, Some(_) | None) => Next::Done,
    }
}

/// Takes everything of the placement out of its VM; `None` when nothing is left in it.
fn leave_vm(desired: &DesiredPlacement, vm: &VmView, view: &HostView, memory: &Memory) -> Option<Next> {
    let listed = safety::listed(vm, desired, view);
    let records = safety::stale(vm) > 0 && safety::stale_are_ours(vm, desired, view, memory);
    if listed.is_empty() && !records {
        return None;
    }
    let id = || vm.vm.id.clone();
    Some(match vm.vm.state {
        VmState::Running | VmState::Paused | VmState::Saved => Next::Do(Step::StopVm { vm: id() }),
        VmState::Changing | VmState::Unknown => wait_for(vm),
        VmState::Off => {
            // What answers goes first: a card that does not must not hold back the others.
            let answers = |address: &&DeviceAddress| {
                let card = address.card();
                let gpu = desired.gpus.iter().find(|gpu| gpu.address.card() == card);
                gpu.is_some_and(|gpu| safety::slot(gpu, view) != Slot::Unknown)
            };
            match listed.iter().find(answers).or(listed.first()).cloned() {
                Some(address) => Next::Do(Step::Detach { vm: id(), address }),
                None => Next::Do(Step::DetachStale { vm: id() }),
            }
        }
    })
}

enum GiveBack {
    Step(Step),
    Settled,
    Unknown,
}

fn give_back(function: &DeviceAddress, return_to: ReturnTo, view: &HostView, memory: &Memory) -> GiveBack {
    let address = || function.clone();
    let was_disabled = memory.was_disabled(function);
    match (view.state(function), return_to) {
        (GpuState::Pooled, ReturnTo::Host) => GiveBack::Step(Step::Mount { address: address() }),
        // As the host had it, however it comes back from the pool: nobody has proven that Windows leaves it disabled.
        (GpuState::Host { driver: HostDriver::Disabled }, ReturnTo::Host | ReturnTo::Pool) if was_disabled => {
            GiveBack::Settled
        }
        (GpuState::Host { driver: HostDriver::Bound | HostDriver::None }, ReturnTo::Host | ReturnTo::Pool)
            if was_disabled =>
        {
            GiveBack::Step(Step::Disable { address: address() })
        }
        // Never dismounted, or mounted again: enabled is how the host had it.
        (GpuState::Host { driver: HostDriver::Disabled }, ReturnTo::Host | ReturnTo::Pool) => {
            GiveBack::Step(Step::Enable { address: address() })
        }
        // No VM lists it; a look that says so all the same contradicts itself.
        (GpuState::Unknown | GpuState::Attached { .. }, ReturnTo::Host | ReturnTo::Pool) => GiveBack::Unknown,
        (GpuState::Stale { .. } | GpuState::Missing, ReturnTo::Host | ReturnTo::Pool)
        | (GpuState::Pooled, ReturnTo::Pool)
        | (GpuState::Host { driver: HostDriver::Bound | HostDriver::None }, ReturnTo::Host | ReturnTo::Pool) => {
            GiveBack::Settled
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
