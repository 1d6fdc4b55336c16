//! The port to a host: look, and take one step. Implementations: `hyperv` and `sim`; VFIO follows.

pub mod guest;
pub mod hyperv;
pub mod sim;

use async_trait::async_trait;
use berth_agent_core::observed::HostView;
use berth_agent_core::step::Step;
use berth_model::CommandName;
use berth_model::VmId;
use berth_model::install::Install;
use berth_model::node::HostFacts;
use berth_model::placement::{StepError, StepErrorClass};

/// What went wrong on the host. Its effect is never concluded from the error: the host is looked at again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The host refused or failed it.
    #[error("{0}")]
    Failed(String),
    /// It did not end in time; it may yet take effect.
    #[error("not done after {limit_ms} ms")]
    TimedOut {
        /// The limit it ran under.
        limit_ms: u64,
    },
    /// What it names is not there.
    #[error("{0}")]
    NotThere(String),
    /// It never can as the host is and is set up; trying again changes nothing.
    #[error("{0}")]
    Forbidden(String),
}

impl From<DriverError> for StepError {
    fn from(error: DriverError) -> Self {
        let class = match &error {
            DriverError::Failed(_) => StepErrorClass::Failed,
            DriverError::TimedOut { .. } => StepErrorClass::TimedOut,
            DriverError::NotThere(_) => StepErrorClass::NotThere,
            DriverError::Forbidden(_) => StepErrorClass::Forbidden,
        };
        Self { class, text: error.to_string() }
    }
}

/// A host that can be looked at and worked on. Every call is bounded by the driver's own deadline.
#[async_trait]
pub trait HostDriver: Send + Sync + 'static {
    /// What the host is. Asked for after each complete look, so a driver has it at hand. A driver that could not find all
    /// of it out says so in the notes rather than fail: an agent without facts cannot speak for its host.
    async fn facts(&self) -> Result<HostFacts, DriverError>;

    /// One complete look. An error means: nothing is known, and nothing may be concluded.
    async fn observe(&self) -> Result<HostView, DriverError>;

    /// Whether this node's policy is to dismount devices by force, overriding safeguards of the host.
    fn forces(&self) -> bool {
        false
    }

    /// Takes one step. `Ok` says that the host reported success, no more.
    async fn act(&self, step: &Step) -> Result<(), DriverError>;

    /// Runs one of the node's driver-install commands in a VM's guest and says how it ended: [`Step::InstallDriver`] is
    /// carried out by this, for what the command said can be had only once. An error other than a timeout means that it
    /// was surely not begun.
    async fn install(&self, vm: &VmId, command: &CommandName) -> Result<Install, DriverError> {
        Err(DriverError::Forbidden(format!(
            "there is no driver-install command {command} for VM {vm}: this node's driver runs none"
        )))
    }
}
