//! A real Prometheus finds what Berth says, under the names of the page about metrics.

use super::scene::{GOOD_VM, PATIENCE, Scene};
use anyhow::{Context as _, ensure};
use berth_tests::config;
use berth_tests::otlp::Collector;
use berth_tests::process::{skip, wait_until};
use berth_tests::prometheus::Prometheus;
use serde_json::Value;
use std::time::Duration;

/// A Prometheus that asks all processes of a scene each second, once it has asked everybody; none where there is no such
/// program.
pub(super) fn of(test: &'static str, scene: &Scene, rules: Option<&Value>) -> anyhow::Result<Option<Prometheus>> {
    let Some(program) = config::prometheus() else {
        skip(test, "there is no prometheus; cargo xtask test telemetry gets one");
        return Ok(None);
    };
    let targets: Vec<_> = std::iter::once(&scene.endpoint)
        .chain(&scene.agent_metrics)
        .map(|endpoint| endpoint.trim_start_matches("http://").to_owned())
        .collect();
    let prometheus = Prometheus::start(&program, scene.dir.path(), &targets, Duration::from_secs(1), rules)?;
    let all = Some(f64::from(u32::try_from(targets.len())?));
    let there = wait_until(PATIENCE, || Ok(prometheus.ask("sum(up)").is_ok_and(|result| value(&result) == all)))?;
    ensure!(there, "not everything is scraped:\n{}", prometheus.log());
    Ok(Some(prometheus))
}

/// The value of the one series of a result.
fn value(result: &Value) -> Option<f64> {
    result[0]["value"][1].as_str().and_then(|text| text.parse().ok())
}

#[test]
fn a_real_prometheus_finds_what_the_page_names() -> anyhow::Result<()> {
    let collector = Collector::start()?;
    let scene = Scene::start(&collector.endpoint(), &[])?;
    scene.call("Placements/Create", &Scene::request("seen", GOOD_VM))?;
    scene.wait_phase("seen", "PHASE_ACTIVE")?;
    let test = "a_real_prometheus_finds_what_the_page_names";
    let Some(prometheus) = of(test, &scene, None)? else { return Ok(()) };
    for (query, expected) in [
        ("sum(berth_gpus)", 4.0),
        ("sum(berth_gpus{state=\"Attached\"})", 1.0),
        ("sum(berth_placements{phase=\"Active\"})", 1.0),
        ("sum(berth_leader)", 1.0),
        ("sum(berth_session)", 2.0),
        ("count(hw_status_ratio{hw_state=\"ok\"})", 4.0),
    ] {
        let mut last = Value::Null;
        let right = wait_until(PATIENCE, || {
            last = prometheus.ask(query)?;
            Ok(value(&last) == Some(expected))
        })?;
        ensure!(right, "{query} is {last}, and should be {expected}");
    }
    // What the page names, and nothing else that is Berth's.
    let page = std::fs::read_to_string(berth_tests::process::root().join("docs").join("metrics.md"))?;
    let names = prometheus.get("label/__name__/values")?;
    let names = names.as_array().context("no names")?;
    for name in
        names.iter().filter_map(Value::as_str).filter(|name| name.starts_with("berth_") || name.starts_with("hw_"))
    {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        ensure!(page.contains(&format!("`{base}`")) || page.contains(&format!("`{name}`")), "{name} is on no page");
    }
    Ok(())
}
