//! Configuration of the controller: defaults < file < environment < flags.
//!
//! Owns every name of a setting, and is the only place that reads the environment. A setting nobody knows is refused,
//! wherever it comes from: a misspelt name must not become a silent default. All that is wrong is told at once.

mod values;

use crate::{rebuild, restore};
use berth_core::decide::Limits;
use berth_store_etcd::ConnectError;
use berth_telemetry as telemetry;
use berth_tls::{Pair, server};
use clap::{Parser, Subcommand};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use values::{SETTINGS, count, duration};

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

/// What a process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Be a controller.
    Control,
    /// Put a backup into the store, then end.
    Restore(restore::Options),
    /// Make the store anew from what agents hold, then end.
    Rebuild(rebuild::Options),
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

/// Berth's controller: knows every GPU of the fleet and decides which virtual machine gets which.
///
/// Every setting can also stand in the file (limits.hold = "10m") or in the environment (BERTH_CONTROLLER_LIMITS_HOLD);
/// a flag wins over the environment, the environment over the file.
#[derive(Parser, Debug, Default)]
#[command(
    name = "berth-controller",
    version,
    after_help = "Examples:\n  berth-controller --config /etc/berth/controller.toml --check-config\n  berth-controller --data-dir ./data --set agents.heartbeat=5s\n  berth-controller restore berth.backup --config /etc/berth/controller.toml\n  berth-controller rebuild --config /etc/berth/controller.toml --nodes 12"
)]
struct Flags {
    /// Configuration file (TOML).
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and end.
    #[arg(long, global = true)]
    check_config: bool,
    /// Address to listen on, HOST:PORT.
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Allow listening beyond this machine without encryption.
    #[arg(long, global = true)]
    insecure: bool,
    /// This controller's certificate (PEM), with those that lead to the CA; makes it speak TLS.
    #[arg(long, global = true, value_name = "FILE")]
    tls_cert: Option<String>,
    /// The private key of the certificate (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    tls_key: Option<String>,
    /// The CA of the certificates that agents must and callers may show (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    tls_client_ca: Option<String>,
    /// Directory of the embedded store.
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<String>,
    /// Store: embedded, memory or etcd.
    #[arg(long, global = true, value_name = "NAME")]
    store: Option<String>,
    /// Members of the etcd cluster, separated by commas; makes etcd the store.
    #[arg(long, global = true, value_name = "ENDPOINTS")]
    etcd: Option<String>,
    /// Form of the log: human or json.
    #[arg(long, global = true, value_name = "FORM")]
    log_format: Option<String>,
    /// What to log, such as info,berth_controller=debug.
    #[arg(long, global = true, value_name = "FILTER")]
    log_filter: Option<String>,
    /// Any setting by its name in the file; may be given several times.
    #[arg(long = "set", global = true, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// What to do instead of being a controller.
    #[command(subcommand)]
    task: Option<TaskFlags>,
}

/// Tasks beside being a controller.
#[derive(Subcommand, Debug, Clone)]
enum TaskFlags {
    /// Put a backup into the store. Stop every controller first
    #[command(after_help = "Example:
  berth-controller restore berth.backup --config /etc/berth/controller.toml

Checks the whole file before it touches the store, says what it will do, and asks. See docs/backup.md.")]
    Restore {
        /// The backup, as `berth backup` wrote it.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Replace whatever is in the store.
        #[arg(long)]
        into_nonempty: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Make a store that was lost anew, from what agents hold
    #[command(after_help = "Example:
  berth-controller rebuild --config /etc/berth/controller.toml --nodes 12

Listens for agents where the controller would, decides nothing, shows what they hold, asks, writes it and ends. See
docs/backup.md.")]
    Rebuild {
        /// How long to wait for agents.
        #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
        wait: Duration,
        /// How many nodes there must be. Waiting ends when all have told what they hold; with fewer nothing is written.
        #[arg(long, value_name = "N", value_parser = count)]
        nodes: Option<usize>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

impl From<TaskFlags> for Task {
    fn from(flags: TaskFlags) -> Self {
        match flags {
            TaskFlags::Restore { file, into_nonempty, yes } => {
                Self::Restore(restore::Options { file, into_nonempty, yes })
            }
            TaskFlags::Rebuild { wait, nodes, yes } => Self::Rebuild(rebuild::Options { wait, nodes, yes }),
        }
    }
}

/// Start of every variable that is the controller's.
const PREFIX: &str = "BERTH_CONTROLLER_";

/// Values by the name of their setting, each with the name it had where it came from.
type Layer = BTreeMap<String, (String, String)>;

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
        let task = flags.task.clone().map_or(Task::Control, Task::from);
        let flags = from_flags(flags, &mut problems);
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

fn from_flags(flags: Flags, problems: &mut Vec<Problem>) -> Layer {
    let Flags {
        config: _,
        check_config: _,
        task: _,
        listen,
        insecure,
        tls_cert,
        tls_key,
        tls_client_ca,
        data_dir,
        store,
        etcd,
        log_format,
        log_filter,
        set,
    } = flags;
    let named = [
        ("listen", "--listen", listen),
        ("insecure", "--insecure", insecure.then(|| "true".to_owned())),
        ("tls.cert", "--tls-cert", tls_cert),
        ("tls.key", "--tls-key", tls_key),
        ("tls.client_ca", "--tls-client-ca", tls_client_ca),
        ("data_dir", "--data-dir", data_dir),
        // Naming etcd's members is choosing it, unless --store says otherwise.
        ("store", "--store", store.or_else(|| etcd.as_ref().map(|_| StoreKind::Etcd.name().to_owned()))),
        ("etcd.endpoints", "--etcd", etcd),
        ("log.format", "--log-format", log_format),
        ("log.filter", "--log-filter", log_filter),
    ];
    let mut layer = Layer::new();
    for pair in set {
        match pair.split_once('=') {
            Some((name, value)) => {
                layer.insert(name.to_owned(), (format!("--set {name}"), value.to_owned()));
            }
            None => problems
                .push(Problem { setting: format!("--set {pair}"), why: "is not of the form NAME=VALUE".to_owned() }),
        }
    }
    for (name, flag, value) in named {
        if let Some(value) = value {
            layer.insert(name.to_owned(), (flag.to_owned(), value));
        }
    }
    layer
}

fn from_environment(
    environment: impl Iterator<Item = (OsString, OsString)>,
    problems: &mut Vec<Problem>,
) -> (Layer, Option<PathBuf>) {
    let mut layer = Layer::new();
    let mut config = None;
    for (variable, value) in environment {
        let Some(short) = variable.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let given_as = format!("{PREFIX}{short}");
        if short == "CONFIG" {
            config = Some(PathBuf::from(value));
            continue;
        }
        let Ok(value) = value.into_string() else {
            problems.push(Problem { setting: given_as, why: "is not valid UTF-8".to_owned() });
            continue;
        };
        let setting = SETTINGS.iter().find(|setting| setting.name.replace('.', "_").to_ascii_uppercase() == short);
        let name = setting.map_or(short, |setting| setting.name);
        layer.insert(name.to_owned(), (given_as, value));
    }
    (layer, config)
}

/// Settings that name files and folders.
const FILES: [&str; 9] = [
    "data_dir",
    "tls.cert",
    "tls.key",
    "tls.client_ca",
    "etcd.ca",
    "etcd.cert",
    "etcd.key",
    "etcd.password_file",
    "telemetry.ca",
];

fn from_file(path: &Path, problems: &mut Vec<Problem>) -> Result<Layer, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let table: toml::Table = toml::from_str(&text)
        .map_err(|error| Error::File { path: path.to_owned(), why: error.to_string().trim_end().to_owned() })?;
    let mut layer = Layer::new();
    flatten("", table, &mut layer, problems);
    // What a file names lies beside that file, wherever the controller was started.
    let here = path.parent().unwrap_or(Path::new(""));
    for name in FILES {
        let Some((_, value)) = layer.get_mut(name).filter(|(_, value)| !value.is_empty()) else { continue };
        match here.join(&*value).into_os_string().into_string() {
            Ok(joined) => *value = joined,
            Err(_) => {
                problems.push(Problem { setting: name.to_owned(), why: "its path is not valid UTF-8".to_owned() })
            }
        }
    }
    Ok(layer)
}

fn flatten(prefix: &str, table: toml::Table, layer: &mut Layer, problems: &mut Vec<Problem>) {
    for (key, value) in table {
        let name = format!("{prefix}{key}");
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(yes) => yes.to_string(),
            // Which setting takes one is said where it is read.
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Table(table) => {
                flatten(&format!("{name}."), table, layer, problems);
                continue;
            }
            // A list is written as flags and variables write it.
            toml::Value::Array(list) if list.iter().all(toml::Value::is_str) => {
                list.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
            }
            toml::Value::Datetime(_) | toml::Value::Array(_) => {
                problems.push(Problem { setting: name, why: "must be a text, a number, true or false".to_owned() });
                continue;
            }
        };
        layer.insert(name.clone(), (name, value));
    }
}

#[cfg(test)]
mod tests;
