//! The process `berth-controller`: one controller, from its settings until a signal or a fault ends it.

use crate::app;
use crate::config::Settings;
use anyhow::Context as _;

/// Runs the controller that this process's flags, environment and file describe, until it is told to stop.
///
/// # Errors
/// Why it does not start, or that it cannot go on: the process must then end, so that another takes over or a supervisor
/// starts it again.
pub async fn run() -> anyhow::Result<()> {
    let settings = Settings::load()?;
    if settings.check_only {
        app::tls(&settings.controller).await?;
        return Ok(());
    }
    let _until_the_end = berth_telemetry::init(&settings.log)?;
    let mut running = app::start(settings.controller).await?;
    let outcome = tokio::select! {
        signal = told_to_stop() => signal.context("cannot wait for signals"),
        error = running.failed() => {
            tracing::error!("this controller cannot go on: {error:#}");
            Err(error)
        }
    };
    tracing::info!("stopping");
    running.stop().await;
    outcome
}

#[cfg(unix)]
async fn told_to_stop() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn told_to_stop() -> std::io::Result<()> {
    tokio::signal::ctrl_c().await
}
