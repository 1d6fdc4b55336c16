//! What becomes of what a controller commits: sent, sent again, read back, and taken back when it is not to be.
//!
//! The rules are the shipped [`Effort`](berth_controller::commit::Effort), `Groups` and `Desk`; this file stands in for
//! their clock.

use super::controller::{ForReplica, Role};
use super::{Broken, Sim, skewed};
use berth_controller::commit::{Loss, Next};
use berth_controller::leader::desk::TakenBack;
use berth_controller::leader::load;
use berth_store::{CommitError, Page, Revision, Store as _};
use futures::FutureExt as _;
use std::time::Duration;

/// Before something is sent or read again.
const PAUSE: Duration = Duration::from_millis(200);

impl Sim {
    /// Sends a transaction, for the first time or again.
    pub(super) fn sends(&mut self, number: usize, epoch: u64, id: u64) -> Result<(), Broken> {
        let Some((process, life, _)) = self.in_process(number) else { return Ok(()) };
        let (Role::Leading(lead) | Role::Settling(lead, ..)) = &mut process.role else { return Ok(()) };
        let Some((effort, _)) = lead.efforts.get(&id).filter(|_| lead.epoch == epoch) else { return Ok(()) };
        let (transaction, term) = (effort.transaction().clone(), lead.term);
        self.send_transaction(number, life, epoch, term, id, transaction);
        Ok(())
    }

    pub(super) fn answered(
        &mut self,
        number: usize,
        epoch: u64,
        id: u64,
        result: Result<Revision, CommitError>,
    ) -> Result<(), Broken> {
        let Some((process, _, _)) = self.in_process(number) else { return Ok(()) };
        let (Role::Leading(lead) | Role::Settling(lead, ..)) = &mut process.role else { return Ok(()) };
        let Some((effort, _)) = lead.efforts.get_mut(&id).filter(|_| lead.epoch == epoch) else { return Ok(()) };
        let next = effort.answered(result);
        self.goes_on(number, epoch, id, next)
    }

    pub(super) fn reads_back(&mut self, number: usize, epoch: u64, id: u64) -> Result<(), Broken> {
        let reaches = self.reaches_store(number);
        let Some(replica) = self.replicas.get_mut(number) else { return Ok(()) };
        let life = replica.life;
        let Some(process) = replica.process_of(life) else { return Ok(()) };
        let (Role::Leading(lead) | Role::Settling(lead, ..)) = &mut process.role else { return Ok(()) };
        let Some((effort, _)) = lead.efforts.get_mut(&id).filter(|_| lead.epoch == epoch) else { return Ok(()) };
        if !reaches {
            return self.goes_on(number, epoch, id, Next::ReadBack);
        }
        let read = self.store.memory.range(effort.witness(), None, None, 1).now_or_never();
        let page: Page = match read {
            Some(Ok(page)) => page,
            Some(Err(error)) => return Err(Broken(format!("the store cannot be read: {error}"))),
            None => return Err(Broken("reading from memory waited".to_owned())),
        };
        let leads = match effort.fence().map(|fence| (fence.created, self.store.memory.get(&fence.key).now_or_never()))
        {
            None => true,
            Some((created, Some(Ok(leader)))) => leader.is_some_and(|leader| leader.created == created),
            Some((_, Some(Err(error)))) => return Err(Broken(format!("the store cannot be read: {error}"))),
            Some((_, None)) => return Err(Broken("reading from memory waited".to_owned())),
        };
        let next = effort.read_back(&page, leads);
        self.counts.add(match next {
            Next::Settled(Ok(_)) => "store: a lost answer found by reading back",
            Next::Settled(Err(_)) | Next::Send | Next::ReadBack => "store: nothing found by reading back",
        });
        self.goes_on(number, epoch, id, next)
    }

    /// Does what follows for a transaction, unless its time is up.
    fn goes_on(&mut self, number: usize, epoch: u64, id: u64, next: Next) -> Result<(), Broken> {
        let now = self.now;
        let Some((process, _, _)) = self.in_process(number) else { return Ok(()) };
        let (Role::Leading(lead) | Role::Settling(lead, ..)) = &mut process.role else { return Ok(()) };
        let Some((effort, end)) = lead.efforts.remove(&id) else { return Ok(()) };
        let result = match next {
            Next::Settled(result) => result,
            Next::Send | Next::ReadBack if end <= now => Err(effort.give_up()),
            Next::Send => {
                lead.efforts.insert(id, (effort, end));
                self.later(number, PAUSE, ForReplica::SendsAgain { epoch, id });
                return Ok(());
            }
            Next::ReadBack => {
                lead.efforts.insert(id, (effort, end));
                self.later(number, PAUSE, ForReplica::ReadsBack { epoch, id });
                return Ok(());
            }
        };
        self.ended(number, id, result)
    }

    fn ended(&mut self, number: usize, id: u64, result: Result<Revision, CommitError>) -> Result<(), Broken> {
        let Some((process, _, _)) = self.in_process(number) else { return Ok(()) };
        match &mut process.role {
            Role::Leading(lead) => match lead.groups.ended(id, result) {
                Ok(()) => {
                    process.attempts = 0;
                    return self.dispatch_and_tell(number);
                }
                Err(CommitError::Fenced) => return self.replica_ends(number, "fenced"),
                Err(error @ CommitError::Illegal(_)) => return Err(Broken(error.to_string())),
                Err(error) => {
                    let why = error.to_string();
                    if let Role::Leading(lead) = std::mem::replace(&mut process.role, Role::Campaigning) {
                        process.role = Role::Settling(lead, Loss::of(&error), error);
                    }
                    self.say(format_args!("control-{number}"), || format!("a commit failed: {why}"));
                }
            },
            Role::Settling(lead, loss, _) => match lead.groups.ended(id, result) {
                Ok(()) => process.attempts = 0,
                Err(CommitError::Fenced) => return self.replica_ends(number, "fenced"),
                Err(error @ CommitError::Illegal(_)) => return Err(Broken(error.to_string())),
                Err(error) => *loss = (*loss).max(Loss::of(&error)),
            },
            Role::Campaigning | Role::Loading { .. } => return Ok(()),
        }
        self.settled(number)
    }

    /// Once nothing is in flight: as little is taken back as can be, or the lead is won anew.
    fn settled(&mut self, number: usize) -> Result<(), Broken> {
        let Some((process, _, _)) = self.in_process(number) else { return Ok(()) };
        let Role::Settling(lead, loss, why) = &mut process.role else { return Ok(()) };
        if !lead.efforts.is_empty() {
            return Ok(());
        }
        if *loss < Loss::Leadership {
            let epoch = lead.epoch;
            self.later(number, PAUSE, ForReplica::TakesBack { epoch });
            return Ok(());
        }
        let lost = lead.desk.give_up(&lead.groups, why);
        for (call, error) in lost {
            self.replies(call, Err(error))?;
        }
        self.fails(number)
    }

    pub(super) fn takes_back(&mut self, number: usize, epoch: u64) -> Result<(), Broken> {
        let (reaches, now) = (self.reaches_store(number), self.now);
        let Some(replica) = self.replicas.get_mut(number) else { return Ok(()) };
        let (life, clock) = (replica.life, skewed(now, replica.skew));
        let Some(process) = replica.process_of(life) else { return Ok(()) };
        if !matches!(&process.role, Role::Settling(lead, ..) if lead.epoch == epoch) {
            return Ok(());
        }
        if !reaches {
            self.later(number, PAUSE, ForReplica::TakesBack { epoch });
            return Ok(());
        }
        let Role::Settling(mut lead, loss, why) = std::mem::replace(&mut process.role, Role::Campaigning) else {
            return Ok(());
        };
        let undone = lead.groups.undo(loss);
        if lead.groups.count() > 0 {
            self.counts.add("controller: decisions taken back, others kept");
        }
        let stored = match load::stored(&self.store.memory, lead.groups.fence(), &undone).now_or_never() {
            Some(Ok(stored)) => stored,
            Some(Err(load::Error::Deposed)) => return self.replica_ends(number, "somebody else leads"),
            Some(Err(error)) => return Err(Broken(format!("the store cannot be read: {error}"))),
            None => return Err(Broken("reading from memory waited".to_owned())),
        };
        let taken_back = lead.desk.undo(&mut lead.groups, clock, &process.sessions, (&undone, stored), &why);
        let TakenBack { replies, nodes } = taken_back.map_err(|unfit| Broken(unfit.to_string()))?;
        lead.unchecked = true;
        process.role = Role::Leading(lead);
        self.counts.add("controller: decisions taken back");
        self.say(format_args!("control-{number}"), || format!("takes back {} groups: {why}", undone.groups.len()));
        for (call, error) in replies {
            self.replies(call, Err(error))?;
        }
        self.look_again_at(number, &nodes);
        self.dispatch_and_tell(number)?;
        self.wake_replica(number);
        Ok(())
    }
}
