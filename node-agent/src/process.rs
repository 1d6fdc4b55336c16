//! The process `berth-agent`: one agent, from its settings until a signal ends it.

use crate::config::sim_host::Described;
use crate::config::{Config, Driver, Settings, Task, sim_host};
use crate::driver::HostDriver;
use crate::driver::hyperv::{self, HyperV};
use crate::driver::sim::{KeptHost, StepFault};
use crate::{guarded, scrape, service, tls};
use anyhow::Context as _;
use berth_telemetry::{Service, names};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long an agent may take to stop. A step under way is left where it is, so that only the ledger's last write and the
/// end of PowerShell are waited for; both take a moment, or for ever on a disk that hangs.
pub const STOP: Duration = Duration::from_secs(30);
/// How long calls to the disk may hold up the end after that.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// Does what this process's flags, environment and file say: runs an agent until it is told to stop, or has to do with the
/// service.
///
/// # Errors
/// Why it does not start, or that a part of it was lost: the process must then end, to be started again.
pub fn run() -> anyhow::Result<()> {
    match Task::load()? {
        Task::Service(verb) => service::call(verb),
        Task::Check(settings) => {
            Host::read(&settings)?;
            // Only here: an agent whose files are wrong runs on, and says so each time it dials.
            block_on(check_certificate(&settings.agent))?
        }
        Task::Agent(settings) => {
            let _until_the_end = berth_telemetry::start(&settings.log, &settings.export, about(&settings))?;
            block_on(async { serve(settings, told_to_stop(), || Ok(())).await })?
        }
    }
}

/// Runs to its end. Two threads: an agent mostly waits, and must leave the host to its VMs.
///
/// # Errors
/// When the system gives no threads.
pub fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start threads")?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_CALLS);
    Ok(done)
}

/// The agent, as what it exports names it.
pub fn about(settings: &Settings) -> Service {
    Service {
        name: "berth-agent",
        version: env!("CARGO_PKG_VERSION"),
        instance: uuid::Uuid::new_v4().to_string(),
        node: Some(settings.agent.node.to_string()),
    }
}

/// Runs the agent that the settings describe until `stop` is ready. `started` is called once it works.
///
/// # Errors
/// Why it does not start, or that a part of it was lost.
pub async fn serve(
    settings: Settings,
    stop: impl Future<Output = io::Result<()>>,
    started: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let host = Host::read(&settings)?;
    for endpoint in settings.agent.controllers.iter().filter(|uri| tls::is_remote(uri) && !tls::is_encrypted(uri)) {
        tracing::warn!({ names::ENDPOINT } = %endpoint, "connections are neither encrypted nor authenticated, as configured");
    }
    let driver = host.open(&settings.agent.data_dir)?;
    let mut agent = crate::start(settings.agent, driver).await?;
    started()?;
    tokio::select! {
        signal = stop => {
            signal.context("cannot wait for signals")?;
            if timeout(STOP, agent.stop()).await.is_err() {
                // Whatever it hangs in, the next start looks and goes on.
                tracing::warn!("the agent does not stop within {} s; it is cut off", STOP.as_secs());
            }
            Ok(())
        }
        error = agent.failed() => Err(error),
        () = scraped(settings.prometheus) => Ok(()),
    }
}

/// Serves metrics where that is wished; never ends.
async fn scraped(address: Option<SocketAddr>) {
    match address {
        Some(address) => scrape::serve(address).await,
        None => std::future::pending().await,
    }
}

/// The host that the settings name, as far as it can be checked without touching anything.
enum Host {
    Sim(Box<Described>),
    HyperV(Box<hyperv::Options>),
}

impl Host {
    fn read(settings: &Settings) -> anyhow::Result<Self> {
        Ok(match &settings.driver {
            Driver::Sim { host } => Self::Sim(Box::new(sim_host::read(host, &settings.agent.node)?)),
            Driver::HyperV(options) => {
                options.check()?;
                Self::HyperV(options.clone())
            }
        })
    }

    fn open(self, data_dir: &Path) -> anyhow::Result<Arc<dyn HostDriver>> {
        Ok(match self {
            Self::Sim(described) => {
                let Described { spec, delays, faults } = *described;
                let host = KeptHost::open(spec, delays, data_dir)?;
                host.by_hand_now(|host| {
                    for (step, error) in faults {
                        host.faults().always(step, StepFault::Fails(error));
                    }
                })?;
                Arc::new(host)
            }
            Self::HyperV(options) => {
                // What is obeyed and what is run lies in it.
                guarded::folder(data_dir).context("the data directory is not safe")?;
                Arc::new(HyperV::new(*options, data_dir))
            }
        })
    }
}

async fn check_certificate(config: &Config) -> anyhow::Result<()> {
    let Some(files) = &config.tls else { return Ok(()) };
    files.check().await?;
    if let Some(own) = &files.own {
        let certificate = own.check().await?;
        anyhow::ensure!(
            certificate.has_dns_name(config.node.as_str()),
            "the certificate in {} does not name this node: its DNS names are [{}], and the node is {}",
            own.cert.display(),
            certificate.dns.join(", "),
            config.node
        );
    }
    Ok(())
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
