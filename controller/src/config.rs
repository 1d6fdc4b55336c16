//! Configuration of the controller: defaults < file < environment < flags.
//!
//! Owns every name of a setting, and is the only place that reads the environment. A setting nobody knows is refused,
//! wherever it comes from: a misspelt name must not become a silent default. All that is wrong is told at once.

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

/// Where the controller listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 7600;

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

/// One setting: its name in the file, and how its value is taken in.
struct Setting {
    name: &'static str,
    take: fn(&mut Settings, &str) -> Result<(), String>,
}

/// Every setting there is.
const SETTINGS: &[Setting] = &[
    Setting { name: "listen", take: |s, v| put(&mut s.controller.listen, address(v)) },
    Setting { name: "advertise", take: |s, v| put(&mut s.controller.advertise, url(v).map(Some)) },
    Setting { name: "insecure", take: |s, v| put(&mut s.controller.insecure, yes_or_no(v)) },
    Setting { name: "tls.cert", take: |s, v| put(&mut s.controller.tls.cert, path(v).map(Some)) },
    Setting { name: "tls.key", take: |s, v| put(&mut s.controller.tls.key, path(v).map(Some)) },
    Setting { name: "tls.client_ca", take: |s, v| put(&mut s.controller.tls.client_ca, path(v).map(Some)) },
    Setting { name: "data_dir", take: |s, v| put(&mut s.controller.data_dir, path(v)) },
    Setting { name: "store", take: |s, v| put(&mut s.controller.store, store(v)) },
    Setting { name: "etcd.endpoints", take: |s, v| put(&mut s.controller.etcd.endpoints, endpoints(v)) },
    Setting { name: "etcd.ca", take: |s, v| put(&mut s.controller.etcd.ca, path(v).map(Some)) },
    Setting { name: "etcd.cert", take: |s, v| put(&mut s.controller.etcd.cert, path(v).map(Some)) },
    Setting { name: "etcd.key", take: |s, v| put(&mut s.controller.etcd.key, path(v).map(Some)) },
    Setting { name: "etcd.user", take: |s, v| put(&mut s.controller.etcd.user, text(v).map(Some)) },
    Setting { name: "etcd.password_file", take: |s, v| put(&mut s.controller.etcd.password_file, path(v).map(Some)) },
    Setting { name: "etcd.prefix", take: |s, v| put(&mut s.controller.etcd.prefix, Ok(v.to_owned())) },
    Setting { name: "etcd.lease_ttl", take: |s, v| put(&mut s.controller.etcd.lease_ttl, duration(v)) },
    Setting { name: "commit_deadline", take: |s, v| put(&mut s.controller.commit_deadline, duration(v)) },
    Setting { name: "check_interval", take: |s, v| put(&mut s.controller.check_interval, duration(v)) },
    Setting { name: "agents.heartbeat", take: |s, v| put(&mut s.controller.heartbeat, duration(v)) },
    Setting { name: "agents.observe", take: |s, v| put(&mut s.controller.observe, duration(v)) },
    Setting { name: "limits.hold", take: |s, v| put(&mut s.controller.limits.hold, duration(v)) },
    Setting { name: "limits.prepare", take: |s, v| put(&mut s.controller.limits.prepare, duration(v)) },
    Setting { name: "limits.attach", take: |s, v| put(&mut s.controller.limits.attach, duration(v)) },
    Setting { name: "limits.start", take: |s, v| put(&mut s.controller.limits.start, duration(v)) },
    Setting { name: "limits.verify", take: |s, v| put(&mut s.controller.limits.verify, duration(v)) },
    Setting { name: "limits.release", take: |s, v| put(&mut s.controller.limits.release, duration(v)) },
    Setting { name: "limits.queued", take: |s, v| put(&mut s.controller.limits.queued, count(v)) },
    Setting { name: "limits.history", take: |s, v| put(&mut s.controller.limits.history, count(v)) },
    Setting { name: "limits.history_age", take: |s, v| put(&mut s.controller.limits.history_age, duration(v)) },
    Setting { name: "limits.placements", take: |s, v| put(&mut s.controller.limits.placements, count(v)) },
    Setting {
        name: "log.format",
        take: |s, v| put(&mut s.log.format, v.parse().map_err(|e: telemetry::UnknownFormat| e.to_string())),
    },
    Setting { name: "log.filter", take: |s, v| put(&mut s.log.filter, Ok(v.to_owned())) },
];

fn put<T>(slot: &mut T, value: Result<T, String>) -> Result<(), String> {
    *slot = value?;
    Ok(())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not of the form IP:PORT, such as 127.0.0.1:{DEFAULT_PORT}"))
}

fn url(text: &str) -> Result<String, String> {
    let url: Option<http::Uri> = text.parse().ok();
    let fine = url.is_some_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
            && url.path() == "/"
            && url.query().is_none()
    });
    let form = "is not of the form http://HOST:PORT or https://HOST:PORT";
    if fine { Ok(text.trim_end_matches('/').to_owned()) } else { Err(format!("{text:?} {form}")) }
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn store(text: &str) -> Result<StoreKind, String> {
    let known = StoreKind::ALL.map(StoreKind::name).join(", ");
    StoreKind::ALL
        .into_iter()
        .find(|kind| kind.name() == text)
        .ok_or_else(|| format!("{text:?} is not one of: {known}"))
}

fn text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn endpoints(text: &str) -> Result<Vec<String>, String> {
    text.split(',').map(|endpoint| self::text(endpoint.trim())).collect()
}

/// Longest of any of the times: a month. Longer ones are slips of a unit.
const LONGEST: Duration = Duration::from_secs(31 * 24 * 3600);
/// Shortest: what comes more often than this keeps the controller busy with itself.
const SHORTEST: Duration = Duration::from_millis(10);

fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a time such as 500ms, 30s, 10m or 48h"))?;
    if (SHORTEST..=LONGEST).contains(&time) { Ok(time) } else { Err(format!("{text:?} is not from 10ms to 31 days")) }
}

fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("{text:?} is not a number from 1 on"))
}

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
        let mut settings = Self { controller: Config::default(), log: telemetry::Options::default(), check_only, task };
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
const FILES: [&str; 8] =
    ["data_dir", "tls.cert", "tls.key", "tls.client_ca", "etcd.ca", "etcd.cert", "etcd.key", "etcd.password_file"];

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
            toml::Value::Table(table) => {
                flatten(&format!("{name}."), table, layer, problems);
                continue;
            }
            // A list is written as flags and variables write it.
            toml::Value::Array(list) if list.iter().all(toml::Value::is_str) => {
                list.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
            }
            toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Array(_) => {
                problems
                    .push(Problem { setting: name, why: "must be a text, a whole number, true or false".to_owned() });
                continue;
            }
        };
        layer.insert(name.clone(), (name, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn resolve(flags: &[&str], environment: &[(&str, &str)], file: Option<&str>) -> Result<Settings, Error> {
        let mut flags = Flags::parse_from(std::iter::once(&"berth-controller").chain(flags));
        let dir = tempfile::tempdir().unwrap();
        if let Some(text) = file {
            let path = dir.path().join("controller.toml");
            std::fs::write(&path, text).unwrap();
            flags.config = Some(path);
        }
        Settings::resolve(flags, environment.iter().map(|(k, v)| ((*k).into(), (*v).into())))
    }

    fn refuse(flags: &[&str], environment: &[(&str, &str)], file: Option<&str>, why: Expect) {
        why.assert_eq(&resolve(flags, environment, file).unwrap_err().to_string());
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let file = "store = 'memory'\n[limits]\nhold = '5m'\nqueued = 7\n[agents]\nheartbeat = '1s'\nobserve = '2s'\n";
        let environment =
            [("BERTH_CONTROLLER_AGENTS_HEARTBEAT", "3s"), ("BERTH_CONTROLLER_AGENTS_OBSERVE", "4s"), ("PATH", "x")];
        let settings =
            resolve(&["--set", "agents.observe=5s", "--listen", "127.0.0.1:0"], &environment, Some(file)).unwrap();
        let Config { listen, store, limits, heartbeat, observe, commit_deadline, .. } = settings.controller;
        assert_eq!(listen.port(), 0);
        assert_eq!(store, StoreKind::Memory);
        assert_eq!((limits.hold, limits.queued), (Duration::from_secs(300), 7));
        assert_eq!((heartbeat, observe), (Duration::from_secs(3), Duration::from_secs(5)));
        assert_eq!(commit_deadline, Config::default().commit_deadline);
    }

    #[test]
    fn nothing_at_all_gives_the_defaults() {
        assert_eq!(resolve(&[], &[], None).unwrap().controller, Config::default());
    }

    #[test]
    fn every_bad_setting_is_named_wherever_it_comes_from() {
        refuse(
            &["--set", "heartbeat=1s", "--set", "nonsense", "--store", "etc"],
            &[("BERTH_CONTROLLER_LISTEN", "here"), ("BERTH_CONTROLLER_LIMIT_HOLD", "1m")],
            Some(
                "insecure = 'perhaps'\nlimits.hold = '1 parsec'\nlimits.queued = 0\nlimits.history = [1]\nlimits.release = '0s'\n",
            ),
            expect![[r#"
                limits.history: must be a text, a whole number, true or false
                --set nonsense: is not of the form NAME=VALUE
                insecure: "perhaps" is neither true nor false
                limits.hold: "1 parsec" is not a time such as 500ms, 30s, 10m or 48h
                limits.queued: "0" is not a number from 1 on
                limits.release: "0s" is not from 10ms to 31 days
                BERTH_CONTROLLER_LIMIT_HOLD: no such setting; known are listen, advertise, insecure, tls.cert, tls.key, tls.client_ca, data_dir, store, etcd.endpoints, etcd.ca, etcd.cert, etcd.key, etcd.user, etcd.password_file, etcd.prefix, etcd.lease_ttl, commit_deadline, check_interval, agents.heartbeat, agents.observe, limits.hold, limits.prepare, limits.attach, limits.start, limits.verify, limits.release, limits.queued, limits.history, limits.history_age, limits.placements, log.format, log.filter
                BERTH_CONTROLLER_LISTEN: "here" is not of the form IP:PORT, such as 127.0.0.1:7600
                --set heartbeat: no such setting; known are listen, advertise, insecure, tls.cert, tls.key, tls.client_ca, data_dir, store, etcd.endpoints, etcd.ca, etcd.cert, etcd.key, etcd.user, etcd.password_file, etcd.prefix, etcd.lease_ttl, commit_deadline, check_interval, agents.heartbeat, agents.observe, limits.hold, limits.prepare, limits.attach, limits.start, limits.verify, limits.release, limits.queued, limits.history, limits.history_age, limits.placements, log.format, log.filter
                --store: "etc" is not one of: embedded, memory, etcd"#]],
        );
    }

    #[test]
    fn listening_beyond_this_machine_must_be_allowed() {
        refuse(
            &["--listen", "0.0.0.0:7600"],
            &[],
            None,
            expect![[r#"
            listen: 0.0.0.0:7600 can be reached from other machines, and connections are neither encrypted nor authenticated; set cert, key and client_ca under [tls], listen on 127.0.0.1, or set insecure = true if the network in between is trusted"#]],
        );
        assert!(resolve(&["--listen", "0.0.0.0:7600", "--insecure"], &[], None).is_ok());
        assert!(resolve(&["--listen", "[::1]:7600"], &[], None).is_ok());
    }

    #[test]
    fn tls_takes_all_its_files_or_none() {
        let file = "listen = '0.0.0.0:7600'\n[tls]\ncert = 'c.pem'\nkey = '/etc/k.pem'\nclient_ca = 'ca.pem'\n";
        let tls = resolve(&["--tls-cert", "flag.pem"], &[], Some(file)).unwrap().controller.tls;
        assert_eq!(
            (tls.cert.as_deref(), tls.key.as_deref()),
            (Some(Path::new("flag.pem")), Some(Path::new("/etc/k.pem")))
        );
        let beside = tls.client_ca.unwrap();
        assert!(beside.is_absolute() && beside.ends_with("ca.pem"), "{beside:?}");

        let missing = |text: &str| resolve(&[], &[], Some(text)).unwrap_err().to_string();
        assert!(missing("tls.key = 'k'\ntls.client_ca = 'c'\n").starts_with("tls.cert: is missing"));
        assert!(missing("tls.cert = 'c'\ntls.client_ca = 'c'\n").starts_with("tls.key: is missing"));
        assert!(missing("tls.cert = 'c'\ntls.key = 'k'\n").starts_with("tls.client_ca: is missing"));
        assert!(missing("tls.cert = ''\n").starts_with("tls.cert: is empty"));
        assert!(missing("tls.ca = 'c'\n").starts_with("tls.ca: no such setting"));
        let both = resolve(&["--insecure"], &[], Some(file)).unwrap_err().to_string();
        assert!(both.starts_with("insecure: has no meaning beside [tls]"), "{both}");
    }

    #[test]
    fn a_task_takes_the_same_settings_before_and_after_its_name() {
        let task = |flags: &[&str]| {
            let settings = resolve(flags, &[], Some("store = 'memory'\n")).unwrap();
            assert_eq!(settings.controller.data_dir, Path::new("d"), "{flags:?}");
            settings.task
        };
        assert_eq!(task(&["--data-dir", "d"]), Task::Control);
        let restore = restore::Options { file: "f".into(), yes: false, into_nonempty: true };
        assert_eq!(task(&["--data-dir", "d", "restore", "f", "--into-nonempty"]), Task::Restore(restore.clone()));
        assert_eq!(task(&["restore", "f", "--data-dir", "d", "--into-nonempty"]), Task::Restore(restore));
        let rebuild = rebuild::Options { wait: Duration::from_secs(30), nodes: None, yes: true };
        assert_eq!(task(&["rebuild", "--yes", "--set", "data_dir=d"]), Task::Rebuild(rebuild));
    }

    #[test]
    fn what_a_file_names_lies_beside_it() {
        let settings = resolve(&[], &[], Some("data_dir = 'data'")).unwrap();
        assert!(settings.controller.data_dir.is_absolute() && settings.controller.data_dir.ends_with("data"));
        let settings = resolve(&["--data-dir", "data"], &[], Some("data_dir = 'other'")).unwrap();
        assert_eq!(settings.controller.data_dir, Path::new("data"));
    }

    #[test]
    fn etcd_is_a_store_with_settings_of_its_own() {
        let file =
            "store = 'etcd'\n[etcd]\nendpoints = ['https://a:2379', 'b:2379']\nca = 'ca.pem'\nlease_ttl = '5s'\n";
        let Config { store, etcd, .. } = resolve(&[], &[], Some(file)).unwrap().controller;
        assert_eq!((store, etcd.lease_ttl), (StoreKind::Etcd, Duration::from_secs(5)));
        assert_eq!(etcd.endpoints, ["https://a:2379", "b:2379"]);
        assert!(etcd.ca.unwrap().is_absolute(), "what a file names lies beside it");
        let Config { store, etcd, .. } = resolve(&["--etcd", "a:1,b:1"], &[], None).unwrap().controller;
        assert_eq!((store, etcd.endpoints.len()), (StoreKind::Etcd, 2));
        for (flags, file, expected) in [
            (vec!["--store", "etcd"], "", "etcd.endpoints: name at least one, such as http://127.0.0.1:2379"),
            (
                vec![],
                "etcd.endpoints = ['a:1']",
                "etcd: has settings, but store is embedded: set store = \"etcd\" or remove them",
            ),
            (vec!["--etcd", "a:1"], "etcd.user = 'u'", "etcd.user: needs password_file"),
            (
                vec!["--etcd", "a:1", "--set", "etcd.lease_ttl=1s"],
                "",
                "etcd.lease_ttl: must be whole seconds from 2s to 300s",
            ),
            (
                vec!["--etcd", "a:1,,b:1"],
                "",
                "--etcd: is empty\netcd.endpoints: name at least one, such as http://127.0.0.1:2379",
            ),
        ] {
            assert_eq!(resolve(&flags, &[], Some(file)).unwrap_err().to_string(), expected);
        }
        let text = resolve(&["--etcd", "a:1"], &[], Some("etcd.endpoint = 'a:1'")).unwrap_err().to_string();
        assert!(text.starts_with("etcd.endpoint: no such setting"), "{text}");
    }

    #[test]
    fn a_file_that_is_no_toml_is_refused_with_its_line() {
        let text = resolve(&[], &[], Some("listen = \n")).unwrap_err().to_string();
        assert!(text.contains("line 1"), "{text}");
        assert!(
            resolve(&["--config", "/nowhere/at/all.toml"], &[], None).unwrap_err().to_string().contains("/nowhere")
        );
    }
}
