//! One agent: puts ledger, session and reconcile loop together, and ends as a whole.
//!
//! The only file that knows all of them. Must never let a part be lost unnoticed.

use crate::config::Config;
use crate::driver::HostDriver;
use crate::ledger;
use crate::link::Orders;
use crate::metrics::Figures;
use crate::reconcile::Reconcile;
use crate::session::Session;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings name no controller.
    #[error("no controller is configured (controllers)")]
    NoController,
    /// Its ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
}

/// An agent at work: two tasks. Dropping it ends them at once, as a crash would.
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    ledger: ledger::Handle,
    tasks: JoinSet<&'static str>,
}

/// Starts an agent for the host behind `driver`. It works on the desired state its ledger holds, and looks for a
/// controller, for as long as it runs: neither controller nor host need be there.
///
/// # Errors
/// [`StartError`] when its data directory is in use, damaged or cannot be used.
pub async fn start(config: Config, driver: Arc<dyn HostDriver>) -> Result<Running, StartError> {
    if config.controllers.is_empty() {
        return Err(StartError::NoController);
    }
    let ledger = ledger::Handle::open(&config.data_dir).await?;
    let desired = ledger.ledger().desired.map(Arc::new);
    let (orders, orders_seen) = watch::channel(Orders { desired, ..Orders::default() });
    let (host, host_seen) = watch::channel(None);
    let (pace, limits) = (config.pace.clone(), config.limits.clone());
    let figures = Figures::default();
    figures.holds(ledger.ledger().placements());
    figures.register();
    let sees = figures.clone();
    let reconcile =
        Reconcile::new(config.node.clone(), driver, ledger.clone(), (pace, limits), orders_seen, host, sees);
    let session = Session::new(config, ledger.clone(), orders, host_seen, figures);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let (stop_session, stop_reconcile) = (stop.clone(), stop.clone());
    tasks.spawn(async move {
        session.run(stop_session).await;
        "session"
    });
    tasks.spawn(async move {
        reconcile.run(stop_reconcile).await;
        "reconcile loop"
    });
    Ok(Running { stop, ledger, tasks })
}

impl Running {
    /// How many placements its ledger holds.
    pub fn holds(&self) -> u32 {
        self.ledger.ledger().placements()
    }

    /// Ends the agent. A step under way is left where it is; the next start looks and goes on. The data directory is free
    /// when this returns.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the agent was lost while it stopped");
            }
        }
        self.ledger.close().await;
    }

    /// Waits until a part of the agent is lost, which must not happen: end the process, so that it is started again.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(part)) => anyhow::anyhow!("the agent's {part} ended by itself"),
            Some(Err(error)) => anyhow::Error::new(error).context("a part of the agent was lost"),
            None => anyhow::anyhow!("the agent has ended already"),
        }
    }
}

#[cfg(test)]
mod tests;
