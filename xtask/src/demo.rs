//! `cargo xtask demo`: a simulated Hyper-V fleet on this machine, and a VM that gets a GPU, shown command by command as a
//! person would type them.
//!
//! Owns the child process it starts: it ends with the demo, however the demo ends.

use crate::process::{Running, command, wait_until};
use crate::{cargo, root};
use anyhow::{Context as _, bail, ensure};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The port that everything uses when nothing is said.
const DEFAULT_PORT: u16 = 7600;
/// The example fleet, from the repository's root.
const FLEET: &str = "cli/fleets/hyperv.yaml";
/// A debug build on a busy machine starts the few agents of the example within seconds.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Simulated hosts take seconds where real ones take minutes.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// What to do when everything was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    /// Stop everything and end.
    Once,
    /// Leave it running for the person to try more.
    UntilStopped,
}

/// Runs the demo.
pub(crate) fn run(stay: Stay) -> anyhow::Result<()> {
    println!("Building berth; the first time takes some minutes.");
    let built =
        cargo::cargo(&["build", "--package", "berth", "--bin", "berth"]).status().context("cannot start cargo")?;
    ensure!(built.success(), "berth did not build");

    let mut demo = Demo::start()?;
    let shown = demo.show();
    if let Err(error) = shown {
        eprintln!("--- the last lines of {}", demo.log.display());
        for line in tail(&demo.log, 30) {
            eprintln!("{line}");
        }
        return Err(error);
    }
    if stay == Stay::UntilStopped {
        println!("\nThe fleet stays up at {}; its log is {}.", demo.endpoint, demo.log.display());
        println!("`berth` is {}. Ctrl-C ends the fleet.", demo.berth.display());
        let status = demo.server.0.wait().context("cannot wait for berth dev")?;
        ensure!(status.success(), "berth dev ended with {status}; its log is {}", demo.log.display());
    }
    Ok(())
}

struct Demo {
    berth: PathBuf,
    endpoint: String,
    log: PathBuf,
    server: Running,
}

impl Demo {
    fn start() -> anyhow::Result<Self> {
        let berth = cargo::built("berth")?;
        let port = free_port()?;
        // The port is ours while we run, so the directory of its name is, too; an older demo's state is of no use.
        let dir = root().join("target").join("demo").join(port.to_string());
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let log = dir.join("berth-dev.log");
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;

        let listen = format!("127.0.0.1:{port}");
        let data = dir.join("data");
        let data = data.strip_prefix(root()).unwrap_or(&data).display().to_string();
        let args = ["dev", "--fleet", FLEET, "--listen", &listen, "--data-dir", &data];
        println!("\n$ berth {} &", args.join(" "));
        let server = command(&berth)
            .args(args)
            .stdout(output.try_clone().context("cannot share the log file")?)
            .stderr(output)
            .spawn()
            .context("cannot start berth dev")?;
        let mut demo = Self { berth, endpoint: format!("http://{listen}"), log, server: Running(server) };
        demo.wait_for_nodes()?;
        if port != DEFAULT_PORT {
            println!("$ export BERTH_ENDPOINT={}", demo.endpoint);
        }
        Ok(demo)
    }

    /// Waits until it says where it is, which it does when every node is ready.
    fn wait_for_nodes(&mut self) -> anyhow::Result<()> {
        wait_until("all simulated nodes ready", START_LIMIT, || {
            if let Some(status) = self.server.ended()? {
                bail!("berth dev ended with {status}:\n{}", tail(&self.log, 30).join("\n"));
            }
            Ok(tail(&self.log, usize::MAX).iter().any(|line| line.contains(&self.endpoint)))
        })?;
        for line in tail(&self.log, usize::MAX) {
            println!("{line}");
        }
        Ok(())
    }

    fn show(&mut self) -> anyhow::Result<()> {
        self.type_in(&["get", "nodes"])?;
        self.type_in(&["capacity"])?;
        self.type_in(&["place", "demo", "--vm", "demo-vm", "--gpus", "2", "--model", "A16", "--wait"])?;
        self.type_in(&["get", "placements"])?;
        self.type_in(&["describe", "placement", "demo"])?;
        let (phase, node) = self.placement("demo")?;
        ensure!(phase == "PHASE_ACTIVE", "placement demo is not active: {phase}");
        self.type_in(&["get", "gpus", "--node", &node])
    }

    /// Phase and node of a placement, as the API gives them.
    fn placement(&self, name: &str) -> anyhow::Result<(String, String)> {
        let output = self.command(&["get", "placements", name, "-o", "json"]).output().context("cannot run berth")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let answer: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
        // One by name is the placement itself; several are a list.
        let placement = answer["placements"].as_array().and_then(|all| all.first()).unwrap_or(&answer);
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok((text(&placement["phase"]), text(&placement["assignment"]["node"])))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut berth = command(&self.berth);
        berth.args(args).env("BERTH_ENDPOINT", &self.endpoint);
        berth
    }

    /// Runs a command as if somebody typed it.
    fn type_in(&mut self, args: &[&str]) -> anyhow::Result<()> {
        println!("\n$ berth {}", args.join(" "));
        let mut child = Running(
            self.command(args)
                .stdout(Stdio::inherit())
                .stderr(Stdio::inherit())
                .spawn()
                .context("cannot start berth")?,
        );
        let mut status = None;
        wait_until(&format!("berth {}", args.join(" ")), COMMAND_LIMIT, || {
            if let Some(dead) = self.server.ended()? {
                bail!("berth dev ended with {dead}");
            }
            status = child.ended()?;
            Ok(status.is_some())
        })?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("berth {} ended with {status}", args.join(" ")),
            None => bail!("berth {} did not end", args.join(" ")),
        }
    }
}

/// The default port if nobody has it, else one that nobody has.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", DEFAULT_PORT))
        .or_else(|_| TcpListener::bind(("127.0.0.1", 0)))
        .context("no port of 127.0.0.1 is free")?;
    Ok(listener.local_addr().context("a listener without an address")?.port())
}

fn tail(file: &Path, lines: usize) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
}
