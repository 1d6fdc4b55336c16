//! What one source says of every setting: the file, the environment, or the flags.

use super::{Error, Problem, export, hyperv};
use serde::Deserialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// One source's word on every setting.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    pub(super) node: Option<String>,
    pub(super) controllers: Option<Vec<String>>,
    pub(super) insecure: Option<bool>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) driver: Option<String>,
    #[serde(default)]
    pub(super) tls: TlsLayer,
    #[serde(default)]
    pub(super) sim: SimLayer,
    #[serde(default)]
    pub(super) hyperv: super::hyperv::Layer,
    #[serde(default)]
    pub(super) log: LogLayer,
    #[serde(default)]
    pub(super) telemetry: super::export::Layer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsLayer {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) server_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SimLayer {
    pub(super) host: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogLayer {
    pub(super) format: Option<String>,
    pub(super) filter: Option<String>,
}

/// Start of every variable that is the agent's.
const PREFIX: &str = "BERTH_AGENT_";

/// What the configuration file says.
pub(super) fn from_file(path: &Path) -> Result<Layer, Error> {
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

/// What variables say, and the configuration file that one of them names.
pub(super) fn from_environment(
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
