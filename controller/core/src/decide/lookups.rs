//! What only the brain looks up of placements: by uid and request id, and in order of time.
//!
//! Owns these look-ups, derived from placements alone; readers have none of them. So they are changed in place, where the
//! maps of a [`World`](crate::world::World) are copied for each snapshot: keys without an order would have most of a map copied.

use berth_model::placement::{Phase, Placement};
use berth_model::{PlacementName, PlacementUid, RequestId, Timestamp};
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::ops::Bound;

/// Placements at moments, the earliest first.
type Agenda = BTreeSet<(Timestamp, PlacementName)>;

const BY_UID: &str = "placements by uid";
const BY_REQUEST: &str = "placements by request id";
const QUEUE: &str = "the queue";
const DEADLINES: &str = "deadlines";
const OVER: &str = "history";

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lookups {
    by_uid: HashMap<PlacementUid, PlacementName>,
    by_request: HashMap<RequestId, PlacementName>,
    /// Queued placements by when they were asked for.
    queue: Agenda,
    /// When phases end by themselves.
    deadlines: Agenda,
    /// Placements that are over, by when they ended: the history that may be forgotten.
    over: Agenda,
}

impl Lookups {
    /// The look-ups of these placements.
    pub(super) fn of<'a>(placements: impl Iterator<Item = &'a Placement>) -> Self {
        let mut lookups = Self::default();
        for placement in placements {
            lookups.change(placement.name(), None, Some(placement));
        }
        lookups
    }

    /// A placement takes another's place.
    pub(super) fn change(&mut self, name: &PlacementName, before: Option<&Placement>, after: Option<&Placement>) {
        find_by(&mut self.by_uid, name, before, after, |p| &p.uid);
        find_by(&mut self.by_request, name, before, after, |p| &p.request.request_id);
        let queued = |p: &Placement| matches!(p.phase, Phase::Queued { .. }).then_some(p.created);
        mark(&mut self.queue, name, before, after, queued);
        mark(&mut self.deadlines, name, before, after, |p| p.phase.deadline());
        mark(&mut self.over, name, before, after, |p| p.phase.is_over().then_some(p.phase_since));
    }

    pub(super) fn by_uid(&self, uid: &PlacementUid) -> Option<&PlacementName> {
        self.by_uid.get(uid)
    }

    pub(super) fn by_request(&self, id: &RequestId) -> Option<&PlacementName> {
        self.by_request.get(id)
    }

    /// Queued placements after one of them, oldest first.
    pub(super) fn queue_after(
        &self,
        after: Option<&(Timestamp, PlacementName)>,
    ) -> impl Iterator<Item = &(Timestamp, PlacementName)> {
        let from = after.map_or(Bound::Unbounded, |at| Bound::Excluded(at.clone()));
        self.queue.range((from, Bound::Unbounded))
    }

    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Placements whose phase has ended by itself at `now`, earliest first.
    pub(super) fn due(&self, now: Timestamp) -> impl Iterator<Item = &PlacementName> {
        self.deadlines.iter().take_while(move |(at, _)| *at <= now).map(|(_, name)| name)
    }

    /// The next moment at which a phase ends by itself.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The placement that has been over for longest, and since when.
    pub(super) fn oldest_over(&self) -> Option<&(Timestamp, PlacementName)> {
        self.over.first()
    }

    /// How many placements are over.
    pub(super) fn over(&self) -> usize {
        self.over.len()
    }

    /// Names what does not find a placement as it should, or finds it as it should not.
    pub(super) fn faults_of(&self, placement: &Placement) -> Vec<&'static str> {
        let name = placement.name();
        let stands = |agenda: &Agenda, at: Timestamp| agenda.contains(&(at, name.clone()));
        let queued = matches!(placement.phase, Phase::Queued { .. });
        let right = [
            (BY_UID, self.by_uid(&placement.uid) == Some(name)),
            (BY_REQUEST, self.by_request(&placement.request.request_id) == Some(name)),
            (QUEUE, stands(&self.queue, placement.created) == queued),
            (DEADLINES, placement.phase.deadline().is_none_or(|at| stands(&self.deadlines, at))),
            (OVER, stands(&self.over, placement.phase_since) == placement.phase.is_over()),
        ];
        right.into_iter().filter(|(_, right)| !right).map(|(what, _)| what).collect()
    }

    /// Names what differs from the look-ups of these placements.
    pub(super) fn differences<'a>(&self, placements: impl Iterator<Item = &'a Placement>) -> Vec<&'static str> {
        let fresh = Self::of(placements);
        let same = [
            (BY_UID, self.by_uid == fresh.by_uid),
            (BY_REQUEST, self.by_request == fresh.by_request),
            (QUEUE, self.queue == fresh.queue),
            (DEADLINES, self.deadlines == fresh.deadlines),
            (OVER, self.over == fresh.over),
        ];
        same.into_iter().filter(|(_, same)| !same).map(|(what, _)| what).collect()
    }
}

/// Moves a placement from what it was found by to what it is found by.
fn find_by<K: Eq + Hash + Clone>(
    lookup: &mut HashMap<K, PlacementName>,
    name: &PlacementName,
    before: Option<&Placement>,
    after: Option<&Placement>,
    key: impl Fn(&Placement) -> &K,
) {
    let (was, is) = (before.map(&key), after.map(&key));
    if was == is {
        return;
    }
    // It may lead to another one by now.
    if let Some(was) = was.filter(|was| lookup.get(was) == Some(name)) {
        lookup.remove(was);
    }
    if let Some(is) = is {
        lookup.insert(is.clone(), name.clone());
    }
}

/// Moves a placement from where it was in order of time to where it is.
fn mark(
    agenda: &mut Agenda,
    name: &PlacementName,
    before: Option<&Placement>,
    after: Option<&Placement>,
    time: impl Fn(&Placement) -> Option<Timestamp>,
) {
    let (was, is) = (before.and_then(&time), after.and_then(&time));
    if was == is {
        return;
    }
    if let Some(was) = was {
        agenda.remove(&(was, name.clone()));
    }
    if let Some(is) = is {
        agenda.insert((is, name.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::request::{Draft, PlacementRequest};
    use std::time::Duration;

    type Damage = fn(&mut Lookups, &Placement);

    fn queued(number: u32, name: &str) -> Placement {
        let draft = Draft {
            request_id: name.to_owned(),
            name: name.to_owned(),
            vm: format!("vm-{name}"),
            gpus: 1,
            ..Draft::default()
        };
        let created = Timestamp::from_millis(1_000);
        Placement {
            uid: PlacementUid::new(format!("00000000-0000-0000-0000-{number:012}")).unwrap(),
            request: PlacementRequest::new(draft).unwrap(),
            caller: "test".to_owned(),
            trace: None,
            created,
            version: 1,
            phase: Phase::Queued { until: created.after(Duration::from_secs(60)) },
            phase_since: created,
            assignment: None,
            vm_id: None,
            generation: 0,
            history: Vec::new(),
        }
    }

    #[test]
    fn each_look_up_that_is_wrong_about_a_placement_is_named_by_both_checks() {
        let (placement, other) = (queued(1, "p"), queued(2, "q"));
        let right = Lookups::of([&placement, &other].into_iter());
        let damages: [(&str, Damage); 5] = [
            (BY_UID, |l, p| assert!(l.by_uid.remove(&p.uid).is_some())),
            (BY_REQUEST, |l, p| {
                l.by_request.insert(p.request.request_id.clone(), PlacementName::new("q").unwrap());
            }),
            (QUEUE, |l, p| assert!(l.queue.remove(&(p.created, p.name().clone())))),
            (DEADLINES, |l, _| l.deadlines.clear()),
            (OVER, |l, p| assert!(l.over.insert((p.phase_since, p.name().clone())))),
        ];
        assert_eq!((right.faults_of(&placement), right.faults_of(&other)), (vec![], vec![]));
        for (what, damage) in damages {
            let mut wrong = right.clone();
            damage(&mut wrong, &placement);
            assert_eq!(wrong.faults_of(&placement), [what]);
            assert_eq!(wrong.differences([&placement, &other].into_iter()), [what]);
        }
    }
}
