//! A simulated host behind the driver port, for trying Berth out and for its tests.
//!
//! [`Host`] behaves like Hyper-V with device assignment, bad habits included; [`Faults`] make it worse. This file only
//! adds time: every look and step takes as long as configured, and what hangs ends by the deadline.

mod faults;
mod host;
mod kept;
mod spec;

pub use faults::{Faults, LookFault, Rates, StepFault};
pub use host::{Card, Host, NotDone, NotRestored, Outcome, Saved, VmSummary};
pub use kept::{Error as KeptError, KeptHost};
pub use spec::{GpuSpec, HostSpec, VmSpec, default_settings};

use super::{DriverError, HostDriver};
use async_trait::async_trait;
use berth_agent_core::observed::HostView;
use berth_agent_core::step::Step;
use berth_model::node::HostFacts;
use berth_model::placement::StepKind;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long things take on a simulated host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delays {
    /// A look.
    pub look: Duration,
    /// A step that `steps` does not name.
    pub step: Duration,
    /// Steps that take longer, or less.
    pub steps: BTreeMap<StepKind, Duration>,
    /// When a step that does not end counts as timed out.
    pub deadline: Duration,
}

impl Default for Delays {
    /// No delays, and hangs that end after five seconds.
    fn default() -> Self {
        Self { look: Duration::ZERO, step: Duration::ZERO, steps: BTreeMap::new(), deadline: Duration::from_secs(5) }
    }
}

impl Delays {
    fn of(&self, step: StepKind) -> Duration {
        self.steps.get(&step).copied().unwrap_or(self.step)
    }

    /// Comes to the end of what was done; what hangs ends by the deadline.
    async fn end<T>(&self, outcome: Outcome<T>) -> Result<T, DriverError> {
        match outcome {
            Outcome::Ended(result) => result,
            Outcome::Hangs => {
                tokio::time::sleep(self.deadline).await;
                let limit_ms = u64::try_from(self.deadline.as_millis()).unwrap_or(u64::MAX);
                Err(DriverError::TimedOut { limit_ms })
            }
        }
    }
}

/// The driver of a simulated host. Clones share the host.
#[derive(Clone, Debug)]
pub struct SimDriver {
    host: Arc<Mutex<Host>>,
    delays: Delays,
}

impl SimDriver {
    /// A driver over a host that others may hold as well, to do by hand what people do.
    pub fn new(host: Arc<Mutex<Host>>, delays: Delays) -> Self {
        Self { host, delays }
    }

    /// The host itself.
    pub fn host(&self) -> &Arc<Mutex<Host>> {
        &self.host
    }

    /// Runs `work` on the host. A panic elsewhere leaves the host as it was: no operation is left half done by one.
    fn with<T>(&self, work: impl FnOnce(&mut Host) -> T) -> T {
        work(&mut self.host.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A zero sleep still costs a turn of the timer; thousands of hosts in one process notice.
async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

#[async_trait]
impl HostDriver for SimDriver {
    async fn facts(&self) -> Result<HostFacts, DriverError> {
        Ok(self.with(|host| host.facts().clone()))
    }

    async fn observe(&self) -> Result<HostView, DriverError> {
        pause(self.delays.look).await;
        let outcome = self.with(Host::observe);
        self.delays.end(outcome).await
    }

    async fn act(&self, step: &Step) -> Result<(), DriverError> {
        pause(self.delays.of(step.kind())).await;
        let outcome = self.with(|host| host.act(step));
        self.delays.end(outcome).await
    }
}

#[cfg(test)]
mod tests;
