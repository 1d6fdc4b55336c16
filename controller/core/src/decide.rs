//! The only door to the brain: an input goes in, a decision comes out, and the world is as if it were committed.
//!
//! The shell commits the changes of a decision, in order, before it tells anyone. Decisions that are surely not committed
//! are taken back by [`Brain::put_back`]; when that is not sure, the shell throws the brain away and loads a new one from
//! the store. Either way nothing speculative survives.

mod adopt;
mod agent;
mod caller;
mod draft;
mod lookups;
mod time;
mod undo;

pub use crate::claims::Claimed;
use crate::desired;
use crate::invariants::{self, Violation};
pub use crate::limits::Limits;
use crate::world::{Gpu, Link, Node, View, World};
pub use adopt::Adopt;
pub use agent::MAX_GENERATION_LEAP;
use berth_model::Timestamp;
use berth_model::desired::DesiredNode;
use berth_model::gpu::{GpuHealth, GpuState, ObservedGpu};
use berth_model::history::Note;
use berth_model::id::{FleetId, GpuId, NodeName, PlacementName, PlacementUid, VmId};
use berth_model::inventory::{Hello, InventoryReport};
use berth_model::node::StoredNode;
use berth_model::placement::{Placement, Progress};
use berth_model::reason::Refusal;
use berth_model::request::{PlacementRequest, Resources};
use berth_model::trace::TraceParent;
use draft::Draft;
use lookups::Lookups;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
pub use undo::Stored;

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Somebody asks for a placement.
    Create {
        /// What is asked.
        request: Box<PlacementRequest>,
        /// The uid it gets if it is new; drawn by the shell.
        uid: PlacementUid,
        /// Who asks.
        caller: String,
        /// The trace of the call.
        trace: Option<TraceParent>,
    },
    /// Somebody says that the VM of a held placement exists.
    Commit {
        /// Which placement.
        name: PlacementName,
        /// The VM's id, where the caller knows it.
        vm_id: Option<VmId>,
        /// The version the caller rests on.
        version: Option<u64>,
    },
    /// Somebody gives GPUs back.
    Release {
        /// Which placement.
        name: PlacementName,
        /// The uid the caller means.
        uid: Option<PlacementUid>,
        /// The version the caller rests on.
        version: Option<u64>,
    },
    /// Somebody has an assignment that exists already taken over as a placement.
    Adopt(Box<Adopt>),
    /// An agent opened a session.
    Connected(Box<Hello>),
    /// A node's session ended, or nothing was heard of it for too long.
    Disconnected(NodeName),
    /// An agent reports what it sees.
    Report {
        /// Its node.
        node: NodeName,
        /// What it sees.
        report: Box<InventoryReport>,
    },
    /// An agent reports how work goes.
    Progress {
        /// Its node.
        node: NodeName,
        /// How it goes.
        progress: Box<Progress>,
    },
    /// Time has passed.
    Tick,
}

/// One durable change. The shell turns each into writes with preconditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a placement; its version is one more than that of the stored one, 1 if it is new.
    PutPlacement(Arc<Placement>),
    /// Forgets a placement that is over, at this version.
    RemovePlacement {
        /// Which.
        name: PlacementName,
        /// Its version.
        version: u64,
    },
    /// Writes a node; versions as with placements.
    PutNode(Arc<StoredNode>),
    /// Creates a claim that must not exist yet.
    Claim {
        /// What is claimed.
        what: Claimed,
        /// By which placement.
        placement: PlacementName,
        /// Its uid.
        uid: PlacementUid,
    },
    /// Deletes a claim that must still name this placement.
    Unclaim {
        /// What was claimed.
        what: Claimed,
        /// By which placement.
        placement: PlacementName,
        /// Its uid.
        uid: PlacementUid,
    },
}

/// What a decision comes to.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// What must be committed, together, before anyone is told.
    pub changes: Vec<Change>,
    /// The placement the input was about, as it is once committed.
    pub placement: Option<Arc<Placement>>,
    /// Nodes whose desired state is to be sent (again) once committed.
    pub desired: BTreeSet<NodeName>,
    /// Placements whose view changed, committed or only observed: whoever watches wants to know.
    pub touched: BTreeSet<PlacementName>,
    /// Nodes whose view (or whose GPUs' view) changed.
    pub nodes: BTreeSet<NodeName>,
    /// What agents did that was learned of, and is in the histories now.
    pub learned: Vec<Learned>,
}

/// What an agent did that was learned of, and for which placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// On which node.
    pub node: NodeName,
    /// For which placement.
    pub placement: PlacementName,
    /// Its uid.
    pub uid: PlacementUid,
    /// Who asked for that placement.
    pub caller: String,
    /// What was done.
    pub what: Note,
}

/// What is stored cannot be true.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Two placements own one GPU.
    #[error("GPU {gpu} is owned by both {first} and {second}")]
    TwoOwners {
        /// The GPU.
        gpu: GpuId,
        /// One owner.
        first: PlacementName,
        /// The other.
        second: PlacementName,
    },
    /// A placement owns a GPU that is not known.
    #[error("placement {placement} owns GPU {gpu}, which is not known")]
    UnknownGpu {
        /// The GPU.
        gpu: GpuId,
        /// Its owner.
        placement: PlacementName,
    },
}

/// The brain.
#[derive(Clone, Debug)]
pub struct Brain {
    world: World,
    lookups: Lookups,
    term: u64,
    limits: Limits,
    /// When it was loaded.
    since: Timestamp,
    /// Room may have appeared since the queue was last gone through.
    room: bool,
    /// How far the present pass through the queue has come.
    pass: Option<(Timestamp, PlacementName)>,
    /// Nodes with VMs for held placements that one decision could not take up.
    waiting_vms: BTreeSet<NodeName>,
}

impl Brain {
    /// Begins from what is stored. No node is connected yet, and where GPUs are is unknown until their agents say so.
    ///
    /// # Errors
    /// [`LoadError`] when the records contradict one another: going on could give a GPU to two owners.
    pub fn load(
        term: u64,
        limits: Limits,
        nodes: Vec<StoredNode>,
        placements: Vec<Placement>,
        now: Timestamp,
    ) -> Result<Self, LoadError> {
        let known: BTreeMap<&NodeName, &StoredNode> = nodes.iter().map(|node| (&node.name, node)).collect();
        let mut owners: BTreeMap<GpuId, PlacementName> = BTreeMap::new();
        let mut world = World::default();
        for placement in placements {
            if let (true, Some(assignment)) = (placement.phase.holds_claims(), &placement.assignment) {
                let node = known.get(&assignment.node);
                for gpu in assignment.gpu_ids() {
                    if node.is_none_or(|node| node.gpus.iter().all(|(address, _)| *address != gpu.address)) {
                        return Err(LoadError::UnknownGpu { gpu, placement: placement.name().clone() });
                    }
                    if let Some(first) = owners.insert(gpu.clone(), placement.name().clone()) {
                        return Err(LoadError::TwoOwners { gpu, first, second: placement.name().clone() });
                    }
                }
            }
            world.put_placement(placement);
        }
        // After their placements, so that each is derived once and not again with every placement on it.
        for stored in nodes {
            world.insert_node(node_from_store(stored, now));
        }
        let lookups = Lookups::of(world.placements().map(AsRef::as_ref));
        Ok(Self { world, lookups, term, limits, since: now, room: false, pass: None, waiting_vms: BTreeSet::new() })
    }

    /// The same, of this fleet: agents that hold what belongs to another one are strangers.
    #[must_use]
    pub fn of_fleet(mut self, fleet: Option<FleetId>) -> Self {
        self.world.set_fleet(fleet);
        self
    }

    /// The same, remembering where VMs were seen when this world was shown. Until their nodes report again, a VM that is there
    /// already is not taken for one that is still to be made, which could be given GPUs of another node. It is memory: no
    /// node is ready by it, and no GPU free.
    #[must_use]
    pub fn remembering(mut self, shown: &World) -> Self {
        self.world.remember_vms(shown);
        self
    }

    /// Everything known, decisions not yet committed included.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// One placement by its uid.
    pub fn placement_by_uid(&self, uid: &PlacementUid) -> Option<&Arc<Placement>> {
        self.world.placement(self.lookups.by_uid(uid)?)
    }

    /// Every broken rule of its world and its look-ups; empty is good. Costs time in proportion to the world.
    pub fn check(&self) -> Vec<Violation> {
        let differ = self.lookups.differences(self.world.placements().map(AsRef::as_ref));
        let differ = differ.into_iter().map(|what| format!("{what} differ from their recomputation"));
        let mut found = invariants::check(&self.world);
        found.extend(self.check_some(None, usize::MAX).0);
        found.extend(differ.map(|text| Violation { rule: "I8", text }));
        found
    }

    /// The same for how some placements are found: at most so many, from the one after `after` in order of name. Also the
    /// last one looked at; none when there was no more. For a leader that cannot stop for [`Brain::check`].
    pub fn check_some(&self, after: Option<&PlacementName>, at_most: usize) -> (Vec<Violation>, Option<PlacementName>) {
        let (mut found, mut last) = (Vec::new(), None);
        for placement in self.world.placements_after(after).take(at_most) {
            let name = placement.name();
            let faults = self.lookups.faults_of(placement).into_iter();
            found.extend(faults.map(|what| Violation { rule: "I8", text: format!("{what} are wrong about {name}") }));
            last = Some(name.clone());
        }
        (found, last)
    }

    /// The leadership it decides in.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// What a node should hold; `None` for a node that is not known, or whose agent is a stranger.
    pub fn desired(&self, node: &NodeName) -> Option<DesiredNode> {
        if self.world.node(node).is_some_and(|node| node.is_stranger()) {
            return None;
        }
        desired::desired(&self.world, node, self.term)
    }

    /// When [`Input::Tick`] has something to do next; a time in the past means: at once.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        if self.queue_is_due() || self.history_is_full() {
            return Some(Timestamp::default());
        }
        let forget = self.lookups.oldest_over().map(|(since, _)| since.after(self.limits.history_age));
        self.next_end().into_iter().chain(forget).min()
    }

    /// Decides. The world is as if the decision were committed.
    ///
    /// # Errors
    /// [`Refusal`] when a caller asks for what cannot be; nothing has changed then.
    pub fn decide(&mut self, now: Timestamp, input: Input) -> Result<Decision, Refusal> {
        let mut draft = Draft::new(now);
        match input {
            Input::Create { request, uid, caller, trace } => self.create(&mut draft, *request, uid, caller, trace)?,
            Input::Commit { name, vm_id, version } => self.commit(&mut draft, &name, vm_id, version)?,
            Input::Release { name, uid, version } => self.release(&mut draft, &name, uid.as_ref(), version)?,
            Input::Adopt(adopt) => self.adopt(&mut draft, *adopt)?,
            Input::Connected(hello) => self.connected(&mut draft, *hello),
            Input::Disconnected(node) => self.disconnected(&mut draft, &node),
            Input::Report { node, report } => self.report(&mut draft, &node, *report),
            Input::Progress { node, progress } => self.progress(&mut draft, &node, *progress),
            Input::Tick => self.tick(&mut draft),
        }
        Ok(self.finish(draft))
    }
}

pub(crate) fn node_from_store(stored: StoredNode, now: Timestamp) -> Node {
    let StoredNode { name, facts, agent_version, first_seen, cordons, gpus, generation, version } = stored;
    let gpus = gpus
        .into_iter()
        .map(|(address, survey)| {
            let observed = ObservedGpu {
                address: address.clone(),
                survey,
                state: GpuState::Unknown,
                health: GpuHealth::Ok,
                problem: None,
            };
            (address, Gpu { observed, observed_at: None, since: None, claim: None })
        })
        .collect();
    Node {
        name,
        facts,
        agent_version,
        first_seen,
        cordons,
        version,
        generation,
        link: Link::Disconnected { since: now },
        view: View::NotReported,
        boot: None,
        gpus,
        vms: BTreeMap::new(),
        stale_since: BTreeMap::new(),
        reserved: Resources::default(),
    }
}

fn node_to_store(node: &Node) -> StoredNode {
    StoredNode {
        name: node.name.clone(),
        facts: node.facts.clone(),
        agent_version: node.agent_version.clone(),
        first_seen: node.first_seen,
        cordons: node.cordons.clone(),
        gpus: node.gpus.iter().map(|(address, gpu)| (address.clone(), gpu.observed.survey.clone())).collect(),
        generation: node.generation,
        version: node.version,
    }
}
