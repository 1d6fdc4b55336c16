//! The simulation of a whole Berth: nodes with their agents, controllers that compete for the lead, a store, callers, and
//! the network between all of them, in one thread and virtual time. One seed gives the same run every time.
//!
//! The rules it drives are the shipped ones: the leader's [`Desk`](berth_controller::leader::desk::Desk) and
//! [`Groups`](berth_controller::commit::Groups), the in-memory store's transactions, the agent's `Work` and `Ledger`, the
//! simulated host. What lies between them is made up here, with everything going wrong that a seed can think of. First
//! nothing wrong may ever happen; then, with the faults off, everything must come to rest within a bound.

mod agent;
mod caller;
mod checks;
mod commits;
mod controller;
mod count;
mod link;
mod rivals;
mod scene;
mod shown;
mod store;
mod trouble;
mod truth;

pub use count::{Counts, TROUBLES};

use crate::agenda::Agenda;
use agent::{Agent, Begun};
use berth_agent_core::observed::HostView;
use berth_controller::leader::Answer;
use berth_core::decide::Limits;
use berth_model::placement::StepError;
use berth_model::{PlacementUid, Timestamp};
use caller::Callers;
use controller::{ForReplica, Replica};
use link::{Conn, ToAgent, ToController};
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;
use store::{Flight, SimStore};
use trouble::Kind;

/// How long everything goes wrong, in seconds of virtual time: one or some lives of placements, of leaders and of agents.
/// Many short runs find more than few long ones.
const TROUBLE: RangeInclusive<u64> = 40..=180;
/// Within this everything must have come to rest once nothing goes wrong any more. The longest chain is an undoing with
/// every step tried again at its slowest, and what waited behind it for the same VM or card; the rest is margin.
const CALM: Duration = Duration::from_secs(30 * 60);
/// What is still on its way when everything has come to rest: history that is forgotten, an answer of the store.
const LAST_WRITES: Duration = Duration::from_secs(60);
/// At rest nothing is written: for so long, twenty looks of every agent.
const REST: Duration = Duration::from_secs(10 * 60);

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How often each thing happened.
    pub counts: Counts,
    /// Everything that happened, one line each; empty unless asked for.
    pub log: Vec<String>,
}

/// A rule was broken, or something did not come to rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed that shows it.
    pub seed: u64,
    /// When, in seconds of virtual time times a thousand.
    pub at_ms: u64,
    /// What.
    pub what: String,
    /// Everything that happened, one line each; empty unless asked for.
    pub log: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.log {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {} at {}.{:03} s: {}", self.seed, self.at_ms / 1000, self.at_ms % 1000, self.what)
    }
}

/// Runs one seed.
///
/// # Errors
/// [`Failure`] when a rule was broken; with the log if `verbose`.
pub fn run(seed: u64, verbose: bool) -> Result<Summary, Box<Failure>> {
    let mut sim = Sim::new(seed, verbose);
    match sim.go() {
        Ok(()) => Ok(Summary { counts: sim.counts, log: sim.log.lines }),
        Err(Broken(what)) => {
            let at_ms = u64::try_from(sim.since_start().as_millis()).unwrap_or(u64::MAX);
            Err(Box::new(Failure { seed, at_ms, what, log: sim.log.lines }))
        }
    }
}

/// Runs many seeds, on every core. Gives what they came to together, and each that broke a rule.
pub fn run_many(first: u64, seeds: u64) -> (Counts, Vec<Failure>) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = |thread: usize| {
        let mut all = Counts::default();
        let mut failures = Vec::new();
        for seed in (first..first.saturating_add(seeds)).skip(thread).step_by(threads) {
            match run(seed, false) {
                Ok(summary) => all.merge(&summary.counts),
                Err(failure) => failures.push(*failure),
            }
        }
        (all, failures)
    };
    let mut all = (Counts::default(), Vec::new());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads).map(|thread| scope.spawn(move || share(thread))).collect();
        for run in runs {
            match run.join() {
                Ok((counts, failures)) => {
                    all.0.merge(&counts);
                    all.1.extend(failures);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    all.1.sort_by_key(|failure| failure.seed);
    all
}

/// A broken rule, in words.
#[derive(Debug)]
struct Broken(String);

/// Something that will happen.
#[derive(Debug)]
enum Event {
    /// The agent's brain asked to be woken.
    Wake { node: usize, life: u32, number: u64 },
    /// A look takes its picture.
    LookTaken { node: usize, life: u32 },
    /// A look's answer arrives.
    LookEnded { node: usize, life: u32, taken: Timestamp, look: Result<Box<HostView>, String> },
    /// A step takes effect.
    StepActs { node: usize, life: u32, begun: Box<Begun> },
    /// A step's answer arrives.
    StepEnded { node: usize, life: u32, uid: PlacementUid, result: Result<(), StepError> },
    /// An agent's process starts.
    AgentStarts { node: usize },
    /// An agent dials a controller.
    Dials { node: usize, life: u32 },
    /// A message arrives at an agent.
    AtAgent { conn: u64, message: Box<ToAgent> },
    /// A message arrives at a controller.
    AtController { conn: u64, message: Box<ToController> },
    /// An agent finds its connection ended.
    AgentNotices { conn: u64 },
    /// A controller finds a connection ended.
    ControllerNotices { conn: u64 },
    /// A controller's process starts.
    ReplicaStarts { replica: usize },
    /// A paused controller goes on.
    Resumes { replica: usize, life: u32 },
    /// Something inside a controller's process.
    Replica { replica: usize, life: u32, what: ForReplica },
    /// A transaction reaches the store.
    StoreActs { flight: Box<Flight> },
    /// A call reaches a controller.
    CallArrives { call: u64 },
    /// An answer reaches its caller.
    AnswerArrives { call: u64, answer: Box<Answer> },
    /// A caller has waited long enough for an answer.
    CallTimesOut { call: u64 },
    /// A customer does the next thing on their list.
    CallerWakes { order: usize },
    /// Somebody wants another VM with GPUs.
    Orders,
    /// Something goes wrong, or somebody does something by hand.
    Accident,
}

impl Event {
    /// The controller whose process takes this in: what waits while it is paused.
    fn replica(&self, sim: &Sim) -> Option<usize> {
        match self {
            Self::Replica { replica, .. } => Some(*replica),
            Self::AtController { conn, .. } | Self::ControllerNotices { conn } => {
                sim.conns.get(conn).map(|conn| conn.replica)
            }
            Self::CallArrives { call } => sim.callers.replica_of(*call),
            Self::Wake { .. }
            | Self::LookTaken { .. }
            | Self::LookEnded { .. }
            | Self::StepActs { .. }
            | Self::StepEnded { .. }
            | Self::AgentStarts { .. }
            | Self::Dials { .. }
            | Self::AtAgent { .. }
            | Self::AgentNotices { .. }
            | Self::ReplicaStarts { .. }
            | Self::Resumes { .. }
            | Self::StoreActs { .. }
            | Self::AnswerArrives { .. }
            | Self::CallTimesOut { .. }
            | Self::CallerWakes { .. }
            | Self::Orders
            | Self::Accident => None,
        }
    }
}

#[derive(Debug)]
struct Log {
    verbose: bool,
    lines: Vec<String>,
}

struct Sim {
    rng: Xoshiro256PlusPlus,
    start: Timestamp,
    now: Timestamp,
    trouble: bool,
    /// What may go wrong in this run.
    kinds: BTreeSet<Kind>,
    agenda: Agenda<Event>,
    agents: Vec<Agent>,
    replicas: Vec<Replica>,
    conns: BTreeMap<u64, Conn>,
    last_conn: u64,
    /// Which agent cannot reach which controller, until when.
    cut: BTreeMap<(usize, usize), Timestamp>,
    store: SimStore,
    callers: Callers,
    /// Of the leaders' brains.
    limits: Limits,
    /// Most operations of one transaction; with one, each decision has a transaction of its own, and some fail alone.
    operations: usize,
    /// Leaderships in processes, counted; an answer of the store belongs to one of them.
    epochs: u64,
    counts: Counts,
    log: Log,
}

/// A clock that goes wrong by some milliseconds.
fn skewed(at: Timestamp, skew_ms: i64) -> Timestamp {
    Timestamp::from_millis(at.as_millis().saturating_add_signed(skew_ms))
}

impl Sim {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        // Late enough for every clock that is slow.
        let start = Timestamp::from_millis(1_000_000_000);
        let kinds = trouble::kinds(&mut rng);
        let agents = scene::agents(&mut rng, kinds.contains(&Kind::Hosts));
        let replicas = (0..rng.random_range(1..=3)).map(|_| Replica::new(scene::skew(&mut rng))).collect();
        let limits = scene::limits(&mut rng);
        let operations = if rng.random() { 1 } else { berth_store::MAX_OPERATIONS };
        let mut sim = Self {
            rng,
            start,
            now: start,
            trouble: true,
            kinds,
            agenda: Agenda::default(),
            agents,
            replicas,
            conns: BTreeMap::new(),
            last_conn: 0,
            cut: BTreeMap::new(),
            store: SimStore::default(),
            callers: Callers::new(),
            limits,
            operations,
            epochs: 0,
            counts: Counts::default(),
            log: Log { verbose, lines: Vec::new() },
        };
        for node in 0..sim.agents.len() {
            sim.soon(2_000, Event::AgentStarts { node });
        }
        for replica in 0..sim.replicas.len() {
            sim.soon(2_000, Event::ReplicaStarts { replica });
        }
        sim.soon(8_000, Event::Orders);
        sim.soon(15_000, Event::Accident);
        sim
    }

    fn since_start(&self) -> Duration {
        self.now.since(self.start)
    }

    /// Notes one line of the log: who, what.
    fn say(&mut self, who: impl fmt::Display, line: impl FnOnce() -> String) {
        if self.log.verbose {
            let seconds = self.since_start().as_secs_f64();
            self.log.lines.push(format!("{seconds:>9.3}  {:<10}  {}", who.to_string(), line()));
        }
    }

    /// A duration up to `most` milliseconds.
    fn up_to(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(0..=most))
    }

    /// Has something happen within `most` milliseconds.
    fn soon(&mut self, most: u64, event: Event) {
        let at = self.now.after(self.up_to(most));
        self.agenda.add(at, event);
    }

    /// Whether a kind of thing may go wrong now.
    fn troubled(&self, kind: Kind) -> bool {
        self.trouble && self.kinds.contains(&kind)
    }

    /// Whether something goes wrong that does so once in `times`, while its kind may.
    fn mishap(&mut self, kind: Kind, times: u32) -> bool {
        self.troubled(kind) && self.rng.random_ratio(1, times)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        from.choose(&mut self.rng).cloned()
    }

    fn go(&mut self) -> Result<(), Broken> {
        let end = self.now.after(Duration::from_secs(self.rng.random_range(TROUBLE)));
        self.until(end, |_| None)?;
        self.calm_down()?;
        if let Some(what) = self.until(self.now.after(CALM), |sim| Some(sim.unfinished()))? {
            return Err(Broken(format!("did not come to rest: {what}")));
        }
        self.say("", || "everything is at rest; all that is active is given back".to_owned());
        self.callers_give_back();
        let end = self.now.after(CALM);
        if let Some(what) = self.until(end, |sim| Some(sim.unfinished().or_else(|| sim.not_given_back())))? {
            return Err(Broken(format!("not everything came back: {what}")));
        }
        self.nothing_is_lost()?;
        self.until(self.now.after(LAST_WRITES), |_| None)?;
        let revision = self.store.truth.revision;
        self.until(self.now.after(REST), |_| None)?;
        match self.store.truth.revision {
            after if after == revision => Ok(()),
            after => Err(Broken(format!("everything is at rest, and yet the store went from {revision} to {after}"))),
        }
    }

    /// Lets things happen until `end`, or until `missing` finds nothing missing. Gives what is missing at the end; at
    /// `None` it is not asked.
    fn until(
        &mut self,
        end: Timestamp,
        missing: impl Fn(&Self) -> Option<Option<String>>,
    ) -> Result<Option<String>, Broken> {
        let mut asked = self.now;
        while let Some(at) = self.agenda.next_at().filter(|at| *at <= end) {
            let Some((_, event)) = self.agenda.next() else { break };
            self.now = self.now.max(at);
            self.happen(event)?;
            self.check()?;
            // Once a second is often enough to see that nothing is missing.
            if self.now.since(asked) >= Duration::from_secs(1) {
                asked = self.now;
                if let Some(None) = missing(self) {
                    return Ok(None);
                }
            }
        }
        self.now = end;
        Ok(missing(self).flatten())
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        if let Some(replica) = event.replica(self)
            && let Some(replica) = self.replicas.get_mut(replica)
            && replica.is_paused()
        {
            replica.stall(event);
            return Ok(());
        }
        self.counts.add("events");
        match event {
            Event::Wake { node, life, number } => self.agent_wakes(node, life, number),
            Event::LookTaken { node, life } => self.look_taken(node, life),
            Event::LookEnded { node, life, taken, look } => self.look_ended(node, life, taken, look),
            Event::StepActs { node, life, begun } => self.step_acts(node, life, *begun),
            Event::StepEnded { node, life, uid, result } => self.step_ended(node, life, &uid, result),
            Event::AgentStarts { node } => self.agent_starts(node),
            Event::Dials { node, life } => self.dials(node, life),
            Event::AtAgent { conn, message } => self.at_agent(conn, *message),
            Event::AtController { conn, message } => self.at_controller(conn, *message),
            Event::AgentNotices { conn } => self.agent_notices(conn),
            Event::ControllerNotices { conn } => self.controller_notices(conn),
            Event::ReplicaStarts { replica } => self.replica_starts(replica),
            Event::Resumes { replica, life } => self.resumes(replica, life),
            Event::Replica { replica, life, what } => self.in_replica(replica, life, what),
            Event::StoreActs { flight } => self.store_acts(*flight),
            Event::CallArrives { call } => self.call_arrives(call),
            Event::AnswerArrives { call, answer } => self.answer_arrives(call, *answer),
            Event::CallTimesOut { call } => self.call_times_out(call),
            Event::CallerWakes { order } => self.caller_wakes(order),
            Event::Orders => self.orders(),
            Event::Accident => self.accident(),
        }
    }
}
