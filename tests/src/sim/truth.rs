//! What is in the store, read along revision by revision by rules of its own, and what follows from it: whatever anybody is
//! told or sent is judged by this.

use super::Broken;
use berth_controller::leader::Decided;
use berth_core::decide::Claimed;
use berth_core::world::World;
use berth_core::{desired, invariants};
use berth_model::desired::{DesiredNode, DesiredPlacement};
use berth_model::node::StoredNode;
use berth_model::placement::{Phase, Placement, ReleaseCause};
use berth_model::vm::VmSelector;
use berth_model::{NodeName, PlacementName, PlacementUid};
use berth_store::key::{self, Key};
use berth_store::record::{self, Claim};
use berth_store::{KeyValue, Revision, Write, audit};
use std::collections::{BTreeMap, BTreeSet};

/// The store as it stands, and as it was.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub(super) revision: Revision,
    pub(super) placements: BTreeMap<PlacementName, Placement>,
    pub(super) nodes: BTreeMap<NodeName, StoredNode>,
    /// Claims as stored.
    claims: BTreeMap<String, Claim>,
    /// Claims as they follow from the placements.
    owned: BTreeMap<String, (PlacementName, PlacementUid)>,
    /// Every state each placement ever had.
    history: BTreeMap<PlacementUid, Vec<Placement>>,
    /// What each node was to hold, by generation.
    desires: BTreeMap<NodeName, BTreeMap<u64, Vec<DesiredPlacement>>>,
    /// Placements that somebody asked to release.
    release_asked: BTreeSet<PlacementUid>,
    /// Placements of which an agent has said that everything was given back.
    clean: BTreeSet<PlacementUid>,
    /// Placements that agents worked on and that are over since this was last taken.
    ended: Vec<Placement>,
    /// What happened to placements that is worth counting, since this was last taken.
    notes: Vec<&'static str>,
    /// Uids that were drawn for calls which were answered "no": nothing of them may ever exist.
    never: BTreeSet<PlacementUid>,
}

fn broken<T>(text: String) -> Result<T, Broken> {
    Err(Broken(text))
}

/// What a placement must own, worked out here once more.
fn owned(placement: &Placement) -> BTreeSet<String> {
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

/// What is worth counting of a step in the life of a placement.
fn note(before: &Phase, after: &Phase) -> Option<&'static str> {
    match (before, after) {
        (Phase::Releasing { cause: ReleaseCause::Asked, .. }, Phase::Failed { undone: false, .. }) => {
            Some("placement: release out of time")
        }
        (Phase::Releasing { cause: ReleaseCause::Failure(_), .. }, Phase::Failed { undone: false, .. }) => {
            Some("placement: undoing out of time")
        }
        (Phase::Failed { undone: false, .. }, Phase::Failed { undone: true, .. }) => {
            Some("placement: given back after all")
        }
        _ => None,
    }
}

/// How far a placement has come; it never goes back.
fn progress(phase: &Phase) -> u8 {
    match phase {
        Phase::Requested => 0,
        Phase::Queued { .. } => 1,
        Phase::Held { .. } => 2,
        Phase::Preparing { .. } => 3,
        Phase::Attaching { .. } => 4,
        Phase::Starting { .. } => 5,
        Phase::Verifying { .. } => 6,
        Phase::Active => 7,
        Phase::Releasing { .. } => 8,
        Phase::Failed { undone: false, .. } => 9,
        Phase::Released | Phase::Failed { undone: true, .. } => 10,
    }
}

impl Truth {
    pub(super) fn name_of(&self, uid: &PlacementUid) -> String {
        let last = self.history.get(uid).and_then(|life| life.last());
        last.map_or_else(|| uid.to_string(), |placement| placement.name().to_string())
    }

    /// The placement with this uid as it stands, while it is remembered.
    pub(super) fn by_uid(&self, uid: &PlacementUid) -> Option<&Placement> {
        let name = self.history.get(uid)?.last()?.name();
        self.placements.get(name).filter(|placement| placement.uid == *uid)
    }

    /// Which placement a key is claimed by.
    pub(super) fn claimed_by(&self, key: &str) -> Option<&PlacementUid> {
        self.claims.get(key).map(|claim| &claim.uid)
    }

    /// Keys of claims that begin like this, and by which placement.
    pub(super) fn claims_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a PlacementUid)> {
        let from = self.claims.range(prefix.to_owned()..);
        from.take_while(move |(key, _)| key.starts_with(prefix)).map(|(key, claim)| (key.as_str(), &claim.uid))
    }

    /// Somebody asks for the release of a placement; from now on it may end.
    pub(super) fn ask_release(&mut self, uid: &PlacementUid) {
        self.release_asked.insert(uid.clone());
    }

    /// An agent says that everything of these was given back.
    pub(super) fn are_clean(&mut self, uids: Vec<PlacementUid>) {
        self.clean.extend(uids);
    }

    /// Placements that agents worked on and that are over since this was last asked.
    pub(super) fn take_ended(&mut self) -> Vec<Placement> {
        std::mem::take(&mut self.ended)
    }

    /// What happened to placements that is worth counting, since this was last asked.
    pub(super) fn take_notes(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.notes)
    }

    /// Whether a placement has come to its end, remembered or not.
    pub(super) fn has_ended(&self, uid: &PlacementUid) -> bool {
        self.history.get(uid).and_then(|life| life.last()).is_some_and(|last| last.phase.is_over())
    }

    /// A call with this uid was answered "no".
    pub(super) fn never(&mut self, uid: PlacementUid) -> Result<(), Broken> {
        if self.history.contains_key(&uid) {
            return broken(format!("a caller was told no, but {} ({uid}) exists", self.name_of(&uid)));
        }
        self.never.insert(uid);
        Ok(())
    }

    /// A revision that only changed the leader.
    pub(super) fn leader_changed(&mut self, revision: Revision) -> Result<(), Broken> {
        self.follows(revision)
    }

    fn follows(&mut self, revision: Revision) -> Result<(), Broken> {
        if revision.0 != self.revision.0 + 1 {
            return broken(format!("revision {revision} follows {}", self.revision));
        }
        self.revision = revision;
        Ok(())
    }

    /// Reads one committed transaction along. Gives lines for the log.
    pub(super) fn committed(&mut self, revision: Revision, writes: &[Write]) -> Result<Vec<String>, Broken> {
        if revision <= self.revision {
            // It changed nothing.
            return Ok(Vec::new());
        }
        self.follows(revision)?;
        let mut lines = Vec::new();
        let mut touched = BTreeSet::new();
        let mut nodes = BTreeSet::new();
        let mut owners_gone = Vec::new();
        let mut owners_new = Vec::new();
        for write in writes {
            // What the audit says is checked with the audit.
            if write.key().starts_with(audit::ALL) {
                continue;
            }
            let key = Key::parse(write.key()).map_err(|e| Broken(e.to_string()))?;
            touched.insert(write.key().to_owned());
            match (key, write) {
                (Key::Placement(name), Write::Put { value, .. }) => {
                    let before = self.placements.get(&name).cloned();
                    let version = before.as_ref().map_or(0, |before| before.version) + 1;
                    let item = item(write.key(), value, revision, version);
                    let placement = record::read_placement(&item).map_err(|e| Broken(e.to_string()))?;
                    lines.extend(self.lives_on(before.as_ref(), &placement)?);
                    let worked_on =
                        before.as_ref().is_some_and(|p| p.uid == placement.uid && desired::entry(p).is_some());
                    self.notes.extend(before.as_ref().and_then(|before| note(&before.phase, &placement.phase)));
                    if worked_on && placement.phase.is_over() {
                        self.ended.push(placement.clone());
                    }
                    nodes.extend(
                        before.iter().chain([&placement]).filter_map(|p| p.assignment.as_ref()).map(|a| a.node.clone()),
                    );
                    owners_gone.extend(before.iter().flat_map(owned));
                    owners_new.push(placement.clone());
                    self.history.entry(placement.uid.clone()).or_default().push(placement.clone());
                    self.placements.insert(name, placement);
                }
                (Key::Placement(name), Write::Delete { .. }) => {
                    let Some(before) = self.placements.remove(&name) else { continue };
                    if !before.phase.is_over() {
                        return broken(format!("{name} is forgotten although it is {}", before.phase.name()));
                    }
                    owners_gone.extend(owned(&before));
                }
                (Key::Node(name), Write::Put { value, .. }) => {
                    let version = self.nodes.get(&name).map_or(0, |node| node.version) + 1;
                    let item = item(write.key(), value, revision, version);
                    let node = record::read_node(&item).map_err(|e| Broken(e.to_string()))?;
                    if self.nodes.get(&name).is_some_and(|before| before.generation > node.generation) {
                        return broken(format!("the generation of {name} goes back to {}", node.generation));
                    }
                    nodes.insert(name.clone());
                    self.nodes.insert(name, node);
                }
                (Key::GpuClaim(_) | Key::VmClaim(_) | Key::Request(_), Write::Put { key, value }) => {
                    let claim =
                        record::read_claim(&item(key, value, revision, 1)).map_err(|e| Broken(e.to_string()))?;
                    // It may change hands, if its former owner gives it up in the same transaction: see below.
                    self.claims.insert(key.clone(), claim);
                }
                (Key::GpuClaim(_) | Key::VmClaim(_) | Key::Request(_), Write::Delete { key }) => {
                    self.claims.remove(key);
                }
                (Key::Leader | Key::Term | Key::Fleet, _) | (Key::Node(_), Write::Delete { .. }) => {
                    return broken(format!("a leader writes {}", write.key()));
                }
            }
        }
        self.check_owners(&touched, &owners_gone, &owners_new)?;
        for node in nodes {
            self.desire(&node)?;
        }
        Ok(lines)
    }

    /// No key of two placements, and the claims are those that the placements make.
    fn check_owners(&mut self, touched: &BTreeSet<String>, gone: &[String], new: &[Placement]) -> Result<(), Broken> {
        for key in gone {
            self.owned.remove(key);
        }
        let mut keys: BTreeSet<String> = touched.iter().chain(gone).cloned().collect();
        for placement in new {
            for key in owned(placement) {
                let owner = (placement.name().clone(), placement.uid.clone());
                if let Some((other, _)) = self.owned.insert(key.clone(), owner) {
                    return broken(format!("{key} belongs to both {other} and {}", placement.name()));
                }
                keys.insert(key);
            }
        }
        for key in keys {
            let claim = self.claims.get(&key).map(|claim| (claim.placement.clone(), claim.uid.clone()));
            let owner = self.owned.get(&key).cloned();
            if claim != owner {
                return broken(format!("{key} is claimed by {claim:?}, but {owner:?} owns it"));
            }
        }
        Ok(())
    }

    /// One step in the life of a placement.
    fn lives_on(&self, before: Option<&Placement>, after: &Placement) -> Result<Option<String>, Broken> {
        let (name, uid) = (after.name(), &after.uid);
        let before = match before {
            Some(before) if before.uid == *uid => before,
            other => {
                if let Some(other) = other.filter(|other| !other.phase.is_over()) {
                    return broken(format!("{name} takes the name of one that is {}", other.phase.name()));
                }
                if self.never.contains(uid) {
                    return broken(format!("{name} ({uid}) comes to be, although its caller was told no"));
                }
                if self.history.contains_key(uid) {
                    return broken(format!("{name} ({uid}) comes back from the dead"));
                }
                let at = after.assignment.as_ref().map(|a| a.gpu_ids().map(|gpu| gpu.to_string()).collect::<Vec<_>>());
                return Ok(Some(format!("{name} is {} on {}", after.phase.name(), at.unwrap_or_default().join(", "))));
            }
        };
        if before.request != after.request {
            return broken(format!("the request of {name} changed"));
        }
        if before.assignment.is_some() && before.assignment != after.assignment {
            return broken(format!("{name} was moved from {:?} to {:?}", before.assignment, after.assignment));
        }
        if before.vm_id.is_some() && before.vm_id != after.vm_id {
            return broken(format!("{name} has another VM than before"));
        }
        if before.phase.is_over() {
            return broken(format!("{name} goes on after it was {}", before.phase.name()));
        }
        if progress(&before.phase) > progress(&after.phase) {
            return broken(format!("{name} goes back from {} to {}", before.phase.name(), after.phase.name()));
        }
        // The agent's word for it, whatever the controller made of it: until then its GPUs are nobody else's.
        if after.phase.is_over() && desired::entry(before).is_some() && !self.clean.contains(uid) {
            return broken(format!(
                "{name} is {}, and no agent said that its GPUs were given back",
                after.phase.name()
            ));
        }
        let asked = match &after.phase {
            Phase::Released => true,
            Phase::Releasing { cause, .. } => *cause == ReleaseCause::Asked,
            Phase::Requested
            | Phase::Queued { .. }
            | Phase::Held { .. }
            | Phase::Preparing { .. }
            | Phase::Attaching { .. }
            | Phase::Starting { .. }
            | Phase::Verifying { .. }
            | Phase::Active
            | Phase::Failed { .. } => false,
        };
        if asked && !self.release_asked.contains(uid) {
            return broken(format!("{name} is released, and nobody asked for it"));
        }
        if matches!(before.phase, Phase::Active) && matches!(after.phase, Phase::Failed { .. }) {
            return broken(format!("{name} was active and failed without being released"));
        }
        if before.phase.name() == after.phase.name() {
            return Ok(None);
        }
        Ok(Some(match &after.phase {
            Phase::Failed { reason, undone } => format!("{name} is Failed, undone {undone}: {reason}"),
            Phase::Releasing { cause: ReleaseCause::Failure(reason), .. } => format!("{name} is undone: {reason}"),
            phase @ (Phase::Releasing { .. }
            | Phase::Requested
            | Phase::Queued { .. }
            | Phase::Held { .. }
            | Phase::Preparing { .. }
            | Phase::Attaching { .. }
            | Phase::Starting { .. }
            | Phase::Verifying { .. }
            | Phase::Active
            | Phase::Released) => format!("{name} is {}", phase.name()),
        }))
    }

    /// What a node should hold now; one generation never means two things.
    fn desire(&mut self, node: &NodeName) -> Result<(), Broken> {
        let Some(stored) = self.nodes.get(node) else {
            return broken(format!("something is placed on {node}, which is not stored"));
        };
        let on_node = |placement: &&Placement| placement.assignment.as_ref().is_some_and(|a| a.node == *node);
        let mut wishes: Vec<_> = self.placements.values().filter(on_node).filter_map(desired::entry).collect();
        wishes.sort_by(|a, b| a.uid.cmp(&b.uid));
        let mut wanted = BTreeSet::new();
        for wish in &wishes {
            let cards = wish.gpus.iter().map(|gpu| gpu.address.card().to_string()).collect::<BTreeSet<_>>();
            if let Some(what) = cards.into_iter().chain([wish.vm.to_string()]).find(|what| !wanted.insert(what.clone()))
            {
                return broken(format!("{} and another one want {what} of {node}", wish.name));
            }
        }
        let generation = stored.generation;
        let known = self.desires.entry(node.clone()).or_default();
        match known.get(&generation) {
            Some(before) if *before != wishes => {
                broken(format!("generation {generation} of {node} means two things: {before:?} and {wishes:?}"))
            }
            Some(_) => Ok(()),
            None => {
                known.insert(generation, wishes);
                Ok(())
            }
        }
    }

    /// What an agent is sent must be committed.
    pub(super) fn check_desired(&self, node: &NodeName, sent: &DesiredNode) -> Result<(), Broken> {
        let committed = self.desires.get(node).and_then(|known| known.get(&sent.generation));
        if committed == Some(&sent.placements) {
            return Ok(());
        }
        broken(format!(
            "{node} is sent generation {}, which is not committed: {sent:?}, {committed:?}",
            sent.generation
        ))
    }

    /// What somebody is told of a placement must be committed.
    pub(super) fn check_committed(&self, told: &Placement, revision: u64, whom: &str) -> Result<(), Broken> {
        let life = self.history.get(&told.uid).map(Vec::as_slice).unwrap_or_default();
        if life.iter().any(|committed| committed == told) && revision <= self.revision.0 {
            return Ok(());
        }
        let (name, version) = (told.name(), told.version);
        broken(format!("{whom} is told of version {version} of {name} at revision {revision}, which is not committed"))
    }

    pub(super) fn check_decided(&self, decided: &Decided) -> Result<(), Broken> {
        match &decided.placement {
            Some(placement) => self.check_committed(placement, decided.revision, "a caller"),
            None => Ok(()),
        }
    }

    /// A world that was loaded makes the claims that are stored.
    pub(super) fn check_claims(&self, world: &World) -> Result<(), Broken> {
        let mut stored = BTreeMap::new();
        for (key, claim) in &self.claims {
            let what = match Key::parse(key).map_err(|e| Broken(e.to_string()))? {
                Key::GpuClaim(gpu) => Claimed::Gpu(gpu),
                Key::VmClaim(vm) => Claimed::Vm(vm),
                Key::Request(id) => Claimed::Request(id),
                Key::Leader | Key::Term | Key::Fleet | Key::Placement(_) | Key::Node(_) => continue,
            };
            stored.insert(what, (claim.placement.clone(), claim.uid.clone()));
        }
        match invariants::check_claims(world, &stored).first() {
            Some(violation) => broken(violation.to_string()),
            None => Ok(()),
        }
    }
}

fn item(key: &str, value: &bytes::Bytes, revision: Revision, version: u64) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.clone(), created: revision, modified: revision, version }
}
