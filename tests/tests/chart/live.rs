//! The queries of dashboards and alerts against a Prometheus that scrapes a running Berth: one that is named, as in
//! `BERTH_TEST_PROMETHEUS_URL=http://127.0.0.1:9090 cargo test -p berth-tests --test chart live`, else one that is started.

use crate::alerts::every_expression;
use anyhow::ensure;
use berth_tests::process::{Process, binary, free_port, other, skip, wait_until};
use berth_tests::prometheus::{Prometheus, query};
use berth_tests::{config, http};
use std::path::Path;
use std::time::Duration;

/// Debug builds on a machine that does other work, too.
const PATIENCE: Duration = Duration::from_secs(90);
/// What a placed VM, a leader and an agent surely make: these must have data, whatever else is quiet.
const ALWAYS: [&str; 9] = [
    "sum(berth_leader) == 1",
    // There is no rate before the second scrape.
    "sum(rate(berth_commit_duration_seconds_count[5m])) >= 0",
    "sum(berth_agents_connected) > 0",
    "sum(berth_placements{phase=\"Active\"}) > 0",
    "sum(berth_slots) > 0",
    "sum(berth_queue_depth) == 0",
    "sum(berth_drift) == 0",
    "histogram_quantile(0.99, sum by (le) (berth_commit_duration_seconds_bucket)) > 0",
    "sum by (method) (berth_api_duration_seconds_count{method=\"Placements/Create\",code=\"Ok\"}) > 0",
];

/// How many series a query has.
fn ask(prometheus: &str, expr: &str) -> anyhow::Result<usize> {
    Ok(query(prometheus, expr)?.len())
}

/// A Berth with one placed VM, and a Prometheus that scrapes it; they end with their owner.
struct Scraped {
    prometheus: Prometheus,
    _processes: Vec<Process>,
}

impl Scraped {
    fn start(dir: &Path, prometheus: &Path) -> anyhow::Result<Self> {
        let address = || Ok::<_, anyhow::Error>(format!("127.0.0.1:{}", free_port()?));
        let (berth, agent) = (address()?, address()?);
        let mut controller = other(binary("berth-controller")?);
        controller.args([
            "--listen",
            &berth,
            "--set",
            "agents.heartbeat=1s",
            "--set",
            "agents.observe=1s",
            "--data-dir",
        ]);
        let mut processes = vec![Process::start({
            controller.arg(dir.join("controller"));
            controller
        })?];
        let host = "[[gpu]]\nmodel = \"A16\"\naddress = \"PCIROOT(20)#PCI(0300)#PCI(0000)\"\n[[gpu]]\nmodel = \"A16\"\n\
                    address = \"PCIROOT(20)#PCI(0400)#PCI(0000)\"\n[[vm]]\nid = \"8fce3318-aa0f-4de3-8664-000000000001\"\n\
                    name = \"vm-1\"\n";
        std::fs::write(dir.join("host.toml"), host)?;
        let endpoint = format!("http://{berth}");
        let mut command = other(binary("berth-agent")?);
        command.args([
            "--node",
            "hv-1",
            "--driver",
            "sim",
            "--controller",
            &endpoint,
            "--telemetry-prometheus",
            &agent,
        ]);
        command.arg("--sim-host").arg(dir.join("host.toml")).arg("--data-dir").arg(dir.join("agent"));
        processes.push(Process::start(command)?);
        let create = r#"{"request": {"requestId": "p", "name": "p", "vm": "vm-1", "gpus": 1}}"#;
        let placed = wait_until(PATIENCE, || {
            Ok(http::post(&endpoint, "/berth.v1.Placements/Create", create).is_ok_and(|answer| answer.status == 200))
        })?;
        ensure!(placed, "nothing can be placed:\n{}", processes[0].log());
        let prometheus = Prometheus::start(prometheus, dir, &[berth, agent], Duration::from_secs(1), None)?;
        Ok(Self { prometheus, _processes: processes })
    }
}

#[test]
fn a_prometheus_answers_every_query() {
    let test = "a_prometheus_answers_every_query";
    let dir = tempfile::tempdir().unwrap();
    let (url, _scraped) = match (config::prometheus_url(), config::prometheus()) {
        (Some(url), _) => (url, None),
        (None, Some(program)) => {
            let scraped = Scraped::start(dir.path(), &program).unwrap();
            (scraped.prometheus.url.clone(), Some(scraped))
        }
        (None, None) => return skip(test, "there is no prometheus, and none is named in BERTH_TEST_PROMETHEUS_URL"),
    };
    for expr in ALWAYS {
        let there = wait_until(PATIENCE, || Ok(ask(&url, expr).is_ok_and(|series| series > 0))).unwrap();
        assert!(there, "{expr} has no data: does this Prometheus scrape a controller, and is a VM placed?");
    }
    let queries = every_expression().unwrap();
    let quiet: Vec<_> = queries.iter().filter(|query| ask(&url, &query.expr).unwrap() == 0).collect();
    let shown: Vec<_> = quiet.iter().map(|query| format!("{}: {}", query.place, query.expr)).collect();
    println!("{} of {} queries have no data:\n{}", quiet.len(), queries.len(), shown.join("\n"));
    // Alerts rest and nothing fails here; but what a dashboard is looked at for is there.
    assert!(quiet.len() * 2 < queries.len(), "most queries have no data:\n{}", shown.join("\n"));
}
