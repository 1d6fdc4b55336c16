//! Configuration of the controller: defaults < file < environment < flags.
//!
//! Owns every name of a setting, and is the only place that reads the environment. A setting nobody knows is refused,
//! wherever it comes from: a misspelt name must not become a silent default. All that is wrong is told at once.

mod flags;
mod layers;
mod task;
mod values;

pub use task::{Once, Rebuild, Restore, Task};

use berth_core::decide::Limits;
use berth_store_etcd::ConnectError;
use berth_telemetry as telemetry;
use berth_tls::{Pair, server};
use clap::Parser as _;
use flags::Flags;
use layers::{Layer, from_environment, from_file};
use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use values::SETTINGS;

/// Where the controller listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 7600;

/// Threads unless told otherwise. With one, the way of a placement through API, leader and store never waits for another
/// thread to wake; see `docs/decisions/2026-11-25-one-thread-unless-told-otherwise.md`.
pub const DEFAULT_THREADS: usize = 1;

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// A file in the data directory: one machine, durable.
    Embedded,
    /// Memory: nothing survives the process.
    Memory,
    /// An etcd cluster: several controllers, of which one leads.
    Etcd,
}

impl StoreKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Embedded, Self::Memory, Self::Etcd];

    /// Stable name, as in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Memory => "memory",
            Self::Etcd => "etcd",
        }
    }

    /// Whether it is one controller's own, so that nobody else can lead.
    pub fn is_exclusive(self) -> bool {
        match self {
            Self::Embedded | Self::Memory => true,
            Self::Etcd => false,
        }
    }
}

/// What a controller needs to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Where agents and other controllers reach it, as a URL; where it listens when not set.
    pub advertise: Option<String>,
    /// Whether it may listen in plain text where others than this machine can reach it: connections are neither
    /// encrypted nor authenticated.
    pub insecure: bool,
    /// Files for TLS; plain text where none is set.
    pub tls: Tls,
    /// Where the embedded store lies.
    pub data_dir: PathBuf,
    /// Which store.
    pub store: StoreKind,
    /// How etcd is reached, where it is the store.
    pub etcd: berth_store_etcd::Options,
    /// The brain's bounds and times.
    pub limits: Limits,
    /// Between two heartbeats of an agent that has nothing else to say.
    pub heartbeat: Duration,
    /// Between two looks of an agent at its host when nothing is to be done.
    pub observe: Duration,
    /// How long one transaction may take before its outcome counts as unknown and everything is loaded anew.
    pub commit_deadline: Duration,
    /// Between two recomputations of everything that is kept up to date step by step.
    pub check_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            advertise: None,
            insecure: false,
            tls: Tls::default(),
            data_dir: default_data_dir(),
            store: StoreKind::Embedded,
            etcd: berth_store_etcd::Options::default(),
            limits: Limits::default(),
            // A dead agent is noticed after three of them, and 10,000 agents send 1,000 a second.
            heartbeat: Duration::from_secs(10),
            // A VM made by hand is seen half a minute later; one look costs a host about a second of PowerShell.
            observe: Duration::from_secs(30),
            // A disk or a quorum that needs longer for one write is as good as gone.
            commit_deadline: Duration::from_secs(10),
            // Some ten milliseconds for the largest fleet.
            check_interval: Duration::from_secs(60),
        }
    }
}

/// Files for TLS: all of them, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// This controller's certificate, then those that lead from it to the CA.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// The CA of the certificates that agents and callers show.
    pub client_ca: Option<PathBuf>,
    /// Between two looks whether the files have changed. No setting: reading three small files costs nothing.
    pub look: Duration,
}

impl Default for Tls {
    fn default() -> Self {
        Self { cert: None, key: None, client_ca: None, look: Duration::from_secs(5) }
    }
}

impl Tls {
    /// The files, where TLS is configured.
    ///
    /// # Errors
    /// The setting that is missing beside the others.
    pub fn files(&self) -> Result<Option<server::Files>, Problem> {
        let missing = |name: &str, why: &str| Problem { setting: format!("tls.{name}"), why: why.to_owned() };
        match (&self.cert, &self.key, &self.client_ca) {
            (None, None, None) => Ok(None),
            (Some(cert), Some(key), Some(client_ca)) => Ok(Some(server::Files {
                own: Pair { cert: cert.clone(), key: key.clone() },
                client_ca: client_ca.clone(),
            })),
            (None, _, _) => Err(missing("cert", "is missing: the file of this controller's certificate (PEM)")),
            (_, None, _) => Err(missing("key", "is missing: the file of the certificate's private key (PEM)")),
            (_, _, None) => Err(missing("client_ca", "is missing: the file of the CA of agents and callers (PEM)")),
        }
    }
}

fn default_data_dir() -> PathBuf {
    if cfg!(windows) {
        PathBuf::from(r"C:\ProgramData\Berth\controller")
    } else {
        PathBuf::from("/var/lib/berth/controller")
    }
}

/// Everything a process that is one controller needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The controller itself.
    pub controller: Config,
    /// What it logs.
    pub log: telemetry::Options,
    /// What it exports.
    pub export: telemetry::Export,
    /// Threads that share its work. Whatever blocks or computes for long has threads of its own.
    pub threads: usize,
    /// Only check the settings, then end.
    pub check_only: bool,
    /// What to do.
    pub task: Task,
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
    /// The configuration file is no TOML; the text names line and column.
    #[error("configuration file {path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Settings are bad: all of them, one a line.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Settings(Vec<Problem>),
}

/// One bad setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its name, as written where it came from.
    pub setting: String,
    /// What is wrong, and what is allowed.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.why)
    }
}

impl Settings {
    /// Reads flags, environment and file of this process. Ends the process for `--help` and for bad flags.
    ///
    /// # Errors
    /// [`enum@Error`], naming every bad setting.
    pub fn load() -> Result<Self, Error> {
        Self::resolve(Flags::parse(), std::env::vars_os())
    }

    fn resolve(flags: Flags, environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let (variables, config_variable) = from_environment(environment, &mut problems);
        let file = match flags.config.clone().or(config_variable) {
            Some(path) => from_file(&path, &mut problems)?,
            None => Layer::new(),
        };
        let check_only = flags.check_config;
        let task = flags.task.clone().map_or(Task::Control, Task::Once);
        let flags = flags.layer(&mut problems);
        let mut settings = Self {
            controller: Config::default(),
            log: telemetry::Options::default(),
            // On the port that is open anyway; nobody who does not ask for it costs anything.
            export: telemetry::Export { prometheus: true, ..telemetry::Export::default() },
            threads: DEFAULT_THREADS,
            check_only,
            task,
        };
        for layer in [file, variables, flags] {
            for (name, (given_as, value)) in layer {
                let problem = match SETTINGS.iter().find(|setting| setting.name == name) {
                    Some(setting) => (setting.take)(&mut settings, &value).err(),
                    None => Some(format!("no such setting; known are {}", known())),
                };
                problems.extend(problem.map(|why| Problem { setting: given_as, why }));
            }
        }
        settings.check(&mut problems);
        if problems.is_empty() { Ok(settings) } else { Err(Error::Settings(problems)) }
    }

    /// What no setting shows by itself.
    fn check(&self, problems: &mut Vec<Problem>) {
        problems.extend(self.controller.check().err());
        let export = self.export.check().err();
        problems
            .extend(export.map(|wrong| Problem { setting: format!("telemetry.{}", wrong.setting), why: wrong.why }));
        let filter = self.log.check().err();
        problems.extend(filter.map(|error| Problem { setting: "log.filter".to_owned(), why: error.to_string() }));
    }
}

impl Config {
    /// Which store it is, for somebody who may have meant another one.
    pub(crate) fn which_store(&self) -> String {
        match self.store {
            StoreKind::Embedded => format!("the embedded store in {}", self.data_dir.display()),
            StoreKind::Memory => "a store in memory".to_owned(),
            StoreKind::Etcd => format!("etcd at {}, prefix {:?}", self.etcd.endpoints.join(", "), self.etcd.prefix),
        }
    }

    /// Checks what settings mean together. [`crate::app::start`] refuses what this refuses.
    ///
    /// # Errors
    /// The first setting that cannot be.
    pub fn check(&self) -> Result<(), Problem> {
        if self.listen.ip().is_unspecified() && self.advertise.is_none() && !self.store.is_exclusive() {
            let why = format!(
                "is missing: with listen = {} nobody could know where to reach this controller when it leads; set the URL \
                 under which agents and the other controllers reach it, such as http://c1.example:{DEFAULT_PORT}",
                self.listen
            );
            return Err(Problem { setting: "advertise".to_owned(), why });
        }
        let encrypted = self.tls.files()?.is_some();
        if encrypted && self.insecure {
            let why = "has no meaning beside [tls]: every connection is encrypted; remove one of them".to_owned();
            return Err(Problem { setting: "insecure".to_owned(), why });
        }
        if !self.listen.ip().is_loopback() && !encrypted && !self.insecure {
            let why = format!(
                "{} can be reached from other machines, and connections are neither encrypted nor authenticated; set \
                 cert, key and client_ca under [tls], listen on 127.0.0.1, or set insecure = true if the network in \
                 between is trusted",
                self.listen
            );
            return Err(Problem { setting: "listen".to_owned(), why });
        }
        self.check_etcd()
    }

    fn check_etcd(&self) -> Result<(), Problem> {
        if self.store == StoreKind::Etcd {
            return self.etcd.check().map_err(|error| match error {
                ConnectError::Setting { setting, why } => Problem { setting: format!("etcd.{setting}"), why },
                error @ (ConnectError::Read { .. } | ConnectError::Unreachable { .. }) => {
                    Problem { setting: "etcd".to_owned(), why: error.to_string() }
                }
            });
        }
        if self.etcd != berth_store_etcd::Options::default() {
            let why = format!("has settings, but store is {}: set store = \"etcd\" or remove them", self.store.name());
            return Err(Problem { setting: "etcd".to_owned(), why });
        }
        Ok(())
    }
}

fn known() -> String {
    SETTINGS.iter().map(|setting| setting.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
