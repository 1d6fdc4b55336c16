//! The whole history of etcd, walked revision by revision from the first: what it must never show, and what it shows.
//!
//! Recomputes from the placements alone who owns what, with the rules of the design rather than the controller's code, and
//! compares that with the claims at every revision. Must never skip a revision.

use anyhow::{Context as _, bail};
use berth_model::PlacementUid;
use berth_model::placement::{FailureReason, Phase, Placement};
use berth_model::vm::VmSelector;
use berth_proto::v1::{self, AuditRecord};
use berth_store::key::Key;
use berth_store::{Event, KeyValue, Revision, Store, Transaction, Write, audit, key, record};
use futures::StreamExt as _;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

/// How long etcd may take to tell everything.
const READ: Duration = Duration::from_secs(120);
/// Written when the walk begins, so that it has an end. None of Berth's keys.
const END: &str = "nemesis/end";

/// All changes from the first revision on, each item those of one revision.
///
/// # Errors
/// When etcd does not tell all of it.
pub async fn read(store: &impl Store) -> anyhow::Result<Vec<Vec<Event>>> {
    let reading = async {
        let writes = vec![Write::Put { key: END.to_owned(), value: Vec::new().into() }];
        let end = store.commit(Transaction { writes, ..Transaction::default() }).await?;
        let mut watch = store.watch("", Revision(1)).await?;
        let mut history = Vec::new();
        while let Some(events) = watch.next().await {
            let events = events?;
            if events.iter().any(|event| event.revision() >= end) {
                return Ok(history);
            }
            history.push(events);
        }
        bail!("the watch ended at revision {:?} of {end}", history.last().map(|events| events[0].revision()))
    };
    tokio::time::timeout(READ, reading).await.context("etcd does not tell its history in time")?
}

/// One time of leading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// Its term.
    pub term: u64,
    /// Who it is, as it calls itself.
    pub candidate: String,
    /// The revision that created the leader key: its fence.
    pub created: Revision,
    /// The revision that deleted it.
    pub ended: Option<Revision>,
}

/// A placement as one revision wrote it.
#[derive(Clone, Debug)]
pub struct Written {
    /// The revision.
    pub revision: Revision,
    /// The placement.
    pub placement: Placement,
}

/// A placement that came into a phase.
#[derive(Clone, Debug)]
pub struct Entered {
    /// The revision that brought it there.
    pub revision: Revision,
    /// Which placement.
    pub uid: PlacementUid,
    /// Which phase.
    pub phase: v1::Phase,
    /// Whether it was there for the first time.
    pub is_new: bool,
}

/// What the history came to, and everything in it that must not be.
#[derive(Debug, Default)]
pub struct History {
    /// The last revision.
    pub revision: Revision,
    /// How many revisions were walked.
    pub revisions: u64,
    /// Every leadership, in order.
    pub leaderships: Vec<Leadership>,
    /// Every placement as it was written, by uid and version.
    pub written: HashMap<(PlacementUid, u64), Written>,
    /// Placements as they are at the end.
    pub placements: BTreeMap<String, Placement>,
    /// Revisions that changed something beside leader and term.
    pub changes: BTreeSet<Revision>,
    /// Every phase that a placement was in at the end of a revision and not before it.
    pub entered: Vec<Entered>,
    /// Every record of the audit that was written beside a change, with the revision that did.
    pub audited: Vec<(Revision, AuditRecord)>,
    /// What must not be, each with its revision.
    pub wrong: Vec<String>,
    claims: BTreeMap<String, record::Claim>,
    /// Who owns a key according to the placements.
    owners: BTreeMap<String, BTreeSet<(String, PlacementUid)>>,
    /// Which placement ever answered a request id.
    answered: HashMap<String, PlacementUid>,
    generations: HashMap<String, u64>,
    term: u64,
}

/// The keys that a placement must own, by the rules: its request id as long as it is remembered, its VM while it lives,
/// its GPUs while it holds them.
fn owned(placement: &Placement) -> BTreeSet<String> {
    let request = &placement.request;
    let mut keys = BTreeSet::from([key::request(&request.request_id)]);
    let (lives, holds) = match &placement.phase {
        Phase::Requested | Phase::Queued { .. } => (true, false),
        Phase::Held { .. }
        | Phase::Preparing { .. }
        | Phase::Attaching { .. }
        | Phase::Starting { .. }
        | Phase::Verifying { .. }
        | Phase::Active
        | Phase::Releasing { .. }
        | Phase::Failed { undone: false, .. } => (true, true),
        Phase::Released | Phase::Failed { undone: true, .. } => (false, false),
    };
    if lives {
        keys.insert(key::vm_claim(&request.vm));
        keys.extend(placement.vm_id.clone().map(|id| key::vm_claim(&VmSelector::Id(id))));
    }
    if let (true, Some(assignment)) = (holds, &placement.assignment) {
        keys.extend(assignment.gpu_ids().map(|gpu| key::gpu_claim(&gpu)));
    }
    keys
}

/// Whether it is over: nothing can happen to it any more but to be forgotten.
#[must_use]
pub fn is_over(phase: &Phase) -> bool {
    matches!(phase, Phase::Released | Phase::Failed { undone: true, .. })
}

impl History {
    /// Walks through all of it.
    #[must_use]
    pub fn walk(events: Vec<Vec<Event>>) -> Self {
        let mut history = Self::default();
        for revision in events {
            history.take(revision);
        }
        history
    }

    /// The leadership that a revision lies in.
    #[must_use]
    pub fn led_at(&self, revision: Revision) -> Option<&Leadership> {
        let begun = |it: &&Leadership| it.created <= revision && it.ended.is_none_or(|ended| revision < ended);
        self.leaderships.iter().find(begun)
    }

    fn is_wrong(&mut self, what: impl std::fmt::Display) {
        self.wrong.push(format!("revision {}: {what}", self.revision));
    }

    /// Takes in all changes of one revision.
    fn take(&mut self, events: Vec<Event>) {
        let Some(first) = events.first() else { return };
        if first.revision() <= self.revision {
            self.is_wrong(format_args!("followed by revision {}", first.revision()));
        }
        self.revision = first.revision();
        self.revisions += 1;
        let leads = self.leaderships.last().is_some_and(|leadership| leadership.ended.is_none());
        let mut touched = BTreeSet::new();
        for event in events {
            let text = event.key().to_owned();
            if !text.starts_with(key::ALL) {
                if let Event::Put(item) = &event
                    && text.starts_with(audit::FRESH)
                {
                    match audit::read_batch(item) {
                        Ok(records) => self.audited.extend(records.into_iter().map(|it| (self.revision, it))),
                        Err(error) => self.is_wrong(error),
                    }
                }
                continue;
            }
            let parsed = match Key::parse(&text) {
                Ok(parsed) => parsed,
                Err(error) => {
                    self.is_wrong(error);
                    continue;
                }
            };
            if !matches!(parsed, Key::Leader | Key::Term) {
                self.changes.insert(self.revision);
                if !leads {
                    self.is_wrong(format_args!("{text} is written while nobody leads"));
                }
            }
            if let Err(error) = self.take_event(&parsed, text, event, &mut touched) {
                self.is_wrong(format!("{error:#}"));
            }
        }
        for key in touched {
            self.check_owner(&key);
        }
    }

    fn take_event(
        &mut self,
        key: &Key,
        text: String,
        event: Event,
        touched: &mut BTreeSet<String>,
    ) -> anyhow::Result<()> {
        match (key, event) {
            (Key::Leader, Event::Put(item)) => self.leader(&item)?,
            (Key::Leader, Event::Delete { .. }) => match self.leaderships.last_mut() {
                Some(leadership) if leadership.ended.is_none() => leadership.ended = Some(self.revision),
                Some(_) | None => self.is_wrong("the leader key is deleted twice"),
            },
            (Key::Term, Event::Put(item)) => {
                let term = record::read_term(&item.value)?;
                let before = std::mem::replace(&mut self.term, term);
                if term <= before {
                    self.is_wrong(format_args!("term {term} follows on term {before}"));
                }
            }
            (Key::Placement(_), Event::Put(item)) => self.put(record::read_placement(&item)?, touched),
            (Key::Placement(name), Event::Delete { .. }) => self.forget(name.as_str(), touched),
            (Key::Node(name), Event::Put(item)) => {
                let node = record::read_node(&item)?;
                let before = self.generations.insert(name.to_string(), node.generation).unwrap_or(0);
                if node.generation < before {
                    self.is_wrong(format_args!("node {name} goes from generation {before} to {}", node.generation));
                }
            }
            (Key::GpuClaim(_) | Key::VmClaim(_) | Key::Request(_), Event::Put(item)) => {
                let claim = record::read_claim(&item)?;
                if let Key::Request(id) = key {
                    let first = self.answered.entry(id.to_string()).or_insert_with(|| claim.uid.clone());
                    if *first != claim.uid {
                        let text = format!("request {id} is answered by {first} and by {}", claim.uid);
                        self.is_wrong(text);
                    }
                }
                self.claims.insert(text.clone(), claim);
                touched.insert(text);
            }
            (Key::GpuClaim(_) | Key::VmClaim(_) | Key::Request(_), Event::Delete { .. }) => {
                self.claims.remove(&text);
                touched.insert(text);
            }
            (Key::Fleet, Event::Put(item)) => {
                record::read_fleet(&item.value)?;
                if item.version > 1 {
                    self.is_wrong("the fleet gets another name");
                }
            }
            (Key::Term | Key::Fleet | Key::Node(_), Event::Delete { .. }) => {
                self.is_wrong(format_args!("{text} is deleted"))
            }
        }
        Ok(())
    }

    fn leader(&mut self, item: &KeyValue) -> anyhow::Result<()> {
        let record::Leader { term, candidate } = record::read_leader(&item.value)?;
        if let Some(last) = self.leaderships.last().cloned() {
            if last.ended.is_none() {
                self.is_wrong(format_args!("{candidate} takes the lead from {}", last.candidate));
            }
            if term <= last.term {
                self.is_wrong(format_args!("leadership of term {term} follows on one of term {}", last.term));
            }
        }
        self.leaderships.push(Leadership { term, candidate, created: item.created, ended: None });
        Ok(())
    }

    fn put(&mut self, placement: Placement, touched: &mut BTreeSet<String>) {
        let name = placement.name().to_string();
        let before = self.placements.get(&name).filter(|before| before.uid == placement.uid);
        if before.is_none_or(|before| before.phase.name() != placement.phase.name()) {
            let (revision, uid, phase) = (self.revision, placement.uid.clone(), v1::Phase::from(&placement.phase));
            self.entered.push(Entered { revision, uid, phase, is_new: before.is_none() });
        }
        if let Some(before) = self.placements.get(&name).cloned() {
            if before.uid != placement.uid {
                if !is_over(&before.phase) {
                    self.is_wrong(format_args!("{name} is {} and becomes another placement", before.phase.name()));
                }
            } else if is_over(&before.phase) {
                let (was, is) = (before.phase.name(), placement.phase.name());
                self.is_wrong(format_args!("{name} was over as {was} and becomes {is}"));
            } else if before.assignment.is_some() && before.assignment != placement.assignment {
                self.is_wrong(format_args!("{name} moves from {:?} to {:?}", before.assignment, placement.assignment));
            }
            if let (Phase::Held { until }, Phase::Failed { reason: FailureReason::HoldExpired, .. }) =
                (&before.phase, &placement.phase)
                && placement.phase_since < *until
            {
                self.is_wrong(format_args!(
                    "{name} was held until {until:?} and is given up at {:?}",
                    placement.phase_since
                ));
            }
            self.disown(&before, touched);
        }
        for key in owned(&placement) {
            self.owners.entry(key.clone()).or_default().insert((name.clone(), placement.uid.clone()));
            touched.insert(key);
        }
        let written = Written { revision: self.revision, placement: placement.clone() };
        self.written.insert((placement.uid.clone(), placement.version), written);
        self.placements.insert(name, placement);
    }

    fn forget(&mut self, name: &str, touched: &mut BTreeSet<String>) {
        let Some(before) = self.placements.remove(name) else { return };
        if !is_over(&before.phase) {
            self.is_wrong(format_args!("{name} is forgotten while it is {}", before.phase.name()));
        }
        self.disown(&before, touched);
    }

    fn disown(&mut self, placement: &Placement, touched: &mut BTreeSet<String>) {
        for key in owned(placement) {
            if let Some(owners) = self.owners.get_mut(&key) {
                owners.retain(|(_, uid)| *uid != placement.uid);
            }
            touched.insert(key);
        }
    }

    /// Whether the one claim of a key is that of its one owner.
    fn check_owner(&mut self, key: &str) {
        let owners = self.owners.get(key).cloned().unwrap_or_default();
        let claim = self.claims.get(key).map(|claim| (claim.placement.to_string(), claim.uid.clone()));
        if owners.len() > 1 {
            self.is_wrong(format_args!("{key} is owned by {owners:?}"));
        }
        if owners.iter().next() != claim.as_ref() {
            self.is_wrong(format_args!("{key} is claimed by {claim:?} and owned by {owners:?}"));
        }
    }

    /// The claims of GPUs at the end.
    pub fn gpu_claims(&self) -> impl Iterator<Item = (&str, &record::Claim)> {
        let gpus = self.claims.range(key::GPU_CLAIMS.to_owned()..);
        gpus.map_while(|(key, claim)| Some((key.strip_prefix(key::GPU_CLAIMS)?, claim)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Book, claim, gpu_key, placement, put_placement};
    use berth_proto::v1::{self, Phase};
    use berth_store::{Write, key};

    async fn check(book: &Book, expected: &[&str]) {
        let wrong = book.history().await.wrong;
        assert_eq!(wrong.len(), expected.len(), "{wrong:#?}");
        for (wrong, expected) in wrong.iter().zip(expected) {
            assert!(wrong.contains(expected), "{wrong:?} does not say {expected:?}");
        }
    }

    #[tokio::test]
    async fn a_life_as_it_should_be_is_good() {
        let book = Book::led().await;
        for phase in [Phase::Held, Phase::Active, Phase::Releasing, Phase::Released] {
            book.put(&placement("a", 1, phase)).await;
        }
        book.put(&placement("b", 2, Phase::Held)).await;
        check(&book, &[]).await;
        let history = book.history().await;
        assert_eq!((history.changes.len(), history.leaderships.len()), (5, 1));
    }

    #[tokio::test]
    async fn a_gpu_with_two_owners_is_found() {
        let book = Book::led().await;
        book.put(&placement("a", 1, Phase::Held)).await;
        book.put(&placement("b", 2, Phase::Held)).await;
        check(&book, &["is owned by", "is claimed by"]).await;
    }

    #[tokio::test]
    async fn a_claim_that_is_missing_stays_behind_or_names_another_is_found() {
        let book = Book::led().await;
        let held = placement("a", 1, Phase::Held);
        book.put(&held).await;
        book.write(vec![Write::Delete { key: gpu_key() }]).await;
        book.write(vec![claim(&gpu_key(), &placement("b", 2, Phase::Held))]).await;
        book.write(vec![claim(&gpu_key(), &held)]).await;
        book.write(vec![put_placement(&placement("a", 1, Phase::Released))]).await;
        check(&book, &["claimed by None", "claimed by Some((\"b\"", "owned by {}", "owned by {}"]).await;
    }

    #[tokio::test]
    async fn a_hold_that_is_given_up_early_is_found() {
        let at = |millis| Some(berth_proto::convert::timestamp(berth_model::Timestamp::from_millis(millis)));
        let reason = v1::failure_reason::Reason::HoldExpired(v1::failure_reason::HoldExpired {});
        let failure = Some(v1::FailureReason { reason: Some(reason), ..Default::default() });
        for (given_up, early) in [(5_000, false), (4_999, true)] {
            let book = Book::led().await;
            let held = v1::Placement { deadline: at(5_000), ..placement("a", 1, Phase::Held) };
            book.put(&held).await;
            let failed = placement("a", 1, Phase::Failed);
            let vm_id = String::new();
            let phase_since = at(given_up);
            book.put(&v1::Placement { vm_id, phase_since, failure: failure.clone(), undone: true, ..failed }).await;
            let wrong = book.history().await.wrong;
            assert_eq!(wrong.iter().any(|what| what.contains("a was held until")), early, "{wrong:#?}");
        }
    }

    #[tokio::test]
    async fn whoever_writes_without_leading_is_found() {
        let book = Book::led().await;
        book.leave().await;
        book.write(vec![put_placement(&placement("a", 1, Phase::Released))]).await;
        let wrong = book.history().await.wrong;
        assert!(wrong[0].contains("is written while nobody leads"), "{wrong:?}");
    }

    #[tokio::test]
    async fn leaderships_follow_one_another_with_higher_terms() {
        let book = Book::led().await;
        book.leave().await;
        book.lead(2).await;
        check(&book, &[]).await;
        book.lead(3).await;
        check(&book, &["takes the lead from"]).await;
        book.leave().await;
        book.lead(3).await;
        check(&book, &["takes the lead from", "leadership of term 3 follows", "term 3 follows on term 3"]).await;
    }

    #[tokio::test]
    async fn the_led_are_told_apart_by_revision() {
        let book = Book::led().await;
        let first = book.put(&placement("a", 1, Phase::Held)).await;
        let left = book.leave().await;
        let second = book.lead(2).await;
        let history = book.history().await;
        assert_eq!(history.led_at(first).unwrap().term, 1);
        assert_eq!(history.led_at(left), None);
        assert_eq!(history.led_at(second).unwrap().term, 2);
    }

    #[tokio::test]
    async fn nobody_comes_back_moves_or_vanishes() {
        let book = Book::led().await;
        book.put(&placement("a", 1, Phase::Active)).await;
        let mut moved = placement("a", 1, Phase::Active);
        moved.assignment.as_mut().unwrap().node = "host-01".to_owned();
        book.write(vec![put_placement(&moved)]).await;
        let wrong = book.history().await.wrong;
        assert!(wrong.iter().any(|wrong| wrong.contains("a moves from")), "{wrong:?}");

        let book = Book::led().await;
        book.put(&placement("a", 1, Phase::Released)).await;
        book.put(&placement("a", 1, Phase::Active)).await;
        check(&book, &["was over as Released and becomes Active"]).await;

        let book = Book::led().await;
        book.put(&placement("a", 1, Phase::Active)).await;
        book.write(vec![Write::Delete { key: key::placement(&"a".parse().unwrap()) }]).await;
        let wrong = book.history().await.wrong;
        assert!(wrong[0].contains("is forgotten while it is Active"), "{wrong:?}");
    }

    #[tokio::test]
    async fn a_request_is_answered_once() {
        let book = Book::led().await;
        book.put(&placement("a", 1, Phase::Released)).await;
        let other = placement("b", 2, Phase::Released);
        book.write(vec![claim("berth/v1/requests/request/a/1", &other)]).await;
        let wrong = book.history().await.wrong;
        assert!(wrong.iter().any(|wrong| wrong.contains("request request/a/1 is answered by")), "{wrong:?}");
    }
}
