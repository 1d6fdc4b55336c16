//! What callers were told, in the order in which they were told: the measure of what Berth owes them.

use berth_proto::v1::{Phase, Placement};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A method that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Asks for a placement.
    Create,
    /// Says that its VM is there.
    Commit,
    /// Gives it back.
    Release,
}

/// An answer that says that something is so, durably.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    /// When the call was made for the first time.
    pub asked: Instant,
    /// When the answer came.
    pub told: Instant,
    /// What was asked for.
    pub method: Method,
    /// The answer.
    pub placement: Placement,
    /// The revision that the answer is part of.
    pub revision: u64,
}

impl Acknowledged {
    /// The placement's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.placement.request.as_ref().map_or("", |request| request.name.as_str())
    }

    /// Whether it says that somebody has GPUs now.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        self.method == Method::Create && self.placement.assignment.is_some() && self.placement.phase() != Phase::Failed
    }
}

/// A call that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What was asked for.
    pub method: Method,
    /// Of which placement.
    pub name: String,
    /// The stable name of the reason.
    pub reason: String,
    /// The sentence.
    pub text: String,
}

/// Everything of one run.
#[derive(Debug, Default)]
pub struct Journal {
    inner: Mutex<Told>,
}

/// What was told.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Calls that were made.
    pub calls: u64,
    /// Calls whose answer has not come yet.
    pub open: u64,
    /// In the order of the answers.
    pub acknowledged: Vec<Acknowledged>,
    /// In the order of the answers.
    pub refused: Vec<Refused>,
    /// Attempts that came to no answer, by gRPC code and text: their callers asked again.
    pub silences: BTreeMap<(String, String), u64>,
    /// What a caller found wrong by itself.
    pub wrong: Vec<String>,
}

impl Journal {
    fn with<T>(&self, work: impl FnOnce(&mut Told) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A call begins.
    pub fn asked(&self) {
        self.with(|told| {
            told.calls += 1;
            told.open += 1;
        });
    }

    /// A call ended well.
    pub fn acknowledged(&self, answer: Acknowledged) {
        self.with(|told| {
            told.open -= 1;
            told.acknowledged.push(answer);
        });
    }

    /// A call was refused.
    pub fn refused(&self, refused: Refused) {
        self.with(|told| {
            told.open -= 1;
            told.refused.push(refused);
        });
    }

    /// An attempt came to no answer.
    pub fn silence(&self, code: tonic::Code, text: &str) {
        self.with(|told| *told.silences.entry((format!("{code:?}"), text.to_owned())).or_default() += 1);
    }

    /// A caller found something wrong.
    pub fn wrong(&self, what: String) {
        self.with(|told| told.wrong.push(what));
    }

    /// Everything so far.
    #[must_use]
    pub fn told(&self) -> Told {
        self.with(|told| told.clone())
    }

    /// How many answers there are, and how many calls wait for theirs.
    #[must_use]
    pub fn counts(&self) -> (usize, u64) {
        self.with(|told| (told.acknowledged.len(), told.open))
    }

    /// The first answer after `from` that gave somebody GPUs at a revision above this one.
    #[must_use]
    pub fn placed_after(&self, from: Instant, revision: u64) -> Option<Acknowledged> {
        self.with(|told| {
            let found =
                |answer: &&Acknowledged| answer.told >= from && answer.revision > revision && answer.is_placed();
            told.acknowledged.iter().find(found).cloned()
        })
    }
}
