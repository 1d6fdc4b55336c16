//! What readers see: the last committed world, some of those before it, and what changed in between.
//!
//! Owns the published snapshots and the changes that watchers resume from. Reads never wait for the leader, the store or
//! a node. Must never show anything that is not committed: a leader publishes only after a commit, a follower only what
//! the store's watch brought.

use crate::afterwards::afterwards;
use arc_swap::ArcSwap;
use berth_core::world::World;
use berth_model::{NodeName, PlacementName, Timestamp};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Snapshots of the last moments, all of them: a watcher that keeps up sees every single state. Snapshots share what
/// did not change, so that each costs what a batch of decisions touched (tens of KiB).
const RECENT: usize = 256;
/// Snapshots kept for lists in progress. A list of the largest fleet takes ten pages; 64 such lists at a time are more
/// than the people and dashboards of a fleet start, and each can cost tens of MiB when much changes meanwhile.
const KEPT: usize = 64;
/// How long a snapshot is kept: whoever reads a page and asks for the next a minute later can start again.
const KEPT_AGE: Duration = Duration::from_secs(60);
/// Changes to resume from, names only: some MiB, and minutes of a fleet that places a hundred VMs a second.
const CHANGES: usize = 16_384;

/// The world as it was at one moment, all of it committed.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Nodes, GPUs and placements.
    pub world: World,
    /// The highest store revision among the commits in it.
    pub revision: u64,
    /// Counts the snapshots of an epoch; several can have one revision, because observations are not stored.
    pub sequence: u64,
    /// Tells one loading of the world from the next: sequences of different epochs cannot be compared.
    pub epoch: u64,
    /// The leadership that it is of; 0 while none is known.
    pub term: u64,
    /// Since when this controller leads; meaningless in one that follows.
    pub leading_since: Timestamp,
}

impl Snapshot {
    /// Whether it shows anything: before the first look at the store nothing is known, which is not the same as that
    /// there is nothing. No store is at revision 0 once a controller has led.
    pub fn is_loaded(&self) -> bool {
        self.revision > 0
    }
}

/// What changed from one snapshot to a later one.
#[derive(Clone, Debug)]
pub struct Published {
    /// The later one.
    pub snapshot: Arc<Snapshot>,
    /// Placements whose view changed, those forgotten included.
    pub placements: BTreeSet<PlacementName>,
    /// Nodes whose view, or whose GPUs' view, changed.
    pub nodes: BTreeSet<NodeName>,
}

/// The changes after a revision are not kept (any more): list, then follow from the list's revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes after revision {asked} are not kept, the oldest to resume from is {oldest}; list again, then watch")]
pub struct TooOld {
    /// What was asked for.
    pub asked: u64,
    /// The oldest that would do.
    pub oldest: u64,
}

/// Nothing will be published any more: the controller stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the controller is stopping")]
pub struct Ended;

/// Read access to the published world. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Replica {
    shared: Arc<Shared>,
    head: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Shared {
    now: ArcSwap<Snapshot>,
    ring: Mutex<Ring>,
}

impl Shared {
    /// Nothing is left half done under this lock, so that a panic elsewhere does not make its content wrong.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which names a change touched.
#[derive(Debug)]
enum Touched {
    /// Everything there is: the world was loaded anew.
    All,
    /// These.
    Some { placements: BTreeSet<PlacementName>, nodes: BTreeSet<NodeName> },
}

#[derive(Debug)]
struct Change {
    sequence: u64,
    revision: u64,
    touched: Arc<Touched>,
}

#[derive(Debug)]
struct Ring {
    /// The newest last; never empty.
    recent: VecDeque<(Instant, Arc<Snapshot>)>,
    /// Asked for by lists in progress.
    kept: VecDeque<(Instant, Arc<Snapshot>)>,
    /// Without gaps, the newest last; never empty.
    changes: VecDeque<Change>,
    /// Every change of a revision from this one on is in `changes`.
    complete_from: u64,
}

impl Ring {
    fn new(first: Arc<Snapshot>, now: Instant) -> Self {
        let change = Change { sequence: first.sequence, revision: first.revision, touched: Arc::new(Touched::All) };
        Self {
            complete_from: first.revision,
            recent: VecDeque::from([(now, first)]),
            kept: VecDeque::new(),
            changes: VecDeque::from([change]),
        }
    }

    /// Takes a snapshot in; gives those that nobody can ask for any more.
    fn push(&mut self, snapshot: Arc<Snapshot>, touched: Touched, now: Instant) -> Vec<Arc<Snapshot>> {
        let mut retired = Vec::new();
        let (sequence, revision) = (snapshot.sequence, snapshot.revision);
        self.changes.push_back(Change { sequence, revision, touched: Arc::new(touched) });
        while self.changes.len() > CHANGES {
            if let Some(lost) = self.changes.pop_front() {
                self.complete_from = self.complete_from.max(lost.revision.saturating_add(1));
            }
        }
        self.recent.push_back((now, snapshot));
        while self.recent.len() > RECENT || self.recent.len() > 1 && is_old(self.recent.front(), now) {
            retired.extend(self.recent.pop_front().map(|(_, snapshot)| snapshot));
        }
        while is_old(self.kept.front(), now) {
            retired.extend(self.kept.pop_front().map(|(_, snapshot)| snapshot));
        }
        retired
    }

    fn keep(&mut self, snapshot: &Arc<Snapshot>, now: Instant) {
        let same = |kept: &Arc<Snapshot>| kept.epoch == snapshot.epoch && kept.sequence == snapshot.sequence;
        // Asked for again: it becomes the youngest.
        self.kept.retain(|(_, kept)| !same(kept));
        self.kept.push_back((now, Arc::clone(snapshot)));
        while self.kept.len() > KEPT || is_old(self.kept.front(), now) {
            self.kept.pop_front();
        }
    }

    fn at(&self, epoch: u64, sequence: u64) -> Option<Arc<Snapshot>> {
        self.recent
            .iter()
            .rev()
            .chain(&self.kept)
            .find(|(_, snapshot)| snapshot.epoch == epoch && snapshot.sequence == sequence)
            .map(|(_, snapshot)| Arc::clone(snapshot))
    }

    fn newest(&self) -> Option<&Arc<Snapshot>> {
        self.recent.back().map(|(_, snapshot)| snapshot)
    }
}

fn is_old(item: Option<&(Instant, Arc<Snapshot>)>, now: Instant) -> bool {
    item.is_some_and(|(since, _)| now.saturating_duration_since(*since) > KEPT_AGE)
}

impl Replica {
    /// A replica that shows `world`, and the only one who can make it show another.
    pub fn new(world: World, revision: u64, term: u64, leading_since: Timestamp) -> (Self, Publisher) {
        let first = Arc::new(Snapshot { world, revision, sequence: 0, epoch: new_epoch(), term, leading_since });
        let ring = Ring::new(Arc::clone(&first), Instant::now());
        let shared = Arc::new(Shared { now: ArcSwap::new(first), ring: Mutex::new(ring) });
        let (publisher, head) = watch::channel(0);
        (Self { shared: Arc::clone(&shared), head }, Publisher { shared, head: publisher, term, leading_since })
    }

    /// A replica that knows nothing yet.
    pub fn empty() -> (Self, Publisher) {
        Self::new(World::default(), 0, 0, Timestamp::default())
    }

    /// Waits until something is loaded and it is at `revision` at least; whoever waits bounds it.
    ///
    /// # Errors
    /// [`Ended`] when nothing will be published any more.
    pub async fn reach(&self, revision: u64) -> Result<(), Ended> {
        let mut head = self.head.clone();
        let there = |now: &Snapshot| now.is_loaded() && now.revision >= revision;
        while !there(&self.shared.now.load()) {
            head.changed().await.map_err(|_| Ended)?;
        }
        Ok(())
    }

    /// The newest snapshot.
    pub fn now(&self) -> Arc<Snapshot> {
        self.shared.now.load_full()
    }

    /// An earlier snapshot, while it is there: the last moments always are, others only after [`Replica::keep`].
    pub fn at(&self, epoch: u64, sequence: u64) -> Option<Arc<Snapshot>> {
        self.shared.ring().at(epoch, sequence)
    }

    /// Keeps a snapshot for a minute from now. To be called with every page token that is handed out, so that the next
    /// page finds the world of the first.
    pub fn keep(&self, snapshot: &Arc<Snapshot>) {
        self.shared.ring().keep(snapshot, Instant::now());
    }

    /// All changes from now on (`None`), or all after a store revision. A change may come again when resuming in the
    /// middle of a revision, none is left out, and what comes shows each thing as it is then.
    ///
    /// # Errors
    /// When the changes after `after` are not kept.
    pub fn follow(&self, after: Option<u64>) -> Result<Follow, TooOld> {
        let ring = self.shared.ring();
        let Some(newest) = ring.newest() else { return Err(TooOld { asked: after.unwrap_or(0), oldest: 0 }) };
        let (next, seen) = match after {
            None => (newest.sequence.saturating_add(1), None),
            // A revision from the future is one of another history.
            Some(asked) if asked < ring.complete_from || asked > newest.revision => {
                return Err(TooOld { asked, oldest: ring.complete_from });
            }
            Some(asked) => {
                let at = ring.changes.partition_point(|change| change.revision < asked);
                let first = ring.changes.get(at);
                let next = first.map_or(newest.sequence.saturating_add(1), |change| change.sequence);
                (next, first.filter(|change| change.revision == asked).map(|change| change.sequence))
            }
        };
        Ok(Follow {
            shared: Arc::clone(&self.shared),
            head: self.head.clone(),
            epoch: newest.epoch,
            next,
            seen,
            revision: after.unwrap_or(newest.revision),
            ended: false,
        })
    }
}

/// The side of the one who knows, leader or follower of the store: shows new worlds. Dropping it ends everyone who
/// follows.
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    head: watch::Sender<u64>,
    /// Of the snapshots to come.
    term: u64,
    leading_since: Timestamp,
}

impl Publisher {
    /// Shows a world in which all of this is committed.
    pub fn publish(
        &mut self,
        world: World,
        revision: u64,
        placements: BTreeSet<PlacementName>,
        nodes: BTreeSet<NodeName>,
    ) -> Arc<Snapshot> {
        self.push(world, revision, Touched::Some { placements, nodes })
    }

    /// Shows a world that was read anew, in which anything may be different. Who follows goes on with it.
    pub fn replace(&mut self, world: World, revision: u64) -> Arc<Snapshot> {
        self.push(world, revision, Touched::All)
    }

    /// The leadership that later snapshots are of.
    pub fn set_term(&mut self, term: u64, leading_since: Timestamp) {
        self.term = term;
        self.leading_since = leading_since;
    }

    /// The newest snapshot.
    pub fn now(&self) -> Arc<Snapshot> {
        self.shared.now.load_full()
    }

    fn push(&mut self, world: World, revision: u64, touched: Touched) -> Arc<Snapshot> {
        let before = self.shared.now.load_full();
        let snapshot = Arc::new(Snapshot {
            world,
            // Two transactions in flight may be committed in the other order than they were sent.
            revision: revision.max(before.revision),
            sequence: before.sequence.saturating_add(1),
            epoch: before.epoch,
            term: self.term,
            leading_since: self.leading_since,
        });
        let retired = self.shared.ring().push(Arc::clone(&snapshot), touched, Instant::now());
        self.show(Arc::clone(&snapshot));
        // To take a world apart costs about as much as to make it.
        afterwards(move || drop(retired));
        snapshot
    }

    /// Shows a world that was loaded anew. Everyone who follows must list again.
    pub fn restart(&mut self, world: World, revision: u64, term: u64, leading_since: Timestamp) -> Arc<Snapshot> {
        self.set_term(term, leading_since);
        let first = Arc::new(Snapshot { world, revision, sequence: 0, epoch: new_epoch(), term, leading_since });
        *self.shared.ring() = Ring::new(Arc::clone(&first), Instant::now());
        self.show(Arc::clone(&first));
        first
    }

    fn show(&mut self, snapshot: Arc<Snapshot>) {
        self.shared.now.store(snapshot);
        self.head.send_modify(|publications| *publications = publications.wrapping_add(1));
    }
}

/// The changes of the world, as they are committed.
#[derive(Debug)]
pub struct Follow {
    shared: Arc<Shared>,
    head: watch::Receiver<u64>,
    epoch: u64,
    /// Sequence of the next change to give.
    next: u64,
    /// The change whose revision was resumed from: its one placement has been seen.
    seen: Option<u64>,
    /// Revision of the last change given.
    revision: u64,
    ended: bool,
}

impl Follow {
    /// The newest snapshot, whatever has been given.
    pub fn newest(&self) -> Arc<Snapshot> {
        self.shared.now.load_full()
    }

    /// Waits for the next change. Whoever falls behind gets several in one, with the world as it is then; whoever falls
    /// far behind, or follows into a world that was loaded anew, gets [`TooOld`], and then `None`. `None` also comes
    /// when the controller stops.
    pub async fn next(&mut self) -> Option<Result<Arc<Published>, TooOld>> {
        while !self.ended {
            self.head.borrow_and_update();
            match self.take() {
                Ok(Some(published)) => {
                    self.revision = published.snapshot.revision;
                    return Some(Ok(Arc::new(published)));
                }
                Ok(None) => {}
                Err(too_old) => {
                    self.ended = true;
                    return Some(Err(too_old));
                }
            }
            if self.head.changed().await.is_err() {
                self.ended = true;
            }
        }
        None
    }

    fn take(&mut self) -> Result<Option<Published>, TooOld> {
        let (snapshot, touched) = {
            let ring = self.shared.ring();
            let too_old = TooOld { asked: self.revision, oldest: ring.complete_from };
            let (Some(newest), Some(oldest)) = (ring.newest(), ring.changes.front()) else { return Err(too_old) };
            if newest.epoch != self.epoch || self.next < oldest.sequence {
                return Err(too_old);
            }
            if self.next > newest.sequence {
                return Ok(None);
            }
            // The exact state where it is still there, else everything up to now at once.
            let exact = ring.recent.iter().find(|(_, snapshot)| snapshot.sequence == self.next);
            let snapshot = Arc::clone(exact.map_or(newest, |(_, snapshot)| snapshot));
            let from = ring.changes.partition_point(|change| change.sequence < self.next);
            let until = ring.changes.partition_point(|change| change.sequence <= snapshot.sequence);
            let touched: Vec<_> =
                ring.changes.range(from..until).map(|change| (change.sequence, Arc::clone(&change.touched))).collect();
            (snapshot, touched)
        };
        let (mut placements, mut nodes) = (BTreeSet::new(), BTreeSet::new());
        for (sequence, touched) in touched {
            match touched.as_ref() {
                Touched::All => {
                    placements.extend(snapshot.world.placements().map(|placement| placement.name().clone()));
                    nodes.extend(snapshot.world.nodes().map(|node| node.name.clone()));
                }
                Touched::Some { placements: more, nodes: more_nodes } => {
                    // A watcher that saw one of several may not have seen the others.
                    if self.seen != Some(sequence) || more.len() > 1 {
                        placements.extend(more.iter().cloned());
                    }
                    nodes.extend(more_nodes.iter().cloned());
                }
            }
        }
        self.next = snapshot.sequence.saturating_add(1);
        Ok(Some(Published { snapshot, placements, nodes }))
    }
}

/// Drawn, so that it differs between processes, too.
fn new_epoch() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn replica() -> (Replica, Publisher) {
        Replica::new(World::default(), 10, 1, Timestamp::from_millis(0))
    }

    fn publish(publisher: &mut Publisher, revision: u64, placements: &[&str]) -> Arc<Snapshot> {
        let names = placements.iter().map(|name| name.parse().unwrap()).collect();
        publisher.publish(World::default(), revision, names, BTreeSet::new())
    }

    fn names(published: &Published) -> Vec<&str> {
        published.placements.iter().map(PlacementName::as_str).collect()
    }

    /// What `follow` gives without waiting.
    fn given(follow: &mut Follow) -> Vec<Result<(u64, Vec<String>), TooOld>> {
        let mut all = Vec::new();
        while let Some(Some(next)) = follow.next().now_or_never() {
            all.push(next.map(|p| (p.snapshot.revision, names(&p).into_iter().map(str::to_owned).collect())));
        }
        all
    }

    fn changes(list: &[(u64, &[&str])]) -> Vec<Result<(u64, Vec<String>), TooOld>> {
        list.iter().map(|(revision, names)| Ok((*revision, names.iter().map(|n| (*n).to_owned()).collect()))).collect()
    }

    #[test]
    fn whoever_keeps_up_sees_every_state() {
        let (replica, mut publisher) = replica();
        let mut follow = replica.follow(None).unwrap();
        publish(&mut publisher, 11, &["a"]);
        publish(&mut publisher, 11, &["b"]);
        publish(&mut publisher, 12, &["a"]);
        assert_eq!(given(&mut follow), changes(&[(11, &["a"]), (11, &["b"]), (12, &["a"])]));
        assert_eq!(replica.now().revision, 12);
    }

    #[test]
    fn resuming_leaves_nothing_out() {
        let (replica, mut publisher) = replica();
        publish(&mut publisher, 11, &["a"]);
        publish(&mut publisher, 11, &["observed"]);
        publish(&mut publisher, 12, &["b", "c"]);
        publish(&mut publisher, 13, &["d"]);
        let resume = |after| given(&mut replica.follow(Some(after)).unwrap());
        assert_eq!(resume(11)[0], Ok((11, vec![])), "the one change of the revision was seen");
        assert_eq!(resume(11)[1..], changes(&[(11, &["observed"]), (12, &["b", "c"]), (13, &["d"])]));
        assert_eq!(resume(12), changes(&[(12, &["b", "c"]), (13, &["d"])]), "of several, some may not have been seen");
        assert_eq!(replica.follow(Some(9)).unwrap_err(), TooOld { asked: 9, oldest: 10 });
        assert_eq!(replica.follow(Some(14)).unwrap_err(), TooOld { asked: 14, oldest: 10 }, "another history");
    }

    #[test]
    fn whoever_falls_behind_gets_several_changes_in_one() {
        let (replica, mut publisher) = replica();
        let mut follow = replica.follow(None).unwrap();
        publish(&mut publisher, 11, &["first"]);
        for _ in 0..RECENT {
            publish(&mut publisher, 12, &["a"]);
        }
        publish(&mut publisher, 13, &["b"]);
        assert_eq!(given(&mut follow), changes(&[(13, &["a", "b", "first"])]));
    }

    #[test]
    fn whoever_falls_far_behind_must_list_again() {
        let (replica, mut publisher) = replica();
        let mut follow = replica.follow(None).unwrap();
        for revision in 11..=u64::try_from(CHANGES).unwrap() + 20 {
            publish(&mut publisher, revision, &["a"]);
        }
        let oldest = replica.follow(Some(0)).unwrap_err().oldest;
        assert_eq!(given(&mut follow), [Err(TooOld { asked: 10, oldest })]);
        assert!(replica.follow(Some(oldest)).is_ok());
        assert!(replica.follow(Some(oldest - 1)).is_err());
    }

    #[test]
    fn a_world_loaded_anew_makes_followers_list_again() {
        let (replica, mut publisher) = replica();
        let mut follow = replica.follow(None).unwrap();
        let old = publish(&mut publisher, 11, &["a"]);
        publisher.restart(World::default(), 11, 2, Timestamp::from_millis(5));
        assert_eq!(given(&mut follow), [Err(TooOld { asked: 10, oldest: 11 })]);
        assert!(replica.at(old.epoch, old.sequence).is_none(), "pages of two worlds do not mix");
        assert_eq!((replica.now().term, replica.now().sequence), (2, 0));
    }

    #[test]
    fn the_end_of_the_publisher_ends_followers() {
        let (replica, publisher) = replica();
        let mut follow = replica.follow(None).unwrap();
        drop(publisher);
        assert!(matches!(follow.next().now_or_never(), Some(None)));
    }

    #[test]
    fn a_kept_snapshot_outlives_the_recent_ones() {
        let (replica, mut publisher) = replica();
        let first = publish(&mut publisher, 11, &["a"]);
        let second = publish(&mut publisher, 12, &["a"]);
        assert!(replica.at(first.epoch, first.sequence).is_some());
        replica.keep(&first);
        for _ in 0..RECENT {
            publish(&mut publisher, 13, &["a"]);
        }
        let found = replica.at(first.epoch, first.sequence).unwrap();
        assert_eq!((found.revision, found.sequence), (first.revision, first.sequence));
        assert!(replica.at(second.epoch, second.sequence).is_none());
        assert!(replica.at(first.epoch ^ 1, first.sequence).is_none());
    }

    #[test]
    fn kept_snapshots_are_bounded_by_count_and_age() {
        let (replica, mut publisher) = replica();
        let start = Instant::now();
        let first = publish(&mut publisher, 11, &["a"]);
        let mut ring = replica.shared.ring();
        ring.keep(&first, start);
        ring.keep(&replica.now(), start);
        assert_eq!(ring.kept.len(), 1, "one snapshot is kept once");
        for _ in 0..2 * KEPT {
            let other = Snapshot { sequence: ring.kept.len() as u64 + 1000, ..(*first).clone() };
            ring.keep(&Arc::new(other), start);
        }
        assert!(ring.kept.len() <= KEPT);
        ring.keep(&first, start + KEPT_AGE * 2);
        assert_eq!(ring.kept.len(), 1, "the others are too old by now");
    }
}
