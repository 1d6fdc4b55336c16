//! What a leader does when a commit failed: it takes back as little as it can, and leads anew if it must.

use super::{CommitError, Ended, Lead, LoadFailure, Options, Service, load_for};
use crate::clock::now;
use crate::commit::Loss;
use crate::leader::desk::TakenBack;
use crate::leader::load;
use berth_core::world::World;
use berth_store::{Store, term};
use std::sync::Arc;
use std::time::Duration;

/// Attempts to load the world, one after the other without a single success: 16 seconds of pauses. A store that is away
/// longer is for the process supervisor, and for another replica, to deal with.
pub const ATTEMPTS: u32 = 9;
/// Pause after the first failed attempt; doubles with each.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause after a commit that failed, when the leadership goes on: callers wait for their answer meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Decisions of one leadership that the store may contradict. Somebody else writes, or wrote, and what is read again one
/// by one is not the whole truth: then everything is.
const CONTRADICTIONS: u32 = 3;
/// How long a leader waits to win its leadership anew after a failed commit. If it does not, another one has it.
pub const CAMPAIGN: Duration = Duration::from_secs(5);

impl Service {
    /// Goes on after a commit that failed: what is surely not written is taken back, and only that.
    pub(super) async fn recover(&mut self, why: CommitError) -> Result<(), Ended> {
        let settled = self.settle().await?;
        let loss = settled.max(Some(Loss::of(&why))).unwrap_or(Loss::Leadership);
        if loss == Loss::Own {
            self.lead.contradictions = self.lead.contradictions.saturating_add(1);
        }
        if loss == Loss::Leadership || self.lead.contradictions > CONTRADICTIONS {
            return self.reload(&why).await;
        }
        match &why {
            CommitError::Full(_) if self.trouble.refusing => {}
            CommitError::Full(_) => tracing::error!(error = %why, "no change can be made; what runs goes on"),
            CommitError::Precondition { .. } => {
                tracing::error!(error = %why, "the store holds what this controller did not write; its decision is taken back");
            }
            CommitError::Unavailable(_) | CommitError::Unknown(_) | CommitError::Fenced | CommitError::Illegal(_) => {
                tracing::warn!(error = %why, "a commit failed; what rests on it is taken back");
            }
        }
        self.trouble.refusing |= matches!(why, CommitError::Full(_));
        self.undo(loss, &why).await
    }

    /// Takes back what failed, in this leadership: what is stored takes its place.
    async fn undo(&mut self, loss: Loss, why: &CommitError) -> Result<(), Ended> {
        let undone = self.lead.pipeline.groups.undo(loss);
        self.trouble.failures = self.trouble.failures.saturating_add(1);
        let mut reads = 0;
        let stored = loop {
            reads += 1;
            let reading = async {
                tokio::time::sleep(pause(self.trouble.failures.max(reads)).min(LONGEST_WAIT)).await;
                let reading = load::stored(self.store.as_ref(), self.lead.pipeline.groups.fence(), &undone);
                tokio::time::timeout(self.options.commit_deadline, reading).await
            };
            let read = tokio::select! {
                biased;
                () = &mut self.lead.lost => return Err(Ended::LostLeadership),
                read = reading => read,
            };
            match read {
                Ok(Ok(stored)) => break stored,
                Ok(Err(load::Error::Deposed)) => return Err(Ended::LostLeadership),
                Ok(Err(error)) if !error.retry_helps() => return Err(Ended::Broken(LoadFailure(error))),
                Ok(Err(_)) | Err(_) if reads < ATTEMPTS => {}
                // Nothing of it was told: reading everything puts everything right.
                Ok(Err(_)) | Err(_) => return self.reload(why).await,
            }
        };
        let Lead { desk, pipeline, .. } = &mut self.lead;
        let taken_back = desk.undo(&mut pipeline.groups, now(), &self.sessions, (&undone, stored), why)?;
        let TakenBack { replies, nodes } = taken_back;
        for (to, error) in replies {
            to.tell(Err(error));
        }
        for node in &nodes {
            self.outbox.look_again_at(node);
        }
        self.lead.pipeline.dispatch();
        self.tell();
        Ok(())
    }

    /// Leads anew with a term above one that an agent has obeyed: agents refuse a lower one, and an equal one would be two
    /// leaderships under one number. Fenced like every write, so that a leader whose time is over learns that instead.
    pub(super) async fn rise(&mut self, obeyed: u64) -> Result<(), Ended> {
        let term = self.lead.desk.brain().term();
        tracing::warn!(
            term,
            obeyed,
            "an agent has obeyed a higher term than the store remembers, as after a restore; leading anew above it"
        );
        if let Some(why) = self.commit_all().await? {
            return self.reload(&why).await;
        }
        let raising = term::raise(self.store.as_ref(), self.lead.pipeline.groups.fence(), obeyed);
        let raised = tokio::time::timeout(self.options.commit_deadline, raising).await;
        let raised = raised.unwrap_or_else(|_| Err(CommitError::Unknown("the term was not raised in time".to_owned())));
        match self.settled(raised)? {
            Some(why) => self.reload(&why).await,
            None => self.lead_anew().await,
        }
    }

    async fn reload(&mut self, why: &CommitError) -> Result<(), Ended> {
        tracing::warn!(error = %why, "a commit failed; what was not durable is given up and the world is loaded anew");
        self.settle().await?;
        self.give_up(why);
        self.trouble.attempts = self.trouble.attempts.saturating_add(1);
        if self.trouble.attempts > 1 {
            tokio::time::sleep(pause(self.trouble.attempts - 1)).await;
        }
        if self.trouble.attempts > ATTEMPTS {
            return Err(Ended::Store { attempts: self.trouble.attempts, source: LoadFailure(load_error(why)) });
        }
        self.lead_anew().await
    }

    /// Wins another leadership, loads the world and goes on with the sessions there are.
    async fn lead_anew(&mut self) -> Result<(), Ended> {
        let shown = self.publisher.now();
        self.lead = take_over(&self.store, &self.options, &shown.world, &mut self.trouble.attempts).await?;
        let Lead { desk, pipeline, .. } = &mut self.lead;
        let brain = desk.brain();
        self.publisher.restart(brain.world().clone(), desk.revision().0, brain.term(), now());
        desk.take_sessions(&mut pipeline.groups, now(), &self.sessions)?;
        self.outbox.look_again();
        self.lead.pipeline.dispatch();
        self.tell();
        Ok(())
    }
}

fn load_error(why: &CommitError) -> load::Error {
    load::Error::Store(berth_store::Error::Unavailable(why.to_string()))
}

fn pause(attempt: u32) -> Duration {
    PAUSE.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1))).min(LONGEST_PAUSE)
}

/// Wins a leadership and loads the world, however often it takes within bounds. `attempts` counts on from earlier
/// failures, and stays as it is on success: only a commit proves that the store works again.
pub(super) async fn take_over(
    store: &Arc<dyn Store>,
    options: &Options,
    shown: &World,
    attempts: &mut u32,
) -> Result<Lead, Ended> {
    loop {
        let error = match try_take_over(store, options, shown).await? {
            Ok(lead) => return Ok(lead),
            Err(error) if !error.retry_helps() => return Err(Ended::Broken(LoadFailure(error))),
            Err(error) => error,
        };
        *attempts = attempts.saturating_add(1);
        if *attempts >= ATTEMPTS {
            return Err(Ended::Store { attempts: *attempts, source: LoadFailure(error) });
        }
        tracing::warn!(%error, attempt = *attempts, "the world could not be loaded; trying again");
        tokio::time::sleep(pause(*attempts)).await;
    }
}

async fn try_take_over(
    store: &Arc<dyn Store>,
    options: &Options,
    shown: &World,
) -> Result<Result<Lead, load::Error>, Ended> {
    // A new one voids the fence of the old one, so that whatever is still under way can land no more. Where others wait
    // for their turn, one of them may win instead.
    match tokio::time::timeout(CAMPAIGN, store.campaign(&options.candidate)).await {
        Err(_) => Err(Ended::LostLeadership),
        Ok(Err(error)) => Ok(Err(error.into())),
        Ok(Ok(leadership)) => Ok(load_for(leadership, store, options, shown).await),
    }
}
