//! What people must know about a placement beside its phase. Derived from the world at each look, never stored.

use crate::world::{Link, World};
use berth_model::Timestamp;
use berth_model::gpu::GpuState;
use berth_model::placement::{Condition, Drift, Phase, Placement};
use std::time::Duration;

/// How long a node may be silent before its placements say `NodeLost`: agents back off to a few seconds between
/// attempts, and a new leader hears of all of them within this time.
pub const LOST_AFTER: Duration = Duration::from_secs(30);

/// The conditions of a placement at `now`.
pub fn conditions(world: &World, placement: &Placement, now: Timestamp) -> Vec<Condition> {
    let mut found = Vec::new();
    if placement.phase.holds_claims()
        && let Some(node) = placement.assignment.as_ref().and_then(|a| world.node(&a.node))
        && let Link::Disconnected { since } = node.link
        && now.since(since) >= LOST_AFTER
    {
        found.push(Condition::NodeLost { since });
    }
    let live = world.live(placement.name());
    if let Some((since, what)) = live.and_then(|live| live.drift.clone()) {
        found.push(Condition::Drifted { since, what });
    }
    if let Phase::Failed { undone: false, .. } = placement.phase {
        let what = match live.and_then(|live| live.step.as_ref()) {
            Some(step) => match &step.last_error {
                Some(error) => format!("giving the GPUs back, at step {}: {error}", step.step),
                None => format!("giving the GPUs back, at step {}", step.step),
            },
            None => "the GPUs could not be given back yet; their node's agent keeps trying".to_owned(),
        };
        found.push(Condition::Stuck { since: placement.phase_since, what });
    } else if let Some(error) =
        live.and_then(|live| live.step.as_ref()).and_then(|step| step.last_error.as_ref().map(|e| (step, e)))
    {
        let (step, error) = error;
        if step.attempt > 1 {
            let what = format!("step {} failed {} times: {error}", step.step, step.attempt - 1);
            found.push(Condition::Stuck { since: placement.phase_since, what });
        }
    }
    found
}

/// How an active placement differs from what was seen of its node, the worst first. Only meaningful while the node's
/// view is complete.
pub fn drift(world: &World, placement: &Placement) -> Option<Drift> {
    let assignment = placement.assignment.as_ref()?;
    let vm_id = placement.vm_id.as_ref()?;
    if placement.phase != Phase::Active {
        return None;
    }
    let node = world.node(&assignment.node)?;
    for gpu in &assignment.gpus {
        let address = gpu.address.clone();
        let Some(seen) = node.gpus.get(&gpu.address) else { continue };
        if let berth_model::gpu::GpuHealth::Quarantined(berth_model::gpu::QuarantineReason::WrongCard {
            found, ..
        }) = &seen.observed.health
        {
            return Some(Drift::WrongCard { address, found: found.clone() });
        }
        match &seen.observed.state {
            GpuState::Attached { vm } if vm == vm_id => {}
            GpuState::Attached { vm } => return Some(Drift::InOtherVm { address, vm: vm.clone() }),
            // Not seen is no proof of anything.
            GpuState::Unknown => {}
            state @ (GpuState::Host { .. } | GpuState::Pooled | GpuState::Stale { .. } | GpuState::Missing) => {
                if !node.vms.contains_key(vm_id) {
                    return Some(Drift::VmGone);
                }
                return Some(Drift::NotAttached { address, seen: state.name().to_owned() });
            }
        }
    }
    match node.vms.get(vm_id) {
        None => Some(Drift::VmGone),
        Some(vm) if vm.clustered => Some(Drift::VmClustered),
        Some(_) => None,
    }
}
