//! What callers ask: create, commit, release.

use super::Brain;
use super::draft::Draft;
use crate::lifecycle::{self, Event};
use crate::schedule;
use berth_model::placement::{Assignment, Phase, Placement};
use berth_model::reason::Refusal;
use berth_model::request::{FieldError, PlacementRequest};
use berth_model::trace::TraceParent;
use berth_model::vm::VmSelector;
use berth_model::{PlacementName, PlacementUid, Timestamp, VmId};
use std::sync::Arc;

impl Brain {
    pub(super) fn create(
        &mut self,
        draft: &mut Draft,
        request: PlacementRequest,
        uid: PlacementUid,
        caller: String,
        trace: Option<TraceParent>,
    ) -> Result<(), Refusal> {
        let earlier = self.lookups.by_request(&request.request_id).and_then(|name| self.world.placement(name));
        if let Some(earlier) = earlier {
            return match earlier.request.first_difference(&request) {
                None => {
                    draft.answer = Some(earlier.name().clone());
                    Ok(())
                }
                Some(field) => Err(Refusal::RequestIdReused {
                    request_id: request.request_id.clone(),
                    placement: earlier.name().clone(),
                    field,
                }),
            };
        }
        if self.world.placement(&request.name).is_some_and(|p| p.phase.is_live()) {
            return Err(Refusal::NameTaken(request.name.clone()));
        }
        if let Some(owner) = self.owner_of(&request.vm) {
            return Err(Refusal::VmHasPlacement { vm: request.vm.clone(), placement: owner.name().clone() });
        }
        let count = self.world.placement_count();
        if count >= self.limits.placements {
            return Err(Refusal::TooManyPlacements { count });
        }
        let name = request.name.clone();
        let assignment = schedule::find(&self.world, &request, draft.now)?;
        let event = match (&assignment, request.queue) {
            (Some(_), _) => Event::Placed { until: self.hold_ends(draft, &request) },
            (None, None) => return Err(Refusal::NoRoom(Box::new(request))),
            (None, Some(queue)) => {
                let queued = self.lookups.queued();
                if queued >= self.limits.queued {
                    return Err(Refusal::QueueFull { queued });
                }
                Event::MustWait { until: draft.now.after(queue) }
            }
        };
        // Both are ways to begin.
        let phase = lifecycle::next(&Phase::Requested, &event, draft.now, &self.limits).unwrap_or(Phase::Requested);
        let placed = assignment.is_some();
        self.put(
            draft,
            Placement {
                uid,
                request,
                caller,
                trace,
                created: draft.now,
                version: 0,
                phase,
                phase_since: draft.now,
                assignment,
                vm_id: None,
                generation: 0,
                history: Vec::new(),
            },
        );
        if placed {
            self.take_up_if_there(draft, &name);
        }
        draft.answer = Some(name);
        Ok(())
    }

    /// When the hold of a placement that is decided now ends.
    fn hold_ends(&self, draft: &Draft, request: &PlacementRequest) -> Timestamp {
        draft.now.after(request.hold.unwrap_or(self.limits.hold))
    }

    /// The live placement of a VM, whether it was named the same way or not.
    fn owner_of(&self, vm: &VmSelector) -> Option<&Arc<Placement>> {
        self.world.placement_by_vm(vm).or_else(|| {
            // The same VM by its other name: only where it was seen, since names are not unique.
            let [(node, id)] = self.world.find_vms(vm).try_into().ok()?;
            let seen = self.world.node(&node)?.vms.get(&id)?;
            let by_other = match vm {
                VmSelector::Name(_) => VmSelector::Id(id),
                VmSelector::Id(_) => VmSelector::Name(seen.name.clone()),
            };
            self.world
                .placement_by_vm(&by_other)
                .filter(|p| p.assignment.as_ref().is_none_or(|assignment| assignment.node == node))
        })
    }

    /// Gives a queued placement its GPUs; goes on at once when its VM is there already.
    pub(super) fn place(&mut self, draft: &mut Draft, name: &PlacementName, assignment: Assignment) {
        let Some(placement) = self.world.placement(name) else { return };
        let until = self.hold_ends(draft, &placement.request);
        self.happen(draft, name, &Event::Placed { until }, |placement| placement.assignment = Some(assignment));
        self.take_up_if_there(draft, name);
    }

    fn take_up_if_there(&mut self, draft: &mut Draft, name: &PlacementName) {
        if let Some(vm) = self.vm_of(name) {
            self.take_up(draft, name, vm);
        }
    }

    /// The VM of a placement, when exactly one on its node is meant.
    pub(super) fn vm_of(&self, name: &PlacementName) -> Option<VmId> {
        let placement = self.world.placement(name)?;
        let node = self.world.node(&placement.assignment.as_ref()?.node)?;
        let mut meant = node.vms.values().filter(|vm| placement.request.vm.selects(vm)).map(|vm| vm.id.clone());
        let first = meant.next()?;
        meant.next().is_none().then_some(first)
    }

    /// Binds a held placement to its VM. Does nothing when that VM belongs to another placement.
    pub(super) fn take_up(&mut self, draft: &mut Draft, name: &PlacementName, vm: VmId) -> bool {
        let selector = VmSelector::Id(vm.clone());
        if self.world.placement_by_vm(&selector).is_some_and(|other| other.name() != name) {
            return false;
        }
        self.happen(draft, name, &Event::VmFound, |placement| placement.vm_id = Some(vm))
    }

    /// The placement a caller means, checked against what the caller rests on.
    fn meant(
        &self,
        name: &PlacementName,
        uid: Option<&PlacementUid>,
        version: Option<u64>,
    ) -> Result<&Arc<Placement>, Refusal> {
        let placement = self.world.placement(name).ok_or_else(|| Refusal::UnknownPlacement {
            name: name.clone(),
            nearest: schedule::nearest(name.as_str(), self.world.placements().map(|p| p.name())).cloned(),
        })?;
        if let Some(expected) = uid.filter(|uid| **uid != placement.uid) {
            return Err(Refusal::UidMismatch {
                name: name.clone(),
                expected: expected.to_string(),
                actual: placement.uid.to_string(),
            });
        }
        match version {
            Some(expected) if expected != placement.version => {
                Err(Refusal::VersionMismatch { name: name.clone(), expected, actual: placement.version })
            }
            Some(_) | None => Ok(placement),
        }
    }

    pub(super) fn commit(
        &mut self,
        draft: &mut Draft,
        name: &PlacementName,
        vm_id: Option<VmId>,
        version: Option<u64>,
    ) -> Result<(), Refusal> {
        let placement = Arc::clone(self.meant(name, None, version)?);
        draft.answer = Some(name.clone());
        let node = match (&placement.phase, &placement.assignment) {
            (Phase::Held { .. }, Some(assignment)) => assignment.node.clone(),
            (phase, _) => {
                // Saying it again, or saying what the agent saw meanwhile, is no error.
                let same =
                    phase.is_live() && placement.vm_id.is_some() && (vm_id.is_none() || vm_id == placement.vm_id);
                return if same { Ok(()) } else { Err(Refusal::NotHeld { name: name.clone(), phase: phase.name() }) };
            }
        };
        let seen = self.vm_of(name);
        let wrong = |problem: String| Refusal::Invalid(vec![FieldError::new("vm_id", problem)]);
        let vm = match (vm_id, seen, &placement.request.vm) {
            (Some(given), _, VmSelector::Id(asked)) if given != *asked => {
                return Err(wrong(format!("{given} is not the VM asked for, {asked}")));
            }
            (Some(given), Some(seen), _) if given != seen => {
                return Err(wrong(format!("{given} is not the VM of that name on {node}, which is {seen}")));
            }
            (Some(given), _, _) => given,
            (None, Some(seen), _) => seen,
            (None, None, _) => return Err(Refusal::VmNotSeen { vm: placement.request.vm.clone(), node }),
        };
        match self.world.node(&node).and_then(|node| node.vms.get(&vm)) {
            Some(known) if !placement.request.vm.selects(known) => {
                let (is, asked) = (&known.name, &placement.request.vm);
                return Err(wrong(format!("{vm} is VM {is} on {node}, the request is for {asked}")));
            }
            Some(_) => {}
            None => {
                if let Some((elsewhere, _)) = self.world.find_vms(&VmSelector::Id(vm.clone())).first() {
                    return Err(wrong(format!("VM {vm} is on {elsewhere}, its GPUs are held on {node}")));
                }
            }
        }
        if !self.take_up(draft, name, vm.clone()) {
            let owner = self.world.placement_by_vm(&VmSelector::Id(vm.clone()));
            let placement = owner.map_or_else(|| name.clone(), |p| p.name().clone());
            return Err(Refusal::VmHasPlacement { vm: VmSelector::Id(vm), placement });
        }
        Ok(())
    }

    pub(super) fn release(
        &mut self,
        draft: &mut Draft,
        name: &PlacementName,
        uid: Option<&PlacementUid>,
        version: Option<u64>,
    ) -> Result<(), Refusal> {
        let placement = self.meant(name, uid, None)?;
        // Releasing what is being released, still or at last, or is over, is the same answer again: the caller may have lost
        // the first.
        let ends_anyway = matches!(placement.phase, Phase::Releasing { .. } | Phase::Released | Phase::Failed { .. });
        if !ends_anyway {
            self.meant(name, uid, version)?;
            self.happen(draft, name, &Event::ReleaseAsked, |_| {});
        }
        draft.answer = Some(name.clone());
        Ok(())
    }
}
