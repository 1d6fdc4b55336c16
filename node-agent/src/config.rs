//! Configuration of the agent: defaults < file < environment < flags.
//!
//! Owns every name of a setting, and is the only place that reads the environment. A setting nobody knows is refused,
//! wherever it comes from: a misspelt name must not become a silent default.

mod export;
mod flags;
mod hyperv;
mod layer;
mod layers;
pub mod sim_host;

use crate::driver::hyperv::Options as HyperVOptions;
use crate::reconcile::Limits;
use crate::service;
use crate::session::Retry;
use berth_agent_core::work::Pace;
use berth_model::NodeName;
use berth_telemetry as telemetry;
use berth_tls::client as tls;
use clap::Parser as _;
use flags::{Command, Flags};
use layer::{Layer, from_environment, from_file};
use layers::Layers;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tonic::transport::Uri;

/// What an agent needs to run. The driver is given beside it, so that many agents can run in one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node it speaks for.
    pub node: NodeName,
    /// Controllers, dialled in turn. Never empty.
    pub controllers: Vec<Uri>,
    /// Files for endpoints that are `https://`.
    pub tls: Option<tls::Files>,
    /// Where its ledger lies; one directory for each agent.
    pub data_dir: PathBuf,
    /// How often steps are tried and how long the pauses are. No setting: hosts of one kind need the same.
    pub pace: Pace,
    /// Bounds on the calls to the host. No setting either.
    pub limits: Limits,
    /// Waits between attempts to reach a controller. No setting: the whole fleet must be back in time.
    pub retry: Retry,
}

impl Config {
    /// An agent's configuration with the usual pace and limits.
    pub fn new(node: NodeName, controllers: Vec<Uri>, data_dir: PathBuf) -> Self {
        Self {
            node,
            controllers,
            tls: None,
            data_dir,
            pace: Pace::default(),
            limits: Limits::default(),
            retry: Retry::default(),
        }
    }
}

/// Everything a process that is one agent needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The agent itself.
    pub agent: Config,
    /// Which host it works on.
    pub driver: Driver,
    /// What it logs.
    pub log: telemetry::Options,
    /// What it exports.
    pub export: telemetry::Export,
    /// Where Prometheus finds its metrics, if it is to.
    pub prometheus: Option<SocketAddr>,
}

/// What a process was started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// To be an agent.
    Agent(Settings),
    /// To check the settings and end.
    Check(Settings),
    /// To do something about the service.
    Service(service::Verb),
}

/// A host driver, chosen by configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A simulated host.
    Sim {
        /// File that describes the host.
        host: PathBuf,
    },
    /// This machine, a Hyper-V host.
    HyperV(Box<HyperVOptions>),
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration file is not what it should be; the text names key, line and column.
    #[error("configuration file {path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Settings are missing or bad: all of them, one a line.
    #[error("{}", lines(.0))]
    Settings(Vec<Problem>),
}

/// One setting that is missing or bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its name, with the place it came from.
    pub setting: String,
    /// What is wrong, and what is allowed.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.why)
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The text is no endpoint of a controller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an endpoint of the form https://HOST:PORT or http://HOST:PORT")]
pub struct InvalidEndpoint(String);

/// Reads the endpoint of a controller: `https://HOST[:PORT]` or `http://HOST[:PORT]`, nothing behind it.
///
/// # Errors
/// [`InvalidEndpoint`] for everything else.
pub fn endpoint(text: &str) -> Result<Uri, InvalidEndpoint> {
    let bad = || InvalidEndpoint(text.to_owned());
    let uri: Uri = text.parse().map_err(|_| bad())?;
    let plain = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
        && uri.path() == "/"
        && uri.query().is_none()
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if plain { Ok(uri) } else { Err(bad()) }
}

impl Task {
    /// Reads flags, environment and file of this process. Ends the process for `--help` and for bad flags.
    ///
    /// # Errors
    /// [`enum@Error`], naming every bad setting.
    pub fn load() -> Result<Self, Error> {
        let flags = Flags::parse();
        if let Some(Command::Service { verb }) = flags.command {
            return Ok(Self::Service(verb));
        }
        let check_only = flags.check_config;
        let settings = Settings::resolve(flags, std::env::vars_os())?;
        Ok(if check_only { Self::Check(settings) } else { Self::Agent(settings) })
    }
}

impl Settings {
    /// Reads this file and the environment: what a service has.
    ///
    /// # Errors
    /// [`enum@Error`], naming every bad setting.
    #[cfg_attr(not(windows), expect(dead_code, reason = "only Windows has services"))]
    pub(crate) fn of_file(file: &Path) -> Result<Self, Error> {
        Self::resolve(Flags::of_file(file), std::env::vars_os())
    }

    fn resolve(flags: Flags, environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let environment: Vec<_> = environment.collect();
        // Where Windows is; elsewhere such a variable means nothing.
        let system = environment.iter().find(|(name, _)| cfg!(windows) && name.eq_ignore_ascii_case("SystemRoot"));
        let system = system.map(|(_, root)| PathBuf::from(root));
        let (variables, config_variable) = from_environment(environment.into_iter(), &mut problems);
        let file = match flags.config.clone().or(config_variable) {
            Some(path) => from_file(&path)?,
            None => Layer::default(),
        };
        let settings = Layers([flags.layer(), variables, file]).settings(system.as_deref(), &mut problems);
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            Some(_) | None => Err(Error::Settings(problems)),
        }
    }
}

#[cfg(test)]
mod tests;
