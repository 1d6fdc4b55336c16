//! The store: the shipped in-memory one, reached over a way on which everything can go wrong.

use super::controller::ForReplica;
use super::trouble::Kind;
use super::truth::Truth;
use super::{Broken, Event, Sim};
use berth_model::Timestamp;
use berth_store::memory::Memory;
use berth_store::{CommitError, Precondition, Store as _, Transaction};
use futures::FutureExt as _;
use rand::RngExt;
use std::time::Duration;

/// How long a leader waits for an answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Who holds the lead, and until when without a sign of life.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) replica: usize,
    pub(super) life: u32,
    pub(super) term: u64,
    pub(super) until: Timestamp,
}

pub(super) struct SimStore {
    pub(super) memory: Memory,
    /// The latest term.
    pub(super) term: u64,
    pub(super) lease: Option<Lease>,
    /// It answers nobody until then.
    pub(super) down_until: Timestamp,
    /// It takes no writes until then.
    pub(super) full_until: Timestamp,
    /// What is in it, read along revision by revision.
    pub(super) truth: Truth,
    /// The last transaction that landed, by its place in the order of sending.
    landed: (u64, u64),
}

impl Default for SimStore {
    fn default() -> Self {
        Self {
            memory: Memory::new(),
            term: 0,
            lease: None,
            down_until: Timestamp::default(),
            full_until: Timestamp::default(),
            truth: Truth::default(),
            landed: (0, 0),
        }
    }
}

/// What goes wrong with a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    /// Nothing.
    None,
    /// It is refused for no reason of its own.
    ErrorBefore,
    /// It is refused as if somebody else had written before.
    Contradicted,
    /// It lands, and nobody hears of it.
    AnswerLost,
    /// It lands when its sender has given it up.
    LandsLate,
}

/// A transaction on its way.
#[derive(Debug)]
pub(super) struct Flight {
    replica: usize,
    life: u32,
    epoch: u64,
    /// Of its sender.
    term: u64,
    id: u64,
    transaction: Transaction,
    mishap: Mishap,
    /// Its sender waits no longer than that.
    deadline: Timestamp,
}

impl Sim {
    pub(super) fn send_transaction(
        &mut self,
        replica: usize,
        life: u32,
        epoch: u64,
        term: u64,
        id: u64,
        transaction: Transaction,
    ) {
        let roll = if self.troubled(Kind::Store) { self.rng.random_range(0..100) } else { 100 };
        let (mishap, travel) = match roll {
            0 => (Mishap::ErrorBefore, self.up_to(30)),
            // Late, so that others wait behind it.
            1 => (Mishap::Contradicted, self.up_to(4_500)),
            2..4 => (Mishap::AnswerLost, self.up_to(30)),
            4..6 => (Mishap::LandsLate, DEADLINE + self.up_to(15_000)),
            6..12 => {
                self.counts.add("store: slow");
                (Mishap::None, self.up_to(4_500))
            }
            _ => (Mishap::None, self.up_to(25)),
        };
        let deadline = self.now.after(DEADLINE);
        if mishap == Mishap::LandsLate {
            let error = CommitError::Unknown("no answer in time".to_owned());
            let what = ForReplica::Answered { epoch, id, result: Err(error) };
            self.agenda.add(deadline, Event::Replica { replica, life, what });
        }
        let flight = Flight { replica, life, epoch, term, id, transaction, mishap, deadline };
        self.agenda.add(self.now.after(travel), Event::StoreActs { flight: Box::new(flight) });
    }

    pub(super) fn store_acts(&mut self, flight: Flight) -> Result<(), Broken> {
        let Flight { replica, life, epoch, term, id, transaction, mishap, deadline } = flight;
        let away = self.store.down_until > self.now
            || self.replicas.get(replica).is_some_and(|replica| replica.store_cut > self.now);
        let unknown = || CommitError::Unknown("the answer was lost".to_owned());
        let (result, at) = if away && mishap != Mishap::LandsLate {
            // Refused at the door, or never heard of again.
            if self.rng_half() {
                (Err(CommitError::Unavailable("not reached".to_owned())), self.now.after(self.up_to(25)))
            } else {
                (Err(unknown()), deadline)
            }
        } else if self.store.full_until > self.now && mishap != Mishap::LandsLate {
            (Err(CommitError::Full("no room".to_owned())), self.now.after(self.up_to(25)))
        } else if mishap == Mishap::Contradicted {
            self.counts.add("store: contradicts");
            let key = transaction.preconditions.first().map(|first| first.key().to_owned()).unwrap_or_default();
            (Err(CommitError::Precondition { key }), self.now.after(self.up_to(25)))
        } else if mishap == Mishap::ErrorBefore {
            self.counts.add("store: error before the commit");
            (Err(CommitError::Unavailable("by chance".to_owned())), self.now.after(self.up_to(25)))
        } else {
            let landed = self.commit(term, epoch, id, transaction, mishap)?;
            match mishap {
                Mishap::None => (landed, self.now.after(self.up_to(25))),
                Mishap::AnswerLost => (Err(unknown()), deadline),
                Mishap::LandsLate | Mishap::ErrorBefore | Mishap::Contradicted => return Ok(()),
            }
        };
        let what = ForReplica::Answered { epoch, id, result };
        self.agenda.add(at.max(self.now), Event::Replica { replica, life, what });
        Ok(())
    }

    fn commit(
        &mut self,
        term: u64,
        epoch: u64,
        id: u64,
        transaction: Transaction,
        mishap: Mishap,
    ) -> Result<Result<berth_store::Revision, CommitError>, Broken> {
        rests(&transaction)?;
        let writes = transaction.writes.clone();
        let done = self.store.memory.commit(transaction).now_or_never();
        let Some(done) = done else { return Err(Broken("the store in memory waited".to_owned())) };
        match &done {
            Ok(revision) => {
                // Not the fence's word for it: whoever is not the latest leader must not have written.
                if term != self.store.term {
                    let latest = self.store.term;
                    return Err(Broken(format!("term {term} wrote revision {revision} in term {latest}")));
                }
                if self.store.landed.0 == epoch && self.store.landed.1 > id {
                    self.counts.add("store: transactions land in another order");
                }
                self.store.landed = (epoch, id);
                self.counts.add("transactions");
                match mishap {
                    Mishap::AnswerLost => self.counts.add("store: answer lost, transaction committed"),
                    Mishap::LandsLate => self.counts.add("store: transaction lands after it was given up"),
                    Mishap::None | Mishap::ErrorBefore | Mishap::Contradicted => {}
                }
                let lines = self.store.truth.committed(*revision, &writes)?;
                for what in self.store.truth.take_notes() {
                    self.counts.add(what);
                }
                for placement in self.store.truth.take_ended() {
                    self.check_ended(&placement)?;
                }
                for line in lines {
                    self.say(format_args!("rev {revision}"), || line);
                }
            }
            Err(CommitError::Fenced) => {
                self.counts.add("store: fenced");
                if mishap == Mishap::LandsLate {
                    self.counts.add("store: transaction lands after it was given up");
                }
                self.say("store", || format!("FENCES a transaction of term {term}"));
            }
            Err(error) => {
                let error = error.to_string();
                self.say("store", || format!("refuses a transaction of term {term}: {error}"));
            }
        }
        Ok(done)
    }
}

/// Every transaction carries its leader's fence, and of each record that it writes what it rests on.
fn rests(transaction: &Transaction) -> Result<(), Broken> {
    let Transaction { fence, preconditions, writes } = transaction;
    if fence.is_none() {
        return Err(Broken("a transaction has no fence".to_owned()));
    }
    let rests_on = |key: &str| {
        preconditions.iter().any(|precondition| match precondition {
            Precondition::Version { key: on, .. } | Precondition::Value { key: on, .. } => on == key,
        })
    };
    match writes.iter().find(|write| !rests_on(write.key())) {
        Some(write) => Err(Broken(format!("{} is written whatever it has become", write.key()))),
        None => Ok(()),
    }
}
