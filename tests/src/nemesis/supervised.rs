//! One process that is killed, paused, asked to end and started again, by whoever plays its machine and its supervisor.

use crate::process::{Paused, Process};
use anyhow::{Context as _, ensure};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// How long a process may take to end once it was asked to: controllers give themselves 15 s.
pub const STOPPING: Duration = Duration::from_secs(60);

/// A process, or the place of one.
#[derive(Debug)]
pub struct Supervised {
    who: String,
    process: Option<Process>,
    paused: Option<Paused>,
    /// It was asked to end, and is to be started again by whoever asked.
    stopping: bool,
}

impl Supervised {
    /// A place without a process.
    #[must_use]
    pub fn new(who: String) -> Self {
        Self { who, process: None, paused: None, stopping: false }
    }

    /// What it is called.
    #[must_use]
    pub fn who(&self) -> &str {
        &self.who
    }

    /// It was started.
    pub fn started(&mut self, process: Process) {
        (self.process, self.stopping) = (Some(process), false);
    }

    fn running(&mut self) -> anyhow::Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} does not run", self.who))
    }

    /// Ends it as a crash would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.running()?;
        if let Some(process) = self.process.take() {
            process.kill()?;
        }
        // In the other order a paused process would get a moment to act.
        self.paused = None;
        Ok(())
    }

    /// Stops it in its tracks, until [`Supervised::wake`].
    ///
    /// # Errors
    /// When it does not run, or ends just then.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.paused = Some(self.running()?.pause()?);
        Ok(())
    }

    /// It goes on if it was paused.
    pub fn wake(&mut self) {
        self.paused = None;
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.running()?.terminate()?;
        self.stopping = true;
        Ok(())
    }

    /// Waits until it has ended as it was asked to, and gives how long that took.
    ///
    /// # Errors
    /// When it does not end in time, or not well.
    pub fn stopped(&mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let status = self.ends(STOPPING)?;
        ensure!(status.success(), "{} was asked to end and ended with {status}", self.who);
        Ok(begun.elapsed())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it goes on.
    pub fn ends(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let status = self.running()?.ended_within(limit)?;
        let status = status.with_context(|| format!("{} goes on after {} s", self.who, limit.as_secs()))?;
        self.process = None;
        Ok(status)
    }

    /// Whether it runs, is not paused, and was not asked to end.
    pub fn runs(&mut self) -> bool {
        let goes_on = |process: &mut Process| matches!(process.ended_within(Duration::ZERO), Ok(None));
        self.paused.is_none() && !self.stopping && self.process.as_mut().is_some_and(goes_on)
    }

    /// How it ended, if it has without being asked to; it is then no more.
    ///
    /// # Errors
    /// When its state cannot be asked for.
    pub fn ended_by_itself(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let Some(process) = self.process.as_mut().filter(|_| !self.stopping) else { return Ok(None) };
        let status = process.ended_within(Duration::ZERO)?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }
}
