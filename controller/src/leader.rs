//! The one who decides: campaigns, loads the world, and takes one input after the other through the brain.
//!
//! Owns the [`berth_core::decide::Brain`]. Must never answer anybody, or send an agent anything, that rests on what is
//! not committed yet: what a batch of inputs came to waits, in order, behind every commit before it.
//!
//! When a commit fails, what it wrote and what rests on it is taken back, and only that: who waits for it is told, and
//! what is stored takes its place. When even reading back does not tell whether a commit landed, nothing speculative
//! survives: a new leadership is won (so that a lost commit that is still under way somewhere cannot land any more) and the
//! world is loaded anew.

pub mod desk;
pub mod load;
mod note;
mod run;

pub use run::{ATTEMPTS, CAMPAIGN, Ended, LoadFailure};
pub(crate) use run::{Options, Outbox, Service};

use crate::audit::Asked;
use crate::metrics::INSTRUMENTS;
use berth_core::decide::Input;
use berth_model::placement::Placement;
use berth_model::reason::{ErrorClass, Refusal};
use berth_telemetry::metrics::fleet;
use berth_telemetry::traces::{Link, Span};
use berth_telemetry::{KeyValue, names};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Inputs that wait for a decision. A whole large fleet may report at once; each waits in here or at its own stream.
pub(crate) const QUEUE: usize = 4_096;

/// How far above its own a leader believes an agent's term. Terms grow by one with each leadership: a million of them is a
/// controller that starts anew every minute for two years. A higher one is damage, and following it would soon reach the
/// end of numbers.
pub(crate) const MAX_TERM_LEAP: u64 = 1_000_000;

/// How long a call waits for a place in the queue before it is told to come back later: shorter than any client's own
/// deadline, longer than a hiccup of the disk.
const ADMISSION: Duration = Duration::from_secs(2);

/// What a call came to, once it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The placement the call was about.
    pub placement: Option<Arc<Placement>>,
    /// The store revision that it is part of.
    pub revision: u64,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was decided: no. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too many calls wait already. Nothing was changed; try again more slowly.
    #[error("too many calls are waiting for a decision; try again later")]
    Overloaded,
    /// Nobody can decide now. Nothing was changed; a retry helps.
    #[error("no decision can be made now: {0}")]
    Unavailable(String),
    /// It may or may not have happened: read back, or repeat the very same call.
    #[error("it is not known whether this happened: {0}")]
    Unknown(String),
}

impl CallError {
    /// Its class.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Refused(refusal) => refusal.class(),
            Self::Overloaded => ErrorClass::Overloaded,
            Self::Unavailable(_) => ErrorClass::Unavailable,
            Self::Unknown(_) => ErrorClass::Unknown,
        }
    }
}

/// An answer to a call.
pub type Answer = Result<Decided, CallError>;

/// Tells one session from all others of this process; a later one has a higher number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Whose input it is.
#[derive(Debug)]
pub(crate) enum From {
    /// A caller waits for the answer.
    Caller(Waiter),
    /// An agent said so in this session. Nobody waits: what follows for the agent is in its desired state.
    Agent(SessionId),
}

/// Somebody who waits for an answer.
#[derive(Debug)]
pub(crate) struct Waiter {
    to: oneshot::Sender<Answer>,
    /// The trace of the call.
    link: Link,
    /// The part of the trace from the decision to its being durable.
    commit: Span,
    /// When it was decided.
    decided: Option<Instant>,
    /// What is asked for, for the audit.
    asked: Option<Asked>,
}

impl Waiter {
    fn new(to: oneshot::Sender<Answer>, link: Link, asked: Option<Asked>) -> Self {
        Self { to, link, commit: Span::none(), decided: None, asked }
    }

    /// Whether nobody waits any more.
    fn is_gone(&self) -> bool {
        self.to.is_closed()
    }

    /// From here on it is decided, and not yet durable.
    fn is_decided(&mut self) {
        self.commit = self.link.child(names::TRACE_COMMIT);
        self.decided = Some(Instant::now());
    }

    /// Answers.
    pub(crate) fn tell(self, answer: Answer) {
        let Self { to, link: _, commit, decided, asked: _ } = self;
        match &answer {
            Ok(decided_at) => {
                if let Some(since) = decided {
                    INSTRUMENTS.commit_duration.record(since.elapsed().as_secs_f64(), &[]);
                }
                commit.set(names::REVISION, i64::try_from(decided_at.revision).unwrap_or(i64::MAX));
            }
            Err(CallError::Refused(refusal)) => {
                INSTRUMENTS.refusals.add(1, &[KeyValue::new(fleet::REASON, refusal.name())]);
                commit.set(names::OUTCOME, refusal.name());
            }
            Err(error) => commit.fail(error.class().name(), &error.to_string()),
        }
        drop(commit);
        // A caller that hung up reads it back, or asks again with the same request id.
        let _hung_up = to.send(answer);
    }
}

/// One thing for the leader to decide.
#[derive(Debug)]
pub(crate) struct Call {
    /// What happened.
    pub(crate) input: Input,
    /// Whose input it is.
    pub(crate) from: From,
}

/// The leader has gone: the process is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the controller is stopping")]
pub(crate) struct Gone;

/// Where callers hand in what is to be decided. Cheap to clone; the queue behind it is bounded.
#[derive(Clone, Debug)]
pub struct Leader {
    calls: mpsc::Sender<Call>,
}

impl Leader {
    /// A handle, and the queue that it fills.
    pub(crate) fn channel(capacity: usize) -> (Self, mpsc::Receiver<Call>) {
        let (calls, queue) = mpsc::channel(capacity);
        (Self { calls }, queue)
    }

    /// Has an input decided and waits until what was decided is durable.
    ///
    /// # Errors
    /// [`CallError`]; only [`CallError::Unknown`] leaves open whether something was changed.
    pub async fn submit(&self, input: Input) -> Result<Decided, CallError> {
        self.submit_in(input, Link::none(), "unknown").await
    }

    /// The same for a caller, within the trace of its call.
    ///
    /// # Errors
    /// As for [`Leader::submit`].
    pub(crate) async fn submit_in(&self, input: Input, link: Link, caller: &str) -> Result<Decided, CallError> {
        let asked = Asked::by(caller, &input);
        let (reply, answer) = oneshot::channel();
        let place = match tokio::time::timeout(ADMISSION, self.calls.reserve()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(CallError::Unavailable("the controller is stopping".to_owned())),
            Err(_) => return Err(CallError::Overloaded),
        };
        place.send(Call { input, from: From::Caller(Waiter::new(reply, link, asked)) });
        // Bounded by the leader: every commit has a deadline, and so has every reload.
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Unknown("the controller stopped before it answered".to_owned())),
        }
    }

    /// Hands in what an agent said. Waits for a place in the queue as long as it takes: the agent waits, too.
    pub(crate) async fn feed(&self, session: SessionId, input: Input) -> Result<(), Gone> {
        self.calls.send(Call { input, from: From::Agent(session) }).await.map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests;
