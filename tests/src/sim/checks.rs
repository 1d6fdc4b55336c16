//! What must be true at every moment, and what at the end.

use super::agent::Begun;
use super::{Broken, Sim};
use crate::behind;
use berth_agent_core::work::Start;
use berth_core::world::{Link, Node, View, World};
use berth_model::desired::{DesiredPlacement, Intent};
use berth_model::gpu::{GpuHealth, GpuState, HostDriver, QuarantineReason, Verdict};
use berth_model::pci::DeviceAddress;
use berth_model::placement::{Phase, Placement};
use berth_model::reason::Unavailable;
use berth_model::vm::{VmDevice, VmSelector};
use berth_store::key::{self, Key};

impl Sim {
    /// After every event: what changed is checked.
    pub(super) fn check(&mut self) -> Result<(), Broken> {
        for replica in &mut self.replicas {
            if let Some(brain) = replica.changed() {
                if let Some(violation) = brain.check().into_iter().next() {
                    return Err(Broken(format!("an invariant of a leader's world is broken: {violation}")));
                }
                available_is_free(brain.world())?;
            }
        }
        for agent in &mut self.agents {
            if std::mem::take(&mut agent.unchecked) {
                agent.behind.check_host(&agent.host).map_err(Broken)?;
            }
        }
        Ok(())
    }

    /// Before a step begins: it is wished for, what it touches belongs to no other placement, and no other one is at work
    /// on it.
    pub(super) fn check_start(&self, node: usize, start: &Start) -> Result<(), Broken> {
        let Some(agent) = self.agents.get(node) else { return Ok(()) };
        let truth = &self.store.truth;
        let (whose, step) = (truth.name_of(&start.uid), &start.step);
        let name = &agent.name;
        let Some(wish) = agent.wish(&start.uid).filter(|wish| wish.intent != Intent::Kept) else {
            return Err(Broken(format!("{name} begins {step} of {whose}, and nobody wishes for it")));
        };
        let named = |address: &DeviceAddress| wish.gpus.iter().any(|gpu| gpu.address.card() == address.card());
        if step.vm().is_some_and(|vm| *vm != wish.vm) || step.device().is_some_and(|address| !named(address)) {
            return Err(Broken(format!("{name} begins {step} of {whose}, which is about something else")));
        }
        let shared = |other: &DesiredPlacement| other.vm == wish.vm || other.gpus.iter().any(|gpu| named(&gpu.address));
        if let Some((other, _)) = agent.at_work.iter().find(|(uid, other)| **uid == start.uid || shared(other)) {
            let other = truth.name_of(other);
            return Err(Broken(format!("{name} begins {step} of {whose} while a step of {other} is under way there")));
        }
        if let Some(address) = step.device() {
            let prefix = format!("{}{}/", key::GPU_CLAIMS, agent.name);
            for (key, uid) in truth.claims_under(&prefix) {
                if let Ok(Key::GpuClaim(gpu)) = Key::parse(key)
                    && gpu.address.card() == address.card()
                    && *uid != start.uid
                {
                    return Err(Broken(format!("{step} of {whose} touches a card of {}", truth.name_of(uid))));
                }
            }
        }
        if let Some(vm) = step.vm() {
            let owner = truth.claimed_by(&key::vm_claim(&VmSelector::Id(vm.clone())));
            if let Some(other) = owner.filter(|owner| **owner != start.uid) {
                return Err(Broken(format!("{step} of {whose} touches the VM of {}", truth.name_of(other))));
            }
        }
        Ok(())
    }

    /// When a placement is over that an agent worked on: none of its steps is under way, and none of its GPUs is in its VM.
    pub(super) fn check_ended(&self, placement: &Placement) -> Result<(), Broken> {
        let (Some(assignment), Some(vm)) = (&placement.assignment, &placement.vm_id) else { return Ok(()) };
        let Some(agent) = self.agents.iter().find(|agent| agent.name == assignment.node) else { return Ok(()) };
        let name = placement.name();
        if agent.at_work.contains_key(&placement.uid) {
            return Err(Broken(format!("{name} is {} while a step of it is under way", placement.phase.name())));
        }
        let left = |gpu: &&DeviceAddress| agent.host.holders(gpu).any(|holder| holder == vm);
        let mut gpus = assignment.gpus.iter().map(|gpu| &gpu.address).filter(|gpu| !agent.behind.meddled_with(vm, gpu));
        match gpus.find(left) {
            Some(gpu) => Err(Broken(format!("{name} is {}, and {gpu} is still in its VM", placement.phase.name()))),
            None => Ok(()),
        }
    }

    /// When a step takes effect.
    pub(super) fn check_act(&self, node: usize, begun: &Begun) -> Result<(), Broken> {
        let Some(agent) = self.agents.get(node) else { return Ok(()) };
        agent.behind.check_act(&agent.host, &begun.start.step, begun.pictured).map_err(Broken)
    }

    /// What has not come to rest: callers, placements, a leader, agents that hold what they should and are seen as they are.
    pub(super) fn unfinished(&self) -> Option<String> {
        if let Some(caller) = self.callers.unfinished(self.now) {
            return Some(caller);
        }
        if let Some(placement) = self.store.truth.placements.values().find_map(in_motion) {
            return Some(placement);
        }
        let Some(world) = self.replicas.iter().find_map(|replica| replica.world()) else {
            return Some("nobody leads".to_owned());
        };
        (0..self.agents.len()).find_map(|node| self.unsettled(node, world))
    }

    fn unsettled(&self, node: usize, world: &World) -> Option<String> {
        let agent = self.agents.get(node)?;
        let name = &agent.name;
        let Some(seen) = world.node(name) else { return Some(format!("{name} is not known")) };
        if !matches!((&seen.link, &seen.view), (Link::Connected { .. }, View::Complete)) {
            return Some(format!("{name} is {:?}, {:?}", seen.link, seen.view));
        }
        let generation = self.store.truth.nodes.get(name).map_or(0, |node| node.generation);
        if agent.ledger.generation() != generation {
            return Some(format!("{name} holds generation {} of {generation}", agent.ledger.generation()));
        }
        if let Some(address) = agent.host.lingering().next() {
            return Some(format!("device {address} of {name} is on its way"));
        }
        let view = agent.host.look();
        view.gpus.iter().find_map(|(address, gpu)| {
            let known = seen.gpus.get(address).map(|gpu| &gpu.observed.state);
            (known != Some(&gpu.state))
                .then(|| format!("GPU {address} of {name} is {:?}, seen as {known:?}", gpu.state))
        })
    }

    /// What is not given back once everything was released.
    pub(super) fn not_given_back(&self) -> Option<String> {
        if let Some(placement) = self.store.truth.placements.values().find(|p| p.phase == Phase::Active) {
            return Some(format!("{} is still active", placement.name()));
        }
        let world = self.replicas.iter().find_map(|replica| replica.world())?;
        world.nodes().find_map(|node| self.not_free(node))
    }

    /// A GPU that does not count as available without a stated reason that is true, or the other way round.
    fn not_free(&self, node: &Node) -> Option<String> {
        let agent = self.agents.iter().find(|agent| agent.name == node.name)?;
        node.gpus.iter().find_map(|(address, gpu)| {
            let absent = agent.behind.is_absent(address);
            let stated = |reason: &Unavailable| match reason {
                Unavailable::Quarantined(QuarantineReason::NotCleanAfterRelease { .. }) => {
                    behind::is_unclean(&agent.host, address)
                }
                Unavailable::Missing | Unavailable::Quarantined(_) => absent,
                // People gave it away by hand before anybody could measure it, and took it back into the pool.
                Unavailable::NotMeasured => gpu.observed.state == GpuState::Pooled,
                Unavailable::NotAssignable(_)
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
            let mut reasons = node.unavailable(gpu).peekable();
            let name = &node.name;
            if reasons.peek().is_none() && absent {
                return Some(format!("GPU {address} of {name} counts as available although its card is not there"));
            }
            let unstated = reasons.find(|reason| !stated(reason))?;
            Some(format!("GPU {address} of {name} is not available: {unstated}"))
        })
    }

    /// At the very end: the hosts as they are, not as anybody believes them to be.
    pub(super) fn nothing_is_lost(&self) -> Result<(), Broken> {
        for agent in &self.agents {
            let (name, view) = (&agent.name, agent.host.look());
            for vm in view.vms.values() {
                if let Some(device) = vm.vm.devices.first() {
                    let what = match device {
                        VmDevice::At(address) => address.to_string(),
                        VmDevice::Pool { pool, .. } => format!("a device of pool {pool}"),
                        VmDevice::Stale => "a record of a device that is gone".to_owned(),
                    };
                    return Err(Broken(format!("{what} was left in VM {} on {name}", vm.vm.id)));
                }
            }
            let stored = self.store.truth.nodes.get(name).map(|node| node.gpus.as_slice()).unwrap_or_default();
            for (address, survey) in stored.iter().filter(|(address, _)| !agent.behind.is_absent(address)) {
                for function in std::iter::once(address).chain(&survey.companions) {
                    is_back(function, &view.state(function))?;
                }
            }
        }
        if let Some((key, _)) = self.store.truth.claims_under(key::GPU_CLAIMS).next() {
            return Err(Broken(format!("{key} was left")));
        }
        match self.callers.promised().find(|(_, uid)| !self.store.truth.has_ended(uid)) {
            Some((id, uid)) => Err(Broken(format!("request {id} was promised {uid}, which never came to an end"))),
            None => Ok(()),
        }
    }
}

/// What counts as available, worked out here once more.
fn available_is_free(world: &World) -> Result<(), Broken> {
    for node in world.nodes() {
        let ready =
            matches!((&node.link, &node.view), (Link::Connected { .. }, View::Complete)) && node.cordons.is_empty();
        for (address, gpu) in node.gpus.iter().filter(|(_, gpu)| node.is_available(gpu)) {
            let at_hand = matches!(gpu.observed.state, GpuState::Host { .. } | GpuState::Pooled);
            let fit = gpu.observed.health == GpuHealth::Ok && gpu.observed.survey.verdict == Verdict::Assignable;
            if !(ready && at_hand && fit && gpu.claim.is_none() && gpu.observed_at.is_some()) {
                return Err(Broken(format!("GPU {address} of {} counts as available: {gpu:?}", node.name)));
            }
        }
    }
    Ok(())
}

fn in_motion(placement: &Placement) -> Option<String> {
    match &placement.phase {
        Phase::Active | Phase::Released | Phase::Failed { undone: true, .. } => None,
        phase @ (Phase::Requested
        | Phase::Queued { .. }
        | Phase::Held { .. }
        | Phase::Preparing { .. }
        | Phase::Attaching { .. }
        | Phase::Starting { .. }
        | Phase::Verifying { .. }
        | Phase::Releasing { .. }
        | Phase::Failed { undone: false, .. }) => Some(format!("placement {} is {phase:?}", placement.name())),
    }
}

fn is_back(function: &DeviceAddress, state: &GpuState) -> Result<(), Broken> {
    match state {
        GpuState::Pooled | GpuState::Host { driver: HostDriver::Bound | HostDriver::None | HostDriver::Disabled } => {
            Ok(())
        }
        GpuState::Attached { .. } | GpuState::Stale { .. } | GpuState::Missing | GpuState::Unknown => {
            Err(Broken(format!("device {function} is lost: it is {state:?}")))
        }
    }
}
