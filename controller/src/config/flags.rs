//! The command line.

use super::layers::Layer;
use super::task::Once;
use super::{Problem, StoreKind};
use clap::Parser;
use std::path::PathBuf;

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
pub(super) struct Flags {
    /// Configuration file (TOML).
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Check the configuration and end.
    #[arg(long, global = true)]
    pub(super) check_config: bool,
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
    pub(super) task: Option<Once>,
}

impl Flags {
    /// The settings they give.
    pub(super) fn layer(self, problems: &mut Vec<Problem>) -> Layer {
        let Self {
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
        } = self;
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
                None => problems.push(Problem {
                    setting: format!("--set {pair}"),
                    why: "is not of the form NAME=VALUE".to_owned(),
                }),
            }
        }
        for (name, flag, value) in named {
            if let Some(value) = value {
                layer.insert(name.to_owned(), (flag.to_owned(), value));
            }
        }
        layer
    }
}
