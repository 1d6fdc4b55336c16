//! What the sources together come to: the strongest word on each setting, read and checked.

use super::layer::Layer;
use super::{Config, Driver, Problem, Settings, endpoint, export, hyperv};
use crate::tls::{is_encrypted, is_remote};
use berth_model::NodeName;
use berth_telemetry as telemetry;
use berth_tls::Pair;
use berth_tls::client::{self as tls, is_server_name};
use std::path::{Path, PathBuf};

/// The layers, strongest first: flags, environment, file.
pub(super) struct Layers(pub(super) [Layer; 3]);

impl Layers {
    fn pick<'a, T: ?Sized>(&'a self, get: impl Fn(&'a Layer) -> Option<&'a T>) -> Option<&'a T> {
        self.0.iter().find_map(get)
    }

    /// The settings, or what is wrong with them.
    pub(super) fn settings(&self, system: Option<&Path>, problems: &mut Vec<Problem>) -> Option<Settings> {
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
