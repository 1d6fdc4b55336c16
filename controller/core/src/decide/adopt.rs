//! Taking over an assignment that exists already. Nothing is asked of the host: the placement begins as kept.

use super::Brain;
use super::draft::Draft;
use crate::adopt::{Naming, candidates};
use berth_model::history::{Adoption, Note, Noted};
use berth_model::placement::{Assignment, Phase, Pin, PinReason, Placement};
use berth_model::reason::Refusal;
use berth_model::request::{self, PlacementRequest, ReturnTo};
use berth_model::trace::TraceParent;
use berth_model::vm::VmSelector;
use berth_model::{NodeName, PlacementName, PlacementUid, VmId};

/// One VM to take over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopt {
    /// Its node.
    pub node: NodeName,
    /// The VM.
    pub vm: VmId,
    /// What to call its placement.
    pub name: PlacementName,
    /// Whose it is.
    pub adoption: Adoption,
    /// Where its GPUs go when it ends.
    pub return_to: ReturnTo,
    /// The uid the placement gets; drawn by the shell.
    pub uid: PlacementUid,
    /// Who asks.
    pub caller: String,
    /// The trace of the call.
    pub trace: Option<TraceParent>,
}

impl Brain {
    /// Judges anew: between the table that a person saw and this, anything may have changed.
    pub(super) fn adopt(&mut self, draft: &mut Draft, adopt: Adopt) -> Result<(), Refusal> {
        let Adopt { node, vm, name, adoption, return_to, uid, caller, trace } = adopt;
        let naming = Naming { name: Some(name.clone()), prefix: None };
        let selector = VmSelector::Id(vm.clone());
        let candidate = candidates(&self.world, &node, std::slice::from_ref(&selector), &naming)?.pop();
        let Some(candidate) = candidate else { return Err(Refusal::VmNotOnNode { vm: selector, node }) };
        let name = candidate.outcome.map_err(|why| Refusal::NotAdoptable { vm: vm.clone(), why })?;
        let count = self.world.placement_count();
        if count >= self.limits.placements {
            return Err(Refusal::TooManyPlacements { count });
        }
        let request = PlacementRequest::new(request::Draft {
            // Its uid makes it its own: a VM that was released may be adopted again.
            request_id: format!("adopted-{uid}"),
            name: name.to_string(),
            vm: vm.to_string(),
            gpus: u32::try_from(candidate.gpus.len()).unwrap_or(u32::MAX),
            node: node.to_string(),
            return_to,
            install_driver: String::new(),
            ..request::Draft::default()
        })
        .map_err(Refusal::Invalid)?;
        let now = draft.now;
        let pin = Pin { reason: PinReason::DeviceAssignment, since: now };
        self.put(
            draft,
            Placement {
                uid,
                request,
                caller,
                trace,
                created: now,
                version: 0,
                phase: Phase::Active,
                phase_since: now,
                assignment: Some(Assignment { node, gpus: candidate.gpus, pin }),
                vm_id: Some(vm),
                generation: 0,
                history: vec![Noted { at: now, what: Note::Adopted(adoption) }],
            },
        );
        draft.answer = Some(name);
        Ok(())
    }
}
