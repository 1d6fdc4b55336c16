//! Request and world to a choice, or to the reasons why not.
// decide.rs needs exactly: schedule(&World,&PlacementRequest,Timestamp)->Result<Assignment,Refusal>; find(..)->Result<Option<Assignment>,Refusal>
// (no explanation built: used for the queue); nearest(&str, impl Iterator<Item=&T>)->Option<&T> for T: Display (edit distance).
use crate::world::World;
use berth_model::Timestamp;
use berth_model::placement::Assignment;
use berth_model::reason::Refusal;
use berth_model::request::PlacementRequest;

/// Interim.
pub fn schedule(world: &World, request: &PlacementRequest, now: Timestamp) -> Result<Assignment, Refusal> {
    find(world, request, now)?.ok_or_else(|| {
        Refusal::NotPlaceable(Box::new(berth_model::reason::Explanation {
            gpus: request.gpus,
            nodes: 0,
            counts: vec![],
            rejected: vec![],
            nearest: None,
        }))
    })
}

/// Interim.
pub fn find(world: &World, request: &PlacementRequest, now: Timestamp) -> Result<Option<Assignment>, Refusal> {
    use berth_model::placement::{AssignedGpu, Pin, PinReason};
    for node in world.nodes() {
        if request.node.as_ref().is_some_and(|n| *n != node.name) {
            continue;
        }
        let gpus: Vec<_> = node
            .gpus
            .iter()
            .filter(|(_, g)| node.is_available(g))
            .take(request.gpus as usize)
            .map(|(a, g)| AssignedGpu {
                address: a.clone(),
                model: g.model().clone(),
                fingerprint: g.observed.survey.fingerprint.clone(),
                mmio: g.observed.survey.mmio,
            })
            .collect();
        if gpus.len() == request.gpus as usize {
            return Ok(Some(Assignment {
                node: node.name.clone(),
                gpus,
                pin: Pin { reason: PinReason::DeviceAssignment, since: now },
            }));
        }
    }
    Ok(None)
}

/// The known name most like `wanted`, if one is near enough to be a slip.
pub fn nearest<'a, T: std::fmt::Display>(wanted: &str, known: impl Iterator<Item = &'a T>) -> Option<&'a T> {
    known.map(|k| (k.to_string().len().abs_diff(wanted.len()), k)).min_by_key(|(d, _)| *d).map(|(_, k)| k)
}
