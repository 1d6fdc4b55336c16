//! Configuration of the agent: defaults < file < environment < flags.
//!
//! Owns every name of a setting, and is the only place that reads the environment. A setting nobody knows is refused,
//! wherever it comes from: a misspelt name must not become a silent default.

mod export;
mod hyperv;
pub mod sim_host;

use crate::driver::hyperv::Options as HyperVOptions;
use crate::reconcile::Limits;
use crate::service;
use crate::session::Retry;
use crate::tls::{is_encrypted, is_remote};
use berth_agent_core::work::Pace;
use berth_model::NodeName;
use berth_telemetry as telemetry;
use berth_tls::Pair;
use berth_tls::client::{self as tls, is_server_name};
use clap::{Parser, Subcommand};
use serde::Deserialize;
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
struct Flags {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and end.
    #[arg(long)]
    check_config: bool,
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
    hyperv: hyperv::Layer,
    #[command(flatten)]
    telemetry: export::Layer,
    /// Form of the log: human or json.
    #[arg(long, value_name = "FORM")]
    log_format: Option<String>,
    /// What to log, such as info,berth_node_agent=debug.
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Install, remove or be the Windows service.
    Service {
        #[command(subcommand)]
        verb: service::Verb,
    },
}

/// One source's word on every setting.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    node: Option<String>,
    controllers: Option<Vec<String>>,
    insecure: Option<bool>,
    data_dir: Option<PathBuf>,
    driver: Option<String>,
    #[serde(default)]
    tls: TlsLayer,
    #[serde(default)]
    sim: SimLayer,
    #[serde(default)]
    hyperv: hyperv::Layer,
    #[serde(default)]
    log: LogLayer,
    #[serde(default)]
    telemetry: export::Layer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsLayer {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    server_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SimLayer {
    host: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLayer {
    format: Option<String>,
    filter: Option<String>,
}

/// Start of every variable that is the agent's.
const PREFIX: &str = "BERTH_AGENT_";

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
        Self::resolve(Flags { config: Some(file.to_owned()), ..Flags::default() }, std::env::vars_os())
    }

    fn resolve(flags: Flags, environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let environment: Vec<_> = environment.collect();
        // Where Windows is; elsewhere such a variable means nothing.
        let system = environment.iter().find(|(name, _)| cfg!(windows) && name.eq_ignore_ascii_case("SystemRoot"));
        let system = system.map(|(_, root)| PathBuf::from(root));
        let (variables, config_variable) = from_environment(environment.into_iter(), &mut problems);
        let Flags {
            // What is to be done with the settings is not a setting.
            command: _,
            check_config: _,
            config,
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
        } = flags;
        let file = match config.or(config_variable) {
            Some(path) => from_file(&path)?,
            None => Layer::default(),
        };
        let flags = Layer {
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
        };
        let settings = Layers([flags, variables, file]).settings(system.as_deref(), &mut problems);
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            Some(_) | None => Err(Error::Settings(problems)),
        }
    }
}

fn from_file(path: &Path) -> Result<Layer, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    // The parser's text names the unknown or ill-typed key with its line and column.
    let mut layer: Layer = toml::from_str(&text)
        .map_err(|error| Error::File { path: path.to_owned(), why: error.to_string().trim_end().to_owned() })?;
    // What a file names lies beside that file, wherever the agent was started.
    let here = path.parent().unwrap_or(Path::new(""));
    let TlsLayer { ca, cert, key, server_name: _ } = &mut layer.tls;
    for given in [&mut layer.data_dir, &mut layer.sim.host, ca, cert, key].into_iter().flatten() {
        *given = here.join(&given);
    }
    layer.hyperv.lies_in(here);
    layer.telemetry.lies_in(here);
    Ok(layer)
}

fn from_environment(
    environment: impl Iterator<Item = (OsString, OsString)>,
    problems: &mut Vec<Problem>,
) -> (Layer, Option<PathBuf>) {
    let mut layer = Layer::default();
    let mut config = None;
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let Some(value) = value.to_str().map(str::to_owned) else {
            problems.push(Problem { setting: name.to_owned(), why: "is not valid UTF-8".to_owned() });
            continue;
        };
        match &name[PREFIX.len()..] {
            "CONFIG" => config = Some(value.into()),
            "NODE" => layer.node = Some(value),
            "CONTROLLERS" => layer.controllers = Some(value.split(',').map(|part| part.trim().to_owned()).collect()),
            "INSECURE" => match value.parse() {
                Ok(insecure) => layer.insecure = Some(insecure),
                Err(_) => problems
                    .push(Problem { setting: name.to_owned(), why: format!("{value:?} is neither true nor false") }),
            },
            "TLS_CA" => layer.tls.ca = Some(value.into()),
            "TLS_CERT" => layer.tls.cert = Some(value.into()),
            "TLS_KEY" => layer.tls.key = Some(value.into()),
            "TLS_SERVER_NAME" => layer.tls.server_name = Some(value),
            "DATA_DIR" => layer.data_dir = Some(value.into()),
            "DRIVER" => layer.driver = Some(value),
            "SIM_HOST" => layer.sim.host = Some(value.into()),
            "LOG_FORMAT" => layer.log.format = Some(value),
            "LOG_FILTER" => layer.log.filter = Some(value),
            other => {
                let hyperv = other.strip_prefix("HYPERV_").and_then(|rest| layer.hyperv.variable(rest, &value));
                let taken = hyperv.or_else(|| layer.telemetry.variable(other.strip_prefix("TELEMETRY_")?, &value));
                let no_such = || {
                    Err(format!(
                        "no such setting; known are BERTH_AGENT_CONFIG, _NODE, _CONTROLLERS, _INSECURE, _TLS_CA, _TLS_CERT, \
                         _TLS_KEY, _TLS_SERVER_NAME, _DATA_DIR, _DRIVER, _SIM_HOST, {}, _LOG_FORMAT, _LOG_FILTER, {}",
                        hyperv::variables(),
                        export::VARIABLES
                    ))
                };
                if let Err(why) = taken.unwrap_or_else(no_such) {
                    problems.push(Problem { setting: name.to_owned(), why });
                }
            }
        }
    }
    (layer, config)
}

/// The layers, strongest first: flags, environment, file.
struct Layers([Layer; 3]);

impl Layers {
    fn pick<'a, T: ?Sized>(&'a self, get: impl Fn(&'a Layer) -> Option<&'a T>) -> Option<&'a T> {
        self.0.iter().find_map(get)
    }

    fn settings(&self, system: Option<&Path>, problems: &mut Vec<Problem>) -> Option<Settings> {
        let mut problem = |setting: &str, why: String| problems.push(Problem { setting: setting.to_owned(), why });

        let node = match self.pick(|l| l.node.as_deref()) {
            None => {
                problem("node", "is missing: the name of this node".to_owned());
                None
            }
            Some(text) => NodeName::new(text).map_err(|error| problem("node", error.to_string())).ok(),
        };

        let mut controllers = Vec::new();
        match self.pick(|l| l.controllers.as_deref()) {
            None | Some([]) => problem(
                "controllers",
                "is missing: the endpoints of the controllers, such as [\"http://127.0.0.1:7600\"]".to_owned(),
            ),
            Some(texts) => {
                for (at, text) in texts.iter().enumerate() {
                    match endpoint(text) {
                        Ok(uri) if controllers.contains(&uri) => {
                            problem(&format!("controllers[{at}]"), format!("{text:?} is listed twice"));
                        }
                        Ok(uri) => controllers.push(uri),
                        Err(error) => problem(&format!("controllers[{at}]"), error.to_string()),
                    }
                }
            }
        }

        let tls = self.tls(&mut problem);
        let insecure = self.pick(|l| l.insecure.as_ref()).is_some_and(|insecure| *insecure);
        for uri in &controllers {
            if is_encrypted(uri) {
                if self.gives_no_tls() {
                    problem("tls", format!("is missing: ca, cert and key, because {uri} is https://"));
                    break;
                }
            } else if is_remote(uri) && !insecure {
                problem(
                    "controllers",
                    format!(
                        "{uri} is plain text beyond this machine: neither encrypted nor authenticated; use https:// with \
                         [tls], or set insecure = true if the network in between is trusted"
                    ),
                );
                break;
            }
        }

        let data_dir = match self.pick(|l| l.data_dir.as_deref()) {
            Some(path) if path.as_os_str().is_empty() => {
                problem("data_dir", "is empty".to_owned());
                None
            }
            Some(path) => Some(path.to_owned()),
            None => Some(default_data_dir()),
        };

        let host = self.pick(|l| l.sim.host.as_deref()).filter(|path| !path.as_os_str().is_empty());
        let driver = match (self.pick(|l| l.driver.as_deref()), host) {
            (Some("sim"), Some(host)) => Some(Driver::Sim { host: host.to_owned() }),
            (Some("sim"), None) => {
                problem("sim.host", "is missing: the file that describes the simulated host".to_owned());
                None
            }
            (Some("hyperv"), _) => {
                let layers = self.0.each_ref().map(|layer| &layer.hyperv);
                hyperv::options(&layers, system, &mut problem).map(|options| Driver::HyperV(Box::new(options)))
            }
            (Some(other), _) => {
                problem("driver", format!("{other:?} is not one of: hyperv, sim"));
                None
            }
            (None, _) => {
                problem("driver", "is missing: one of: hyperv, sim".to_owned());
                None
            }
        };

        let mut log = telemetry::Options::default();
        if let Some(text) = self.pick(|l| l.log.format.as_deref()) {
            match text.parse() {
                Ok(format) => log.format = format,
                Err(error) => problem("log.format", telemetry::UnknownFormat::to_string(&error)),
            }
        }
        if let Some(text) = self.pick(|l| l.log.filter.as_deref()) {
            text.clone_into(&mut log.filter);
        }
        if let Err(error) = log.check() {
            problem("log.filter", error.to_string());
        }

        let layers = self.0.each_ref().map(|layer| &layer.telemetry);
        let (export, prometheus) = export::export(&layers, &mut problem);

        let agent = Config { tls: tls?, ..Config::new(node?, controllers, data_dir?) };
        Some(Settings { agent, driver: driver?, log, export, prometheus })
    }
}

impl Layers {
    fn gives_no_tls(&self) -> bool {
        self.0.iter().all(|l| l.tls.ca.is_none() && l.tls.cert.is_none() && l.tls.key.is_none())
    }

    /// The files for TLS: all of them or none. `None` when something about them is wrong.
    fn tls(&self, problem: &mut impl FnMut(&str, String)) -> Option<Option<tls::Files>> {
        let server_name = self.pick(|l| l.tls.server_name.as_ref()).cloned();
        if self.gives_no_tls() && server_name.is_none() {
            return Some(None);
        }
        let mut file = |name: &str, what: &str, given: Option<&PathBuf>| match given {
            Some(path) if !path.as_os_str().is_empty() => Some(path.clone()),
            Some(_) | None => {
                problem(&format!("tls.{name}"), format!("is missing: the file of {what} (PEM)"));
                None
            }
        };
        let ca = file("ca", "the CA of the controllers' certificates", self.pick(|l| l.tls.ca.as_ref()));
        let cert = file("cert", "this node's certificate", self.pick(|l| l.tls.cert.as_ref()));
        let key = file("key", "the certificate's private key", self.pick(|l| l.tls.key.as_ref()));
        if let Some(name) = server_name.as_deref().filter(|name| !is_server_name(name)) {
            problem("tls.server_name", format!("{name:?} is neither a DNS name nor an IP address"));
            return None;
        }
        Some(Some(tls::Files { ca: ca?, own: Some(Pair { cert: cert?, key: key? }), server_name }))
    }
}

fn default_data_dir() -> PathBuf {
    if cfg!(windows) { r"C:\ProgramData\Berth\agent".into() } else { "/var/lib/berth-agent".into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const FILE: &str = r#"
        node = "from-file"
        controllers = ["http://c1:7600", "http://c2:7600"]
        insecure = true
        data_dir = "data"
        driver = "sim"
        [sim]
        host = "host.toml"
    "#;

    struct Given<'a> {
        file: Option<&'a str>,
        environment: &'a [(&'a str, &'a str)],
        flags: &'a [&'a str],
    }

    fn resolve(given: &Given<'_>) -> (Result<Settings, Error>, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        let mut args = vec!["berth-agent".to_owned()];
        if let Some(text) = given.file {
            std::fs::write(&path, text).unwrap();
            args.extend(["--config".to_owned(), path.display().to_string()]);
        }
        args.extend(given.flags.iter().map(ToString::to_string));
        let flags = Flags::try_parse_from(args).unwrap();
        let environment = given.environment.iter().map(|(name, value)| (name.into(), value.into()));
        (Settings::resolve(flags, environment), dir.path().to_owned())
    }

    fn refuse(given: &Given<'_>, why: Expect) {
        let (result, dir) = resolve(given);
        why.assert_eq(&result.unwrap_err().to_string().replace(&dir.display().to_string(), "DIR"));
    }

    fn refuse_file(file: &str, why: Expect) {
        refuse(&Given { file: Some(file), environment: &[], flags: &[] }, why);
    }

    #[test]
    fn the_flag_wins_over_the_environment_and_that_over_the_file() {
        let name = |environment: &[(&str, &str)], flags: &[&str]| {
            let (settings, _) = resolve(&Given { file: Some(FILE), environment, flags });
            settings.unwrap().agent.node.to_string()
        };
        assert_eq!(name(&[], &[]), "from-file");
        assert_eq!(name(&[("BERTH_AGENT_NODE", "from-env")], &[]), "from-env");
        assert_eq!(name(&[("BERTH_AGENT_NODE", "from-env")], &["--node", "from-flag"]), "from-flag");
    }

    #[test]
    fn all_settings_can_come_from_the_environment_alone() {
        let environment = [
            ("PATH", "/bin"),
            ("BERTH_AGENT_NODE", "n1"),
            ("BERTH_AGENT_CONTROLLERS", "https://c1:7600, http://[::1]:7600"),
            ("BERTH_AGENT_TLS_CA", "/ca.pem"),
            ("BERTH_AGENT_TLS_CERT", "/n1.pem"),
            ("BERTH_AGENT_TLS_KEY", "/n1.key"),
            ("BERTH_AGENT_TLS_SERVER_NAME", "berth.example"),
            ("BERTH_AGENT_DATA_DIR", "/d"),
            ("BERTH_AGENT_DRIVER", "sim"),
            ("BERTH_AGENT_SIM_HOST", "/h.toml"),
            ("BERTH_AGENT_LOG_FORMAT", "json"),
            ("BERTH_AGENT_LOG_FILTER", "debug"),
        ];
        let (settings, _) = resolve(&Given { file: None, environment: &environment, flags: &["--check-config"] });
        let expected = Settings {
            agent: Config {
                tls: Some(tls::Files {
                    ca: "/ca.pem".into(),
                    own: Some(Pair { cert: "/n1.pem".into(), key: "/n1.key".into() }),
                    server_name: Some("berth.example".into()),
                }),
                ..Config::new(
                    NodeName::new("n1").unwrap(),
                    vec!["https://c1:7600".parse().unwrap(), "http://[::1]:7600".parse().unwrap()],
                    "/d".into(),
                )
            },
            driver: Driver::Sim { host: "/h.toml".into() },
            export: telemetry::Export::default(),
            prometheus: None,
            log: telemetry::Options { format: telemetry::Format::Json, filter: "debug".into() },
        };
        assert_eq!(settings.unwrap(), expected);
    }

    #[test]
    fn plain_text_beyond_this_machine_must_be_allowed() {
        let rest = "node = \"n\"\ndriver = \"sim\"\nsim.host = \"h\"\n";
        refuse_file(
            &format!("{rest}controllers = [\"http://127.0.0.1:7600\", \"http://10.0.0.1:7600\"]\n"),
            expect![
                "controllers: http://10.0.0.1:7600/ is plain text beyond this machine: neither encrypted nor authenticated; use https:// with [tls], or set insecure = true if the network in between is trusted"
            ],
        );
    }

    #[test]
    fn tls_takes_all_its_files_or_none() {
        let rest = "node = \"n\"\ndriver = \"sim\"\nsim.host = \"h\"\ncontrollers = [\"https://c1\"]\n";
        refuse_file(rest, expect!["tls: is missing: ca, cert and key, because https://c1/ is https://"]);
        refuse_file(
            &format!("{rest}[tls]\nca = \"ca.pem\"\nserver_name = \"a b\"\n"),
            expect![[r#"
                tls.cert: is missing: the file of this node's certificate (PEM)
                tls.key: is missing: the file of the certificate's private key (PEM)
                tls.server_name: "a b" is neither a DNS name nor an IP address"#]],
        );
        let file = format!("{rest}[tls]\nca = \"ca.pem\"\ncert = \"c.pem\"\nkey = \"/k.pem\"\n");
        let (settings, dir) = resolve(&Given { file: Some(&file), environment: &[], flags: &[] });
        let own = Some(Pair { cert: dir.join("c.pem"), key: "/k.pem".into() });
        assert_eq!(settings.unwrap().agent.tls, Some(tls::Files { ca: dir.join("ca.pem"), own, server_name: None }));
    }

    #[test]
    fn paths_in_a_file_are_beside_that_file() {
        let (settings, dir) = resolve(&Given { file: Some(FILE), environment: &[], flags: &[] });
        let settings = settings.unwrap();
        assert_eq!(settings.agent.data_dir, dir.join("data"));
        assert_eq!(settings.driver, Driver::Sim { host: dir.join("host.toml") });
    }

    #[test]
    fn every_missing_setting_is_named_at_once() {
        refuse(
            &Given { file: None, environment: &[], flags: &[] },
            expect![[r#"
                node: is missing: the name of this node
                controllers: is missing: the endpoints of the controllers, such as ["http://127.0.0.1:7600"]
                driver: is missing: one of: hyperv, sim"#]],
        );
    }

    #[test]
    fn every_bad_setting_is_named_at_once() {
        refuse_file(
            r#"
                node = "a b"
                controllers = ["http://c1:7600", "c2:7600", "ftp://c3", "http://c1:7600", "http://c4/path", ""]
                insecure = true
                data_dir = "d"
                driver = "vfio"
                [log]
                format = "xml"
                filter = "x=loud"
            "#,
            expect![[r#"
                node: node name "a b" has the character ' ' at position 1; allowed are letters, digits, '-', '.', '_', starting with a letter or digit
                controllers[1]: "c2:7600" is not an endpoint of the form https://HOST:PORT or http://HOST:PORT
                controllers[2]: "ftp://c3" is not an endpoint of the form https://HOST:PORT or http://HOST:PORT
                controllers[3]: "http://c1:7600" is listed twice
                controllers[4]: "http://c4/path" is not an endpoint of the form https://HOST:PORT or http://HOST:PORT
                controllers[5]: "" is not an endpoint of the form https://HOST:PORT or http://HOST:PORT
                driver: "vfio" is not one of: hyperv, sim
                log.format: log format "xml" is not one of: human, json
                log.filter: log filter "x=loud" is not a list of directives like info,berth_node_agent=debug: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5"#]],
        );
    }

    #[test]
    fn a_key_nobody_knows_is_refused_wherever_it_stands() {
        refuse_file(
            "nodes = \"n1\"\n",
            expect![[r#"
                configuration file DIR/agent.toml: TOML parse error at line 1, column 1
                  |
                1 | nodes = "n1"
                  | ^^^^^
                unknown field `nodes`, expected one of `node`, `controllers`, `insecure`, `data_dir`, `driver`, `tls`, `sim`, `hyperv`, `log`, `telemetry`"#]],
        );
        refuse_file(
            "[log]\nlevel = \"info\"\n",
            expect![[r#"
            configuration file DIR/agent.toml: TOML parse error at line 2, column 1
              |
            2 | level = "info"
              | ^^^^^
            unknown field `level`, expected `format` or `filter`"#]],
        );
        refuse(
            &Given { file: Some(FILE), environment: &[("BERTH_AGENT_CONTROLLER", "http://c1:7600")], flags: &[] },
            expect![
                "BERTH_AGENT_CONTROLLER: no such setting; known are BERTH_AGENT_CONFIG, _NODE, _CONTROLLERS, _INSECURE, _TLS_CA, _TLS_CERT, _TLS_KEY, _TLS_SERVER_NAME, _DATA_DIR, _DRIVER, _SIM_HOST, _HYPERV_POWERSHELL, _HYPERV_FORCE, _HYPERV_ACCEPT, _HYPERV_LOOK_SECONDS, _HYPERV_STEP_SECONDS, _HYPERV_SHUTDOWN_SECONDS, _HYPERV_MMIO_HIGH_CAP_MIB, _HYPERV_GUEST_CREDENTIAL, _HYPERV_GUEST_USER, _HYPERV_GUEST_IDENTITY, _HYPERV_GUEST_KNOWN_HOSTS, _HYPERV_GUEST_PORT, _HYPERV_GUEST_SSH, _HYPERV_GUEST_CONNECT_SECONDS, _LOG_FORMAT, _LOG_FILTER, _TELEMETRY_ENDPOINT, _TELEMETRY_CA, _TELEMETRY_SAMPLE, _TELEMETRY_TRACES_PER_SECOND, _TELEMETRY_LINES_PER_SECOND, _TELEMETRY_INTERVAL_SECONDS, _TELEMETRY_PROMETHEUS"
            ],
        );
        assert!(Flags::try_parse_from(["berth-agent", "--endpoint", "http://c1"]).is_err());
    }

    #[test]
    fn hostile_files_are_refused() {
        refuse_file(
            "node = 7\n",
            expect![[r#"
            configuration file DIR/agent.toml: TOML parse error at line 1, column 8
              |
            1 | node = 7
              |        ^
            invalid type: integer `7`, expected a string"#]],
        );
        refuse_file(
            "node = \"a\"\nnode = \"b\"\n",
            expect![[r#"
            configuration file DIR/agent.toml: TOML parse error at line 2, column 1
              |
            2 | node = "b"
              | ^^^^
            duplicate key"#]],
        );
        refuse_file(
            "controllers = \"http://c1:7600\"\n",
            expect![[r#"
            configuration file DIR/agent.toml: TOML parse error at line 1, column 15
              |
            1 | controllers = "http://c1:7600"
              |               ^^^^^^^^^^^^^^^^
            invalid type: string "http://c1:7600", expected a sequence"#]],
        );
        assert!(toml::from_str::<Layer>("\u{0}").is_err(), "a NUL byte was accepted");
        refuse_file(
            "driver = \"sim\"\nnode = \"n\"\ncontrollers = [\"http://[::1]\"]\n",
            expect!["sim.host: is missing: the file that describes the simulated host"],
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let flags = Flags::try_parse_from(["berth-agent", "--config", "/nowhere/agent.toml"]).unwrap();
        let error = Settings::resolve(flags, std::iter::empty()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the configuration file /nowhere/agent.toml");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        <Flags as clap::CommandFactory>::command().debug_assert();
    }
}
