//! Fills a store with a whole world, from a backup or from what agents hold, as a leader: fenced, in bounded transactions.
//!
//! Owns the order of writing: whatever it is cut off at, what lies in the store then is refused by whoever loads it, because
//! claims are there before, and as long as, their placements are not. Must never be used on a store that another
//! controller leads.

use crate::audit;
use crate::console::Console;
use crate::leader::load;
use berth_core::decide::{Brain, Limits};
use berth_core::invariants::Violation;
use berth_model::Timestamp;
use berth_model::id::FleetId;
use berth_model::node::StoredNode;
use berth_model::placement::Placement;
use berth_store::{CommitError, Fence, Leadership, Revision, Store, Transaction, Write, key, record, term};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long to wait for the leadership. A controller that died leaves it after its lease, some seconds; one that runs
/// keeps it.
const CAMPAIGN: Duration = Duration::from_secs(30);
/// How long nothing is said of that.
const SILENCE: Duration = Duration::from_secs(1);
/// Writes in one transaction: with the fence still within what etcd takes.
const WRITES: usize = 100;
/// Bytes in one transaction, unless one record is larger: well within etcd's limit for a request.
const BYTES: usize = 512 << 10;
/// Keys read at once.
const PAGE: usize = 1_000;
/// Violations told one by one: a screenful.
const TOLD: usize = 16;

/// Why a store was not filled, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The world to be written makes no sense.
    #[error(transparent)]
    World(#[from] load::Error),
    /// It breaks a rule of truth.
    #[error("{count} rules are broken: {}", .told.join("; "))]
    Broken {
        /// How many.
        count: usize,
        /// The first of them.
        told: Vec<String>,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] berth_store::Error),
    /// Somebody else leads.
    #[error("another controller leads: stop every controller first")]
    Led,
    /// There is something in the store.
    #[error("the store holds {records} records, {placements} placements among them{}", .hint)]
    NotEmpty {
        /// Records, who leads aside.
        records: usize,
        /// Placements among them.
        placements: usize,
        /// What to do about it.
        hint: &'static str,
    },
    /// The first transaction surely failed.
    #[error("nothing was changed; do the same again")]
    NotBegun(#[source] CommitError),
    /// A transaction failed.
    #[error(
        "only {written} of {all} records were written; no controller starts on the store as it is now. Do the same again \
         with an empty store, or with --into-nonempty where that is a flag"
    )]
    CutOff {
        /// Records written.
        written: usize,
        /// Records to write.
        all: usize,
        /// Why.
        source: CommitError,
    },
    /// What was written reads otherwise.
    #[error("what was written is not what is read back: {0}")]
    ReadBack(String),
}

/// A whole world to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// Every leadership from now on is above this term.
    pub(crate) term: u64,
    /// The fleet that agents know; the store keeps its own where nobody does.
    pub(crate) fleet: Option<FleetId>,
    pub(crate) nodes: Vec<StoredNode>,
    pub(crate) placements: Vec<Placement>,
}

impl Content {
    /// How many records it is: the fleet, nodes, placements and their claims.
    pub(crate) fn records(&self) -> usize {
        usize::from(self.fleet.is_some()) + self.nodes.len() + self.placements.len() + self.claims().len()
    }

    /// Claims by key.
    pub(crate) fn claims(&self) -> BTreeMap<String, Bytes> {
        let claims = |placement: &Placement| {
            let value = record::claim(placement.name(), &placement.uid);
            load::owned(placement).into_iter().map(move |key| (key, value.clone())).collect::<Vec<_>>()
        };
        self.placements.iter().flat_map(claims).collect()
    }

    /// Whether it is a world that a controller would lead.
    pub(crate) fn check(&self, limits: &Limits, now: Timestamp) -> Result<(), Error> {
        let brain = Brain::load(1, limits.clone(), self.nodes.clone(), self.placements.clone(), now);
        let brain = brain.map_err(load::Error::from)?;
        let broken = brain.check();
        if broken.is_empty() {
            return Ok(());
        }
        let told = broken.iter().take(TOLD).map(Violation::to_string).collect();
        Err(Error::Broken { count: broken.len(), told })
    }
}

/// What is in a store, who leads aside: keys in order.
pub(crate) async fn keys(store: &dyn Store) -> Result<Vec<String>, berth_store::Error> {
    let mut found: Vec<String> = Vec::new();
    let (mut after, mut at): (Option<String>, Option<Revision>) = (None, None);
    loop {
        let page = store.range(key::ALL, after.as_deref(), at, PAGE).await?;
        after = page.items.last().map(|item| item.key.clone());
        at = Some(page.revision);
        found.extend(page.items.into_iter().map(|item| item.key).filter(|key| !crate::backup::leads(key)));
        if !page.more {
            return Ok(found);
        }
    }
}

/// Refuses a store with something in it. Which fleet it is of says whoever led it, even if nothing came of that; the
/// records that `but` begins count for nothing either.
pub(crate) fn refuse_nonempty(keys: &[String], but: Option<&str>, hint: &'static str) -> Result<(), Error> {
    let counts = |key: &&String| *key != key::FLEET && !but.is_some_and(|prefix| key.starts_with(prefix));
    let records = keys.iter().filter(counts).count();
    if records == 0 {
        return Ok(());
    }
    let placements = keys.iter().filter(|key| key.starts_with(key::PLACEMENTS)).count();
    Err(Error::NotEmpty { records, placements, hint })
}

/// Leads, so that nobody else does until this process ends or another takes over. Whoever leads still is waited for, and
/// the person is told so.
pub(crate) async fn lead(store: &dyn Store, what: &str, console: &mut Console<'_>) -> anyhow::Result<Leadership> {
    let candidate = format!("{what} {}", uuid::Uuid::new_v4());
    let campaign = tokio::time::timeout(CAMPAIGN, store.campaign(&candidate));
    let mut campaign = std::pin::pin!(campaign);
    let led = tokio::select! {
        led = &mut campaign => led,
        () = tokio::time::sleep(SILENCE) => {
            console.say(&format!("Waiting at most {} s for whoever leads to end.", CAMPAIGN.as_secs()))?;
            campaign.await
        }
    };
    match led {
        Ok(led) => Ok(led?),
        Err(_) => Err(Error::Led.into()),
    }
}

/// Replaces everything in the store by `content`, then reads it back. The audit says so of each placement, as `action`, in the
/// very transaction that writes it.
pub(crate) async fn write(
    store: &dyn Store,
    fence: &Fence,
    action: &'static str,
    deadline: Duration,
    content: &Content,
    limits: &Limits,
    now: Timestamp,
) -> Result<(), Error> {
    content.check(limits, now)?;
    let present = keys(store).await?;
    let all = content.records();
    let cut_off = |written| move |source| Error::CutOff { written, all, source };
    within(deadline, term::raise(store, fence, content.term)).await.map_err(|source| match source {
        CommitError::Unknown(_) => cut_off(0)(source),
        CommitError::Precondition { .. }
        | CommitError::Fenced
        | CommitError::Illegal(_)
        | CommitError::Unavailable(_)
        | CommitError::Full(_) => Error::NotBegun(source),
    })?;
    let mut written = 0;
    let placements: BTreeMap<_, _> = content.placements.iter().map(|it| (key::placement(it.name()), it)).collect();
    for (group, mut writes) in (1..).zip(batches(steps(content, &present))) {
        let puts: Vec<_> = writes.iter().filter(|write| matches!(write, Write::Put { .. })).map(Write::key).collect();
        let told = puts.iter().filter_map(|&key| placements.get(key));
        let told: Vec<_> = told.map(|placement| audit::filled(now, action, placement)).collect();
        let puts = puts.len();
        if !told.is_empty() {
            let key = berth_store::audit::fresh(fence.created, group);
            writes.push(Write::Put { key, value: berth_store::audit::batch(told) });
        }
        let transaction = Transaction { fence: Some(fence.clone()), preconditions: Vec::new(), writes };
        within(deadline, store.commit(transaction)).await.map_err(cut_off(written))?;
        written += puts;
    }
    let read = load::load(store, 1, limits, now).await?;
    let (nodes, placements) = (read.brain.world().node_count(), read.brain.world().placement_count());
    if (nodes, placements) == (content.nodes.len(), content.placements.len()) {
        Ok(())
    } else {
        Err(Error::ReadBack(format!("{nodes} nodes and {placements} placements")))
    }
}

async fn within<T>(deadline: Duration, commit: impl Future<Output = Result<T, CommitError>>) -> Result<T, CommitError> {
    let late = |_| Err(CommitError::Unknown(format!("no answer after {} ms", deadline.as_millis())));
    tokio::time::timeout(deadline, commit).await.unwrap_or_else(late)
}

/// Every write, in the one order that leaves nothing that could be led when it is cut off: placements go first and come
/// last, and in between there are claims without them.
fn steps(content: &Content, present: &[String]) -> Vec<Write> {
    let claims = content.claims();
    let fleet = content.fleet.as_ref().map(|fleet| (key::FLEET.to_owned(), record::fleet(fleet)));
    let nodes: BTreeMap<_, _> = content.nodes.iter().map(|node| (key::node(&node.name), record::node(node))).collect();
    let placements: BTreeMap<_, _> =
        content.placements.iter().map(|p| (key::placement(p.name()), record::placement(p))).collect();
    let is_placement = |key: &&String| key.starts_with(key::PLACEMENTS);
    let is_fleet = |key: &&String| *key == key::FLEET;
    let kept: BTreeSet<&String> = claims.keys().chain(nodes.keys()).collect();
    let delete = |key: &String| Write::Delete { key: key.clone() };
    let put = |(key, value): (&String, &Bytes)| Write::Put { key: key.clone(), value: value.clone() };
    let mut steps: Vec<Write> = present.iter().filter(is_placement).map(delete).collect();
    steps.extend(claims.iter().map(put));
    steps.extend(present.iter().filter(|key| !is_placement(key) && !is_fleet(key) && !kept.contains(key)).map(delete));
    steps.extend(fleet.iter().map(|(key, value)| put((key, value))));
    steps.extend(nodes.iter().map(put));
    steps.extend(placements.iter().map(put));
    steps
}

fn batches(steps: Vec<Write>) -> Vec<Vec<Write>> {
    let mut batches: Vec<Vec<Write>> = Vec::new();
    let (mut bytes, mut seen) = (0, BTreeSet::new());
    for step in steps {
        let size = match &step {
            Write::Put { key, value } => key.len() + value.len(),
            Write::Delete { key } => key.len(),
        };
        // No key twice in one transaction: a placement that is deleted and comes back starts another.
        let fits = bytes + size <= BYTES && seen.len() < WRITES && !seen.contains(step.key());
        if !fits || batches.is_empty() {
            batches.push(Vec::new());
            bytes = 0;
            seen.clear();
        }
        bytes += size;
        seen.insert(step.key().to_owned());
        if let Some(batch) = batches.last_mut() {
            batch.push(step);
        }
    }
    batches
}
