//! The session between the two brains: in order, each message after a while, all of them lost with the session.

use super::{Broken, Event, Run};
use berth_agent_core::ledger::{Accepted, Refused};
use berth_core::decide::Input;
use berth_model::Timestamp;
use berth_model::desired::DesiredNode;
use berth_model::inventory::{Hello, InventoryReport};
use berth_model::placement::Progress;

/// The session there is, if any.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Counts the sessions; what arrives for another one is lost.
    pub(super) number: u32,
    pub(super) open: bool,
    last_to_agent: Timestamp,
    last_to_controller: Timestamp,
}

#[derive(Debug)]
pub(super) enum ToAgent {
    Desired(DesiredNode),
}

#[derive(Debug)]
pub(super) enum ToController {
    Report(InventoryReport),
    Progress(Progress),
}

impl Run {
    pub(super) fn connect(&mut self) -> Result<(), Broken> {
        if self.session.open || self.work.is_none() {
            return Ok(());
        }
        self.session.number += 1;
        self.session.open = true;
        self.say(|| "session opens".to_owned());
        let hello = Hello {
            node: self.node.clone(),
            agent_version: "1".to_owned(),
            protocol: 1,
            boot: self.host.boot(),
            facts: self.host.facts().clone(),
            ledger_term: self.ledger.term,
            ledger_generation: self.ledger.generation(),
            ledger_fleet: self.ledger.fleet().cloned(),
            ledger_placements: Some(self.ledger.placements()),
        };
        self.decide(Input::Connected(Box::new(hello)))?;
        if let Some(work) = &mut self.work {
            work.new_session();
        }
        self.pump()
    }

    /// The session ends, for whatever reason.
    pub(super) fn hang_up(&mut self) -> Result<(), Broken> {
        if !self.session.open {
            return Ok(());
        }
        self.session.open = false;
        self.session.number += 1;
        self.say(|| "session ends".to_owned());
        if let Some(work) = &mut self.work {
            work.no_session();
        }
        let node = self.node.clone();
        self.decide(Input::Disconnected(node)).map(|_| ())
    }

    pub(super) fn send_desired(&mut self) {
        if !self.session.open {
            return;
        }
        let Some(desired) = self.brain.desired(&self.node) else { return };
        let at = self.now.after(self.up_to(200)).max(self.session.last_to_agent);
        self.session.last_to_agent = at;
        let session = self.session.number;
        self.agenda.add(at, Event::ToAgent { session, message: ToAgent::Desired(desired) });
    }

    pub(super) fn tell_controller(&mut self, message: ToController) {
        if !self.session.open {
            return;
        }
        let at = self.now.after(self.up_to(200)).max(self.session.last_to_controller);
        self.session.last_to_controller = at;
        let session = self.session.number;
        self.agenda.add(at, Event::ToController { session, message: Box::new(message) });
    }

    pub(super) fn at_agent(&mut self, message: ToAgent) -> Result<(), Broken> {
        let ToAgent::Desired(desired) = message;
        let (term, generation) = (desired.term, desired.generation);
        match self.ledger.accept(desired.clone()) {
            Ok(Accepted::New | Accepted::NewTerm | Accepted::Again) => {
                let wishes: Vec<_> = desired.placements.iter().map(|p| format!("{} {:?}", p.name, p.intent)).collect();
                self.say(|| format!("agent   accepts generation {generation} of term {term}: {}", wishes.join(", ")));
                if let Some(work) = &mut self.work {
                    work.desire(desired);
                }
                self.pump()
            }
            // Sessions end with their leader and messages keep their order: nothing old can arrive.
            Err(
                refused @ (Refused::OtherFleet { .. }
                | Refused::OldTerm { .. }
                | Refused::OldGeneration { .. }
                | Refused::OtherContent { .. }),
            ) => Err(Broken(format!("the agent had to refuse generation {generation} of term {term}: {refused}"))),
        }
    }

    pub(super) fn at_controller(&mut self, message: ToController) -> Result<(), Broken> {
        let node = self.node.clone();
        let input = match message {
            ToController::Report(report) => Input::Report { node, report: Box::new(report) },
            ToController::Progress(progress) => {
                let (name, report) = (self.name_of(&progress.uid), progress.report.clone());
                self.say(|| format!("control hears of {name}: {report:?}"));
                Input::Progress { node, progress: Box::new(progress) }
            }
        };
        self.decide(input).map(|_| ())
    }
}
