//! Between controllers: what the leader has observed and does not store, told to those who follow.
//!
//! Level-triggered like the agents' protocol: first everything, then each node and placement as it is when its turn
//! comes. Nothing is queued for a follower but names in the replica's ring; one that falls too far behind begins anew.
//! Must never tell what is not published, nor anybody but a controller.

mod listen;
mod wire;

pub(crate) use listen::{Listener, News, Peer, Way};

use crate::api::forward::Forwarder;
use crate::clock::now;
use crate::identity::Caller;
use crate::last_seen::LastSeen;
use crate::replica::{Follow, Published, Replica, Snapshot};
use crate::standing::Board;
use berth_core::world::World;
use berth_model::{NodeName, PlacementName, Timestamp};
use berth_proto::convert;
use berth_proto::v1::peers_server::Peers;
use berth_proto::{status, v1};
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// Most controllers that follow at a time. Three or five are usual; each costs a look at every change.
const MAX_FOLLOWERS: usize = 16;
/// Nodes in one message: 50 of 16 GPUs each are some hundred KiB.
const NODES: usize = 50;
/// Placements in one message.
const PLACEMENTS: usize = 500;
/// Between two tellings of when agents were last heard of: a third of the time after which one counts as silent.
const HEARD: Duration = Duration::from_secs(5);
/// Agents told of in one message about when they were heard.
const HEARD_AT_ONCE: usize = 5_000;

/// `berth.v1.Peers`.
#[derive(Clone)]
pub(crate) struct PeersService {
    replica: Replica,
    forwarder: Forwarder,
    seen: Arc<dyn LastSeen>,
    places: Arc<Semaphore>,
}

impl PeersService {
    /// Tells what `replica` shows while this controller leads, and when agents were heard of.
    pub(crate) fn new(replica: Replica, forwarder: Forwarder, seen: Arc<dyn LastSeen>) -> Self {
        Self { replica, forwarder, seen, places: Arc::new(Semaphore::new(MAX_FOLLOWERS)) }
    }
}

#[tonic::async_trait]
impl Peers for PeersService {
    type FollowStream = Pin<Box<dyn futures::Stream<Item = Result<v1::Observations, Status>> + Send>>;

    async fn follow(&self, request: Request<v1::FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        self.forwarder.admits(Caller::of(&request).as_ref())?;
        if !self.forwarder.board().leads() {
            return Err(crate::api::no_leader("this controller does not lead"));
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| crate::api::overloaded("too many controllers follow already"))?;
        // Followed before it is shown: what changes in between is told twice rather than never.
        let follow = self.replica.follow(None).map_err(|error| status::too_old(&error.to_string()))?;
        let telling = Telling {
            follow,
            seen: Arc::clone(&self.seen),
            turn: Turn::Nodes { snapshot: self.replica.now(), last: None },
            told_heard: BTreeMap::new(),
            heard_at: Instant::now(),
            ready: VecDeque::new(),
            _place: place,
        };
        let stream = futures::stream::unfold(Some(telling), |telling| async {
            let mut telling = telling?;
            match telling.next().await {
                Ok(message) => Some((Ok(message), Some(telling))),
                // Nothing follows an error.
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// How far a follower has been told.
enum Turn {
    /// The first view: nodes after one.
    Nodes { snapshot: Arc<Snapshot>, last: Option<NodeName> },
    /// The first view: placements after one.
    Placements { snapshot: Arc<Snapshot>, last: Option<PlacementName> },
    /// Whatever changes.
    Changes,
}

/// What one follower is told.
struct Telling {
    follow: Follow,
    seen: Arc<dyn LastSeen>,
    turn: Turn,
    told_heard: BTreeMap<NodeName, Timestamp>,
    heard_at: Instant,
    ready: VecDeque<v1::Observations>,
    _place: OwnedSemaphorePermit,
}

fn message(snapshot: &Snapshot) -> v1::Observations {
    v1::Observations { term: snapshot.term, revision: snapshot.revision, ..Default::default() }
}

impl Telling {
    async fn next(&mut self) -> Result<v1::Observations, Status> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(message);
            }
            match &mut self.turn {
                Turn::Nodes { snapshot, last } => {
                    let nodes: Vec<_> = snapshot.world.nodes_after(last.as_ref()).take(NODES).collect();
                    let told = nodes.iter().map(|node| wire::node(node)).collect();
                    let answer = v1::Observations { nodes: told, ..message(snapshot) };
                    *last = nodes.last().map(|node| node.name.clone());
                    if nodes.len() < NODES {
                        self.turn = Turn::Placements { snapshot: Arc::clone(snapshot), last: None };
                    }
                    return Ok(answer);
                }
                Turn::Placements { snapshot, last } => {
                    let world = &snapshot.world;
                    let after = world.placements_after(last.as_ref()).map(|placement| placement.name());
                    let names: Vec<_> = after.filter(|name| world.live(name).is_some()).take(PLACEMENTS).collect();
                    let placements = names.iter().map(|name| wire::placement(world, name)).collect();
                    let complete = names.len() < PLACEMENTS;
                    let answer = v1::Observations { placements, complete, ..message(snapshot) };
                    *last = names.last().map(|name| (*name).clone());
                    if complete {
                        self.turn = Turn::Changes;
                        self.heard_at = Instant::now();
                    }
                    return Ok(answer);
                }
                Turn::Changes => tokio::select! {
                    published = self.follow.next() => match published {
                        Some(Ok(published)) => self.ready = changes(&published),
                        Some(Err(error)) => return Err(status::too_old(&error.to_string())),
                        None => return Err(crate::api::no_leader("this controller is stopping")),
                    },
                    () = tokio::time::sleep_until(self.heard_at) => self.tell_heard(),
                },
            }
        }
    }

    /// When agents were heard of, those only that were heard of since it was told last.
    fn tell_heard(&mut self) {
        self.heard_at = Instant::now() + HEARD;
        let snapshot = self.follow.newest();
        let mut heard = Vec::new();
        for node in snapshot.world.nodes() {
            let Some(at) = self.seen.last_seen(&node.name) else { continue };
            if self.told_heard.get(&node.name) != Some(&at) {
                self.told_heard.insert(node.name.clone(), at);
                heard.push(v1::Heard { node: node.name.to_string(), at: Some(convert::timestamp(at)) });
            }
        }
        let messages = heard.chunks(HEARD_AT_ONCE);
        self.ready.extend(messages.map(|heard| v1::Observations { heard: heard.to_vec(), ..message(&snapshot) }));
    }
}

/// One publication as messages; at least one, because the revision is news, too.
fn changes(published: &Published) -> VecDeque<v1::Observations> {
    let Published { snapshot, placements, nodes } = published;
    let world: &World = &snapshot.world;
    let nodes: Vec<_> = nodes.iter().filter_map(|name| world.node(name)).map(|node| wire::node(node)).collect();
    let placements: Vec<_> = placements.iter().map(|name| wire::placement(world, name)).collect();
    let mut messages: VecDeque<_> =
        nodes.chunks(NODES).map(|nodes| v1::Observations { nodes: nodes.to_vec(), ..message(snapshot) }).collect();
    messages.extend(
        placements
            .chunks(PLACEMENTS)
            .map(|placements| v1::Observations { placements: placements.to_vec(), ..message(snapshot) }),
    );
    if messages.is_empty() {
        messages.push_back(message(snapshot));
    }
    messages
}

/// When agents were last heard of, by this controller while it leads, by its leader's word while it does not.
#[derive(Clone)]
pub(crate) struct HeardOf {
    pub(crate) board: Board,
    pub(crate) here: Arc<dyn LastSeen>,
    pub(crate) told: Heard,
}

impl LastSeen for HeardOf {
    fn last_seen(&self, node: &NodeName) -> Option<Timestamp> {
        if self.board.leads() { self.here.last_seen(node) } else { self.told.last(node) }
    }
}

/// When the leader says that it last heard of agents. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    table: Arc<std::sync::Mutex<BTreeMap<NodeName, Timestamp>>>,
}

impl Heard {
    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeName, Timestamp>> {
        // Every change under this lock is a single one; a panic elsewhere leaves the table whole.
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn last(&self, node: &NodeName) -> Option<Timestamp> {
        self.table().get(node).copied()
    }

    /// Takes down what the leader says. Its clock may be ahead of this one; what is in the future was now.
    pub(crate) fn note(&self, heard: Vec<(NodeName, Timestamp)>) {
        let now = now();
        self.table().extend(heard.into_iter().map(|(node, at)| (node, at.min(now))));
    }
}
