//! Controllers and agents as processes of their own, on one etcd: what a site looks like.

use super::READY;
use anyhow::{Context as _, ensure};
use berth_tests::etcd::Etcd;
use berth_tests::process::{Process, Ran, binary, free_port, other, run, wait_until};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;
use tempfile::TempDir;

/// GPUs of each host.
const GPUS: usize = 4;

/// Where a controller listens, and the controller while it runs.
#[derive(Debug)]
pub(super) struct Controller {
    listen: String,
    process: Option<Process>,
}

/// Everything at one place.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) etcd: Etcd,
    pub(super) controllers: Vec<Controller>,
    agents: Vec<Process>,
    dir: TempDir,
}

impl Site {
    /// Starts so many controllers, and one agent for each name: a simulated host with four GPUs and a VM of that name.
    /// `None` when there is no etcd here; that was said then.
    pub(super) fn start(test: &str, controllers: usize, agents: &[&str]) -> anyhow::Result<Option<Self>> {
        let Some(etcd) = Etcd::one(test)? else { return Ok(None) };
        Self::start_on(etcd, controllers, agents).map(Some)
    }

    /// The same on this etcd.
    pub(super) fn start_on(etcd: Etcd, controllers: usize, agents: &[&str]) -> anyhow::Result<Self> {
        let mut site = Self { etcd, controllers: Vec::new(), agents: Vec::new(), dir: tempfile::tempdir()? };
        for _ in 0..controllers {
            let listen = format!("127.0.0.1:{}", free_port()?);
            site.controllers.push(Controller { listen, process: None });
        }
        for (number, node) in agents.iter().enumerate() {
            site.start_agent(number, node)?;
        }
        site.start_controllers()?;
        site.wait_ready(agents.len())?;
        Ok(site)
    }

    fn start_agent(&mut self, number: usize, node: &str) -> anyhow::Result<()> {
        let mut host = String::new();
        for gpu in 1..=GPUS {
            writeln!(host, "[[gpu]]\nmodel = \"A2\"\naddress = \"PCIROOT({gpu})#PCI(0300)#PCI(0000)\"")?;
        }
        writeln!(host, "[[vm]]\nid = \"8fce3318-aa0f-4de3-8664-{number:012}\"\nname = \"{node}-vm\"")?;
        let description = self.file(&format!("{node}.toml"));
        std::fs::write(&description, host)?;
        let mut agent = other(binary("berth-agent")?);
        agent.args(["--node", node, "--driver", "sim", "--sim-host"]).arg(description);
        agent.arg("--data-dir").arg(self.file(node));
        for controller in &self.controllers {
            agent.args(["--controller", &format!("http://{}", controller.listen)]);
        }
        self.agents.push(Process::start(agent)?);
        Ok(())
    }

    /// A file of this site.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `berth-controller` with the settings of one of the controllers, on the present etcd.
    pub(super) fn controller(&self, number: usize) -> anyhow::Result<Command> {
        let mut controller = other(binary("berth-controller")?);
        controller.args(["--listen", &self.controllers[number].listen, "--etcd", &self.etcd.endpoints().join(",")]);
        for setting in ["etcd.lease_ttl=2s", "agents.heartbeat=500ms", "agents.observe=500ms", "check_interval=1s"] {
            controller.args(["--set", setting]);
        }
        Ok(controller)
    }

    /// Starts all controllers.
    pub(super) fn start_controllers(&mut self) -> anyhow::Result<()> {
        for number in 0..self.controllers.len() {
            let mut process = Process::start(self.controller(number)?)?;
            process.wait_for_line(READY, |line| line.contains("serving").then_some(()))?;
            self.controllers[number].process = Some(process);
        }
        Ok(())
    }

    /// Ends all controllers as a supervisor does.
    pub(super) fn stop_controllers(&mut self) -> anyhow::Result<()> {
        for controller in &mut self.controllers {
            let mut process = controller.process.take().context("it does not run")?;
            process.terminate()?;
            let ended = process.ended_within(READY)?;
            ensure!(ended.is_some_and(|status| status.success()), "it ended with {ended:?}:\n{}", process.log());
        }
        Ok(())
    }

    /// Ends all controllers as a crash does.
    pub(super) fn kill_controllers(&mut self) -> anyhow::Result<()> {
        self.controllers.iter_mut().try_for_each(|one| one.process.take().context("it does not run")?.kill())
    }

    /// The store is gone: another etcd, with nothing in it.
    pub(super) fn lose_store(&mut self, test: &str) -> anyhow::Result<()> {
        self.etcd = Etcd::one(test)?.context("there was one a moment ago")?;
        Ok(())
    }

    /// How a controller ended, if one did by itself.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        for process in self.controllers.iter_mut().filter_map(|one| one.process.as_mut()) {
            let ended = process.ended_within(Duration::ZERO)?;
            if ended.is_some() {
                return Ok(ended);
            }
        }
        Ok(None)
    }

    /// What all processes said, for messages.
    pub(super) fn log(&self) -> String {
        let controllers = self.controllers.iter().filter_map(|one| one.process.as_ref());
        controllers.chain(&self.agents).map(Process::log).collect::<Vec<_>>().join("\n----\n")
    }

    /// Where a controller is reached.
    pub(super) fn endpoint(&self, number: usize) -> String {
        format!("http://{}", self.controllers[number].listen)
    }

    /// Runs `berth` against one controller.
    pub(super) fn berth_at(&self, number: usize, args: &[&str]) -> anyhow::Result<Ran> {
        let mut berth = other(binary("berth")?);
        berth.args(args).env("BERTH_ENDPOINT", self.endpoint(number));
        run(berth)
    }

    /// Runs `berth` against the first controller; it must succeed.
    pub(super) fn berth(&self, args: &[&str]) -> anyhow::Result<Ran> {
        self.berth_at(0, args)?.expect(0)
    }

    /// The same as JSON.
    pub(super) fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        self.berth(&[args, &["-o", "json"]].concat())?.json()
    }

    /// The number of the controller that leads.
    pub(super) fn leader(&self) -> anyhow::Result<usize> {
        let mut found = None;
        let led = wait_until(READY, || {
            for number in 0..self.controllers.len() {
                let status = self.berth_at(number, &["status", "-o", "json"])?;
                if status.code == Some(0) && status.json()?["leader"] == true {
                    found = Some(number);
                }
            }
            Ok(found.is_some())
        })?;
        ensure!(led, "nobody leads:\n{}", self.log());
        found.context("nobody leads")
    }

    /// Waits until the status at every controller is as it should be.
    pub(super) fn wait_status(&self, what: &str, is: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let mut last = Value::Null;
        let reached = wait_until(READY, || {
            for number in 0..self.controllers.len() {
                let status = self.berth_at(number, &["status", "-o", "json"])?;
                last = status.json().unwrap_or_default();
                if !is(&last) {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        ensure!(reached, "not so in time: {what}; status is {last:#}\n{}", self.log());
        Ok(())
    }

    /// Waits until so many nodes are ready, as every controller sees it.
    pub(super) fn wait_ready(&self, nodes: usize) -> anyhow::Result<()> {
        self.wait_status(&format!("{nodes} nodes are ready"), |status| status["nodesReady"] == nodes)
    }

    /// Waits until a placement is active and nothing is wrong with it; gives it.
    pub(super) fn at_ease(&self, name: &str) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        let reached = wait_until(READY, || {
            last = self.berth_at(0, &["get", "placements", name, "-o", "json"])?.json().unwrap_or_default();
            Ok(last["phase"] == "PHASE_ACTIVE" && last["conditions"].as_array().is_none_or(Vec::is_empty))
        })?;
        ensure!(reached, "{name} is not at ease in time: {last:#}\n{}", self.log());
        Ok(last)
    }

    /// Claimed GPUs and their owners.
    pub(super) fn claims(&self) -> anyhow::Result<Vec<(String, String)>> {
        let gpus = self.json(&["get", "gpus"])?;
        let gpus = gpus["gpus"].as_array().cloned().context("no list of GPUs")?;
        let owned = |gpu: &Value| Some((gpu["id"].as_str()?.to_owned(), gpu["placement"].as_str()?.to_owned()));
        Ok(gpus.iter().filter_map(owned).filter(|(_, owner)| !owner.is_empty()).collect())
    }
}
