//! The random-fault run: the controller's brain, the agent's brain and a simulated host in one thread and virtual time,
//! with everything going wrong that a seed can think of. One seed gives the same run every time.
//!
//! Owns the stand-ins for what lies between the brains: messages that take time and get lost with their session, a ledger
//! that survives kills, a store that survives the leader. First nothing wrong may ever happen; then, with the faults
//! off, everything must come to an end.

mod accidents;
mod checks;
mod scene;
mod session;

use crate::agenda::Agenda;
use crate::behind::Behind;
use berth_agent_core::ledger::Ledger;
use berth_agent_core::memory::Memory;
use berth_agent_core::observed::HostView;
use berth_agent_core::work::{Pace, Start, Work};
use berth_core::decide::{Brain, Change, Decision, Input};
use berth_core::limits::Limits;
use berth_model::node::StoredNode;
use berth_model::placement::{Placement, StepError, StepErrorClass};
use berth_model::{NodeName, PlacementName, PlacementUid, Timestamp};
use berth_node_agent::driver::sim::{Host, Outcome, Rates};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use session::{Session, ToAgent, ToController};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How long accidents go on, in virtual time: enough for a dozen lives of placements.
const TROUBLE: Duration = Duration::from_secs(20 * 60);
/// How long everything may take to come to an end once they stop: the longest chain is a release that was given up
/// (ten minutes by the limits here), one slow attempt more, and the same for what waited behind it.
const CALM: Duration = Duration::from_secs(60 * 60);
/// A hanging call to the host ends after that.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Steps taken on the host.
    pub steps: u32,
    /// Looks at the host.
    pub looks: u32,
    /// Kills of the agent.
    pub kills: u32,
    /// Changes of leader.
    pub elections: u32,
    /// Accidents and acts of people.
    pub accidents: u32,
    /// Placements asked for and accepted.
    pub placements: u32,
    /// Of those, that were active at some time.
    pub active: u32,
    /// Of those, that failed with a reason.
    pub failed: u32,
}

impl Summary {
    /// Adds another run.
    pub fn add(&mut self, other: &Self) {
        let Self { steps, looks, kills, elections, accidents, placements, active, failed } = other;
        self.steps += steps;
        self.looks += looks;
        self.kills += kills;
        self.elections += elections;
        self.accidents += accidents;
        self.placements += placements;
        self.active += active;
        self.failed += failed;
    }
}

/// A rule was broken, or something did not come to an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed that shows it.
    pub seed: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: String,
    /// All that happened, one line each; empty unless asked for.
    pub log: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.log {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {} at {:.1} s: {}", self.seed, seconds(self.at), self.what)
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.since(Timestamp::default()).as_secs_f64()
}

/// Runs one seed.
///
/// # Errors
/// [`Failure`] when a rule was broken; with the log if `verbose`.
pub fn run(seed: u64, verbose: bool) -> Result<(Summary, Vec<String>), Box<Failure>> {
    let mut run = Run::new(seed, verbose);
    match run.go() {
        Ok(()) => Ok((run.summary, run.log.lines)),
        Err(Broken(what)) => Err(Box::new(Failure { seed, at: run.now, what, log: run.log.lines })),
    }
}

/// A broken rule, in words.
#[derive(Debug)]
struct Broken(String);

/// Something that will happen.
#[derive(Debug)]
enum Event {
    /// The agent's brain asked to be woken.
    Wake { life: u32, number: u64 },
    /// A look takes its picture.
    LookTaken { life: u32 },
    /// A look's answer arrives.
    LookEnded { life: u32, taken: Timestamp, look: Result<Box<HostView>, String> },
    /// A step takes effect.
    StepActs { life: u32, begun: Box<Begun> },
    /// A step's answer arrives.
    StepEnded { life: u32, uid: PlacementUid, result: Result<(), StepError> },
    /// A message arrives at the agent.
    ToAgent { session: u32, message: ToAgent },
    /// A message arrives at the controller.
    ToController { session: u32, message: Box<ToController> },
    /// The agent starts.
    AgentStarts,
    /// The agent connects.
    Connects { life: u32 },
    /// The controller looks at its deadlines.
    Tick,
    /// Somebody asks for a placement, or gives one back.
    Caller,
    /// Something goes wrong, or somebody does something by hand.
    Accident,
}

#[derive(Debug)]
struct Log {
    verbose: bool,
    lines: Vec<String>,
}

/// A step that was begun.
#[derive(Clone, Debug)]
struct Begun {
    start: Start,
    /// When the picture was taken that it was decided from.
    pictured: Timestamp,
}

#[derive(Debug, Default)]
struct Unchecked {
    host: bool,
    brain: bool,
}

struct Run {
    rng: StdRng,
    now: Timestamp,
    trouble: bool,
    agenda: Agenda<Event>,
    node: NodeName,
    host: Host,
    behind: Behind,
    // The agent: what dies with it, and what does not.
    work: Option<Work>,
    life: u32,
    ledger: Ledger,
    memory: Memory,
    /// When the picture was taken that the agent decides from.
    pictured: Timestamp,
    /// Steps begun and not yet acted, to decide at a kill what becomes of them.
    begun: BTreeMap<PlacementUid, Begun>,
    // The controller: what dies with the leader, and what does not.
    brain: Brain,
    nodes: BTreeMap<NodeName, StoredNode>,
    placements: BTreeMap<PlacementName, Placement>,
    session: Session,
    /// One seed in four kills the agent after every single step, before it hears of the result.
    kill_every_step: bool,
    wakes: u64,
    /// What changed since it was last checked.
    unchecked: Unchecked,
    made: u32,
    seen_active: std::collections::BTreeSet<PlacementUid>,
    summary: Summary,
    log: Log,
}

fn limits() -> Limits {
    let s = Duration::from_secs;
    Limits {
        hold: s(60),
        prepare: s(180),
        attach: s(120),
        start: s(120),
        verify: s(240),
        release: s(600),
        ..Limits::default()
    }
}

fn pace() -> Pace {
    let s = Duration::from_secs;
    Pace { verify_attempts: 6, longest_pause: s(8), stranded_pause: s(30), ..Pace::default() }
}

impl Run {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let now = Timestamp::from_millis(1);
        let spec = scene::host(&mut rng);
        let node = spec.node.clone();
        let mut host = Host::new(spec);
        let rates = Rates { step: rng.random_range(0..200), look: rng.random_range(0..150) };
        host.faults().by_chance(rng.random(), rates);
        let brain = match Brain::load(1, limits(), Vec::new(), Vec::new(), now) {
            Ok(brain) => brain,
            Err(e) => unreachable!("an empty store contradicts nothing: {e}"),
        };
        let kill_every_step = rng.random_ratio(1, 4);
        let mut agenda = Agenda::default();
        agenda.add(now, Event::AgentStarts);
        agenda.add(now.after(Duration::from_secs(3)), Event::Caller);
        agenda.add(now.after(Duration::from_secs(20)), Event::Accident);
        agenda.add(now.after(Duration::from_secs(1)), Event::Tick);
        Self {
            rng,
            now,
            trouble: true,
            agenda,
            node,
            host,
            behind: Behind::default(),
            work: None,
            life: 0,
            ledger: Ledger::default(),
            memory: Memory::default(),
            pictured: Timestamp::default(),
            begun: BTreeMap::new(),
            brain,
            nodes: BTreeMap::new(),
            placements: BTreeMap::new(),
            session: Session::default(),
            kill_every_step,
            wakes: 0,
            unchecked: Unchecked::default(),
            made: 0,
            seen_active: std::collections::BTreeSet::new(),
            summary: Summary::default(),
            log: Log { verbose, lines: Vec::new() },
        }
    }

    fn say(&mut self, line: impl FnOnce() -> String) {
        if self.log.verbose {
            let line = format!("{:9.3}  {}", seconds(self.now), line());
            self.log.lines.push(line);
        }
    }

    /// A duration up to `most`, in milliseconds.
    fn up_to(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(0..=most))
    }

    fn go(&mut self) -> Result<(), Broken> {
        let end_of_trouble = self.now.after(TROUBLE);
        self.until(end_of_trouble, |_| Ok(false))?;
        self.calm_down();
        let end = self.now.after(CALM);
        if !self.until(end, |run| Ok(run.unfinished().is_none()))? {
            return Err(Broken(format!("did not come to an end: {}", self.unfinished().unwrap_or_default())));
        }
        self.say(|| "everything has come to an end; all that is active is given back".to_owned());
        self.release_all()?;
        let end = self.now.after(CALM);
        if !self.until(end, |run| Ok(run.unfinished().is_none() && run.not_free().is_none()))? {
            let what = self.unfinished().or_else(|| self.not_free()).unwrap_or_default();
            return Err(Broken(format!("not everything came back: {what}")));
        }
        self.nothing_is_lost()
    }

    /// Lets things happen until `end`, or until `done`; says whether it is.
    fn until(&mut self, end: Timestamp, done: impl Fn(&Self) -> Result<bool, Broken>) -> Result<bool, Broken> {
        while let Some(next) = self.agenda.next_at() {
            if next > end {
                self.now = end;
                return Ok(false);
            }
            let Some((at, event)) = self.agenda.next() else { break };
            self.now = self.now.max(at);
            self.happen(event)?;
            self.check()?;
            if done(self)? {
                return Ok(true);
            }
        }
        Err(Broken("nothing will ever happen again".to_owned()))
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Wake { life, number } if life == self.life && number == self.wakes => self.pump(),
            Event::LookTaken { life } if life == self.life => self.take_look(),
            Event::LookEnded { life, taken, look } if life == self.life => {
                if look.is_ok() {
                    self.pictured = taken;
                }
                if let Err(why) = &look {
                    let why = why.clone();
                    self.say(|| format!("agent   look failed: {why}"));
                }
                let now = self.now;
                if let Some(work) = &mut self.work {
                    work.looked(look.map(|view| *view), now);
                }
                self.check_look()?;
                self.pump()
            }
            Event::StepActs { life, begun } if life == self.life => self.act(*begun),
            Event::StepEnded { life, uid, result } if life == self.life => {
                if let Some(work) = &mut self.work {
                    work.stepped(&uid, result);
                }
                self.pump()
            }
            Event::ToAgent { session, message } if session == self.session.number => self.at_agent(message),
            Event::ToController { session, message } if session == self.session.number => self.at_controller(*message),
            Event::AgentStarts => self.start_agent(),
            Event::Connects { life } if life == self.life => self.connect(),
            Event::Tick => {
                if self.brain.next_deadline().is_some_and(|at| at <= self.now) {
                    self.decide(Input::Tick)?;
                }
                let again = self.now.after(Duration::from_secs(2));
                self.agenda.add(again, Event::Tick);
                Ok(())
            }
            Event::Caller => self.caller(),
            Event::Accident => self.accident(),
            // It belonged to a life or a session that is over.
            Event::Wake { .. }
            | Event::LookTaken { .. }
            | Event::LookEnded { .. }
            | Event::StepActs { .. }
            | Event::StepEnded { .. }
            | Event::ToAgent { .. }
            | Event::ToController { .. }
            | Event::Connects { .. } => Ok(()),
        }
    }

    fn start_agent(&mut self) -> Result<(), Broken> {
        if self.work.is_some() {
            return Ok(());
        }
        self.life += 1;
        let mut work = Work::new(self.memory.clone(), pace());
        if let Some(desired) = self.ledger.desired.clone() {
            work.desire(desired);
        }
        self.work = Some(work);
        let (life, generation) = (self.life, self.ledger.generation());
        self.say(|| format!("agent   starts, life {life}, generation {generation}"));
        let at = self.now.after(self.up_to_trouble(5_000));
        self.agenda.add(at, Event::Connects { life });
        self.pump()
    }

    fn up_to_trouble(&mut self, most: u64) -> Duration {
        self.up_to(if self.trouble { most } else { 200 })
    }

    /// Kills the agent. What it had asked of the host and had not happened yet happens now, unheard, or never.
    fn kill(&mut self, why: &'static str) -> Result<(), Broken> {
        if self.work.take().is_none() {
            return Ok(());
        }
        self.summary.kills += 1;
        self.say(|| format!("agent   KILLED {why}"));
        for begun in std::mem::take(&mut self.begun).into_values() {
            if self.rng.random() {
                self.carry_out(&begun)?;
            }
        }
        self.life += 1;
        self.hang_up()?;
        let at = self.now.after(Duration::from_millis(200) + self.up_to_trouble(6_000));
        self.agenda.add(at, Event::AgentStarts);
        Ok(())
    }

    /// Asks the agent's brain what to do, and does it.
    fn pump(&mut self) -> Result<(), Broken> {
        let now = self.now;
        let Some(work) = &mut self.work else { return Ok(()) };
        let todo = work.next(now);
        if let Some(memory) = todo.remember {
            self.memory = memory;
            if self.trouble && self.rng.random_ratio(1, 20) {
                return self.kill("after it wrote its memory, before the step");
            }
        }
        if let Some(report) = todo.inventory {
            self.tell_controller(ToController::Report(report));
        }
        for progress in todo.progress {
            self.tell_controller(ToController::Progress(progress));
        }
        let life = self.life;
        if todo.look {
            let at = now.after(self.up_to(400));
            self.agenda.add(at, Event::LookTaken { life });
        }
        for start in todo.start {
            self.check_start(&start)?;
            let begun = Begun { start, pictured: self.pictured };
            self.begun.insert(begun.start.uid.clone(), begun.clone());
            let at = now.after(self.up_to(3_000));
            self.agenda.add(at, Event::StepActs { life, begun: Box::new(begun) });
        }
        if let Some(wake) = todo.wake {
            // The brain says anew with every answer when it wants to be woken.
            self.wakes += 1;
            let number = self.wakes;
            self.agenda.add(wake.max(now.after(Duration::from_millis(1))), Event::Wake { life, number });
        }
        if self.trouble && self.rng.random_ratio(1, 400) {
            return self.kill("at some moment");
        }
        Ok(())
    }

    fn take_look(&mut self) -> Result<(), Broken> {
        self.summary.looks += 1;
        let taken = self.now;
        let (after, look) = match self.host.observe() {
            Outcome::Ended(Ok(view)) => (self.up_to(400), Ok(Box::new(view))),
            Outcome::Ended(Err(error)) => (self.up_to(400), Err(error.to_string())),
            Outcome::Hangs => (CALL_LIMIT, Err("the look did not end".to_owned())),
        };
        let life = self.life;
        self.agenda.add(taken.after(after), Event::LookEnded { life, taken, look });
        Ok(())
    }

    fn act(&mut self, begun: Begun) -> Result<(), Broken> {
        self.begun.remove(&begun.start.uid);
        let outcome = self.carry_out(&begun)?;
        let (after, result) = match outcome {
            Outcome::Ended(result) => (self.up_to(500), result.map_err(StepError::from)),
            Outcome::Hangs => {
                let error = StepError { class: StepErrorClass::TimedOut, text: "the step did not end".to_owned() };
                (CALL_LIMIT, Err(error))
            }
        };
        let life = self.life;
        self.agenda.add(self.now.after(after), Event::StepEnded { life, uid: begun.start.uid, result });
        if self.trouble && (self.kill_every_step || self.rng.random_ratio(1, 30)) {
            return self.kill("after a step, before it heard of it");
        }
        Ok(())
    }

    fn carry_out(&mut self, begun: &Begun) -> Result<Outcome<()>, Broken> {
        self.summary.steps += 1;
        self.unchecked.host = true;
        self.check_act(begun)?;
        let start = &begun.start;
        let outcome = self.host.act(&start.step);
        let (name, attempt) = (self.name_of(&start.uid), start.attempt);
        self.say(|| format!("host    {name} attempt {attempt}: {} -> {}", start.step, show(&outcome)));
        Ok(outcome)
    }

    fn name_of(&self, uid: &PlacementUid) -> String {
        self.brain.placement_by_uid(uid).map_or_else(|| uid.to_string(), |p| p.name().to_string())
    }

    /// Gives an input to the controller's brain and commits what it decides.
    fn decide(&mut self, input: Input) -> Result<Option<Decision>, Broken> {
        self.unchecked.brain = true;
        match self.brain.decide(self.now, input) {
            Ok(decision) => {
                self.commit(&decision);
                if decision.desired.contains(&self.node) {
                    self.send_desired();
                }
                Ok(Some(decision))
            }
            Err(refusal) => {
                self.say(|| format!("control refuses: {refusal}"));
                Ok(None)
            }
        }
    }

    fn commit(&mut self, decision: &Decision) {
        for change in &decision.changes {
            match change {
                Change::PutPlacement(placement) => {
                    let (name, phase) = (placement.name().clone(), placement.phase.clone());
                    let before = self.placements.insert(name.clone(), Placement::clone(placement));
                    if before.is_none() {
                        self.summary.placements += 1;
                    }
                    if before.is_none_or(|before| before.phase.name() != phase.name()) {
                        self.say(|| format!("control {name} is {phase:?}"));
                        self.count(placement);
                    }
                }
                Change::RemovePlacement { name, .. } => drop(self.placements.remove(name)),
                Change::PutNode(node) => drop(self.nodes.insert(node.name.clone(), StoredNode::clone(node))),
                // Claims are derived from placements; the brain's own checker compares them.
                Change::Claim { .. } | Change::Unclaim { .. } => {}
            }
        }
    }

    fn count(&mut self, placement: &Placement) {
        use berth_model::placement::Phase;
        match &placement.phase {
            Phase::Active if self.seen_active.insert(placement.uid.clone()) => self.summary.active += 1,
            Phase::Failed { undone: true, .. } => self.summary.failed += 1,
            Phase::Active
            | Phase::Failed { undone: false, .. }
            | Phase::Requested
            | Phase::Queued { .. }
            | Phase::Held { .. }
            | Phase::Preparing { .. }
            | Phase::Attaching { .. }
            | Phase::Starting { .. }
            | Phase::Verifying { .. }
            | Phase::Releasing { .. }
            | Phase::Released => {}
        }
    }

    /// Another controller takes over: it knows what is stored, and hears the rest from agents that reconnect.
    fn elect(&mut self) -> Result<(), Broken> {
        self.summary.elections += 1;
        self.unchecked.brain = true;
        let term = self.brain.term() + 1;
        self.say(|| format!("control ELECTED for term {term}"));
        self.hang_up()?;
        let nodes = self.nodes.values().cloned().collect();
        let placements = self.placements.values().cloned().collect();
        self.brain = Brain::load(term, limits(), nodes, placements, self.now)
            .map_err(|e| Broken(format!("what is stored contradicts itself: {e}")))?;
        if self.work.is_some() {
            let at = self.now.after(self.up_to_trouble(5_000));
            let life = self.life;
            self.agenda.add(at, Event::Connects { life });
        }
        Ok(())
    }
}

fn show(outcome: &Outcome<()>) -> String {
    match outcome {
        Outcome::Ended(Ok(())) => "ok".to_owned(),
        Outcome::Ended(Err(error)) => error.to_string(),
        Outcome::Hangs => "no answer".to_owned(),
    }
}
