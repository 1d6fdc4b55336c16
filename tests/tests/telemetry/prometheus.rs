//! A real Prometheus finds what Berth says, under the names of the page about metrics.

use super::scene::{GOOD_VM, PATIENCE, Scene};
use anyhow::{Context as _, ensure};
use berth_tests::otlp::Collector;
use berth_tests::process::{Process, free_port, other, skip, wait_until};
use berth_tests::{config, http};
use serde_json::Value;

#[test]
fn a_real_prometheus_finds_what_the_page_names() -> anyhow::Result<()> {
    let Some(program) = config::prometheus() else {
        skip(
            "a_real_prometheus_finds_what_the_page_names",
            "there is no prometheus; cargo xtask test telemetry gets one",
        );
        return Ok(());
    };
    let collector = Collector::start()?;
    let scene = Scene::start(&collector.endpoint(), &[])?;
    scene.call("Placements/Create", &Scene::request("seen", GOOD_VM))?;
    scene.wait_phase("seen", "PHASE_ACTIVE")?;
    let targets: Vec<_> = std::iter::once(&scene.endpoint)
        .chain(&scene.agent_metrics)
        .map(|endpoint| format!("'{}'", endpoint.trim_start_matches("http://")))
        .collect();
    let settings = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: berth\n  static_configs:\n  - targets: [{}]\n",
        targets.join(", ")
    );
    let file = scene.dir.path().join("prometheus.yml");
    std::fs::write(&file, settings)?;
    let listen = format!("127.0.0.1:{}", free_port()?);
    let mut command = other(program);
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.tsdb.path={}", scene.dir.path().join("tsdb").display()));
    command.arg(format!("--web.listen-address={listen}"));
    let prometheus = Process::start(command)?;
    let ask = |query: &str| -> anyhow::Result<Value> {
        let answer = http::get(&format!("http://{listen}"), &format!("/api/v1/query?query={query}"))?.json()?;
        Ok(answer["data"]["result"].clone())
    };
    let value = |result: &Value| result[0]["value"][1].as_str().and_then(|text| text.parse::<f64>().ok());
    let there = wait_until(PATIENCE, || Ok(ask("sum(up)").is_ok_and(|result| value(&result) == Some(3.0))))?;
    ensure!(there, "not everything is scraped:\n{}", prometheus.log());
    for (query, expected) in [
        ("sum(berth_gpus)", 4.0),
        ("sum(berth_gpus{state=%22Attached%22})", 1.0),
        ("sum(berth_placements{phase=%22Active%22})", 1.0),
        ("sum(berth_leader)", 1.0),
        ("sum(berth_session)", 2.0),
        ("count(hw_status_ratio{hw_state=%22ok%22})", 4.0),
    ] {
        let mut last = Value::Null;
        let right = wait_until(PATIENCE, || {
            last = ask(query)?;
            Ok(value(&last) == Some(expected))
        })?;
        ensure!(right, "{query} is {last}, and should be {expected}");
    }
    // What the page names, and nothing else that is Berth's.
    let page = std::fs::read_to_string(berth_tests::process::root().join("docs").join("metrics.md"))?;
    let answer = http::get(&format!("http://{listen}"), "/api/v1/label/__name__/values")?.json()?;
    let names = answer["data"].as_array().context("no names")?;
    for name in
        names.iter().filter_map(Value::as_str).filter(|name| name.starts_with("berth_") || name.starts_with("hw_"))
    {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        ensure!(page.contains(&format!("`{base}`")) || page.contains(&format!("`{name}`")), "{name} is on no page");
    }
    Ok(())
}
