//! The leader's loop. See [`super`] for its rules.

mod recover;
mod rounds;
mod vigil;

pub use recover::{ATTEMPTS, CAMPAIGN};

use super::desk::{Desk, Publish, Sessions, Told, Work};
use super::{Call, CallError, From, Waiter, load, note};
use crate::afterwards::afterwards;
use crate::audit::{self, Audit};
use crate::checked::Findings;
use crate::clock::now;
use crate::commit::{Groups, Loss, Pipeline, Unfit};
use crate::metrics::INSTRUMENTS;
use crate::replica::Publisher;
#[cfg(test)]
use crate::replica::Replica;
use berth_core::decide::{Input, Learned, Limits};
use berth_core::world::World;
use berth_model::NodeName;
use berth_model::desired::DesiredNode;
use berth_model::history::{Forced, Note};
use berth_store::{CommitError, Leadership, Store};
use berth_telemetry::names;
use berth_telemetry::traces::Span;
use futures::future::BoxFuture;
#[cfg(test)]
use recover::take_over;
use rounds::Rounds;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vigil::Vigil;

/// Inputs decided in one go, before anything else is looked at: a few milliseconds of work.
const BATCH: usize = 256;
/// Inputs decided and not yet told. Reached only while the store is slower than a second; then the queue fills, and
/// callers are told to come back later.
const UNTOLD: usize = 8_192;
/// Groups of decisions that wait for the store; same reason.
const GROUPS: usize = 256;
/// Time is looked at once a second, if nothing was due earlier: holds and deadlines are minutes.
const TICK: Duration = Duration::from_secs(1);
/// Between two ticks that are due at once, so that callers get their turn between the parts of long work.
const TICK_AT_ONCE: Duration = Duration::from_millis(1);
/// How long the store may take to win a leadership or to read everything, before that counts as failed.
const LOADING: Duration = Duration::from_secs(60);

/// Where committed wishes go.
pub(crate) trait Outbox: Send + Sync + 'static {
    /// Sends a node its desired state, if its agent is there; only the latest one counts.
    fn send(&self, node: &NodeName, desired: DesiredNode);
    /// Asks every connected agent to tell everything anew.
    fn look_again(&self);
    /// Asks a node's agent, if it is connected.
    fn look_again_at(&self, node: &NodeName);
}

/// How to lead.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The brain's bounds and times.
    pub(crate) limits: Limits,
    /// How long one transaction may take before its outcome counts as unknown.
    pub(crate) commit_deadline: Duration,
    /// This process, in the leader record.
    pub(crate) candidate: String,
    /// Where what happens is audited.
    pub(crate) audit: Audit,
    /// Where broken invariants of what only the leader has are left.
    pub(crate) findings: Findings,
}

/// Why there is no leader in this process any more.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// Somebody else leads.
    #[error("leadership was lost; another controller takes over")]
    LostLeadership,
    /// The store stayed away.
    #[error("the world could not be loaded in {attempts} attempts")]
    Store {
        /// How often it was tried.
        attempts: u32,
        /// The last error.
        source: LoadFailure,
    },
    /// What is stored, or what was decided, makes no sense: a person must look.
    #[error("a person must look before this controller can go on")]
    Broken(#[source] LoadFailure),
    /// A transaction that the store never takes: a fault of Berth.
    #[error("the store refuses a transaction for good: {0}")]
    Illegal(String),
}

impl std::convert::From<Unfit> for Ended {
    fn from(unfit: Unfit) -> Self {
        Self::Illegal(unfit.to_string())
    }
}

/// Why the world could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct LoadFailure(load::Error);

impl<E: Into<load::Error>> std::convert::From<E> for LoadFailure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

/// What a leadership ended with.
enum Turn {
    /// The process stops.
    Stop,
    /// A commit failed: take back what rests on it, or load the world anew.
    Recover(CommitError),
    /// Lead anew above this term, which an agent has obeyed.
    Rise(u64),
}

/// One leadership.
struct Lead {
    desk: Desk<Waiter>,
    pipeline: Pipeline,
    lost: BoxFuture<'static, ()>,
    ticked: Instant,
    /// Decisions that the store contradicted.
    contradictions: u32,
}

/// The leader.
pub(crate) struct Service {
    store: Arc<dyn Store>,
    options: Options,
    queue: mpsc::Receiver<Call>,
    outbox: Arc<dyn Outbox>,
    stop: CancellationToken,
    publisher: Publisher,
    lead: Lead,
    sessions: Sessions,
    trouble: Trouble,
    vigil: Vigil,
    rounds: Rounds,
}

/// What the store has failed at lately.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    /// Failed attempts since something was committed or loaded.
    attempts: u32,
    /// Commits that failed since one did not, while the leadership went on.
    failures: u32,
    /// The store refuses writes, and that was told.
    refusing: bool,
}

impl Service {
    /// Wins a leadership and loads the world.
    #[cfg(test)]
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        options: Options,
        queue: mpsc::Receiver<Call>,
        outbox: Arc<dyn Outbox>,
        stop: CancellationToken,
    ) -> Result<(Replica, Self), Ended> {
        let lead = take_over(&store, &options, &World::default(), &mut 0).await?;
        let brain = lead.desk.brain();
        let (replica, publisher) = Replica::new(brain.world().clone(), lead.desk.revision().0, brain.term(), now());
        Ok((replica, Self::new(store, options, queue, outbox, stop, publisher, lead)))
    }

    /// Loads the world for a leadership that was won, and goes on with what `publisher` has shown so far.
    pub(crate) async fn lead(
        leadership: Leadership,
        store: Arc<dyn Store>,
        options: Options,
        queue: mpsc::Receiver<Call>,
        outbox: Arc<dyn Outbox>,
        stop: CancellationToken,
        mut publisher: Publisher,
    ) -> Result<Self, Ended> {
        let before = publisher.now();
        let lead = match load_for(leadership, &store, &options, &before.world).await {
            Ok(lead) => lead,
            Err(error) if !error.retry_helps() => return Err(Ended::Broken(LoadFailure(error))),
            // Whoever can read the store should lead.
            Err(error) => return Err(Ended::Store { attempts: 1, source: LoadFailure(error) }),
        };
        let brain = lead.desk.brain();
        let (world, revision) = (brain.world().clone(), lead.desk.revision().0);
        if before.is_loaded() && before.revision <= revision {
            publisher.set_term(brain.term(), now());
            publisher.replace(world, revision);
        } else {
            publisher.restart(world, revision, brain.term(), now());
        }
        Ok(Self::new(store, options, queue, outbox, stop, publisher, lead))
    }

    fn new(
        store: Arc<dyn Store>,
        options: Options,
        queue: mpsc::Receiver<Call>,
        outbox: Arc<dyn Outbox>,
        stop: CancellationToken,
        publisher: Publisher,
        lead: Lead,
    ) -> Self {
        let (sessions, trouble, vigil) = (Sessions::default(), Trouble::default(), Vigil::on_this_machine());
        let rounds = Rounds::new(Arc::clone(&options.findings));
        Self { store, options, queue, outbox, stop, publisher, lead, sessions, trouble, vigil, rounds }
    }

    /// Leads until the process stops.
    pub(crate) async fn run(mut self) -> Result<(), Ended> {
        loop {
            match self.turn().await? {
                Turn::Stop => return Ok(()),
                Turn::Recover(why) => {
                    let stop = self.stop.clone();
                    tokio::select! {
                        // Whoever still waits is told that nothing is known when this is dropped.
                        () = stop.cancelled() => return Ok(()),
                        recovered = self.recover(why) => recovered?,
                    }
                }
                Turn::Rise(obeyed) => {
                    let stop = self.stop.clone();
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        risen = self.rise(obeyed) => risen?,
                    }
                }
            }
        }
    }

    async fn turn(&mut self) -> Result<Turn, Ended> {
        let mut calls = Vec::with_capacity(BATCH);
        loop {
            let room = self.lead.desk.untold() < UNTOLD && self.lead.pipeline.groups.count() < GROUPS;
            let tick_at = self.lead.tick_at();
            let awake = self.vigil.stays_awake(self.lead.desk.has_lone_caller(), Instant::now());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return self.finish().await,
                () = &mut self.lead.lost => return Err(Ended::LostLeadership),
                Some(result) = self.lead.pipeline.next(), if self.lead.pipeline.is_busy() => {
                    if let Some(why) = self.settled(result)? {
                        return Ok(Turn::Recover(why));
                    }
                }
                () = tokio::time::sleep_until(tick_at), if room => {
                    self.lead.ticked = Instant::now();
                    // At a tick, not at once: agents come back together, and the highest of their terms counts for all.
                    if let Some(obeyed) = self.lead.desk.outranked() {
                        return Ok(Turn::Rise(obeyed));
                    }
                    self.rounds.go_on(self.lead.desk.brain(), self.lead.ticked);
                    self.decide_all(std::iter::once(Source::Tick))?;
                }
                taken = self.queue.recv_many(&mut calls, BATCH), if room => {
                    if taken == 0 {
                        return self.finish().await;
                    }
                    self.decide_all(calls.drain(..).map(Source::Call))?;
                }
                // Again after all that is ready, and after a look at the sockets.
                () = tokio::task::yield_now(), if awake => {
                    // Whoever else has work goes first: the store may need this very processor.
                    std::thread::yield_now();
                    continue;
                }
            }
            self.lead.pipeline.dispatch();
            self.tell();
        }
    }

    /// Takes note of one transaction's end. `Some` when something is to be taken back.
    fn settled(&mut self, result: Result<(), CommitError>) -> Result<Option<CommitError>, Ended> {
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.trouble).refusing {
                    tracing::info!("the store takes writes again");
                }
                Ok(None)
            }
            Err(CommitError::Fenced) => Err(Ended::LostLeadership),
            Err(CommitError::Illegal(why)) => Err(Ended::Illegal(why)),
            Err(
                error @ (CommitError::Precondition { .. }
                | CommitError::Unavailable(_)
                | CommitError::Full(_)
                | CommitError::Unknown(_)),
            ) => Ok(Some(error)),
        }
    }

    /// Waits until nothing is in flight. Gives the largest loss of what ended meanwhile.
    async fn settle(&mut self) -> Result<Option<Loss>, Ended> {
        let mut loss = None;
        loop {
            let result = tokio::select! {
                () = &mut self.lead.lost => return Err(Ended::LostLeadership),
                result = self.lead.pipeline.next() => result,
            };
            let Some(result) = result else { return Ok(loss) };
            loss = loss.max(self.settled(result)?.map(|error| Loss::of(&error)));
        }
    }

    /// Stops in order: what is decided is committed and told; nothing more is decided.
    async fn finish(&mut self) -> Result<Turn, Ended> {
        self.queue.close();
        // Whoever has a place in the queue already fills it at once.
        while let Some(Call { from, input: _ }) = self.queue.recv().await {
            if let From::Caller(to) = from {
                to.tell(Err(CallError::Unavailable("the controller is stopping".to_owned())));
            }
        }
        if let Some(why) = self.commit_all().await? {
            self.settle().await?;
            self.give_up(&why);
        }
        Ok(Turn::Stop)
    }

    /// Commits and tells all that is decided. `Some`: not all of it could be committed, and this is why.
    async fn commit_all(&mut self) -> Result<Option<CommitError>, Ended> {
        loop {
            self.lead.pipeline.dispatch();
            self.tell();
            let result = tokio::select! {
                biased;
                () = &mut self.lead.lost => return Err(Ended::LostLeadership),
                result = self.lead.pipeline.next() => result,
            };
            let Some(result) = result else { return Ok(None) };
            if let Some(why) = self.settled(result)? {
                return Ok(Some(why));
            }
        }
    }

    fn decide_all(&mut self, sources: impl Iterator<Item = Source>) -> Result<(), Unfit> {
        let now = now();
        let Lead { desk, pipeline, .. } = &mut self.lead;
        let mut work = Work::default();
        for source in sources {
            let (input, to) = match source {
                Source::Tick => (Input::Tick, None),
                Source::Call(Call { input, from: From::Caller(to) }) => {
                    // Whoever has hung up already is not served: nothing was promised.
                    if to.is_gone() {
                        continue;
                    }
                    (input, Some(to))
                }
                Source::Call(Call { input, from: From::Agent(session) }) => {
                    if !desk.admits(&mut self.sessions, session, &input) {
                        continue;
                    }
                    (input, None)
                }
            };
            note::before(desk.brain(), &input);
            let kind = note::kind(&input);
            let schedule = to.as_ref().map_or_else(Span::none, |waiter| waiter.link.child(names::TRACE_SCHEDULE));
            let to = to.map(|mut waiter| {
                waiter.is_decided();
                waiter
            });
            let begun = Instant::now();
            let asked = to.as_ref().and_then(|waiter| waiter.asked.clone());
            desk.decide(&mut pipeline.groups, now, input, asked.as_ref(), to, &mut work)?;
            INSTRUMENTS.decision_duration.record(begun.elapsed().as_secs_f64(), &[kind]);
            drop(schedule);
        }
        desk.enqueue(&pipeline.groups, work);
        Ok(())
    }

    /// Publishes, answers and sends whatever has become durable.
    fn tell(&mut self) {
        let Lead { desk, pipeline, .. } = &mut self.lead;
        while let Some(Told { revision, publish, replies, desired, learned }) = desk.next_told(&mut pipeline.groups) {
            if publish.is_some() {
                self.options.audit.is_due();
            }
            let news = publish.map(|Publish { world, placements, nodes }| {
                let before = self.publisher.now();
                let touched = (placements.clone(), nodes.clone());
                (before, self.publisher.publish(world, revision.0, placements, nodes), touched)
            });
            for (to, answer) in replies {
                if let (Err(CallError::Refused(refusal)), Some(asked)) = (&answer, &to.asked) {
                    self.options.audit.refused(audit::refused(now(), asked, refusal));
                }
                to.tell(answer);
            }
            for (node, desired) in desired {
                self.outbox.send(&node, desired);
            }
            for learned in learned {
                write_down(&learned);
            }
            if let Some((before, after, (placements, nodes))) = news {
                afterwards(move || note::after(&before.world, &after.world, &placements, &nodes));
            }
        }
    }

    /// Tells everyone who waits that their answer is lost.
    fn give_up(&mut self, why: &CommitError) {
        for (to, error) in self.lead.desk.give_up(&self.lead.pipeline.groups, why) {
            to.tell(Err(error));
        }
    }
}

/// One line for an auditor: a safeguard of a host was overridden, for whose placement. It is part of the placement's record
/// by now.
fn write_down(learned: &Learned) {
    let Learned { node, placement, uid, caller, what } = learned;
    let Note::Forced(Forced { step, device }) = what else { return };
    tracing::warn!(
        { names::NODE } = %node,
        { names::PLACEMENT } = %placement,
        { names::UID } = %uid,
        { names::CALLER } = caller,
        { names::STEP } = %step,
        { names::GPU } = %device,
        { names::FORCED } = true,
        "{}",
        names::EVENT_FORCED
    );
}

/// Loads the world for a leadership. `shown` is the world that this controller has shown so far.
async fn load_for(
    leadership: Leadership,
    store: &Arc<dyn Store>,
    options: &Options,
    shown: &World,
) -> Result<Lead, load::Error> {
    let Leadership { term, fence, lost } = leadership;
    let loading = load::load(store.as_ref(), term, &options.limits, now());
    let loaded = tokio::time::timeout(LOADING, loading).await.unwrap_or_else(|_| {
        let text = format!("not everything was read after {} s", LOADING.as_secs());
        Err(load::Error::Store(berth_store::Error::Unavailable(text)))
    })?;
    let load::Loaded { brain, node_versions, revision } = loaded;
    let brain = brain.remembering(shown);
    // That somebody leads is a change, too, and everybody hears of it.
    let revision = revision.max(fence.created);
    let nodes = brain.world().node_count();
    let placements = brain.world().placement_count();
    tracing::info!(term, revision = revision.0, nodes, placements, "leading");
    options.audit.leads(fence.clone(), term);
    let groups = Groups::new(fence, node_versions, revision);
    let pipeline = Pipeline::new(Arc::clone(store), groups, options.commit_deadline);
    Ok(Lead { desk: Desk::new(brain, revision), pipeline, lost, ticked: Instant::now(), contradictions: 0 })
}

enum Source {
    Tick,
    Call(Call),
}

impl Lead {
    fn tick_at(&self) -> Instant {
        let due = self.desk.brain().next_deadline().map_or(TICK, |at| at.since(now()));
        (Instant::now() + due).clamp(self.ticked + TICK_AT_ONCE, self.ticked + TICK)
    }
}
