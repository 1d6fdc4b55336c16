//! What one node should hold, computed from its placements.

use crate::world::World;
use berth_model::NodeName;
use berth_model::desired::{DesiredGpu, DesiredNode, DesiredPlacement, Intent};
use berth_model::placement::{Phase, Placement};

/// What is wanted of a placement's GPUs in a phase. `None`: nothing yet, or nothing any more.
pub fn intent(phase: &Phase) -> Option<Intent> {
    match phase {
        Phase::Preparing { .. } | Phase::Attaching { .. } | Phase::Starting { .. } | Phase::Verifying { .. } => {
            Some(Intent::Attached)
        }
        Phase::Active => Some(Intent::Kept),
        Phase::Releasing { .. } | Phase::Failed { undone: false, .. } => Some(Intent::Detached),
        Phase::Requested
        | Phase::Queued { .. }
        | Phase::Held { .. }
        | Phase::Released
        | Phase::Failed { undone: true, .. } => None,
    }
}

/// A placement's entry in its node's desired state.
pub fn entry(placement: &Placement) -> Option<DesiredPlacement> {
    let intent = intent(&placement.phase)?;
    let assignment = placement.assignment.as_ref()?;
    let vm = placement.vm_id.clone()?;
    Some(DesiredPlacement {
        uid: placement.uid.clone(),
        name: placement.name().clone(),
        vm,
        gpus: assignment
            .gpus
            .iter()
            .map(|gpu| DesiredGpu {
                address: gpu.address.clone(),
                fingerprint: gpu.fingerprint.clone(),
                mmio: gpu.mmio,
            })
            .collect(),
        intent,
        allow_standalone: placement.request.allow_standalone,
        verify: placement.request.verify,
        return_to: placement.request.return_to,
        install_driver: placement.request.install_driver.clone(),
        trace: placement.trace.clone(),
    })
}

/// The whole desired state of a node; `None` for a node that is not known.
pub fn desired(world: &World, node: &NodeName, term: u64) -> Option<DesiredNode> {
    let generation = world.node(node)?.generation;
    let mut placements: Vec<_> = world.placements_on(node).filter_map(|placement| entry(placement)).collect();
    placements.sort_by(|a, b| a.uid.cmp(&b.uid));
    Some(DesiredNode { term, generation, fleet: world.fleet().cloned(), placements })
}
