//! A real Prometheus finds what Berth says, under the names of the page about metrics.

use super::scene::{GOOD_VM, PATIENCE, Scene};
use anyhow::{Context as _, ensure};
use berth_tests::otlp::Collector;
use berth_tests::process::{Process, free_port, other, skip, wait_until};
use berth_tests::{config, http};
use serde_json::{Value, json};

/// A Prometheus that asks all processes of a scene each second, and evaluates rules as often.
pub(super) struct Prometheus {
    endpoint: String,
    pub(super) process: Process,
}

impl Prometheus {
    /// Starts it and waits until it has asked everybody; none where there is no such program.
    pub(super) fn start(test: &'static str, scene: &Scene, rules: Option<&Value>) -> anyhow::Result<Option<Self>> {
        let Some(program) = config::prometheus() else {
            skip(test, "there is no prometheus; cargo xtask test telemetry gets one");
            return Ok(None);
        };
        let targets: Vec<_> = std::iter::once(&scene.endpoint)
            .chain(&scene.agent_metrics)
            .map(|endpoint| endpoint.trim_start_matches("http://"))
            .collect();
        let mut settings = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [{"job_name": "berth", "static_configs": [{"targets": targets}]}],
        });
        if let Some(rules) = rules {
            let file = scene.dir.path().join("rules.yml");
            std::fs::write(&file, rules.to_string())?;
            settings["rule_files"] = json!([file]);
        }
        // JSON is YAML.
        let file = scene.dir.path().join("prometheus.yml");
        std::fs::write(&file, settings.to_string())?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let mut command = other(program);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", scene.dir.path().join("tsdb").display()));
        command.arg(format!("--web.listen-address={listen}"));
        let prometheus = Self { endpoint: format!("http://{listen}"), process: Process::start(command)? };
        let all = Some(f64::from(u32::try_from(targets.len())?));
        let there = wait_until(PATIENCE, || Ok(prometheus.ask("sum(up)").is_ok_and(|result| value(&result) == all)))?;
        ensure!(there, "not everything is scraped:\n{}", prometheus.process.log());
        Ok(Some(prometheus))
    }

    /// What stands under `/api/v1/`.
    pub(super) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = http::get(&self.endpoint, &format!("/api/v1/{path}"))?.json()?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].clone())
    }

    /// The result of a query.
    pub(super) fn ask(&self, query: &str) -> anyhow::Result<Value> {
        let escape = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        let query: String = query.bytes().map(escape).collect();
        Ok(self.get(&format!("query?query={query}"))?["result"].clone())
    }
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
    let Some(prometheus) = Prometheus::start(test, &scene, None)? else { return Ok(()) };
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
