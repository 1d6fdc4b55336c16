//! What the file and the environment say, each setting by its name.

use super::values::SETTINGS;
use super::{Error, Problem};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Start of every variable that is the controller's.
const PREFIX: &str = "BERTH_CONTROLLER_";

/// Values by the name of their setting, each with the name it had where it came from.
pub(super) type Layer = BTreeMap<String, (String, String)>;

/// What variables say, and the configuration file that one of them names.
pub(super) fn from_environment(
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

/// What the configuration file says.
pub(super) fn from_file(path: &Path, problems: &mut Vec<Problem>) -> Result<Layer, Error> {
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
