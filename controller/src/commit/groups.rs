//! Decisions as groups that share one transaction, in order where order matters, and what is undone when one fails.
//!
//! Owns what is decided and not yet known to be durable. Must never split one decision, must never have two transactions
//! in flight of which one needs the other, and never says "durable" of anything before all that was decided earlier is.
//!
//! Groups are sent strictly in the order they were made; the last one that is still waiting takes further decisions.
//! While the store is busy, groups therefore grow, and the slower it is, the more decisions share one durable write.
//!
//! Waits for nothing and sends nothing itself, so that the simulation drives the same rules.

use berth_core::decide::{Change, Claimed};
use berth_model::{NodeName, PlacementName};
use berth_proto::v1::AuditRecord;
use berth_store::audit;
use berth_store::key::Key;
use berth_store::{
    CommitError, Fence, MAX_OPERATIONS, MAX_VALUE_BYTES, Precondition, Revision, Transaction, Write, key, record,
};
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Transactions in flight. One waits for the disk, one travels, one is being answered; a fourth covers jitter. More would
/// only make each of them smaller.
pub(super) const IN_FLIGHT: usize = 4;
/// Most bytes of values in one transaction: with keys and framing still below etcd's request limit of 1.5 MiB.
const MAX_BYTES: usize = 1024 * 1024;

/// A decision that no store would take. The brain keeps its decisions far below these bounds, so this is a fault of
/// Berth.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// More operations than one transaction may have.
    #[error("one decision has {operations} operations, a transaction takes {MAX_OPERATIONS}")]
    Operations {
        /// How many it has.
        operations: usize,
    },
    /// A record larger than the store takes.
    #[error("the record of {key} has {bytes} bytes, the store takes {MAX_VALUE_BYTES}")]
    Record {
        /// Its key.
        key: String,
        /// Its size.
        bytes: usize,
    },
    /// Two changes of one key.
    #[error("one decision changes {key} twice")]
    Twice {
        /// The key.
        key: String,
    },
}

/// What became of a group that was not found durable in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Surely not written.
    NotWritten,
    /// Written, perhaps.
    Unknown,
}

/// How much a failed commit takes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// What it wrote, and whatever rests on that.
    Own,
    /// All that waits: the store would take none of it.
    Waiting,
    /// The leadership: what it wrote may be there, or may come yet, and only a new one can tell.
    Leadership,
}

impl Loss {
    /// What a failure takes with it.
    pub fn of(error: &CommitError) -> Self {
        match error {
            CommitError::Precondition { .. } => Self::Own,
            CommitError::Unavailable(_) | CommitError::Full(_) => Self::Waiting,
            CommitError::Unknown(_) | CommitError::Fenced | CommitError::Illegal(_) => Self::Leadership,
        }
    }
}

/// Where a part of what was decided is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// It is all there at this revision and at every later one.
    pub revision: Revision,
    /// Nothing else is there up to this revision: it is what can be said of a world that holds this part.
    pub complete: Revision,
}

/// Decisions that are not to be, all surely not written. What the store holds of these is to be put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undone {
    /// The groups they were in.
    pub groups: BTreeSet<u64>,
    /// Placements they changed.
    pub placements: BTreeSet<PlacementName>,
    /// Nodes whose record they changed.
    pub nodes: BTreeSet<NodeName>,
}

#[derive(Debug)]
enum Progress {
    Waiting,
    InFlight,
    Durable(Revision),
    Failed(Fate),
}

/// The decisions that share one transaction.
#[derive(Debug)]
struct Group {
    id: u64,
    preconditions: Vec<Precondition>,
    writes: Vec<Write>,
    /// Where in `writes` a key is.
    written: HashMap<String, usize>,
    /// Nodes that its placements rest on: a placement must not become durable before its node.
    reads: BTreeSet<String>,
    bytes: usize,
    /// What the audit says of it.
    records: Vec<AuditRecord>,
    progress: Progress,
    /// The store had come to this revision when it was sent.
    sent_after: Revision,
}

/// One decision as writes.
#[derive(Debug, Default)]
struct Prepared {
    parts: Vec<Part>,
    reads: BTreeSet<String>,
}

#[derive(Debug)]
struct Part {
    key: String,
    /// `None` for a node: see [`Groups::node_versions`].
    precondition: Option<Precondition>,
    write: Write,
}

impl Part {
    fn bytes(&self) -> usize {
        match &self.write {
            Write::Put { value, .. } => value.len(),
            Write::Delete { .. } => 0,
        }
    }
}

/// What is decided and not yet known to be durable. Waits for nothing and sends nothing itself.
#[derive(Debug)]
pub struct Groups {
    fence: Fence,
    groups: VecDeque<Group>,
    next_group: u64,
    /// How often each node's record was written, those writes included that are on their way. Many decisions in one
    /// transaction may change one node; it is then written once, so that the store's count falls behind the brain's.
    node_versions: BTreeMap<String, u64>,
    in_flight: usize,
    /// A group has failed, and that is not undone yet.
    failed: bool,
    /// Most operations of one group.
    operations: usize,
    /// Groups that are durable together with all before them, not yet asked for.
    durable: VecDeque<(u64, Revision)>,
    /// Highest revision of the groups asked for.
    revision: Revision,
    /// Up to here nothing is stored but what was asked for.
    complete: Revision,
    /// Highest revision that was heard of.
    known: Revision,
}

impl Groups {
    /// The leadership that writes.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// No groups. `node_versions` says how often each node's record was written, by key; `revision` is that of the world
    /// it starts from.
    pub fn new(fence: Fence, node_versions: BTreeMap<String, u64>, revision: Revision) -> Self {
        Self {
            fence,
            groups: VecDeque::new(),
            next_group: 0,
            node_versions,
            in_flight: 0,
            failed: false,
            operations: MAX_OPERATIONS,
            durable: VecDeque::new(),
            revision,
            complete: revision,
            known: revision,
        }
    }

    /// Keeps groups smaller than the store demands, so that a simulation has many of them. A decision is never split.
    #[must_use]
    pub fn of_at_most(self, operations: usize) -> Self {
        Self { operations: operations.min(MAX_OPERATIONS), ..self }
    }

    /// Takes the changes of one decision. Gives the group it is part of, `None` if nothing is to be written.
    ///
    /// # Errors
    /// [`Unfit`], when no transaction can hold it; the groups and the brain have parted then.
    pub fn add(&mut self, changes: &[Change]) -> Result<Option<u64>, Unfit> {
        if changes.is_empty() {
            return Ok(None);
        }
        let decision = prepare(changes)?;
        let joins = self.groups.back().is_some_and(|group| group.takes(&decision, self.operations));
        if !joins {
            self.groups.push_back(Group::new(self.next_group));
            self.next_group = self.next_group.saturating_add(1);
        }
        let Some(group) = self.groups.back_mut() else { return Ok(None) };
        group.take(decision, &mut self.node_versions);
        Ok(Some(group.id))
    }

    /// What the audit is to say of the decision taken last; it becomes durable with it.
    pub fn note(&mut self, records: Vec<AuditRecord>) {
        if let Some(group) = self.groups.back_mut() {
            group.bytes += records.iter().map(Message::encoded_len).sum::<usize>();
            group.records.extend(records);
        }
    }

    /// Everything taken so far is durable once [`Groups::durable_at`] answers for this mark.
    pub fn mark(&self) -> u64 {
        self.next_group
    }

    /// Whether the last group may take further decisions.
    pub fn is_open(&self) -> bool {
        self.groups.back().is_some_and(|group| matches!(group.progress, Progress::Waiting))
    }

    /// Where everything before a mark is durable, once it is.
    pub fn durable_at(&mut self, mark: u64) -> Option<Durable> {
        let undone = self.groups.front().map_or(self.next_group, |group| group.id);
        if undone < mark {
            return None;
        }
        while let Some((_, revision)) = self.durable.front().copied().filter(|(id, _)| *id < mark) {
            self.revision = self.revision.max(revision);
            self.durable.pop_front();
        }
        // Two transactions in flight may land in the other order: what is decided later is then stored earlier.
        let later = self.groups.iter().filter_map(|group| match group.progress {
            Progress::InFlight => Some(group.sent_after),
            Progress::Durable(revision) => Some(before(revision)),
            Progress::Waiting | Progress::Failed(_) => None,
        });
        let later = later.chain(self.durable.iter().map(|(_, revision)| before(*revision))).min();
        self.complete = self.complete.max(later.map_or(self.revision, |later| later.min(self.revision)));
        Some(Durable { revision: self.revision, complete: self.complete })
    }

    /// How many wait for the store.
    pub fn count(&self) -> usize {
        self.groups.len()
    }

    /// The next group whose turn it is, as a transaction to send now. Its end is to be told to [`Groups::ended`]. None
    /// after a failure, until that is undone.
    pub fn next_to_send(&mut self) -> Option<(u64, Transaction)> {
        if self.in_flight >= IN_FLIGHT || self.failed {
            return None;
        }
        let at = self.groups.iter().position(|group| matches!(group.progress, Progress::Waiting))?;
        let group = self.groups.get(at)?;
        let ready = self
            .groups
            .range(..at)
            .all(|before| !matches!(before.progress, Progress::InFlight) || !group.needs(before));
        if !ready {
            return None;
        }
        let group = self.groups.get_mut(at)?;
        group.progress = Progress::InFlight;
        group.sent_after = self.known;
        self.in_flight += 1;
        if !group.records.is_empty() {
            let key = audit::fresh(self.fence.created, group.id);
            group.preconditions.push(Precondition::absent(key.clone()));
            group.writes.push(Write::Put { key, value: audit::batch(std::mem::take(&mut group.records)) });
        }
        let transaction = Transaction {
            fence: Some(self.fence.clone()),
            preconditions: std::mem::take(&mut group.preconditions),
            writes: std::mem::take(&mut group.writes),
        };
        Some((group.id, transaction))
    }

    /// Takes note of a transaction's end.
    ///
    /// # Errors
    /// Why it failed, as given. Once all that is in flight has ended, [`Loss::of`] it is to be undone.
    pub fn ended(&mut self, id: u64, result: Result<Revision, CommitError>) -> Result<(), CommitError> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let (progress, answer) = match result {
            Ok(revision) => {
                self.known = self.known.max(revision);
                (Progress::Durable(revision), Ok(()))
            }
            Err(error) => (Progress::Failed(fate(&error)), Err(error)),
        };
        self.failed |= answer.is_err();
        if let Some(group) = self.groups.iter_mut().find(|group| group.id == id) {
            group.progress = progress;
        }
        self.retire();
        answer
    }

    /// Takes out what is durable, up to the first that is not.
    fn retire(&mut self) {
        while let Some(Progress::Durable(revision)) = self.groups.front().map(|group| &group.progress) {
            let revision = *revision;
            if let Some(group) = self.groups.pop_front() {
                self.durable.push_back((group.id, revision));
            }
        }
    }

    /// Takes out the groups that failed and, as far as `loss` goes, those that were not sent yet. Only once nothing is in
    /// flight: whatever is left is then durable, or shares no record with what was taken out, so that what is stored of
    /// those records now is the truth. It is to be told by [`Groups::put_back`] before anything more is added.
    pub fn undo(&mut self, loss: Loss) -> Undone {
        let mut undone = Undone::default();
        let (mut lost, mut kept): (Vec<Group>, Vec<Group>) =
            std::mem::take(&mut self.groups).into_iter().partition(|group| match group.progress {
                Progress::Failed(_) => true,
                Progress::Waiting => loss > Loss::Own,
                Progress::InFlight | Progress::Durable(_) => false,
            });
        // What rests on a lost group is lost; so is what a lost one rests on, if it was not sent: its records would be read
        // back as they were before it.
        loop {
            let shares = |group: &Group| lost.iter().any(|gone| gone.needs(group) || group.needs(gone));
            let goes = |group: &Group| matches!(group.progress, Progress::Waiting) && shares(group);
            let (more, rest): (Vec<Group>, Vec<Group>) = kept.into_iter().partition(goes);
            kept = rest;
            if more.is_empty() {
                break;
            }
            lost.extend(more);
        }
        for group in lost {
            undone.groups.insert(group.id);
            for key in group.written.keys() {
                match Key::parse(key) {
                    Ok(Key::Placement(name)) => drop(undone.placements.insert(name)),
                    Ok(Key::Node(name)) => drop(undone.nodes.insert(name)),
                    // Claims follow from placements; a group writes nothing else.
                    Ok(Key::GpuClaim(_) | Key::VmClaim(_) | Key::Request(_) | Key::Leader | Key::Term | Key::Fleet)
                    | Err(_) => {}
                }
            }
        }
        self.groups = kept.into();
        self.failed = false;
        self.retire();
        undone
    }

    /// Says how often an undone node's record was really written; 0 for one that does not exist.
    pub fn put_back(&mut self, node: &NodeName, version: u64) {
        self.node_versions.insert(key::node(node), version);
    }

    /// What became of a group, once nothing is in flight any more.
    pub fn fate(&self, id: u64) -> Fate {
        match self.groups.iter().find(|group| group.id == id).map(|group| &group.progress) {
            Some(Progress::Waiting) => Fate::NotWritten,
            Some(Progress::Failed(fate)) => *fate,
            // Durable, but behind one that failed: its caller must read back.
            Some(Progress::InFlight | Progress::Durable(_)) | None => Fate::Unknown,
        }
    }
}

fn before(revision: Revision) -> Revision {
    Revision(revision.0.saturating_sub(1))
}

fn fate(error: &CommitError) -> Fate {
    match error {
        CommitError::Precondition { .. }
        | CommitError::Fenced
        | CommitError::Illegal(_)
        | CommitError::Full(_)
        | CommitError::Unavailable(_) => Fate::NotWritten,
        CommitError::Unknown(_) => Fate::Unknown,
    }
}

impl Group {
    fn new(id: u64) -> Self {
        Self {
            id,
            preconditions: Vec::new(),
            writes: Vec::new(),
            written: HashMap::new(),
            reads: BTreeSet::new(),
            bytes: 0,
            records: Vec::new(),
            progress: Progress::Waiting,
            sent_after: Revision::default(),
        }
    }

    /// Whether a decision fits in here as a whole.
    fn takes(&self, decision: &Prepared, most: usize) -> bool {
        let clash = |part: &Part| part.precondition.is_some() && self.written.contains_key(&part.key);
        let new = decision.parts.iter().filter(|part| !self.written.contains_key(&part.key)).count();
        // Each write has one precondition, the fence is one more, and so is the audit.
        let operations = self.writes.len() + new + 2;
        let bytes = self.bytes + decision.parts.iter().map(Part::bytes).sum::<usize>();
        matches!(self.progress, Progress::Waiting)
            && operations <= most
            && bytes <= MAX_BYTES
            && !decision.parts.iter().any(clash)
    }

    fn take(&mut self, decision: Prepared, node_versions: &mut BTreeMap<String, u64>) {
        self.reads.extend(decision.reads);
        for part in decision.parts {
            self.bytes += part.bytes();
            let Part { key, precondition, write } = part;
            match (self.written.get(&key), precondition) {
                // The node again: its record as of the last decision is the one to write.
                (Some(at), _) => {
                    if let Some(slot) = self.writes.get_mut(*at) {
                        *slot = write;
                    }
                }
                (None, precondition) => {
                    let precondition = precondition.unwrap_or_else(|| {
                        let version = node_versions.entry(key.clone()).or_insert(0);
                        let before = *version;
                        *version += 1;
                        Precondition::Version { key: key.clone(), version: before }
                    });
                    self.written.insert(key, self.writes.len());
                    self.preconditions.push(precondition);
                    self.writes.push(write);
                }
            }
        }
    }

    /// Whether this group must wait until an earlier one is durable.
    fn needs(&self, earlier: &Self) -> bool {
        self.written.keys().any(|key| earlier.written.contains_key(key))
            || self.reads.iter().any(|key| earlier.written.contains_key(key))
    }
}

/// The one translation of changes into writes with preconditions.
fn prepare(changes: &[Change]) -> Result<Prepared, Unfit> {
    let mut prepared = Prepared::default();
    for change in changes {
        let (key, precondition, write) = match change {
            Change::PutPlacement(placement) => {
                prepared.reads.extend(placement.assignment.as_ref().map(|assignment| key::node(&assignment.node)));
                let key = key::placement(placement.name());
                let before = Precondition::Version { key: key.clone(), version: placement.version.saturating_sub(1) };
                let value = record::placement(placement);
                (key.clone(), Some(before), Write::Put { key, value })
            }
            Change::RemovePlacement { name, version } => {
                let key = key::placement(name);
                let before = Precondition::Version { key: key.clone(), version: *version };
                (key.clone(), Some(before), Write::Delete { key })
            }
            Change::PutNode(node) => {
                let key = key::node(&node.name);
                (key.clone(), None, Write::Put { key, value: record::node(node) })
            }
            Change::Claim { what, placement, uid } => {
                let (key, value) = (claim_key(what), record::claim(placement, uid));
                (key.clone(), Some(Precondition::absent(key.clone())), Write::Put { key, value })
            }
            Change::Unclaim { what, placement, uid } => {
                let (key, value): (_, Bytes) = (claim_key(what), record::claim(placement, uid));
                (key.clone(), Some(Precondition::Value { key: key.clone(), value }), Write::Delete { key })
            }
        };
        let part = Part { key, precondition, write };
        if part.bytes() > MAX_VALUE_BYTES {
            return Err(Unfit::Record { bytes: part.bytes(), key: part.key });
        }
        match prepared.parts.iter_mut().find(|other| other.key == part.key) {
            None => prepared.parts.push(part),
            Some(other) => match hands_over(other, &part) {
                Some(handed_over) => *other = handed_over,
                None => return Err(Unfit::Twice { key: part.key }),
            },
        }
    }
    let operations = prepared.parts.len() + 2;
    if operations > MAX_OPERATIONS {
        return Err(Unfit::Operations { operations });
    }
    Ok(prepared)
}

/// One decision may end one placement and give what it owned to another that waits: the claim then changes hands in one
/// write, which still needs the former owner to be the one that is stored. `None` for any other two changes of one key.
fn hands_over(one: &Part, other: &Part) -> Option<Part> {
    let (given_up, taken) = match (&one.write, &other.write) {
        (Write::Delete { .. }, Write::Put { .. }) => (one, other),
        (Write::Put { .. }, Write::Delete { .. }) => (other, one),
        (Write::Put { .. }, Write::Put { .. }) | (Write::Delete { .. }, Write::Delete { .. }) => return None,
    };
    let absent = Precondition::absent(taken.key.clone());
    match &given_up.precondition {
        Some(owned @ Precondition::Value { .. }) if taken.precondition.as_ref() == Some(&absent) => {
            Some(Part { key: taken.key.clone(), precondition: Some(owned.clone()), write: taken.write.clone() })
        }
        Some(Precondition::Value { .. } | Precondition::Version { .. }) | None => None,
    }
}

fn claim_key(what: &Claimed) -> String {
    match what {
        Claimed::Gpu(gpu) => key::gpu_claim(gpu),
        Claimed::Vm(vm) => key::vm_claim(vm),
        Claimed::Request(id) => key::request(id),
    }
}
