//! What placements own in the store, by which no two can own the same.

use crate::world::vm_key;
use berth_model::id::{GpuId, PlacementUid, RequestId};
use berth_model::placement::Placement;
use berth_model::vm::VmSelector;
use std::collections::BTreeSet;

/// What a placement can own in the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claimed {
    /// A GPU.
    Gpu(GpuId),
    /// A VM, as named (names in lower case) or by id.
    Vm(VmSelector),
    /// A request id.
    Request(RequestId),
}

/// What a placement owns in the store: its request id as long as it is remembered, its VM while it lives, its GPUs while
/// it holds them.
pub(crate) fn claims(placement: &Placement) -> BTreeSet<(Claimed, PlacementUid)> {
    let mut owned = vec![Claimed::Request(placement.request.request_id.clone())];
    if placement.phase.is_live() {
        owned.push(Claimed::Vm(vm_key(&placement.request.vm)));
        owned.extend(placement.vm_id.clone().map(|id| Claimed::Vm(VmSelector::Id(id))));
    }
    if let (true, Some(assignment)) = (placement.phase.holds_claims(), &placement.assignment) {
        owned.extend(assignment.gpu_ids().map(Claimed::Gpu));
    }
    owned.into_iter().map(|what| (what, placement.uid.clone())).collect()
}
