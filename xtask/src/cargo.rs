//! Runs cargo so that everything is compiled once: tests always of the whole workspace, so that one resolution of features
//! serves all parts and only the choice of what to run differs.

use crate::config;
use crate::process::{command, stream, works};
use crate::tally::{Counter, Tally};
use anyhow::{Context as _, bail};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::Command;

/// A cargo command in the repository's root.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut cargo = command("cargo");
    cargo.args(args);
    if std::io::stderr().is_terminal() {
        // Its output passes through a pipe here, which it would take for no terminal.
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    if let Some((protoc, include)) = protoc() {
        cargo.env(config::PROTOC, protoc).env("PROTOC_INCLUDE", include);
    }
    cargo
}

/// A protobuf compiler where this machine has none, with the protos it comes with: etcd's client compiles etcd's
/// protos with one. `None` also where nobody has built one for this machine; the build then says what is missing.
fn protoc() -> Option<(PathBuf, PathBuf)> {
    if config::named(config::PROTOC).is_some() || config::in_path("protoc").is_some() {
        return None;
    }
    Some((protoc_bin_vendored::protoc_bin_path().ok()?, protoc_bin_vendored::include_path().ok()?))
}

/// Whether cargo has this component (`clippy`, `fmt`).
pub(crate) fn has(component: &str) -> bool {
    works("cargo", &[component, "--version"])
}

/// Builds binaries, with the features that the tests are built with.
pub(crate) fn build(binaries: &[&str]) -> anyhow::Result<()> {
    let choice = binaries.iter().flat_map(|binary| ["--bin", binary]).collect::<Vec<_>>();
    let status = stream(cargo(&[&["build", "--workspace"], choice.as_slice()].concat()), |_| ())?;
    if !status.success() {
        bail!("{} did not build", binaries.join(" and "));
    }
    Ok(())
}

/// Where [`build`] puts a binary: beside this very program.
pub(crate) fn built(binary: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find out where this program is")?;
    Ok(this.with_file_name(format!("{binary}{}", std::env::consts::EXE_SUFFIX)))
}

/// Runs `cargo test` for the whole workspace with this choice of targets, and counts.
pub(crate) fn test(choice: &[&str], harness: &[&str]) -> anyhow::Result<Tally> {
    test_with(&[], choice, harness)
}

/// The same with these variables set.
pub(crate) fn test_with(variables: &[(&str, PathBuf)], choice: &[&str], harness: &[&str]) -> anyhow::Result<Tally> {
    let mut run = cargo(&["test", "--workspace", "--no-fail-fast"]);
    run.args(choice).arg("--").args(harness).envs(variables.iter().map(|(name, value)| (name, value)));
    let mut counter = Counter::default();
    let status = stream(run, |line| counter.line(line))?;
    let mut tally = counter.tally();
    if !status.success() && tally.failed == 0 {
        // It did not build, or a test process died before it could count.
        tally.failed = 1;
    }
    Ok(tally)
}

/// The integration tests of the workspace as (package, test).
pub(crate) fn integration_tests() -> anyhow::Result<Vec<(String, String)>> {
    let output = cargo(&["metadata", "--no-deps", "--format-version", "1"]).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata is no JSON")?;
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().context("cargo metadata lists no packages")? {
        let name = package["name"].as_str().unwrap_or_default();
        for target in package["targets"].as_array().into_iter().flatten() {
            if target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "test")) {
                found.push((name.to_owned(), target["name"].as_str().unwrap_or_default().to_owned()));
            }
        }
    }
    found.sort();
    Ok(found)
}
