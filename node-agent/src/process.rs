//! The process `berth-agent`: one agent, from its settings until a signal ends it.

use crate::config::{Config, Driver, Settings, sim_host};
use crate::driver::HostDriver;
use crate::driver::hyperv::{self, HyperV};
use crate::driver::sim::{Delays, HostSpec, KeptHost};
use crate::tls;
use anyhow::Context as _;
use berth_telemetry::names;
use std::path::Path;
use std::sync::Arc;

/// Runs the agent that this process's flags, environment and file describe, until it is told to stop.
///
/// # Errors
/// Why it does not start, or that a part of it was lost: the process must then end, to be started again.
pub async fn run() -> anyhow::Result<()> {
    let settings = Settings::load()?;
    let host = Host::read(&settings)?;
    if settings.check_only {
        // Only here: an agent whose files are wrong runs on, and says so each time it dials.
        return check_certificate(&settings.agent).await;
    }
    let _until_the_end = berth_telemetry::init(&settings.log)?;
    for endpoint in settings.agent.controllers.iter().filter(|uri| tls::is_remote(uri) && !tls::is_encrypted(uri)) {
        tracing::warn!({ names::ENDPOINT } = %endpoint, "connections are neither encrypted nor authenticated, as configured");
    }
    let driver = host.open(&settings.agent.data_dir)?;
    let mut agent = crate::start(settings.agent, driver).await?;
    tokio::select! {
        signal = told_to_stop() => {
            signal.context("cannot wait for signals")?;
            agent.stop().await;
            Ok(())
        }
        error = agent.failed() => Err(error),
    }
}

/// The host that the settings name, as far as it can be checked without touching anything.
enum Host {
    Sim(HostSpec, Delays),
    HyperV(hyperv::Options),
}

impl Host {
    fn read(settings: &Settings) -> anyhow::Result<Self> {
        Ok(match &settings.driver {
            Driver::Sim { host } => {
                let (spec, delays) = sim_host::read(host, &settings.agent.node)?;
                Self::Sim(spec, delays)
            }
            Driver::HyperV(options) => {
                options.check()?;
                Self::HyperV(hyperv::Options::clone(options))
            }
        })
    }

    fn open(self, data_dir: &Path) -> anyhow::Result<Arc<dyn HostDriver>> {
        Ok(match self {
            Self::Sim(spec, delays) => Arc::new(KeptHost::open(spec, delays, data_dir)?),
            Self::HyperV(options) => Arc::new(HyperV::new(options, data_dir)),
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
