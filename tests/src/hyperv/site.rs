//! A controller, a fake host, and the agent on it: what a test does with them, whichever agent it is.

use super::{facts, vm_in};
use crate::process::{Process, Ran, binary, other, run, wait_until};
use crate::pwsh::Host;
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Bound on everything that is waited for: starts of PowerShell on a machine that does other work, too.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// What the host is called.
pub const NODE: &str = "hv-01";

/// A controller, a fake host, and the agent on it.
#[derive(Debug)]
pub struct Site {
    /// The host.
    pub host: Host,
    controller: Process,
    /// Where the controller is reached.
    pub endpoint: String,
    /// The agent, while it runs.
    pub agent: Option<Process>,
    /// What agents said that were ended.
    said: String,
}

impl Site {
    /// A host in this state, its agent not started yet.
    ///
    /// # Errors
    /// When the controller does not start.
    pub fn new(pwsh: PathBuf, state: &Value) -> anyhow::Result<Self> {
        let host = Host::new(pwsh, state)?;
        let mut controller = other(binary("berth-controller")?);
        controller.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(host.dir().join("controller"));
        for setting in ["agents.heartbeat=500ms", "agents.observe=1s", "check_interval=1s"] {
            controller.args(["--set", setting]);
        }
        let mut controller = Process::start(controller)?;
        let endpoint = controller.wait_for_line(PATIENCE, |line| {
            let at = line.contains("serving").then(|| line.find("127.0.0.1:"))??;
            let end = line[at..].find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit());
            Some(format!("http://{}", &line[at..end.map_or(line.len(), |end| at + end)]))
        })?;
        Ok(Self { host, controller, endpoint, agent: None, said: String::new() })
    }

    /// Starts this as the agent.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, agent: Command) -> anyhow::Result<()> {
        self.agent = Some(Process::start(agent)?);
        Ok(())
    }

    /// Takes the agent away, to be ended; what it said is kept.
    ///
    /// # Errors
    /// When there is none.
    pub fn take_agent(&mut self) -> anyhow::Result<Process> {
        let agent = self.agent.take().context("there is no agent")?;
        self.said.push_str(&agent.log());
        self.said.push('\n');
        Ok(agent)
    }

    /// What all agents said.
    #[must_use]
    pub fn agents_log(&self) -> String {
        let agent = self.agent.as_ref().map(Process::log).unwrap_or_default();
        format!("{}{agent}", self.said)
    }

    /// What everybody said.
    #[must_use]
    pub fn log(&self) -> String {
        format!("{}\n---- controller\n{}", self.agents_log(), self.controller.log())
    }

    /// Memory and processor time of the agent, where the system tells.
    #[must_use]
    pub fn cost(&self) -> String {
        let of = |file: &str| {
            let id = self.agent.as_ref().map_or(0, Process::id);
            std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default()
        };
        let status = of("status");
        let memory: Vec<_> =
            status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("RssAnon")).collect();
        // Fields 14 and 15: ticks in user and in kernel mode, mostly a hundredth of a second each.
        let ticks: Vec<_> = of("stat").split_whitespace().skip(13).take(2).map(str::to_owned).collect();
        format!("{}, ticks {}", memory.join(", "), ticks.join(" + "))
    }

    /// Runs `berth`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn berth(&self, args: &[&str]) -> anyhow::Result<Ran> {
        let mut berth = other(binary("berth")?);
        berth.args(args).env("BERTH_ENDPOINT", &self.endpoint);
        run(berth)
    }

    /// A command that must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn ok(&self, args: &[&str]) -> anyhow::Result<Ran> {
        self.berth(args)?.expect(0).with_context(|| self.log())
    }

    /// Asks for GPUs.
    ///
    /// # Errors
    /// When they are not given in time.
    pub fn place(&self, name: &str, vm: &str, gpus: &str, more: &[&str]) -> anyhow::Result<()> {
        // It is known once its agent has reported.
        let mut last = None;
        let placed = wait_until(PATIENCE, || {
            let ran = self.berth(&[&["place", name, "--vm", vm, "--gpus", gpus, "--node", NODE], more].concat())?;
            let placed = ran.code == Some(0);
            last = Some(ran);
            Ok(placed)
        })?;
        ensure!(placed, "{name} is not placed: {last:?}\n{}", self.log());
        Ok(())
    }

    /// Waits for a phase.
    ///
    /// # Errors
    /// When the placement fails, or it takes too long.
    pub fn wait_phase(&self, name: &str, phase: &str) -> anyhow::Result<()> {
        let mut last = Value::Null;
        let there = wait_until(PATIENCE, || {
            last = self.berth(&["get", "placements", name, "-o", "json"])?.json().unwrap_or_default();
            ensure!(last["phase"] != "PHASE_FAILED", "{last:#}\n{}", self.log());
            Ok(last["phase"] == phase)
        })?;
        ensure!(there, "{name} does not come to {phase}: {last:#}\n{}", self.log());
        Ok(())
    }

    /// Waits until the VM has its GPUs.
    ///
    /// # Errors
    /// As [`Site::wait_phase`].
    pub fn wait_active(&self, name: &str) -> anyhow::Result<()> {
        self.wait_phase(name, "PHASE_ACTIVE")
    }

    /// Takes the GPUs back.
    ///
    /// # Errors
    /// When that does not end well in time.
    pub fn release(&self, name: &str) -> anyhow::Result<()> {
        self.ok(&["release", name, "--wait", "--timeout", "170s"]).map(|_| ())
    }

    /// Fails unless the host is as it was.
    ///
    /// # Errors
    /// With both states.
    pub fn as_before(&self, before: &Value) -> anyhow::Result<()> {
        // Faults that no call met are not the host's.
        let after = facts(&self.host.state()?);
        ensure!(after == facts(before), "before:\n{:#}\nafter:\n{after:#}\n{}", facts(before), self.log());
        Ok(())
    }

    /// Waits until a command has said, so often, that it hangs.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_hanging(&self, command: &str, times: usize) -> anyhow::Result<()> {
        let said = format!(r#"{{"hangs":"{command}"}}"#);
        let mut calls = String::new();
        let hangs = wait_until(PATIENCE, || {
            calls = std::fs::read_to_string(self.host.dir().join("state.json.calls")).unwrap_or_default();
            Ok(calls.matches(&said).count() >= times)
        })?;
        ensure!(hangs, "{command} does not hang {times} times; calls:\n{calls}\n{}", self.log());
        Ok(())
    }

    /// Fails if any command was given more than one device or VM to work on, or did anything else.
    ///
    /// # Errors
    /// With the call.
    pub fn only_named_things_were_touched(&self) -> anyhow::Result<()> {
        for call in self.host.calls()? {
            let given = &call["given"];
            for name in ["ResourcePoolName", "VMName", "Name", "InstancePath", "HostAssignableDevice"] {
                ensure!(given[name].is_null(), "{call}");
            }
        }
        Ok(())
    }
}

/// Devices that a VM lists, in order.
pub fn listed(state: &mut Value, vm: &str) -> Vec<String> {
    let devices = vm_in(state, vm)["devices"].as_array().cloned().unwrap_or_default();
    let mut paths: Vec<_> = devices.iter().filter_map(|d| d["path"].as_str().map(str::to_owned)).collect();
    paths.sort_unstable();
    paths
}
