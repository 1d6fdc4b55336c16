//! The agent as a Windows service: put into the list of services, taken out, and run by it.
//!
//! Owns what the service is called and how it is registered. Must never run an agent otherwise than `process` does: a
//! service only starts it, tells the system how it stands, and stops it.

mod registration;

#[cfg(windows)]
mod event_log;
#[cfg(windows)]
mod manage;
#[cfg(windows)]
mod run;

pub use registration::{Account, InvalidAccount};

use clap::Subcommand;
use std::path::PathBuf;

/// What can be done with the service.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Verb {
    /// Put the agent into the list of services: started with the system, and again after a failure.
    Install {
        /// Configuration file (TOML) that the service reads at each start.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Account it runs as: LocalSystem, or a group managed service account as DOMAIN\NAME$.
        #[arg(long, value_name = "ACCOUNT", default_value = "LocalSystem")]
        account: Account,
    },
    /// Stop the service and take it out of the list. Configuration and data stay.
    Uninstall,
    /// What the list of services starts; of no use by hand.
    Run {
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Does what the command line says about the service.
///
/// # Errors
/// Why not, and what to do.
#[cfg(windows)]
pub fn call(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Install { config, account } => manage::install(&config, account),
        Verb::Uninstall => manage::uninstall(),
        Verb::Run { config } => run::run(config),
    }
}

/// Says who does this where there are no services of Windows.
///
/// # Errors
/// Always.
#[cfg(not(windows))]
pub fn call(_verb: Verb) -> anyhow::Result<()> {
    anyhow::bail!(
        "`berth-agent service` is for Windows. On this system systemd starts, restarts and stops the agent: write a unit \
         with ExecStart=berth-agent --config FILE and Restart=always"
    )
}
