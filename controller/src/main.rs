//! The controller's process: settings in, a running controller, and its end.

use anyhow::Context as _;
use berth_controller::app;
use berth_controller::config::Settings;
use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    let settings = Settings::load()?;
    if settings.check_only {
        return Ok(ExitCode::SUCCESS);
    }
    let _log = berth_telemetry::init(&settings.log)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(run(settings))
}

async fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let mut running = app::start(settings.controller).await?;
    tokio::select! {
        error = running.failed() => {
            tracing::error!("{error:#}");
            running.stop().await;
            Ok(ExitCode::FAILURE)
        }
        () = asked_to_stop() => {
            tracing::info!("stopping");
            running.stop().await;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Interrupt, or what supervisors send.
async fn asked_to_stop() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    // Without a handler the system's own way of ending processes is left.
    if interrupt.await.is_err() {
        std::future::pending::<()>().await;
    }
}
