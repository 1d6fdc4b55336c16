//! What must be true at every moment, and what at the end.

use super::{Begun, Broken, Run};
use crate::behind;
use berth_agent_core::work::{Start, Work};
use berth_model::gpu::{GpuState, HostDriver, QuarantineReason};
use berth_model::pci::DeviceAddress;
use berth_model::placement::Phase;
use berth_model::reason::Unavailable;
use berth_model::vm::{VmDevice, VmSelector};

impl Run {
    /// After every event.
    pub(super) fn check(&mut self) -> Result<(), Broken> {
        let unchecked = std::mem::take(&mut self.unchecked);
        if unchecked.brain {
            self.check_brain()?;
        }
        if unchecked.host { self.check_host() } else { Ok(()) }
    }

    fn check_brain(&self) -> Result<(), Broken> {
        if let Some(violation) = self.brain.check().first() {
            return Err(Broken(format!("an invariant of the controller is broken: {violation}")));
        }
        Ok(())
    }

    fn check_host(&self) -> Result<(), Broken> {
        self.behind.check_host(&self.host).map_err(Broken)
    }

    /// Before a step begins: its placement owns what it touches, and no other does.
    pub(super) fn check_start(&self, start: &Start) -> Result<(), Broken> {
        let world = self.brain.world();
        let Some(placement) = self.brain.placement_by_uid(&start.uid) else {
            return Err(Broken(format!("a step of a placement nobody knows: {}", start.step)));
        };
        if let (Some(address), Some(node)) = (start.step.device(), world.node(&self.node)) {
            let card = address.card();
            let named = placement.assignment.iter().flat_map(|a| &a.gpus).any(|gpu| gpu.address.card() == card);
            if !named {
                return Err(Broken(format!("{} touches a card that is not {}'s", start.step, placement.name())));
            }
            let claims = node.gpus.iter().filter(|(at, _)| at.card() == card).filter_map(|(_, gpu)| gpu.claim.as_ref());
            if let Some(other) = claims.into_iter().find(|claim| *claim != placement.name()) {
                return Err(Broken(format!("{} of {} touches a card of {other}", start.step, placement.name())));
            }
        }
        if let Some(vm) = start.step.vm() {
            let owner = world.placement_by_vm(&VmSelector::Id(vm.clone()));
            if let Some(other) = owner.filter(|owner| owner.uid != start.uid && owner.phase.holds_claims()) {
                return Err(Broken(format!(
                    "{} of {} touches the VM of {}",
                    start.step,
                    placement.name(),
                    other.name()
                )));
            }
        }
        Ok(())
    }

    /// When a step takes effect.
    pub(super) fn check_act(&self, begun: &Begun) -> Result<(), Broken> {
        self.behind.check_act(&self.host, &begun.start.step, begun.pictured).map_err(Broken)
    }

    /// After every look: what is on its way was not concluded to be gone.
    pub(super) fn check_look(&self) -> Result<(), Broken> {
        let view = self.work.as_ref().and_then(Work::view);
        view.map_or(Ok(()), |view| behind::check_look(&self.host, view).map_err(Broken))
    }

    /// What has not come to an end yet.
    pub(super) fn unfinished(&self) -> Option<String> {
        if let Some(address) = self.host.lingering().next() {
            return Some(format!("device {address} is on its way"));
        }
        self.brain.world().placements().find_map(|p| match &p.phase {
            Phase::Active | Phase::Released | Phase::Failed { undone: true, .. } => None,
            phase @ (Phase::Requested
            | Phase::Queued { .. }
            | Phase::Held { .. }
            | Phase::Preparing { .. }
            | Phase::Attaching { .. }
            | Phase::Starting { .. }
            | Phase::Verifying { .. }
            | Phase::Releasing { .. }
            | Phase::Failed { undone: false, .. }) => {
                let step = self.brain.world().live(p.name()).and_then(|live| live.step.clone());
                Some(format!("placement {} is {phase:?}, at {step:?}", p.name()))
            }
        })
    }

    /// Which GPU the controller does not count as available, without a stated reason that is true.
    pub(super) fn not_free(&self) -> Option<String> {
        let node = self.brain.world().node(&self.node)?;
        node.gpus.iter().find_map(|(address, gpu)| {
            let mut reasons = node.unavailable(gpu).peekable();
            let stated = |reason: &Unavailable| match reason {
                Unavailable::Quarantined(QuarantineReason::NotCleanAfterRelease { .. }) => {
                    behind::is_unclean(&self.host, address)
                }
                Unavailable::Missing | Unavailable::Quarantined(_) => self.is_absent(address),
                Unavailable::NotAssignable(_)
                | Unavailable::NotMeasured
                | Unavailable::NeedsHostReboot
                | Unavailable::Claimed { .. }
                | Unavailable::Cordoned { .. }
                | Unavailable::InVm { .. }
                | Unavailable::StaleRecord { .. }
                | Unavailable::Unknown
                | Unavailable::NodeDisconnected { .. }
                | Unavailable::NodeNotFresh
                | Unavailable::SurveyFailed { .. }
                | Unavailable::Stranger { .. } => false,
            };
            let absent_unsaid = reasons.peek().is_none() && self.is_absent(address);
            if absent_unsaid {
                return Some(format!("GPU {address} counts as available although its card is not there"));
            }
            let unstated = reasons.find(|reason| !stated(reason))?;
            Some(format!("GPU {address} is not available: {unstated}"))
        })
    }

    /// At the very end: the host as it is, not as anybody believes it to be.
    pub(super) fn nothing_is_lost(&self) -> Result<(), Broken> {
        let view = self.host.look();
        for vm in view.vms.values() {
            match vm.vm.devices.first() {
                None => {}
                Some(VmDevice::At(address)) => {
                    return Err(Broken(format!("device {address} was left in VM {}", vm.vm.id)));
                }
                Some(device @ VmDevice::Pool { .. }) => {
                    return Err(Broken(format!("{device:?} was left in VM {}", vm.vm.id)));
                }
                Some(VmDevice::Stale) => {
                    return Err(Broken(format!("VM {} was left with a record of a device that is gone", vm.vm.id)));
                }
            }
        }
        let known = self.nodes.values().flat_map(|node| &node.gpus);
        for (address, survey) in known.filter(|(address, _)| !self.is_absent(address)) {
            for function in std::iter::once(address).chain(&survey.companions) {
                self.is_back(function, view.state(function))?;
            }
        }
        Ok(())
    }

    fn is_back(&self, function: &DeviceAddress, state: GpuState) -> Result<(), Broken> {
        match state {
            GpuState::Pooled
            | GpuState::Host { driver: HostDriver::Bound | HostDriver::None | HostDriver::Disabled } => Ok(()),
            GpuState::Attached { .. } | GpuState::Stale { .. } | GpuState::Missing | GpuState::Unknown => {
                Err(Broken(format!("device {function} is lost: it is {state:?}")))
            }
        }
    }
}
