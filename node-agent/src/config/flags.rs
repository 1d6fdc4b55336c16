//! The command line.

use super::layer::{Layer, LogLayer, SimLayer, TlsLayer};
use crate::service;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};

/// Berth's node agent: reports what a hypervisor host has and makes it hold what the controller wants.
///
/// Every setting can also stand in the file, or in the environment as BERTH_AGENT_NODE and so on; a flag wins over the
/// environment, the environment over the file.
#[derive(Parser, Debug, Default)]
#[command(
    name = "berth-agent",
    version,
    after_help = "Example:\n  berth-agent --config /etc/berth/agent.toml --check-config",
    args_conflicts_with_subcommands = true
)]
pub(super) struct Flags {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Check the configuration and end.
    #[arg(long)]
    pub(super) check_config: bool,
    /// Name of this node, as placements will show it.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Endpoint of a controller, https://HOST:PORT or http://HOST:PORT; may be given several times.
    #[arg(long = "controller", value_name = "URL")]
    controllers: Vec<String>,
    /// The CA of the controllers' certificates (PEM).
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// This node's certificate (PEM); one of its DNS names must be the node's name.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM).
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Name in the controllers' certificates, where it is not the endpoint's.
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
    /// Allow plain text to controllers on other machines.
    #[arg(long)]
    insecure: bool,
    /// Directory for the agent's ledger.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Host driver: hyperv or sim.
    #[arg(long, value_name = "NAME")]
    driver: Option<String>,
    /// With the driver sim: the file that describes the host.
    #[arg(long, value_name = "FILE")]
    sim_host: Option<PathBuf>,
    #[command(flatten)]
    hyperv: super::hyperv::Layer,
    #[command(flatten)]
    telemetry: super::export::Layer,
    /// Form of the log: human or json.
    #[arg(long, value_name = "FORM")]
    log_format: Option<String>,
    /// What to log, such as info,berth_node_agent=debug.
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Install, remove or be the Windows service.
    Service {
        #[command(subcommand)]
        verb: service::Verb,
    },
}

impl Flags {
    /// As if nothing but the file had been named.
    pub(super) fn of_file(file: &Path) -> Self {
        Self { config: Some(file.to_owned()), ..Self::default() }
    }

    /// The settings they give.
    pub(super) fn layer(self) -> Layer {
        let Self {
            // What is to be done with the settings is not a setting.
            command: _,
            check_config: _,
            config: _,
            node,
            controllers,
            tls_ca,
            tls_cert,
            tls_key,
            tls_server_name,
            insecure,
            data_dir,
            driver,
            sim_host,
            hyperv,
            telemetry,
            log_format,
            log_filter,
        } = self;
        Layer {
            node,
            controllers: (!controllers.is_empty()).then_some(controllers),
            insecure: insecure.then_some(true),
            data_dir,
            driver,
            tls: TlsLayer { ca: tls_ca, cert: tls_cert, key: tls_key, server_name: tls_server_name },
            sim: SimLayer { host: sim_host },
            hyperv,
            log: LogLayer { format: log_format, filter: log_filter },
            telemetry,
        }
    }
}
