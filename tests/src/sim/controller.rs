//! Controllers: processes that compete for the lead, decide while they have it, and crash, stall and lose their lease. What
//! becomes of what they commit is in [`super::commits`].
//!
//! What counts, what it comes to and who is told when is the shipped [`Desk`] and [`Groups`]; this file stands in for
//! their loop, which only waits.

use super::link::{SILENCE_MS, ToAgent};
use super::shown::Shown;
use super::store::Lease;
use super::trouble::Kind;
use super::{Broken, Event, Sim, skewed};
use berth_controller::commit::{Effort, Groups, Loss};
use berth_controller::leader::desk::{Desk, Sessions, Told, Work};
use berth_controller::leader::{ATTEMPTS, CAMPAIGN, SessionId, load};
use berth_core::decide::{Brain, Input};
use berth_core::world::World;
use berth_model::{NodeName, Timestamp};
use berth_store::{CommitError, Fence, Revision, Store as _};
use futures::FutureExt as _;
use rand::RngExt;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long a lease lasts without a sign of life.
pub(super) const LEASE: Duration = Duration::from_secs(10);
/// Between signs of life.
const RENEW: Duration = Duration::from_secs(3);
/// How long one transaction is given its chance.
const COMMIT: Duration = Duration::from_secs(10);
/// Inputs decided in one go.
const BATCH: usize = 256;
/// Longest time between two looks at the deadlines.
const TICK: Duration = Duration::from_secs(5);

/// Something inside a controller's process.
#[derive(Debug)]
pub(super) enum ForReplica {
    /// It tries to win the lead.
    Campaigns,
    /// It reads the world it has won.
    Loads,
    /// Inputs wait, or time has passed.
    Serves,
    /// The store has answered.
    Answered { epoch: u64, id: u64, result: Result<Revision, CommitError> },
    /// It sends a transaction again that was surely not written.
    SendsAgain { epoch: u64, id: u64 },
    /// It looks for what became of a transaction whose answer was lost.
    ReadsBack { epoch: u64, id: u64 },
    /// It takes back what was not committed.
    TakesBack { epoch: u64 },
    /// It shows that it is alive.
    Renews { epoch: u64 },
    /// It learns that its lease of this term is gone.
    LeaseLost { term: u64 },
}

/// Whose input it is.
#[derive(Debug)]
pub(super) enum From {
    Caller(u64),
    /// With a complete report: all that the agent has told with it.
    Agent(SessionId, Option<Box<Shown>>),
}

/// One leadership in a process.
pub(super) struct Lead {
    pub(super) epoch: u64,
    pub(super) term: u64,
    pub(super) desk: Desk<u64>,
    pub(super) groups: Groups,
    /// What is in flight, and until when each is given its chance.
    pub(super) efforts: BTreeMap<u64, (Effort, Timestamp)>,
    /// Its world changed since it was last checked.
    pub(super) unchecked: bool,
}

pub(super) enum Role {
    Campaigning,
    Loading {
        term: u64,
        fence: Fence,
    },
    Leading(Box<Lead>),
    /// A commit failed; it waits for the others that are in flight, and then takes back what it must.
    Settling(Box<Lead>, Loss, CommitError),
}

/// A controller's process.
pub(super) struct Process {
    pub(super) role: Role,
    queue: VecDeque<(Input, From)>,
    pub(super) sessions: Sessions,
    /// The open session of each node: which, over which connection, last heard of when.
    seen: BTreeMap<NodeName, (SessionId, u64, Timestamp)>,
    last_session: u64,
    term: u64,
    has_led: bool,
    pub(super) attempts: u32,
    /// Another one has won if it has not until then; one that never led waits as long as it takes.
    gives_way: Option<Timestamp>,
    /// When it looks at its queue and its deadlines next.
    serves_at: Option<Timestamp>,
}

/// A session that was opened, and the connection it takes the place of.
pub(super) struct Opened {
    pub(super) session: SessionId,
    pub(super) replaced: Option<u64>,
}

impl Process {
    fn new() -> Self {
        Self {
            role: Role::Campaigning,
            queue: VecDeque::new(),
            sessions: Sessions::default(),
            seen: BTreeMap::new(),
            last_session: 0,
            term: 0,
            has_led: false,
            attempts: 0,
            gives_way: None,
            serves_at: None,
        }
    }

    pub(super) fn hand_in(&mut self, input: Input, from: From) {
        self.queue.push_back((input, from));
    }

    /// Whether it serves: it leads, or is loading its world anew.
    pub(super) fn has_led(&self) -> bool {
        self.has_led
    }

    pub(super) fn term(&self) -> u64 {
        self.term
    }

    /// Opens a session, unless the node has one that is alive.
    pub(super) fn open(&mut self, node: &NodeName, conn: u64, now: Timestamp) -> Option<Opened> {
        let replaced = match self.seen.get(node) {
            Some((_, _, heard)) if now.since(*heard) < Duration::from_millis(SILENCE_MS) => return None,
            Some((_, old, _)) => Some(*old),
            None => None,
        };
        self.last_session += 1;
        let session = SessionId(self.last_session);
        self.seen.insert(node.clone(), (session, conn, now));
        Some(Opened { session, replaced })
    }

    pub(super) fn close(&mut self, node: &NodeName, session: SessionId) {
        if self.seen.get(node).is_some_and(|(open, _, _)| *open == session) {
            self.seen.remove(node);
        }
    }

    pub(super) fn heard(&mut self, node: &NodeName, session: SessionId, now: Timestamp) {
        if let Some((open, _, heard)) = self.seen.get_mut(node)
            && *open == session
        {
            *heard = now;
        }
    }
}

pub(super) struct Replica {
    process: Option<Process>,
    pub(super) life: u32,
    /// How wrong its clock goes, in milliseconds; it may step.
    pub(super) skew: i64,
    paused: bool,
    /// What arrived while it was paused.
    stalled: Vec<Event>,
    /// It cannot reach the store until then.
    pub(super) store_cut: Timestamp,
}

impl Replica {
    pub(super) fn new(skew: i64) -> Self {
        Self { process: None, life: 0, skew, paused: false, stalled: Vec::new(), store_cut: Timestamp::default() }
    }

    pub(super) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn stall(&mut self, event: Event) {
        self.stalled.push(event);
    }

    /// The process of this life, if it is still there.
    pub(super) fn process_of(&mut self, life: u32) -> Option<&mut Process> {
        if self.life == life { self.process.as_mut() } else { None }
    }

    /// The connections of its open sessions.
    pub(super) fn conns(&self) -> Vec<u64> {
        self.process.iter().flat_map(|process| process.seen.values()).map(|(_, conn, _)| *conn).collect()
    }

    /// The connection of a node's open session.
    pub(super) fn conn_of(&self, node: &NodeName) -> Option<u64> {
        self.process.as_ref()?.seen.get(node).map(|(_, conn, _)| *conn)
    }

    /// Whether it answers callers.
    pub(super) fn serves(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.has_led)
    }

    /// The world it decides on, while it leads.
    pub(super) fn world(&self) -> Option<&World> {
        match &self.process.as_ref()?.role {
            Role::Leading(lead) => Some(lead.desk.brain().world()),
            Role::Campaigning | Role::Loading { .. } | Role::Settling(..) => None,
        }
    }

    /// The brain that decides, if it decided something since it was last asked for.
    pub(super) fn changed(&mut self) -> Option<&Brain> {
        match &mut self.process.as_mut()?.role {
            Role::Leading(lead) => std::mem::take(&mut lead.unchecked).then(|| lead.desk.brain()),
            Role::Campaigning | Role::Loading { .. } | Role::Settling(..) => None,
        }
    }
}

impl Sim {
    pub(super) fn in_process(&mut self, replica: usize) -> Option<(&mut Process, u32, i64)> {
        let replica = self.replicas.get_mut(replica)?;
        let (life, skew) = (replica.life, replica.skew);
        replica.process.as_mut().map(|process| (process, life, skew))
    }

    pub(super) fn later(&mut self, replica: usize, after: Duration, what: ForReplica) {
        let Some(life) = self.replicas.get(replica).map(|replica| replica.life) else { return };
        self.agenda.add(self.now.after(after), Event::Replica { replica, life, what });
    }

    pub(super) fn replica_starts(&mut self, number: usize) -> Result<(), Broken> {
        let Some(replica) = self.replicas.get_mut(number).filter(|replica| replica.process.is_none()) else {
            return Ok(());
        };
        replica.life += 1;
        replica.process = Some(Process::new());
        let skew = replica.skew;
        self.say(format_args!("control-{number}"), || format!("starts, clock {skew} ms"));
        let after = self.up_to(500);
        self.later(number, after, ForReplica::Campaigns);
        Ok(())
    }

    /// The process ends, by itself or not. What it had sent may still land.
    pub(super) fn replica_ends(&mut self, number: usize, why: &str) -> Result<(), Broken> {
        let Some(replica) = self.replicas.get_mut(number) else { return Ok(()) };
        if replica.process.take().is_none() {
            return Ok(());
        }
        let life = replica.life;
        replica.life += 1;
        replica.paused = false;
        replica.stalled.clear();
        let why = why.to_owned();
        self.say(format_args!("control-{number}"), || format!("ENDS: {why}"));
        self.break_conns_of(number, life);
        let at = self.now.after(Duration::from_millis(500) + self.up_to(if self.trouble { 15_000 } else { 1_000 }));
        self.agenda.add(at, Event::ReplicaStarts { replica: number });
        Ok(())
    }

    fn break_conns_of(&mut self, number: usize, life: u32) {
        let conns: Vec<u64> =
            self.conns.iter().filter(|(_, conn)| conn.is_with(number, life)).map(|(id, _)| *id).collect();
        for conn in conns {
            self.break_conn(conn);
        }
    }

    pub(super) fn pause(&mut self, number: usize) {
        let longest = self.up_to(30_000);
        let Some(replica) = self.replicas.get_mut(number).filter(|r| r.process.is_some() && !r.paused) else { return };
        replica.paused = true;
        let life = replica.life;
        let pause = Duration::from_secs(1) + longest;
        self.counts.add("controller: paused");
        if pause > LEASE && self.store.lease.as_ref().is_some_and(|lease| lease.replica == number) {
            self.counts.add("controller: paused longer than its lease");
        }
        self.say(format_args!("control-{number}"), || format!("is PAUSED for {:.1} s", pause.as_secs_f64()));
        self.agenda.add(self.now.after(pause), Event::Resumes { replica: number, life });
    }

    pub(super) fn resumes(&mut self, number: usize, life: u32) -> Result<(), Broken> {
        let Some(replica) = self.replicas.get_mut(number).filter(|r| r.life == life && r.paused) else { return Ok(()) };
        replica.paused = false;
        let stalled = std::mem::take(&mut replica.stalled);
        self.say(format_args!("control-{number}"), || "goes on".to_owned());
        for event in stalled {
            self.happen(event)?;
            self.check()?;
        }
        Ok(())
    }

    pub(super) fn in_replica(&mut self, number: usize, life: u32, what: ForReplica) -> Result<(), Broken> {
        if self.replicas.get_mut(number).and_then(|replica| replica.process_of(life)).is_none() {
            return Ok(());
        }
        match what {
            ForReplica::Campaigns => self.campaigns(number),
            ForReplica::Loads => self.loads(number),
            ForReplica::Serves => self.serves(number),
            ForReplica::Answered { epoch, id, result } => self.answered(number, epoch, id, result),
            ForReplica::SendsAgain { epoch, id } => self.sends(number, epoch, id),
            ForReplica::ReadsBack { epoch, id } => self.reads_back(number, epoch, id),
            ForReplica::TakesBack { epoch } => self.takes_back(number, epoch),
            ForReplica::Renews { epoch } => {
                self.renews(number, epoch);
                Ok(())
            }
            ForReplica::LeaseLost { term } => self.lease_lost(number, term),
        }
    }

    /// A process learns that a leadership is over. While it loads its world it does not look; while it wins another
    /// leadership, that one is of no interest any more.
    fn lease_lost(&mut self, number: usize, lost: u64) -> Result<(), Broken> {
        match self.in_process(number).map(|(process, _, _)| &process.role) {
            Some(Role::Leading(lead) | Role::Settling(lead, ..)) if lead.term == lost => {
                self.replica_ends(number, "its lease is lost")
            }
            Some(Role::Loading { term, .. }) if *term == lost => {
                self.later(number, RENEW, ForReplica::LeaseLost { term: lost });
                Ok(())
            }
            Some(Role::Leading(_) | Role::Loading { .. } | Role::Settling(..) | Role::Campaigning) | None => Ok(()),
        }
    }

    /// Whether a process reaches the store now.
    pub(super) fn reaches_store(&self, number: usize) -> bool {
        self.store.down_until <= self.now && self.replicas.get(number).is_some_and(|r| r.store_cut <= self.now)
    }

    /// One more failure in a row; a process gives up after some.
    pub(super) fn fails(&mut self, number: usize) -> Result<(), Broken> {
        let now = self.now;
        let Some((process, _, _)) = self.in_process(number) else { return Ok(()) };
        process.attempts += 1;
        process.role = Role::Campaigning;
        if process.attempts >= ATTEMPTS {
            return self.replica_ends(number, "the store stayed away");
        }
        let pause = Duration::from_millis(100) * 2_u32.saturating_pow(process.attempts.min(6));
        process.gives_way = process.has_led.then(|| now.after(pause + CAMPAIGN));
        self.later(number, pause, ForReplica::Campaigns);
        Ok(())
    }

    fn campaigns(&mut self, number: usize) -> Result<(), Broken> {
        if !self.reaches_store(number) {
            return self.fails(number);
        }
        let now = self.now;
        let Some((process, life, _)) = self.in_process(number) else { return Ok(()) };
        if !matches!(process.role, Role::Campaigning) {
            return Ok(());
        }
        let gives_way = process.gives_way.is_some_and(|at| at <= now);
        let held = self.store.lease.as_ref().filter(|lease| lease.until > now);
        if held.is_some_and(|lease| (lease.replica, lease.life) != (number, life)) {
            if gives_way {
                self.counts.add("controller: makes way for another leader");
                return self.replica_ends(number, "another one leads");
            }
            // Whoever does not lead waits for its turn.
            let after = Duration::from_millis(500) + self.up_to(1_500);
            self.later(number, after, ForReplica::Campaigns);
            return Ok(());
        }
        let before = self.store.lease.take().filter(|lease| (lease.replica, lease.life) != (number, life));
        let won = self.store.memory.campaign(&format!("control-{number}")).now_or_never();
        let Some(Ok(won)) = won else { return Err(Broken(format!("a campaign failed: {won:?}"))) };
        self.store.term = won.term;
        self.store.lease = Some(Lease { replica: number, life, term: won.term, until: self.now.after(LEASE) });
        self.store.truth.leader_changed(won.fence.created)?;
        self.counts.add("leaderships");
        self.say(format_args!("control-{number}"), || format!("WINS term {}", won.term));
        if let Some(before) = before {
            self.tell_lease_lost(&before);
        }
        if let Some((process, _, _)) = self.in_process(number) {
            process.role = Role::Loading { term: won.term, fence: won.fence };
        }
        let slow = self.mishap(Kind::Store, 10);
        let after = self.up_to(if slow { 8_000 } else { 300 });
        self.later(number, after, ForReplica::Loads);
        Ok(())
    }

    /// A former holder learns of it some time, if it is still there.
    pub(super) fn tell_lease_lost(&mut self, lease: &Lease) {
        let most = if self.trouble { 8_000 } else { 200 };
        let at = self.now.after(self.up_to(most));
        let Lease { replica, life, term, until: _ } = *lease;
        self.agenda.add(at, Event::Replica { replica, life, what: ForReplica::LeaseLost { term } });
    }

    fn loads(&mut self, number: usize) -> Result<(), Broken> {
        if !self.reaches_store(number) {
            return self.fails(number);
        }
        let now = self.now;
        let (limits, operations) = (self.limits.clone(), self.operations);
        let Some(replica) = self.replicas.get_mut(number) else { return Ok(()) };
        let clock = skewed(now, replica.skew);
        let Some(process) = replica.process.as_mut() else { return Ok(()) };
        let Role::Loading { term, fence } = std::mem::replace(&mut process.role, Role::Campaigning) else {
            return Ok(());
        };
        let loaded = load::load(&self.store.memory, term, &limits, clock).now_or_never();
        let load::Loaded { brain, node_versions, revision } = match loaded {
            Some(Ok(loaded)) => loaded,
            Some(Err(error)) => return Err(Broken(format!("the world cannot be loaded: {error}"))),
            None => return Err(Broken("loading from memory waited".to_owned())),
        };
        self.store.truth.check_claims(brain.world())?;
        self.epochs += 1;
        let epoch = self.epochs;
        let mut groups = Groups::new(fence, node_versions, revision).of_at_most(operations);
        let mut desk = Desk::new(brain, revision);
        let again = std::mem::replace(&mut process.has_led, true);
        process.term = term;
        if again {
            desk.take_sessions(&mut groups, clock, &process.sessions).map_err(|unfit| Broken(unfit.to_string()))?;
        }
        process.role =
            Role::Leading(Box::new(Lead { epoch, term, desk, groups, efforts: BTreeMap::new(), unchecked: true }));
        process.serves_at = None;
        if again {
            self.counts.add("controller: world loaded anew");
            self.look_again(number);
        }
        self.say(format_args!("control-{number}"), || format!("LEADS in term {term} from revision {revision}"));
        self.later(number, RENEW, ForReplica::Renews { epoch });
        self.wake_replica(number);
        Ok(())
    }

    fn renews(&mut self, number: usize, epoch: u64) {
        let reaches = self.reaches_store(number);
        let now = self.now;
        let Some((process, life, _)) = self.in_process(number) else { return };
        let leads = match &process.role {
            Role::Leading(lead) | Role::Settling(lead, ..) => lead.epoch == epoch,
            Role::Campaigning | Role::Loading { .. } => false,
        };
        if !leads {
            return;
        }
        let lease = self.store.lease.as_mut().filter(|lease| (lease.replica, lease.life) == (number, life));
        if let Some(lease) = lease.filter(|lease| reaches && lease.until > now) {
            lease.until = now.after(LEASE);
        }
        self.later(number, RENEW, ForReplica::Renews { epoch });
    }

    /// Has a process look at its queue soon.
    pub(super) fn wake_replica(&mut self, number: usize) {
        // A few milliseconds, so that what comes together is decided together.
        let at = self.now.after(self.up_to(8));
        self.serve_at(number, at);
    }

    fn serve_at(&mut self, number: usize, at: Timestamp) {
        let now = self.now;
        let Some((process, life, _)) = self.in_process(number) else { return };
        if process.serves_at.is_some_and(|planned| planned > now && planned <= at) {
            return;
        }
        process.serves_at = Some(at);
        self.agenda.add(at, Event::Replica { replica: number, life, what: ForReplica::Serves });
    }

    pub(super) fn hand_in(&mut self, number: usize, input: Input, from: From) -> Result<(), Broken> {
        if let Some((process, _, _)) = self.in_process(number) {
            process.hand_in(input, from);
        }
        self.wake_replica(number);
        Ok(())
    }

    /// One turn of the leader: decide what waits, send what is ready, tell what is durable.
    fn serves(&mut self, number: usize) -> Result<(), Broken> {
        let now = self.now;
        let Some((process, _, skew)) = self.in_process(number) else { return Ok(()) };
        let Process { role: Role::Leading(lead), queue, sessions, .. } = process else { return Ok(()) };
        let clock = skewed(now, skew);
        let mut work = Work::default();
        let mut decided = false;
        for _ in 0..BATCH {
            let Some((input, from)) = queue.pop_front() else { break };
            let (to, shown) = match from {
                From::Caller(call) => (Some(call), None),
                From::Agent(session, shown) if lead.desk.admits(sessions, session, &input) => (None, shown),
                From::Agent(..) => continue,
            };
            decided = true;
            let done = lead.desk.decide(&mut lead.groups, clock, input, None, to, &mut work);
            done.map_err(|unfit| Broken(unfit.to_string()))?;
            if let Some(shown) = shown {
                shown.check(lead.desk.brain().world())?;
            }
        }
        let due = |lead: &Lead| lead.desk.brain().next_deadline().is_some_and(|at| at <= clock);
        if due(lead) {
            decided = true;
            let done = lead.desk.decide(&mut lead.groups, clock, Input::Tick, None, None, &mut work);
            done.map_err(|unfit| Broken(unfit.to_string()))?;
        }
        lead.desk.enqueue(&lead.groups, work);
        lead.unchecked |= decided;
        let next =
            lead.desk.brain().next_deadline().map_or(TICK, |at| at.since(clock)).clamp(Duration::from_millis(1), TICK);
        let more = !queue.is_empty();
        self.dispatch_and_tell(number)?;
        self.serve_at(number, now.after(if more { Duration::from_millis(1) } else { next }));
        Ok(())
    }

    pub(super) fn dispatch_and_tell(&mut self, number: usize) -> Result<(), Broken> {
        let now = self.now;
        loop {
            let Some((process, _, _)) = self.in_process(number) else { return Ok(()) };
            let Role::Leading(lead) = &mut process.role else { return Ok(()) };
            let Some((id, transaction)) = lead.groups.next_to_send() else { break };
            let epoch = lead.epoch;
            lead.efforts.insert(id, (Effort::new(transaction), now.after(COMMIT)));
            self.sends(number, epoch, id)?;
        }
        loop {
            let Some((process, _, _)) = self.in_process(number) else { return Ok(()) };
            let Role::Leading(lead) = &mut process.role else { return Ok(()) };
            let Some(told) = lead.desk.next_told(&mut lead.groups) else { return Ok(()) };
            self.tell(number, told)?;
        }
    }

    fn tell(&mut self, number: usize, told: Told<u64>) -> Result<(), Broken> {
        let Told { revision, publish, replies, desired, learned: _ } = told;
        if let Some(publish) = &publish {
            for name in &publish.placements {
                if let Some(placement) = publish.world.placement(name) {
                    self.store.truth.check_committed(placement, revision.0, "a reader")?;
                }
            }
        }
        for (call, answer) in replies {
            self.replies(call, answer)?;
        }
        for (node, desired) in desired {
            self.store.truth.check_desired(&node, &desired)?;
            let conn =
                self.in_process(number).and_then(|(process, _, _)| process.seen.get(&node)).map(|(_, conn, _)| *conn);
            if let Some(conn) = conn {
                self.controller_sends(conn, ToAgent::Desired(desired));
            }
        }
        Ok(())
    }

    /// Half of all times.
    pub(super) fn rng_half(&mut self) -> bool {
        self.rng.random()
    }
}

#[cfg(test)]
mod tests;
