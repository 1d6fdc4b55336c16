//! Where this controller stands: whether it leads, and else who does.
//!
//! Owns how a controller names itself in the leader record, and the one place where everyone looks whether it leads.
//! Written by [`crate::member`] alone. Must never be what a write rests on: that is the fence.

use std::fmt;
use std::str::FromStr;
use tokio::sync::watch;

/// A controller as the leader record names it: where others reach it, and which process it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where agents and other controllers reach it, as a URL.
    pub endpoint: String,
    /// Drawn at its start: two processes that follow one another at one address are two.
    pub instance: String,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.endpoint, self.instance)
    }
}

/// A text that names no controller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form ENDPOINT INSTANCE")]
pub struct NoCandidate(String);

impl FromStr for Candidate {
    type Err = NoCandidate;
    fn from_str(text: &str) -> Result<Self, NoCandidate> {
        let (endpoint, instance) = text.split_once(' ').ok_or_else(|| NoCandidate(text.to_owned()))?;
        Ok(Self { endpoint: endpoint.to_owned(), instance: instance.to_owned() })
    }
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Where it is reached.
    pub endpoint: String,
    /// Its term.
    pub term: u64,
}

/// Where a controller stands at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether it leads itself, its world loaded.
    pub leads: bool,
    /// Who leads, as far as is known; itself when it leads.
    pub leader: Option<Known>,
    /// Of a follower that hears the leader: the revision the leader last told of.
    pub told: Option<u64>,
}

/// Where everyone looks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Board {
    now: watch::Receiver<Standing>,
}

impl Board {
    /// A board, and the only one who writes on it.
    pub fn new(first: Standing) -> (Self, watch::Sender<Standing>) {
        let (sender, now) = watch::channel(first);
        (Self { now }, sender)
    }

    /// How it stands now.
    pub fn now(&self) -> Standing {
        self.now.borrow().clone()
    }

    /// Whether this controller leads now.
    pub fn leads(&self) -> bool {
        self.now.borrow().leads
    }

    /// Waits until a leader is heard of that is alive; for ever when this controller ends before.
    pub(crate) async fn wait_to_hear(&mut self) {
        let heard = self.now.wait_for(|standing| standing.leads || standing.told.is_some()).await.is_ok();
        if !heard {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until this controller leads; `false` when it never will, because it ends.
    pub(crate) async fn wait_to_lead(&mut self) -> bool {
        self.now.wait_for(|standing| standing.leads).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_read_back_as_it_was_written() {
        let candidate = Candidate { endpoint: "http://c1.example:7600".into(), instance: "4711".into() };
        assert_eq!(candidate.to_string().parse(), Ok(candidate));
        assert!("http://c1.example:7600".parse::<Candidate>().is_err());
    }
}
