//! What the leader does between two waits: which input counts, what it comes to, what waits for its commit, and who is
//! told what once that is durable.
//!
//! Owns the [`Brain`] of one leadership and the order "durable first, then told". Waits for nothing and has no clock, so
//! that the simulation drives the very same rules as [`super::run`] does.

mod undo;

pub use undo::TakenBack;

use super::{Answer, CallError, Decided, MAX_TERM_LEAP, SessionId};
use crate::audit::{self, Asked};
use crate::commit::{Durable, Fate, Groups, Unfit};
use berth_core::decide::{Brain, Input, Learned};
use berth_core::desired::desired as desired_state;
use berth_core::world::World;
use berth_model::desired::DesiredNode;
use berth_model::inventory::{Hello, Listing};
use berth_model::placement::Placement;
use berth_model::reason::Refusal;
use berth_model::{NodeName, PlacementName, Timestamp};
use berth_store::{CommitError, Revision};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// The newest session of each node as its inputs arrived here, so that they survive a reload.
#[derive(Debug, Default)]
pub struct Sessions {
    open: BTreeMap<NodeName, (SessionId, Box<Hello>)>,
}

impl Sessions {
    fn is(&self, node: &NodeName, session: SessionId) -> bool {
        self.open.get(node).is_some_and(|(id, _)| *id == session)
    }
}

/// A caller, and what it will be told.
#[derive(Debug)]
struct Reply<R> {
    to: R,
    what: Result<Option<Arc<Placement>>, Refusal>,
    /// The group that makes it durable.
    group: Option<u64>,
}

/// What some inputs came to, not yet told.
#[derive(Debug)]
struct Batch<R> {
    /// Told when everything up to here is durable.
    mark: u64,
    /// As it was after these inputs.
    world: World,
    placements: BTreeSet<PlacementName>,
    nodes: BTreeSet<NodeName>,
    desired: BTreeMap<NodeName, DesiredNode>,
    replies: Vec<Reply<R>>,
    learned: Vec<Learned>,
    inputs: usize,
}

/// What the inputs of one batch came to so far.
#[derive(Debug)]
pub struct Work<R> {
    placements: BTreeSet<PlacementName>,
    nodes: BTreeSet<NodeName>,
    desired: BTreeSet<NodeName>,
    replies: Vec<Reply<R>>,
    learned: Vec<Learned>,
    inputs: usize,
}

impl<R> Default for Work<R> {
    fn default() -> Self {
        Self {
            placements: BTreeSet::new(),
            nodes: BTreeSet::new(),
            desired: BTreeSet::new(),
            replies: Vec::new(),
            learned: Vec::new(),
            inputs: 0,
        }
    }
}

/// What is durable now, for whoever waits for it.
#[derive(Debug)]
pub struct Told<R> {
    /// The revision that the world is complete up to.
    pub revision: Revision,
    /// What readers see from now on, if that changed.
    pub publish: Option<Publish>,
    /// Callers, each with its answer.
    pub replies: Vec<(R, Answer)>,
    /// What nodes are to be sent.
    pub desired: BTreeMap<NodeName, DesiredNode>,
    /// What agents did that is recorded now.
    pub learned: Vec<Learned>,
}

/// A world to show to readers, and what changed in it.
#[derive(Debug)]
pub struct Publish {
    /// The world.
    pub world: World,
    /// Placements whose view changed.
    pub placements: BTreeSet<PlacementName>,
    /// Nodes whose view changed.
    pub nodes: BTreeSet<NodeName>,
}

/// One leadership's decisions. `R` is whatever takes a caller's answer.
#[derive(Debug)]
pub struct Desk<R> {
    brain: Brain,
    batches: VecDeque<Batch<R>>,
    untold: usize,
    /// Nodes whose agents have not told everything since the world was loaded; what they add to it means nothing yet.
    awaited: BTreeSet<NodeName>,
    revision: Revision,
    /// Highest term that an agent has obeyed, as heard in this leadership.
    obeyed: u64,
}

impl<R> Desk<R> {
    /// Begins with a world that was loaded at `revision`.
    pub fn new(brain: Brain, revision: Revision) -> Self {
        Self { brain, batches: VecDeque::new(), untold: 0, awaited: BTreeSet::new(), revision, obeyed: 0 }
    }

    /// The brain, decisions not yet durable included.
    pub fn brain(&self) -> &Brain {
        &self.brain
    }

    /// The revision last told.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The highest term that an agent has obeyed, if it is above this leadership's: the store has forgotten something, and
    /// that agent obeys only a leadership whose term is higher. See
    /// `docs/decisions/2026-11-22-terms-above-what-agents-obeyed.md`.
    pub fn outranked(&self) -> Option<u64> {
        (self.obeyed > self.brain.term()).then_some(self.obeyed)
    }

    fn hear_of_term(&mut self, hello: &Hello) {
        // What a stranger has obeyed is another's count.
        if self.brain.world().stranger(hello).is_some() {
            return;
        }
        if hello.ledger_term <= self.brain.term().saturating_add(MAX_TERM_LEAP) {
            self.obeyed = self.obeyed.max(hello.ledger_term);
        }
    }

    /// Inputs decided and not yet told.
    pub fn untold(&self) -> usize {
        self.untold
    }

    /// Whether one caller waits for the store, and nothing else does.
    pub fn has_lone_caller(&self) -> bool {
        self.untold == 1 && self.batches.front().is_some_and(|batch| batch.replies.len() == 1)
    }

    /// Whether an agent's input counts: only the newest session of a node speaks for it, and after a reload only from
    /// its first full report on.
    pub fn admits(&mut self, sessions: &mut Sessions, session: SessionId, input: &Input) -> bool {
        match input {
            Input::Connected(hello) => {
                let newer = sessions.open.get(&hello.node).is_none_or(|(id, _)| *id < session);
                if newer {
                    self.hear_of_term(hello);
                    sessions.open.insert(hello.node.clone(), (session, hello.clone()));
                    self.awaited.insert(hello.node.clone());
                }
                newer
            }
            Input::Disconnected(node) => {
                let known = sessions.is(node, session);
                if known {
                    sessions.open.remove(node);
                }
                known
            }
            Input::Report { node, report } => {
                if !sessions.is(node, session) {
                    return false;
                }
                let complete = report.listing == Listing::Complete;
                if report.full && complete {
                    self.awaited.remove(node);
                }
                // That nothing can be seen counts at any time.
                !complete || !self.awaited.contains(node)
            }
            Input::Progress { node, .. } => sessions.is(node, session),
            // No agent says these.
            Input::Create { .. } | Input::Commit { .. } | Input::Release { .. } | Input::Adopt(_) | Input::Tick => {
                false
            }
        }
    }

    /// Decides one input of a batch. `asked` is what stands in the audit; `to` waits for the answer.
    ///
    /// # Errors
    /// [`Unfit`]: this leadership cannot go on.
    pub fn decide(
        &mut self,
        groups: &mut Groups,
        now: Timestamp,
        input: Input,
        asked: Option<&Asked>,
        to: Option<R>,
        work: &mut Work<R>,
    ) -> Result<(), Unfit> {
        // A decision that finds no place in the last group begins another one. What is shown once the last one is durable
        // must be what is stored then, so that this batch ends before that decision.
        let before = (work.inputs > 0 && groups.is_open()).then(|| (groups.mark(), self.brain.world().clone()));
        let (what, group) = match self.brain.decide(now, input) {
            Ok(decision) => {
                let group = groups.add(&decision.changes)?;
                if group.is_some() {
                    groups.note(audit::records(now, asked, &decision));
                }
                if let Some((mark, world)) = before.filter(|(mark, _)| groups.mark() > *mark) {
                    self.put(mark, world, std::mem::take(work));
                }
                work.placements.extend(decision.touched);
                work.nodes.extend(decision.nodes);
                work.desired.extend(decision.desired);
                work.learned.extend(decision.learned);
                (Ok(decision.placement), group)
            }
            Err(refusal) => (Err(refusal), None),
        };
        work.inputs += 1;
        work.replies.extend(to.map(|to| Reply { to, what, group }));
        Ok(())
    }

    /// Puts what was decided behind what waits already.
    pub fn enqueue(&mut self, groups: &Groups, work: Work<R>) {
        if work.inputs > 0 {
            self.put(groups.mark(), self.brain.world().clone(), work);
        }
    }

    /// Has this told once everything up to a mark is durable, the world being as given then. Batches that the same
    /// transaction makes durable become one: the states between them never were in the store.
    fn put(&mut self, mark: u64, world: World, work: Work<R>) {
        let Work { placements, nodes, desired, replies, learned, inputs } = work;
        let term = self.brain.term();
        let desired = desired.into_iter().filter_map(|node| Some((node.clone(), desired_state(&world, &node, term)?)));
        let desired: BTreeMap<_, _> = desired.collect();
        self.untold = self.untold.saturating_add(inputs);
        match self.batches.back_mut().filter(|last| last.mark == mark) {
            Some(last) => {
                last.world = world;
                last.placements.extend(placements);
                last.nodes.extend(nodes);
                last.desired.extend(desired);
                last.replies.extend(replies);
                last.learned.extend(learned);
                last.inputs = last.inputs.saturating_add(inputs);
            }
            None => self.batches.push_back(Batch { mark, world, placements, nodes, desired, replies, learned, inputs }),
        }
    }

    /// The next that has become durable, if any.
    pub fn next_told(&mut self, groups: &mut Groups) -> Option<Told<R>> {
        let mark = self.batches.front().map(|batch| batch.mark)?;
        let Durable { revision, complete } = groups.durable_at(mark)?;
        let Batch { mark: _, world, placements, nodes, desired, replies, learned, inputs } =
            self.batches.pop_front()?;
        self.untold = self.untold.saturating_sub(inputs);
        let changed = !placements.is_empty() || !nodes.is_empty() || complete > self.revision;
        if changed {
            self.revision = complete;
        }
        let answer = |what: Result<_, Refusal>| {
            what.map(|placement| Decided { placement, revision: revision.0 }).map_err(CallError::Refused)
        };
        Some(Told {
            revision: self.revision,
            publish: changed.then_some(Publish { world, placements, nodes }),
            replies: replies.into_iter().map(|Reply { to, what, group: _ }| (to, answer(what))).collect(),
            desired,
            learned,
        })
    }

    /// Gives up all that is not told, and says what each caller who waits is to hear. Only once nothing is in flight.
    pub fn give_up(&mut self, groups: &Groups, why: &CommitError) -> Vec<(R, CallError)> {
        self.untold = 0;
        let lost = |reply: Reply<R>| {
            let error = match reply.group.map_or(Fate::NotWritten, |group| groups.fate(group)) {
                Fate::NotWritten => CallError::Unavailable(why.to_string()),
                Fate::Unknown => CallError::Unknown(why.to_string()),
            };
            (reply.to, error)
        };
        self.batches.drain(..).flat_map(|batch| batch.replies).map(lost).collect()
    }

    /// After a reload: the sessions that are open are told to the new brain. Their agents are to be asked for everything.
    ///
    /// # Errors
    /// As for [`Desk::decide`].
    pub fn take_sessions(&mut self, groups: &mut Groups, now: Timestamp, sessions: &Sessions) -> Result<(), Unfit> {
        let mut work = Work::default();
        for (node, (_, hello)) in &sessions.open {
            self.awaited.insert(node.clone());
            self.hear_of_term(hello);
            self.decide(groups, now, Input::Connected(hello.clone()), None, None, &mut work)?;
        }
        self.enqueue(groups, work);
        Ok(())
    }
}
