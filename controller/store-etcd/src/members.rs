//! The members of the etcd cluster: which one is asked, for how long, and who is asked next.
//!
//! Owns the connections. All calls go to one member until it fails, so that nothing depends on luck. Must never send a
//! write a second time, unless it is certain that the first was never received.

use crate::options::{ConnectError, Options};
use crate::trouble::Trouble;
use etcd_client::{Client, ConnectOptions, Error};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// A question is asked at least this often, so that a connection which died unnoticed is not the last word.
const ASKED: usize = 2;

pub(crate) struct Members {
    members: Vec<Member>,
    /// Which of them is asked; grows, so that two who saw the same failure move on once.
    current: AtomicUsize,
    options: ConnectOptions,
    deadline: Duration,
}

struct Member {
    url: String,
    /// Connects on its first call, and by itself again whenever the connection is lost.
    client: OnceCell<Client>,
}

impl fmt::Debug for Members {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| &member.url)).finish()
    }
}

impl Members {
    pub(crate) fn new(options: &Options) -> Result<Self, ConnectError> {
        let members = options.urls()?.into_iter().map(|url| Member { url, client: OnceCell::new() }).collect();
        Ok(Self { members, current: AtomicUsize::new(0), options: options.client()?, deadline: options.deadline })
    }

    /// Asks a question, which may be asked again: of the next member, when one does not answer.
    pub(crate) async fn ask<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.ask_within(self.deadline, call).await
    }

    /// The same with another deadline for all attempts together.
    pub(crate) async fn ask_within<T, F>(&self, deadline: Duration, call: impl Fn(Client) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let attempts = self.members.len().max(ASKED);
        let end = Instant::now() + deadline;
        let mut last = Trouble::NotDone(format!("no answer within {} ms", deadline.as_millis()));
        for attempt in 0..attempts {
            let left = end.saturating_duration_since(Instant::now());
            // Each gets its share of the time; what one did not use is there for the others.
            let share = left / u32::try_from(attempts - attempt).unwrap_or(1);
            match self.attempt(share, &call).await {
                Err(trouble) if trouble.ask_again() => last = trouble,
                settled => return settled,
            }
        }
        Err(last)
    }

    /// Has something done, at most once.
    pub(crate) async fn tell<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let end = Instant::now() + self.deadline;
        let mut last = Trouble::NotDone("no member could be asked".to_owned());
        for _ in 0..self.members.len() {
            match self.attempt(end.saturating_duration_since(Instant::now()), &call).await {
                Err(Trouble::NotDone(text)) => last = Trouble::NotDone(text),
                settled => return settled,
            }
        }
        Err(last)
    }

    async fn attempt<T, F>(&self, limit: Duration, call: impl Fn(Client) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let turn = self.current.load(Ordering::Relaxed);
        let Some(member) = self.members.get(turn % self.members.len().max(1)) else {
            return Err(Trouble::NotDone("no endpoint is known".to_owned()));
        };
        let work = async {
            let connect = || Client::connect([&member.url], Some(self.options.clone()));
            // Nothing of ours is sent before there is a client, which at most logs in.
            let client = member.client.get_or_try_init(connect).await.map_err(|error| Trouble::of(&error).unsent())?;
            let done = match call(client.clone()).await {
                // A token of this kind tells of which state of etcd's users it is. Refused before anything was done.
                Err(error) if Trouble::is_old_token(&error) => match client.refresh_token().await {
                    Ok(()) => call(client.clone()).await,
                    Err(_) => Err(error),
                },
                done => done,
            };
            done.map_err(|error| Trouble::of(&error))
        };
        let outcome = match tokio::time::timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Trouble::Unsure(format!("{} did not answer within {} ms", member.url, limit.as_millis()))),
        };
        outcome.map_err(|trouble| {
            if trouble.ask_again() {
                // Lost when another caller has moved on already, which is as good.
                let _ = self.current.compare_exchange(turn, turn + 1, Ordering::Relaxed, Ordering::Relaxed);
            }
            trouble.at(&member.url)
        })
    }
}
