//! One node: its host, its agent's process, and what survives that process.

use super::link::ToController;
use super::shown::Shown;
use super::trouble::Kind;
use super::{Broken, Event, Sim, scene, skewed};
use crate::behind::{self, Behind};
use berth_agent_core::ledger::{Accepted, Ledger, Refused};
use berth_agent_core::memory::Memory;
use berth_agent_core::observed::HostView;
use berth_agent_core::work::{Start, Work};
use berth_model::desired::{DesiredNode, DesiredPlacement, Intent};
use berth_model::inventory::{Hello, Listing};
use berth_model::placement::{Progress, StepError, StepErrorClass, StepReport};
use berth_model::{NodeName, PlacementUid, Timestamp};
use berth_node_agent::driver::sim::{Host, Outcome};
use rand::RngExt;
use std::collections::BTreeMap;
use std::time::Duration;

/// A hanging call to the host ends after that.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// A step that was begun.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    pub(super) start: Start,
    /// When the picture was taken that it was decided from.
    pub(super) pictured: Timestamp,
}

pub(super) struct Agent {
    pub(super) name: NodeName,
    pub(super) host: Host,
    pub(super) behind: Behind,
    /// The process; none while it is down.
    pub(super) work: Option<Work>,
    pub(super) life: u32,
    /// How wrong its clock goes, in milliseconds. Steady within a life: a process counts on from its start.
    pub(super) skew: i64,
    pub(super) ledger: Ledger,
    memory: Memory,
    /// Its connection, agreed or not.
    pub(super) conn: Option<u64>,
    /// The controller to dial next.
    pub(super) endpoint: usize,
    pictured: Timestamp,
    /// Steps begun and not yet acted, to decide at a crash what becomes of them.
    begun: BTreeMap<PlacementUid, Begun>,
    /// Placements with a step that has not ended, and what was wished of them when it began.
    pub(super) at_work: BTreeMap<PlacementUid, DesiredPlacement>,
    /// What controllers have last heard of each placement.
    pub(super) heard: BTreeMap<PlacementUid, Progress>,
    wakes: u64,
    /// What it last obeyed, remembered beside the ledger: the rule must hold however the ledger is kept.
    pub(super) obeyed: Option<DesiredNode>,
    /// Whether its host changed since it was last checked.
    pub(super) unchecked: bool,
}

impl Agent {
    pub(super) fn new(host: Host, skew: i64) -> Self {
        Self {
            name: host.node().clone(),
            host,
            behind: Behind::default(),
            work: None,
            life: 0,
            skew,
            ledger: Ledger::default(),
            memory: Memory::default(),
            conn: None,
            endpoint: 0,
            pictured: Timestamp::default(),
            begun: BTreeMap::new(),
            at_work: BTreeMap::new(),
            heard: BTreeMap::new(),
            wakes: 0,
            obeyed: None,
            unchecked: false,
        }
    }

    pub(super) fn hello(&self) -> Hello {
        Hello {
            node: self.name.clone(),
            agent_version: "1".to_owned(),
            protocol: 1,
            boot: self.host.boot(),
            facts: self.host.facts().clone(),
            ledger_term: self.ledger.term,
            ledger_generation: self.ledger.generation(),
            ledger_fleet: self.ledger.fleet().cloned(),
            ledger_placements: Some(self.ledger.placements()),
        }
    }

    /// What it was last told to do about a placement.
    pub(super) fn wish(&self, uid: &PlacementUid) -> Option<&DesiredPlacement> {
        self.obeyed.iter().flat_map(|desired| &desired.placements).find(|wish| wish.uid == *uid)
    }

    /// Whether it says that everything of a placement was given back.
    fn gave_back(&self, progress: &Progress) -> bool {
        let detached = self.wish(&progress.uid).is_some_and(|wish| wish.intent == Intent::Detached);
        detached && progress.report == StepReport::Satisfied
    }
}

impl Sim {
    /// The agent of a living process.
    fn living(&mut self, node: usize, life: u32) -> Option<&mut Agent> {
        self.agents.get_mut(node).filter(|agent| agent.life == life && agent.work.is_some())
    }

    pub(super) fn agent_starts(&mut self, node: usize) -> Result<(), Broken> {
        let skew = scene::skew(&mut self.rng);
        let Some(agent) = self.agents.get_mut(node).filter(|agent| agent.work.is_none()) else { return Ok(()) };
        if skew.unsigned_abs() > scene::SKEWED_MS {
            self.counts.add("agent: starts with a clock that is far off");
        }
        agent.life += 1;
        agent.skew = skew;
        let mut work = Work::new(agent.memory.clone(), scene::pace());
        if let Some(desired) = agent.ledger.desired.clone() {
            work.desire(desired);
        }
        agent.work = Some(work);
        let (name, life, generation) = (agent.name.clone(), agent.life, agent.ledger.generation());
        self.say(&name, || format!("agent starts, generation {generation}, clock {skew} ms"));
        self.soon(2_000, Event::Dials { node, life });
        self.pump(node)
    }

    /// Kills an agent's process. What it had asked of the host happens now, unheard, or never.
    pub(super) fn kill_agent(&mut self, node: usize, why: &'static str) -> Result<(), Broken> {
        let Some(agent) = self.agents.get_mut(node) else { return Ok(()) };
        if agent.work.take().is_none() {
            return Ok(());
        }
        agent.life += 1;
        let begun = std::mem::take(&mut agent.begun);
        agent.at_work.clear();
        let name = agent.name.clone();
        self.counts.add(why);
        self.say(&name, || format!("{why}: CRASHES"));
        for begun in begun.into_values() {
            if self.rng.random() {
                self.carry_out(node, &begun)?;
            }
        }
        self.agent_hangs_up(node, 0);
        let at = self.now.after(Duration::from_millis(200) + self.up_to(6_000));
        self.agenda.add(at, Event::AgentStarts { node });
        Ok(())
    }

    pub(super) fn agent_wakes(&mut self, node: usize, life: u32, number: u64) -> Result<(), Broken> {
        match self.living(node, life) {
            Some(agent) if agent.wakes == number => self.pump(node),
            Some(_) | None => Ok(()),
        }
    }

    /// Asks the agent's brain what to do, and does it.
    pub(super) fn pump(&mut self, node: usize) -> Result<(), Broken> {
        let now = self.now;
        let Some(agent) = self.agents.get_mut(node) else { return Ok(()) };
        let (life, skew) = (agent.life, agent.skew);
        let Some(work) = &mut agent.work else { return Ok(()) };
        let todo = work.next(skewed(now, skew));
        let shown = work.view().map(|view| Shown::of(&agent.name, view));
        let clean: Vec<_> = todo.progress.iter().filter(|said| agent.gave_back(said)).map(|p| p.uid.clone()).collect();
        if let Some(memory) = todo.remember {
            agent.memory = memory;
            if self.mishap(Kind::Agents, 20) {
                return self.kill_agent(node, "agent: crash after it wrote its memory");
            }
        }
        self.store.truth.are_clean(clean);
        let news = todo.inventory.map(|report| {
            let shown = shown.filter(|_| report.listing == Listing::Complete);
            ToController::Report { report, shown: shown.map(Box::new) }
        });
        let news = news.into_iter();
        for message in news.chain(todo.progress.into_iter().map(ToController::Progress)) {
            self.agent_sends(node, message);
        }
        if todo.look {
            self.soon(400, Event::LookTaken { node, life });
        }
        for start in todo.start {
            self.check_start(node, &start)?;
            let at = self.now.after(self.up_to(3_000));
            let Some(agent) = self.agents.get_mut(node) else { return Ok(()) };
            let begun = Begun { start, pictured: agent.pictured };
            let uid = begun.start.uid.clone();
            agent.begun.insert(uid.clone(), begun.clone());
            if let Some(wish) = agent.wish(&uid).cloned() {
                agent.at_work.insert(uid, wish.clone());
                self.check_rivals(node, &wish)?;
            }
            self.agenda.add(at, Event::StepActs { node, life, begun: Box::new(begun) });
        }
        if let (Some(wake), Some(agent)) = (todo.wake, self.agents.get_mut(node)) {
            // The brain says anew with every answer when it wants to be woken.
            agent.wakes += 1;
            let number = agent.wakes;
            let at = skewed(wake, -skew).max(now.after(Duration::from_millis(1)));
            self.agenda.add(at, Event::Wake { node, life, number });
        }
        Ok(())
    }

    pub(super) fn look_taken(&mut self, node: usize, life: u32) -> Result<(), Broken> {
        let taken = self.now;
        let Some(agent) = self.living(node, life) else { return Ok(()) };
        let outcome = agent.host.observe();
        let (after, look) = match outcome {
            Outcome::Ended(Ok(view)) => (self.up_to(300), Ok(Box::new(view))),
            Outcome::Ended(Err(error)) => {
                self.counts.add("host: look fails");
                (self.up_to(300), Err(error.to_string()))
            }
            Outcome::Hangs => {
                self.counts.add("host: look hangs");
                (CALL_LIMIT, Err("the look did not end".to_owned()))
            }
        };
        self.agenda.add(taken.after(after), Event::LookEnded { node, life, taken, look });
        Ok(())
    }

    pub(super) fn look_ended(
        &mut self,
        node: usize,
        life: u32,
        taken: Timestamp,
        look: Result<Box<HostView>, String>,
    ) -> Result<(), Broken> {
        let now = self.now;
        let Some(agent) = self.living(node, life) else { return Ok(()) };
        if look.is_ok() {
            agent.pictured = taken;
        }
        let (skew, name) = (agent.skew, agent.name.clone());
        let why = look.as_ref().err().cloned();
        if let Some(work) = &mut agent.work {
            work.looked(look.map(|view| *view), skewed(now, skew));
            if let Some(view) = work.view() {
                behind::check_look(&agent.host, view).map_err(Broken)?;
            }
        }
        if let Some(why) = why {
            self.say(&name, || format!("look failed: {why}"));
        }
        self.pump(node)
    }

    pub(super) fn step_acts(&mut self, node: usize, life: u32, begun: Begun) -> Result<(), Broken> {
        let Some(agent) = self.living(node, life) else { return Ok(()) };
        agent.begun.remove(&begun.start.uid);
        let (after, result) = match self.carry_out(node, &begun)? {
            Outcome::Ended(result) => (self.up_to(500), result.map_err(StepError::from)),
            Outcome::Hangs => {
                let error = StepError { class: StepErrorClass::TimedOut, text: "the step did not end".to_owned() };
                (CALL_LIMIT, Err(error))
            }
        };
        self.agenda.add(self.now.after(after), Event::StepEnded { node, life, uid: begun.start.uid, result });
        if self.mishap(Kind::Agents, 30) {
            return self.kill_agent(node, "agent: crash after a step, before it heard of it");
        }
        Ok(())
    }

    pub(super) fn step_ended(
        &mut self,
        node: usize,
        life: u32,
        uid: &PlacementUid,
        result: Result<(), StepError>,
    ) -> Result<(), Broken> {
        let Some(agent) = self.living(node, life) else { return Ok(()) };
        agent.at_work.remove(uid);
        if let Some(work) = &mut agent.work {
            work.stepped(uid, result);
        }
        self.pump(node)
    }

    fn carry_out(&mut self, node: usize, begun: &Begun) -> Result<Outcome<()>, Broken> {
        self.check_act(node, begun)?;
        let Some(agent) = self.agents.get_mut(node) else { return Ok(Outcome::Hangs) };
        agent.unchecked = true;
        let outcome = agent.host.act(&begun.start.step);
        let lingers = begun.start.step.device().is_some_and(|address| agent.host.is_lingering(address));
        let name = agent.name.clone();
        let shown = match &outcome {
            Outcome::Ended(Ok(())) => {
                self.counts.add("steps");
                "ok".to_owned()
            }
            Outcome::Ended(Err(error)) => {
                self.counts.add("host: step fails");
                error.to_string()
            }
            Outcome::Hangs => {
                self.counts.add("host: step hangs");
                if lingers {
                    self.counts.add("host: device on its way for long");
                }
                "no answer".to_owned()
            }
        };
        let (whose, step, attempt) =
            (self.store.truth.name_of(&begun.start.uid), &begun.start.step, begun.start.attempt);
        self.say(&name, || format!("{whose} attempt {attempt}: {step} -> {shown}"));
        Ok(outcome)
    }

    /// A desired state arrives: it is judged by the ledger, kept, and only then worked on.
    pub(super) fn offered(&mut self, node: usize, desired: DesiredNode) -> Result<(), Broken> {
        if self.mishap(Kind::Agents, 60) {
            self.counts.add("agent: ledger cannot be written");
            self.agent_hangs_up(node, 5_000);
            return Ok(());
        }
        let Some(agent) = self.agents.get_mut(node) else { return Ok(()) };
        let name = agent.name.clone();
        let (term, generation) = (desired.term, desired.generation);
        match agent.ledger.accept(desired.clone()) {
            Ok(Accepted::New | Accepted::NewTerm) => {}
            Ok(Accepted::Again) => self.counts.add("net: agent told the same twice"),
            // Sessions end with their leader and messages keep their order: nothing old can arrive in one.
            Err(
                refused @ (Refused::OtherFleet { .. }
                | Refused::OldTerm { .. }
                | Refused::OldGeneration { .. }
                | Refused::OtherContent { .. }),
            ) => {
                return Err(Broken(format!("{name} had to refuse generation {generation} of term {term}: {refused}")));
            }
        }
        if let Some(before) = &agent.obeyed {
            if term < before.term || generation < before.generation {
                let (t, g) = (before.term, before.generation);
                return Err(Broken(format!("{name} obeys term {term} generation {generation} after {t}, {g}")));
            }
            if generation == before.generation && desired.placements != before.placements {
                return Err(Broken(format!("{name} obeys generation {generation} with other content than before")));
            }
            if term > before.term {
                self.counts.add("agent: obeys a later leader");
            }
        }
        agent.obeyed = Some(desired.clone());
        if let Some(work) = &mut agent.work {
            work.desire(desired.clone());
        }
        self.say(&name, || {
            let wishes: Vec<_> = desired.placements.iter().map(|p| format!("{} {:?}", p.name, p.intent)).collect();
            format!("accepts generation {generation} of term {term}: {}", wishes.join(", "))
        });
        self.pump(node)
    }
}
