//! A small Berth as processes: one controller, two agents with simulated hosts, of which one cannot start VMs.

use anyhow::{Context as _, ensure};
use berth_tests::http;
use berth_tests::process::{Process, binary, free_port, other, wait_until};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Debug builds on a machine that does other work, too.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// The VM on the host where everything works.
pub(super) const GOOD_VM: &str = "vm-good";
/// The VM on the host that cannot start one.
pub(super) const BAD_VM: &str = "vm-bad";

pub(super) struct Scene {
    pub(super) endpoint: String,
    pub(super) controller: Process,
    args: Vec<String>,
    pub(super) agents: Vec<Process>,
    agent_args: Vec<Vec<String>>,
    /// Where the agents' metrics are.
    pub(super) agent_metrics: Vec<String>,
    pub(super) dir: TempDir,
}

fn host(dir: &Path, node: &str, number: u32, rest: &str) -> anyhow::Result<std::path::PathBuf> {
    let text = format!(
        "cluster = \"c1\"\n[[gpu]]\nmodel = \"A16\"\naddress = \"PCIROOT(20)#PCI(0300)#PCI(0000)\"\n[[gpu]]\nmodel = \
         \"A16\"\naddress = \"PCIROOT(20)#PCI(0400)#PCI(0000)\"\n[[vm]]\nid = \"8fce3318-aa0f-4de3-8664-00000000000{number}\"\n{rest}"
    );
    let path = dir.join(format!("{node}.toml"));
    std::fs::write(&path, text)?;
    Ok(path)
}

fn start(program: &'static str, args: &[String]) -> anyhow::Result<Process> {
    let mut command = other(binary(program)?);
    command.args(args);
    Process::start(command)
}

impl Scene {
    /// Ends the controller as a crash would, and starts it again.
    pub(super) fn crash(self) -> anyhow::Result<Self> {
        let Self { endpoint, controller: crashes, args, agents, agent_args, agent_metrics, dir } = self;
        crashes.kill()?;
        let controller = start("berth-controller", &args)?;
        Ok(Self { controller, endpoint, args, agents, agent_args, agent_metrics, dir })
    }

    /// Ends the agent of the good host as a crash would.
    pub(super) fn kill_good_agent(&mut self) -> anyhow::Result<()> {
        self.agents.remove(0).kill()
    }

    /// Starts the agent of the good host again, as it was.
    pub(super) fn start_good_agent(&mut self) -> anyhow::Result<()> {
        self.agents.insert(0, start("berth-agent", &self.agent_args[0])?);
        Ok(())
    }

    /// Starts it and waits until both agents are there. `store` are the controller's flags for its store.
    pub(super) fn start(collector: &str, store: &[String]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let endpoint = format!("http://{listen}");
        let data_dir = dir.path().join("controller").display().to_string();
        let mut args: Vec<String> =
            ["--listen", &listen, "--log-format", "json", "--data-dir", &data_dir].map(str::to_owned).to_vec();
        args.extend_from_slice(store);
        for setting in ["agents.heartbeat=1s", "agents.observe=1s", "telemetry.interval=1s", "etcd.lease_ttl=2s"] {
            // Only where there is an etcd.
            if !setting.starts_with("etcd") || !store.is_empty() {
                args.extend(["--set".to_owned(), setting.to_owned()]);
            }
        }
        args.extend(["--set".to_owned(), format!("telemetry.endpoint={collector}")]);
        let controller = start("berth-controller", &args)?;
        let (mut agents, mut agent_args, mut agent_metrics) = (Vec::new(), Vec::new(), Vec::new());
        let fails =
            "name = \"vm-bad\"\n[[fault]]\nstep = \"StartVm\"\nerror = \"the VM failed to start: 0xC035001E\"\n";
        for (node, number, rest) in [("hv-good", 1, "name = \"vm-good\"\n"), ("hv-bad", 2, fails)] {
            let description = host(dir.path(), node, number, rest)?.display().to_string();
            let data_dir = dir.path().join(node).display().to_string();
            let metrics = format!("127.0.0.1:{}", free_port()?);
            let args = ["--node", node, "--driver", "sim", "--controller", &endpoint, "--log-format", "json"];
            let host = ["--sim-host", &description, "--data-dir", &data_dir, "--telemetry-endpoint", collector];
            let tells = ["--telemetry-interval-seconds", "1", "--telemetry-prometheus", &metrics];
            let args: Vec<_> = args.into_iter().chain(host).chain(tells).map(str::to_owned).collect();
            agents.push(start("berth-agent", &args)?);
            agent_args.push(args);
            agent_metrics.push(format!("http://{metrics}"));
        }
        let mut scene = Self { endpoint, controller, args, agents, agent_args, agent_metrics, dir };
        let ready = wait_until(PATIENCE, || {
            for process in scene.agents.iter_mut().chain([&mut scene.controller]) {
                let ended = process.ended_within(Duration::ZERO)?;
                ensure!(ended.is_none(), "a process ended at once: {ended:?}\n{}", process.log());
            }
            Ok(scene.call("Operations/Status", "{}").is_ok_and(|status| status["nodesReady"] == 2))
        })?;
        ensure!(ready, "the agents are not there:\n{}\n{}", scene.controller.log(), scene.agents[0].log());
        Ok(scene)
    }

    /// Calls a method as JSON.
    pub(super) fn call(&self, method: &str, body: &str) -> anyhow::Result<Value> {
        let answer = http::post(&self.endpoint, &format!("/berth.v1.{method}"), body)?;
        ensure!(answer.status == 200, "{method}: {} {}", answer.status, answer.body);
        answer.json()
    }

    /// The body that asks for a placement of one GPU.
    pub(super) fn request(name: &str, vm: &str) -> String {
        format!(r#"{{"request": {{"requestId": "{name}", "name": "{name}", "vm": "{vm}", "gpus": 1}}}}"#)
    }

    /// Waits until a placement is in a phase.
    pub(super) fn wait_phase(&self, name: &str, phase: &str) -> anyhow::Result<()> {
        let mut last = Value::Null;
        let there = wait_until(PATIENCE, || {
            last = self.call("Placements/Get", &format!(r#"{{"name": "{name}"}}"#))?;
            Ok(last["phase"] == phase)
        })?;
        ensure!(there, "{name} is not {phase}: {last:#}\n{}", self.controller.log());
        Ok(())
    }

    /// The controller's metrics, as Prometheus reads them.
    pub(super) fn metrics(&self) -> anyhow::Result<Metrics> {
        Metrics::read(&self.endpoint)
    }
}

/// A page of metrics.
pub(super) struct Metrics(pub(super) String);

impl Metrics {
    pub(super) fn read(endpoint: &str) -> anyhow::Result<Self> {
        let answer = http::get(endpoint, "/metrics")?;
        ensure!(answer.status == 200, "no metrics: {} {}", answer.status, answer.body);
        Ok(Self(answer.body))
    }

    /// The sum of all series of a metric that have these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut sum = None;
        for line in self.0.lines() {
            let Some(rest) = line.strip_prefix(name) else { continue };
            if !rest.starts_with(['{', ' ']) {
                continue;
            }
            let has = |(key, value): &(&str, &str)| rest.contains(&format!("{key}=\"{value}\""));
            if labels.iter().all(has)
                && let Some(value) = rest.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok())
            {
                *sum.get_or_insert(0.0) += value;
            }
        }
        sum
    }

    /// The same where it must be there.
    pub(super) fn get(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        self.sum(name, labels).with_context(|| format!("no {name} {labels:?} in\n{}", self.0))
    }
}
