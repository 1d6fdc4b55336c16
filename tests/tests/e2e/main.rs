//! End to end: the real binaries as processes, asked as users and programs ask them.
//!
//! Each test starts what it needs on a free port and ends it. A test that cannot run on this machine says so by
//! `process::skip`; everything else must pass everywhere.

#![expect(clippy::unwrap_used, reason = "tests")]

mod adopt;
mod bad_input;
mod cli;
mod crash;
mod data_dir;
mod etcd;
mod http;
mod nospace;
mod openb;
mod python;
mod reflection;
mod site;
mod trouble;

use anyhow::ensure;
use berth_tests::process::Dev;
use serde_json::Value;
use std::time::Duration;

/// A few simulated nodes become ready within seconds.
const READY: Duration = Duration::from_secs(60);

/// `berth dev` with so many nodes, all ready.
fn dev(nodes: u64, args: &[&str]) -> anyhow::Result<Dev> {
    let count = nodes.to_string();
    let dev = Dev::start(&[&["--nodes", &count], args].concat())?;
    dev.wait_ready(nodes, READY)?;
    Ok(dev)
}

/// A fleet file with its text, kept until it is dropped.
fn file(name: &str, text: &str) -> anyhow::Result<(tempfile::TempDir, String)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join(name);
    std::fs::write(&path, text)?;
    let path = path.display().to_string();
    Ok((dir, path))
}

/// One placement as the API's JSON.
fn placement(dev: &Dev, name: &str) -> anyhow::Result<Value> {
    let answer =
        berth_tests::http::post(&dev.endpoint, "/berth.v1.Placements/Get", &format!("{{\"name\": {name:?}}}"))?;
    ensure!(answer.status == 200, "get {name}: {} {}", answer.status, answer.body);
    answer.json()
}

/// Waits until a placement is in a phase, and gives it.
fn wait_phase(dev: &Dev, name: &str, phase: &str) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    let reached = berth_tests::process::wait_until(READY, || {
        last = placement(dev, name)?;
        Ok(last["phase"] == phase)
    })?;
    ensure!(reached, "placement {name} is not {phase} in time: {last:#}\n{}", dev.log());
    Ok(last)
}

/// How many GPUs are claimed, and by whom.
fn claims(dev: &Dev) -> anyhow::Result<Vec<(String, String)>> {
    let answer = berth_tests::http::post(&dev.endpoint, "/berth.v1.Inventory/ListGpus", "{}")?.json()?;
    let gpus = answer["gpus"].as_array().cloned().unwrap_or_default();
    ensure!(!gpus.is_empty(), "no GPUs are listed: {answer}");
    Ok(gpus
        .iter()
        .filter_map(|gpu| Some((gpu["id"].as_str()?.to_owned(), gpu["placement"].as_str()?.to_owned())))
        .filter(|(_, owner)| !owner.is_empty())
        .collect())
}
