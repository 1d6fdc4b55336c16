//! Everything the store knows, read at one revision and checked against itself.
//!
//! Must never repair anything: records that contradict one another need a person.

use crate::commit::Undone;
use berth_core::decide::{self, Brain, Limits, Stored};
use berth_model::Timestamp;
use berth_model::id::FleetId;
use berth_model::node::StoredNode;
use berth_model::placement::Placement;
use berth_model::vm::VmSelector;
use berth_store::{Fence, KeyValue, Revision, Store, key, record};
use futures::future::try_join_all;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Records read at once: some MiB at most.
const PAGE: usize = 1_000;
/// Single records read at once: as many as a connection carries without waiting.
const READS: usize = 16;
/// Contradictions told one by one: a screenful. They are counted beyond that.
const TOLD: usize = 16;

/// Why the world cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store did not answer. A retry helps.
    #[error(transparent)]
    Store(#[from] berth_store::Error),
    /// A record cannot be read.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// Claims and placements disagree.
    #[error("{count} claims and placements contradict one another; nothing is changed until a person has looked: {}", .told.join("; "))]
    Claims {
        /// How many.
        count: usize,
        /// The first of them.
        told: Vec<String>,
    },
    /// Somebody else leads: what was read may be theirs.
    #[error("somebody else leads")]
    Deposed,
    /// Placements contradict one another.
    #[error("the stored records contradict one another: {0}")]
    World(#[from] decide::LoadError),
}

impl Error {
    /// Whether trying again can help.
    pub fn retry_helps(&self) -> bool {
        match self {
            // Compacted while it was read: somebody else writes, or wrote.
            Self::Store(berth_store::Error::Unavailable(_) | berth_store::Error::Compacted { .. }) => true,
            Self::Store(berth_store::Error::Corrupt(_))
            | Self::Record(_)
            | Self::Claims { .. }
            | Self::Deposed
            | Self::World(_) => false,
        }
    }
}

/// The world as it is stored.
pub struct Loaded {
    /// The brain that goes on from it.
    pub brain: Brain,
    /// How often each node's record was written, by key.
    pub node_versions: BTreeMap<String, u64>,
    /// The revision of the newest change in it: see [`newest`].
    pub revision: Revision,
}

/// What a follower shows, as it is stored.
pub(crate) struct Listing {
    /// The nodes.
    pub(crate) nodes: Vec<StoredNode>,
    /// The placements.
    pub(crate) placements: Vec<Placement>,
    /// Who leads.
    pub(crate) leader: Option<record::Leader>,
    /// Which fleet it is.
    pub(crate) fleet: Option<FleetId>,
    /// The revision it was read at.
    pub(crate) read_at: Revision,
    /// The revision of the newest change in it: see [`newest`].
    pub(crate) revision: Revision,
}

/// Reads and checks everything.
pub async fn load(store: &dyn Store, term: u64, limits: &Limits, now: Timestamp) -> Result<Loaded, Error> {
    let (nodes, read_at) = read(store, key::NODES, None).await?;
    let at = Some(read_at);
    let rest = tokio::try_join!(
        read(store, key::PLACEMENTS, at),
        read(store, key::GPU_CLAIMS, at),
        read(store, key::VM_ID_CLAIMS, at),
        read(store, key::VM_NAME_CLAIMS, at),
        read(store, key::REQUESTS, at),
    );
    let ((placements, _), (gpus, _), (vms, _), (names, _), (requests, _)) = rest?;
    let (fleets, _) = read(store, key::FLEET, at).await?;
    let revision = newest(read_at, [&nodes, &placements, &fleets]);
    let fleet = fleet(&fleets)?;
    let node_versions = nodes.iter().map(|item| (item.key.clone(), item.version)).collect();
    let nodes = decode(&nodes, record::read_node)?;
    let placements = decode(&placements, record::read_placement)?;
    check_claims(&placements, [gpus, vms, names, requests])?;
    let brain = Brain::load(term, limits.clone(), nodes, placements, now)?.of_fleet(fleet);
    Ok(Loaded { brain, node_versions, revision })
}

/// Reads what a follower shows.
pub(crate) async fn list(store: &dyn Store) -> Result<Listing, Error> {
    let (leader, read_at) = read(store, key::LEADER, None).await?;
    let at = Some(read_at);
    let ((nodes, _), (placements, _), (fleets, _)) =
        tokio::try_join!(read(store, key::NODES, at), read(store, key::PLACEMENTS, at), read(store, key::FLEET, at))?;
    let revision = newest(read_at, [&leader, &nodes, &placements, &fleets]);
    let nodes = decode(&nodes, record::read_node)?;
    let placements = decode(&placements, record::read_placement)?;
    let leader = leader.iter().find(|item| item.key == key::LEADER);
    let leader = leader.map(|item| record::read_leader(&item.value)).transpose()?;
    Ok(Listing { nodes, placements, leader, fleet: fleet(&fleets)?, read_at, revision })
}

/// Which revision is shown of what was read: that of its newest change, and not that of the store, which others move as
/// well, the audit above all. Whoever watches never hears of theirs, so that a caller who was told such a revision by one
/// controller would wait for it in vain at another.
fn newest<const N: usize>(read_at: Revision, items: [&Vec<KeyValue>; N]) -> Revision {
    let changes = items.into_iter().flatten().map(|item| item.modified);
    // An empty store was read, too.
    changes.max().unwrap_or(Revision(1)).min(read_at)
}

fn fleet(items: &[KeyValue]) -> Result<Option<FleetId>, record::Error> {
    items.iter().find(|item| item.key == key::FLEET).map(|item| record::read_fleet(&item.value)).transpose()
}

/// Reads what is stored in place of decisions that are not to be, all of it as it was in this leadership.
///
/// # Errors
/// [`Error::Deposed`] when that is over: records of the next one do not go with a world of this one.
pub async fn stored(store: &dyn Store, fence: &Fence, undone: &Undone) -> Result<Stored, Error> {
    let mut stored = Stored::default();
    for names in Vec::from_iter(&undone.placements).chunks(READS) {
        let items = try_join_all(names.iter().map(|name| get(store, key::placement(name)))).await?;
        for (name, item) in names.iter().zip(items) {
            stored.placements.push(((*name).clone(), item.as_ref().map(record::read_placement).transpose()?));
        }
    }
    for names in Vec::from_iter(&undone.nodes).chunks(READS) {
        let items = try_join_all(names.iter().map(|name| get(store, key::node(name)))).await?;
        for (name, item) in names.iter().zip(items) {
            stored.nodes.push(((*name).clone(), item.as_ref().map(record::read_node).transpose()?));
        }
    }
    // Asked last: whatever was read before is older.
    let leader = store.get(&fence.key).await?;
    if leader.is_some_and(|leader| leader.created == fence.created) { Ok(stored) } else { Err(Error::Deposed) }
}

async fn get(store: &dyn Store, key: String) -> Result<Option<KeyValue>, berth_store::Error> {
    store.get(&key).await
}

fn decode<T>(items: &[KeyValue], read: fn(&KeyValue) -> Result<T, record::Error>) -> Result<Vec<T>, record::Error> {
    items.iter().map(read).collect()
}

async fn read(
    store: &dyn Store,
    prefix: &str,
    at: Option<Revision>,
) -> Result<(Vec<KeyValue>, Revision), berth_store::Error> {
    let mut page = store.range(prefix, None, at, PAGE).await?;
    let revision = page.revision;
    let mut items = std::mem::take(&mut page.items);
    while page.more {
        let after = items.last().map(|item: &KeyValue| item.key.clone());
        page = store.range(prefix, after.as_deref(), Some(revision), PAGE).await?;
        items.append(&mut page.items);
    }
    Ok((items, revision))
}

/// What each placement must own in the store, worked out here once more: the store's claims are what keeps a GPU from
/// having two owners, so that a difference in either direction is a fault.
pub(crate) fn check_claims(
    placements: &[Placement],
    stored: impl IntoIterator<Item = Vec<KeyValue>>,
) -> Result<(), Error> {
    let mut claims: HashMap<String, KeyValue> =
        stored.into_iter().flatten().map(|item| (item.key.clone(), item)).collect();
    let mut contradictions = Vec::new();
    for placement in placements {
        let (name, uid) = (placement.name(), &placement.uid);
        // Equal claims are equal bytes: only one that differs is worth reading.
        let expected = record::claim(name, uid);
        for key in owned(placement) {
            match claims.remove(&key) {
                Some(item) if item.value == expected => {}
                Some(item) => {
                    let claim = record::read_claim(&item)?;
                    if claim.placement != *name || claim.uid != *uid {
                        contradictions.push(format!("{key} belongs to {}, but {name} ({uid}) owns it", show(&claim)));
                    }
                }
                None => contradictions.push(format!("{name} ({uid}) owns {key}, but there is no such claim")),
            }
        }
    }
    let mut rest: Vec<_> = claims.into_values().collect();
    rest.sort_by(|a, b| a.key.cmp(&b.key));
    for item in rest {
        let claim = record::read_claim(&item)?;
        contradictions.push(format!("{} belongs to {}, which does not own it", item.key, show(&claim)));
    }
    if contradictions.is_empty() {
        return Ok(());
    }
    let count = contradictions.len();
    contradictions.truncate(TOLD);
    Err(Error::Claims { count, told: contradictions })
}

fn show(claim: &record::Claim) -> String {
    format!("{} ({})", claim.placement, claim.uid)
}

/// Keys of all claims that a placement owns.
pub(crate) fn owned(placement: &Placement) -> BTreeSet<String> {
    let mut keys = BTreeSet::from([key::request(&placement.request.request_id)]);
    if placement.phase.is_live() {
        keys.insert(key::vm_claim(&placement.request.vm));
        keys.extend(placement.vm_id.iter().map(|id| key::vm_claim(&VmSelector::Id(id.clone()))));
    }
    if placement.phase.holds_claims() {
        let gpus = placement.assignment.iter().flat_map(|assignment| assignment.gpu_ids());
        keys.extend(gpus.map(|gpu| key::gpu_claim(&gpu)));
    }
    keys
}
