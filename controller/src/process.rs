//! The process `berth-controller`: one controller, from its settings until a signal or a fault ends it; or one of the tasks
//! that fill a store.

use crate::config::{Config, Once, Settings, StoreKind, Task};
use crate::console::Console;
use crate::leader::Ended;
use crate::{app, clock, rebuild, restore};
use anyhow::Context as _;
use berth_store::Store;
use berth_telemetry::{Service, names};
use std::io::{BufReader, stdin, stdout};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Builder;

/// Pause after the first attempt that etcd did not answer; doubles with each.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: an etcd that is back is found soon enough.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Runs the controller that this process's flags, environment and file describe, until it is told to stop.
///
/// # Errors
/// Why it does not start, or that it cannot go on: the process must then end, so that another takes over or a supervisor
/// starts it again.
pub fn run() -> anyhow::Result<()> {
    let settings = Settings::load()?;
    let mut threads = match settings.threads {
        1 => Builder::new_current_thread(),
        several => {
            let mut threads = Builder::new_multi_thread();
            threads.worker_threads(several);
            threads
        }
    };
    threads.enable_all().build().context("the system gives no threads")?.block_on(run_with(settings))
}

async fn run_with(settings: Settings) -> anyhow::Result<()> {
    if settings.check_only {
        app::tls(&settings.controller).await?;
        return Ok(());
    }
    let about = Service {
        name: "berth-controller",
        version: env!("CARGO_PKG_VERSION"),
        instance: uuid::Uuid::new_v4().to_string(),
        node: None,
    };
    let _until_the_end = berth_telemetry::start(&settings.log, &settings.export, about)?;
    let config = settings.controller;
    // What a task that is ended at any point leaves is refused by controllers until it is done again.
    let mut out = stdout();
    let mut console = Console::new(&mut out, BufReader::new(stdin()));
    match settings.task {
        Task::Control => control(config).await,
        Task::Once(Once::Restore(options)) => {
            let store = lasting_store(&config).await?;
            restore::run(store.as_ref(), &config, &options, clock::now(), &mut console).await
        }
        Task::Once(Once::Rebuild(options)) => {
            let store = lasting_store(&config).await?;
            rebuild::run(store.as_ref(), &config, &options, clock::now, &mut console).await
        }
    }
}

async fn lasting_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    anyhow::ensure!(
        config.store != StoreKind::Memory,
        "the store is in memory: nothing of it would be left at the end"
    );
    Ok(app::open_store(config).await?)
}

/// Starts a controller, however long etcd stays away: one that ended instead would have to be started again, and
/// supervisors give up on, or wait minutes for, what ends at once again and again.
async fn start(config: Config) -> Result<app::Running, app::StartError> {
    let mut pause = PAUSE;
    loop {
        match app::start(config.clone()).await {
            Err(app::StartError::Etcd(error)) if error.retry_helps() => {
                tracing::warn!({ names::ERROR } = %error, pause_ms = pause.as_millis(), "waiting for etcd");
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

async fn control(config: Config) -> anyhow::Result<()> {
    // Each agent takes a connection; the usual limit of 1,024 files would end at a thousand nodes.
    #[cfg(unix)]
    if let Err(error) = rlimit::increase_nofile_limit(rlimit::INFINITY) {
        tracing::warn!({ names::ERROR } = %error, "the limit on open files stays as it is");
    }
    // Listened for from here on without a gap.
    let mut told_to_stop = std::pin::pin!(told_to_stop());
    let mut running = tokio::select! {
        signal = &mut told_to_stop => return signal.context("cannot wait for signals"),
        running = start(config) => running?,
    };
    let outcome = tokio::select! {
        signal = &mut told_to_stop => signal.context("cannot wait for signals"),
        error = running.failed() => {
            if matches!(error.downcast_ref(), Some(Ended::LostLeadership)) {
                // Another one leads or will; there is nothing for a person to do.
                tracing::warn!("{}; this one ends, to begin anew as a follower", Ended::LostLeadership);
            } else {
                tracing::error!("this controller cannot go on: {error:#}");
            }
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
