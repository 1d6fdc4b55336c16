//! What a person tells `cargo xtask` through the environment: programs to use instead of those it would get.
//!
//! The only place that reads the environment.

use std::path::PathBuf;

/// The etcd that tests run against; tests read the same name.
pub(crate) const ETCD: &str = "BERTH_TEST_ETCD";
/// The helm that tests render the chart with.
pub(crate) const HELM: &str = "BERTH_TEST_HELM";
/// What tests check rendered manifests with.
pub(crate) const KUBERNETES_VALIDATE: &str = "BERTH_TEST_KUBERNETES_VALIDATE";
/// What tests check alert rules with.
pub(crate) const PROMTOOL: &str = "BERTH_TEST_PROMTOOL";
/// The folder with the Windows agent and a Windows to run it in; tests read the same name.
pub(crate) const WINDOWS: &str = "BERTH_TEST_WINDOWS";
/// Wine's loader for 64-bit programs; tests read the same name.
pub(crate) const WINE: &str = "BERTH_TEST_WINE";
/// The PowerShell to test with; tests read the same name.
pub(crate) const PWSH: &str = "PWSH";
/// The protobuf compiler, as every build script knows it.
pub(crate) const PROTOC: &str = "PROTOC";

/// Names a Prometheus for the tests.
pub(crate) const PROMETHEUS: &str = "BERTH_TEST_PROMETHEUS";

/// The program that a variable names.
#[expect(clippy::disallowed_methods, reason = "this is the config.rs")]
pub(crate) fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// A program of the PATH.
#[expect(clippy::disallowed_methods, reason = "this is the config.rs")]
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let program = format!("{program}{}", std::env::consts::EXE_SUFFIX);
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(&program)).find(|file| file.is_file())
}

/// Whether this is a machine that runs tests for somebody and is thrown away afterwards.
#[expect(clippy::disallowed_methods, reason = "this is the config.rs")]
pub(crate) fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|ci| ci == "true")
}
