//! What the tests are told from outside: where programs are that they do not build.
//!
//! The only place that reads the environment here. `cargo xtask test` gets what is missing and says where it put it.

use crate::process::root;
use std::path::PathBuf;

/// The etcd to test with.
const ETCD: &str = "BERTH_TEST_ETCD";

/// The helm to render the chart with.
const HELM: &str = "BERTH_TEST_HELM";

/// The kubernetes-validate to check what it renders with.
const KUBERNETES_VALIDATE: &str = "BERTH_TEST_KUBERNETES_VALIDATE";

/// The promtool to check alert rules with.
const PROMTOOL: &str = "BERTH_TEST_PROMTOOL";

/// An API server of Kubernetes to try the chart on.
const KUBE_APISERVER: &str = "BERTH_TEST_KUBE_APISERVER";

/// Where a Prometheus is that scrapes a running Berth.
const PROMETHEUS_URL: &str = "BERTH_TEST_PROMETHEUS_URL";

/// The PowerShell to test with.
const PWSH: &str = "PWSH";

/// The folder with the Windows agent and what it needs under Wine, as `cargo xtask test windows` makes it.
const WINDOWS: &str = "BERTH_TEST_WINDOWS";

/// Wine's loader for 64-bit programs.
const WINE: &str = "BERTH_TEST_WINE";

/// The Windows agent's folder and Wine. None where nobody has built it just now: it is never tested as it was yesterday.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the config.rs")]
pub fn windows() -> Option<(PathBuf, PathBuf)> {
    Some((std::env::var_os(WINDOWS)?.into(), std::env::var_os(WINE)?.into()))
}

/// A PowerShell: the one the environment names, else the one that lies beside the checkout, else the one in the PATH.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the config.rs")]
pub fn pwsh() -> Option<PathBuf> {
    let named = std::env::var_os(PWSH).map(PathBuf::from);
    let beside = root().parent().map(|dir| dir.join("shared").join("tools").join("pwsh"));
    let program = format!("pwsh{}", std::env::consts::EXE_SUFFIX);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|dir| dir.join(&program));
    named.into_iter().chain(beside).chain(installed).find(|file| file.is_file())
}

/// The Prometheus to test with.
const PROMETHEUS: &str = "BERTH_TEST_PROMETHEUS";

/// Prometheus: the one the environment names, else the one in the PATH.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the config.rs")]
pub fn prometheus() -> Option<PathBuf> {
    let named = std::env::var_os(PROMETHEUS).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|dir| dir.join("prometheus"));
    named.into_iter().chain(installed).find(|file| file.is_file())
}

/// The etcd server: the one the environment names, else the one in the PATH, else the one that
/// `cargo xtask test` got.
#[must_use]
pub fn etcd() -> Option<PathBuf> {
    tool(ETCD, "etcd", "etcd", "etcd")
}

/// Helm, as [`etcd`].
#[must_use]
pub fn helm() -> Option<PathBuf> {
    tool(HELM, "helm", "helm", "helm")
}

/// What checks manifests against Kubernetes' own schemas, as [`etcd`].
#[must_use]
pub fn kubernetes_validate() -> Option<PathBuf> {
    tool(KUBERNETES_VALIDATE, "kubernetes-validate", "kubernetes-validate", "venv/bin/kubernetes-validate")
}

/// What checks Prometheus' rules, as [`etcd`].
#[must_use]
pub fn promtool() -> Option<PathBuf> {
    tool(PROMTOOL, "promtool", "promtool", "promtool")
}

/// An API server of Kubernetes, as [`etcd`]. Nothing builds one: whoever wants it does.
#[must_use]
pub fn kube_apiserver() -> Option<PathBuf> {
    tool(KUBE_APISERVER, "kube-apiserver", "kube-apiserver", "kube-apiserver")
}

/// A Prometheus that scrapes a running Berth, `http://HOST:PORT`.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the config.rs")]
pub fn prometheus_url() -> Option<String> {
    std::env::var(PROMETHEUS_URL).ok().filter(|url| !url.is_empty())
}

/// A program: named by the variable, in the PATH, or in a folder of `target/tools`.
#[expect(clippy::disallowed_methods, reason = "this is the config.rs")]
fn tool(variable: &str, program: &str, folder: &str, kept: &str) -> Option<PathBuf> {
    let suffix = std::env::consts::EXE_SUFFIX;
    let named = std::env::var_os(variable).map(PathBuf::from);
    let built = root().join("target").join("tools").join(folder).join(format!("{kept}{suffix}"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|dir| dir.join(format!("{program}{suffix}")));
    named.into_iter().chain(installed).chain([built]).find(|file| file.is_file())
}

/// A program of this name in the PATH.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the config.rs")]
pub fn in_path(name: &str) -> Option<PathBuf> {
    let program = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(&program)).find(|file| file.is_file())
}

/// The SSH server: in the PATH, or where systems have it, which is not in everybody's PATH.
#[must_use]
pub fn sshd() -> Option<PathBuf> {
    let usual = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"].map(PathBuf::from);
    in_path("sshd").into_iter().chain(usual).find(|file| file.is_file() && file.is_absolute())
}
