//! Connections between agents and controllers: messages in order within one, all of them lost when it breaks, and each
//! side finding out in its own time, so that old sessions still speak when new ones have begun.

use super::controller::From;
use super::shown::Shown;
use super::trouble::Kind;
use super::{Broken, Event, Sim};
use berth_controller::leader::SessionId;
use berth_core::decide::Input;
use berth_model::desired::DesiredNode;
use berth_model::inventory::{Hello, InventoryReport, Listing};
use berth_model::placement::Progress;
use berth_model::{NodeName, Timestamp};
use std::collections::BTreeSet;
use std::time::Duration;

/// Silence after which a controller believes a session dead, in milliseconds; agents find out within it, too.
pub(super) const SILENCE_MS: u64 = 15_000;

#[derive(Debug)]
pub(super) enum ToAgent {
    Welcome {
        term: u64,
    },
    Desired(DesiredNode),
    /// Tell everything anew.
    Survey,
    /// No session here.
    Refused,
}

#[derive(Debug)]
pub(super) enum ToController {
    Hello(Box<Hello>),
    Report {
        report: InventoryReport,
        /// All that it has told with it; none when its look failed.
        shown: Option<Box<Shown>>,
    },
    Progress(Progress),
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) node: usize,
    pub(super) replica: usize,
    /// Of the controller's process.
    life: u32,
    agent_open: bool,
    controller_open: bool,
    /// Nothing more is carried.
    broken: bool,
    agreed: bool,
    session: Option<SessionId>,
    to_agent_at: Timestamp,
    to_controller_at: Timestamp,
    lost_to_agent: bool,
    lost_to_controller: bool,
    /// Of the last report passed on, and whether a full one was asked for.
    sequence: Option<u64>,
    asked: bool,
}

impl Conn {
    /// Whether it leads to this life of a controller.
    pub(super) fn is_with(&self, replica: usize, life: u32) -> bool {
        (self.replica, self.life) == (replica, life)
    }
}

impl Sim {
    fn is_cut(&self, node: usize, replica: usize) -> bool {
        self.cut.get(&(node, replica)).is_some_and(|until| *until > self.now)
    }

    pub(super) fn dials(&mut self, node: usize, life: u32) -> Result<(), Broken> {
        let Some(agent) = self.agents.get(node) else { return Ok(()) };
        if agent.life != life || agent.work.is_none() || agent.conn.is_some() {
            return Ok(());
        }
        let replica = agent.endpoint % self.replicas.len().max(1);
        let Some(target) = self.replicas.get(replica) else { return Ok(()) };
        if !target.is_up() || self.is_cut(node, replica) {
            if let Some(agent) = self.agents.get_mut(node) {
                agent.endpoint += 1;
            }
            let at = self.now.after(Duration::from_millis(300) + self.up_to(2_000));
            self.agenda.add(at, Event::Dials { node, life });
            return Ok(());
        }
        self.last_conn += 1;
        let number = self.last_conn;
        self.conns.insert(
            number,
            Conn {
                node,
                replica,
                life: target.life,
                agent_open: true,
                controller_open: true,
                broken: false,
                agreed: false,
                session: None,
                to_agent_at: self.now,
                to_controller_at: self.now,
                lost_to_agent: false,
                lost_to_controller: false,
                sequence: None,
                asked: false,
            },
        );
        let Some(agent) = self.agents.get_mut(node) else { return Ok(()) };
        agent.conn = Some(number);
        let hello = Box::new(agent.hello());
        self.agent_sends(node, ToController::Hello(hello));
        // An answer that does not come ends the attempt.
        self.agenda.add(self.now.after(Duration::from_secs(10)), Event::AgentNotices { conn: number });
        Ok(())
    }

    fn travel(&mut self) -> Duration {
        if self.mishap(Kind::Net, 60) {
            self.counts.add("net: message delayed");
            return self.up_to(6_000);
        }
        self.up_to(150)
    }

    /// An agent says something on its connection, if there is one.
    pub(super) fn agent_sends(&mut self, node: usize, message: ToController) {
        let travel = self.travel();
        let Some(number) = self.agents.get(node).and_then(|agent| agent.conn) else { return };
        let Some(conn) = self.conns.get_mut(&number) else { return };
        if !conn.agent_open || conn.broken {
            return;
        }
        conn.to_controller_at = self.now.after(travel).max(conn.to_controller_at);
        let at = conn.to_controller_at;
        self.agenda.add(at, Event::AtController { conn: number, message: Box::new(message) });
    }

    pub(super) fn controller_sends(&mut self, number: u64, message: ToAgent) {
        let travel = self.travel();
        let Some(conn) = self.conns.get_mut(&number) else { return };
        if !conn.controller_open || conn.broken {
            return;
        }
        conn.to_agent_at = self.now.after(travel).max(conn.to_agent_at);
        let at = conn.to_agent_at;
        self.agenda.add(at, Event::AtAgent { conn: number, message: Box::new(message) });
    }

    /// The agent lets go of its connection, if it has one, and dials again after at most `pause` milliseconds.
    pub(super) fn agent_hangs_up(&mut self, node: usize, pause: u64) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        let Some(number) = agent.conn.take() else { return };
        agent.endpoint += 1;
        let life = agent.life;
        if let Some(work) = &mut agent.work {
            work.no_session();
        }
        let name = agent.name.clone();
        self.say(&name, || format!("session over connection {number} ends"));
        let most = match self.conns.get_mut(&number) {
            Some(conn) => {
                conn.agent_open = false;
                if conn.broken { SILENCE_MS } else { 300 }
            }
            None => 0,
        };
        self.soon(most, Event::ControllerNotices { conn: number });
        let at = self.now.after(Duration::from_millis(200) + self.up_to(pause));
        self.agenda.add(at, Event::Dials { node, life });
    }

    /// A connection carries nothing more; both sides find out some time.
    pub(super) fn break_conn(&mut self, number: u64) {
        let Some(conn) = self.conns.get_mut(&number).filter(|conn| !conn.broken) else { return };
        conn.broken = true;
        // A reset is noticed at once, silence after a while; either side may be the first.
        let most = if self.trouble { SILENCE_MS } else { 500 };
        self.soon(most, Event::AgentNotices { conn: number });
        self.soon(most, Event::ControllerNotices { conn: number });
    }

    pub(super) fn agent_notices(&mut self, number: u64) -> Result<(), Broken> {
        let Some(conn) = self.conns.get(&number) else { return Ok(()) };
        let (node, over) = (conn.node, conn.broken || !conn.controller_open || !conn.agreed);
        if over && self.agents.get(node).is_some_and(|agent| agent.conn == Some(number)) {
            self.agent_hangs_up(node, 3_000);
        }
        Ok(())
    }

    pub(super) fn controller_notices(&mut self, number: u64) -> Result<(), Broken> {
        let over = self.conns.get(&number).is_some_and(|conn| conn.broken || !conn.agent_open);
        if over { self.controller_hangs_up(number) } else { Ok(()) }
    }

    /// The controller lets go of a connection.
    pub(super) fn controller_hangs_up(&mut self, number: u64) -> Result<(), Broken> {
        let Some(conn) = self.conns.get_mut(&number) else { return Ok(()) };
        if !std::mem::take(&mut conn.controller_open) {
            return Ok(());
        }
        let (node, replica, life, session) = (conn.node, conn.replica, conn.life, conn.session);
        let most = if conn.broken { SILENCE_MS } else { 300 };
        self.soon(most, Event::AgentNotices { conn: number });
        let (Some(session), Some(agent)) = (session, self.agents.get(node)) else { return Ok(()) };
        let name = agent.name.clone();
        if let Some(process) = self.replicas.get_mut(replica).and_then(|replica| replica.process_of(life)) {
            process.close(&name, session);
            process.hand_in(Input::Disconnected(name), From::Agent(session, None));
            self.wake_replica(replica);
        }
        Ok(())
    }

    pub(super) fn at_agent(&mut self, number: u64, message: ToAgent) -> Result<(), Broken> {
        let lost = self.trouble && self.rng_half();
        let Some(conn) = self.conns.get_mut(&number) else { return Ok(()) };
        let node = conn.node;
        if !conn.agent_open || self.agents.get(node).is_none_or(|agent| agent.conn != Some(number)) {
            return Ok(());
        }
        conn.lost_to_agent |= conn.broken && lost;
        if conn.lost_to_agent {
            self.counts.add("net: message lost with its session");
            return Ok(());
        }
        match message {
            ToAgent::Welcome { term } => {
                if self.agents.get(node).is_some_and(|agent| term < agent.ledger.term) {
                    self.agent_hangs_up(node, 3_000);
                    return Ok(());
                }
                conn.agreed = true;
                if let Some(work) = self.agents.get_mut(node).and_then(|agent| agent.work.as_mut()) {
                    work.new_session();
                }
                self.pump(node)
            }
            ToAgent::Desired(desired) => self.offered(node, desired),
            ToAgent::Survey => {
                if let Some(work) = self.agents.get_mut(node).and_then(|agent| agent.work.as_mut()) {
                    work.look_now();
                    work.new_session();
                }
                self.pump(node)
            }
            ToAgent::Refused => {
                self.agent_hangs_up(node, 3_000);
                Ok(())
            }
        }
    }

    pub(super) fn at_controller(&mut self, number: u64, message: ToController) -> Result<(), Broken> {
        let lost = self.trouble && self.rng_half();
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&number) else { return Ok(()) };
        if !conn.controller_open {
            return Ok(());
        }
        conn.lost_to_controller |= conn.broken && lost;
        if conn.lost_to_controller {
            self.counts.add("net: message lost with its session");
            return Ok(());
        }
        let (node, replica, life, session) = (conn.node, conn.replica, conn.life, conn.session);
        let Some(agent) = self.agents.get(node) else { return Ok(()) };
        if agent.conn.is_some_and(|other| other > number) {
            self.counts.add("net: late message after a new session began");
        }
        let name = agent.name.clone();
        let Some(process) = self.replicas.get_mut(replica).and_then(|replica| replica.process_of(life)) else {
            return Ok(());
        };
        if let Some(session) = session {
            process.heard(&name, session, now);
        }
        match (message, session) {
            (ToController::Hello(hello), _) => self.greets(number, *hello),
            (ToController::Report { report, shown }, Some(session)) => {
                if !self.follows(number, &report) {
                    self.ask_for_all(number);
                    return Ok(());
                }
                let input = Input::Report { node: name, report: Box::new(report) };
                self.hand_in(replica, input, From::Agent(session, shown))
            }
            (ToController::Progress(progress), Some(session)) => {
                let (whose, report) = (self.store.truth.name_of(&progress.uid), progress.report.clone());
                self.say(format_args!("control-{replica}"), || format!("hears from {name} of {whose}: {report:?}"));
                let heard = self.agents.get_mut(node).map(|agent| &mut agent.heard);
                if heard.and_then(|heard| heard.insert(progress.uid.clone(), progress.clone()))
                    == Some(progress.clone())
                {
                    self.counts.add("net: progress heard twice");
                }
                let input = Input::Progress { node: name, progress: Box::new(progress) };
                self.hand_in(replica, input, From::Agent(session, None))
            }
            (ToController::Report { .. } | ToController::Progress(_), None) => Ok(()),
        }
    }

    fn greets(&mut self, number: u64, hello: Hello) -> Result<(), Broken> {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&number) else { return Ok(()) };
        let replica = conn.replica;
        let Some(process) = self.replicas.get_mut(replica).and_then(|replica| replica.process_of(conn.life)) else {
            return Ok(());
        };
        let opened = if process.has_led() { process.open(&hello.node, number, now) } else { None };
        let Some(opened) = opened else {
            if process.has_led() {
                self.counts.add("net: connection refused, the node has one");
            }
            self.controller_sends(number, ToAgent::Refused);
            return self.controller_hangs_up(number);
        };
        conn.session = Some(opened.session);
        let term = process.term();
        self.controller_sends(number, ToAgent::Welcome { term });
        self.say(format_args!("control-{replica}"), || format!("welcomes {} over connection {number}", hello.node));
        self.hand_in(replica, Input::Connected(Box::new(hello)), From::Agent(opened.session, None))?;
        match opened.replaced {
            Some(old) => self.controller_hangs_up(old),
            None => Ok(()),
        }
    }

    /// Whether a report continues what was reported, as the controller's session judges it.
    fn follows(&mut self, number: u64, report: &InventoryReport) -> bool {
        let Some(conn) = self.conns.get_mut(&number) else { return false };
        let complete = report.listing == Listing::Complete;
        let next = conn.sequence.and_then(|last| last.checked_add(1)) == Some(report.sequence);
        if complete && !report.full && !next {
            return false;
        }
        if report.full && complete {
            conn.asked = false;
        }
        if conn.sequence.is_some() || report.full {
            conn.sequence = Some(report.sequence);
        }
        true
    }

    fn ask_for_all(&mut self, number: u64) {
        let asked = self.conns.get_mut(&number).is_some_and(|conn| std::mem::replace(&mut conn.asked, true));
        if !asked {
            self.controller_sends(number, ToAgent::Survey);
        }
    }

    /// Every agent with a session at this process is asked for everything.
    pub(super) fn look_again(&mut self, replica: usize) {
        let conns: Vec<u64> = self.replicas.get_mut(replica).map(|replica| replica.conns()).unwrap_or_default();
        conns.into_iter().for_each(|conn| self.ask_anew(conn));
    }

    /// The agents of these nodes are asked for everything.
    pub(super) fn look_again_at(&mut self, replica: usize, nodes: &BTreeSet<NodeName>) {
        let Some(replica) = self.replicas.get(replica) else { return };
        let conns: Vec<u64> = nodes.iter().filter_map(|node| replica.conn_of(node)).collect();
        conns.into_iter().for_each(|conn| self.ask_anew(conn));
    }

    fn ask_anew(&mut self, number: u64) {
        if let Some(conn) = self.conns.get_mut(&number) {
            conn.asked = false;
        }
        self.ask_for_all(number);
    }
}
