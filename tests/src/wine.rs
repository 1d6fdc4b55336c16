//! The Windows agent on Linux: its .exe under Wine, and a real PowerShell behind the .exe that stands for Windows' own.
//!
//! What lies where is `cargo xtask test windows`'s business. It proves that the shipped program works as a whole, not that
//! Windows or Hyper-V behave like Wine and the fake.

pub mod relay;

use crate::process::{Process, Ran, other, run, skip, wait_until};
use anyhow::{Context as _, ensure};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long Wine's own services may take to start or end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent's name in the list of services.
pub const SERVICE: &str = "berth-agent";

/// Programs, and a Windows to run them in. One test at a time has it.
#[derive(Debug)]
pub struct Wine {
    dir: PathBuf,
    wine: PathBuf,
    anchor: Child,
    events: PathBuf,
}

impl Wine {
    /// Starts Windows afresh, as after a boot; none, which is said, where it was not made ready. What is written into the
    /// event log comes into a file in `dir`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn boot(test: &str, dir: &Path) -> anyhow::Result<Option<Self>> {
        let Some((programs, wine)) = crate::config::windows() else {
            skip(test, "cargo xtask test windows builds the Windows agent and runs this");
            return Ok(None);
        };
        let events = dir.join("events");
        shut_down(&programs, &wine)?;
        // Services end with the last program that is none, and what they say goes where the first one's does: this one
        // waits for its input, which never comes.
        let said = File::options().create(true).append(true).open(&events).context("no file for events")?;
        let mut command = command(&programs, &wine);
        command.env("WINEDEBUG", "-all,+eventlog").arg("cmd.exe");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(said);
        let anchor = command.spawn().with_context(|| format!("cannot start {}", wine.display()))?;
        let booted = Self { dir: programs, wine, anchor, events };
        // Until then, another program would be the first, and have their words.
        let first = || Ok(std::fs::read_to_string(&booted.events).is_ok_and(|said| said.contains("Event Log Service")));
        ensure!(wait_until(PATIENCE, first)?, "Wine's service control manager does not start");
        // What a test that failed has left.
        if booted.service(SERVICE)?.is_some() {
            booted.run("sc.exe", &["stop", SERVICE])?;
            booted.wait_service(SERVICE, "STOPPED")?;
            booted.run("sc.exe", &["delete", SERVICE])?.expect(0)?;
        }
        Ok(Some(booted))
    }

    /// A program of the folder, or of Wine's own, with these arguments.
    pub fn command(&self, program: &str, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = command(&self.dir, &self.wine);
        let own = self.dir.join(program);
        if own.is_file() {
            command.arg(own)
        } else {
            command.arg(program)
        };
        command.args(args);
        command
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<Ran> {
        run(self.command(program, args))
    }

    /// Where `powershell.exe`, which stands for the real one, is.
    #[must_use]
    pub fn stand_in(&self) -> PathBuf {
        self.dir.join("powershell.exe")
    }

    /// What was written into the event log since the boot, as Wine shows it: one line an entry, on the channel `eventlog`.
    #[must_use]
    pub fn events(&self) -> String {
        let said = std::fs::read(&self.events).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        said.lines().filter(|line| line.contains(":eventlog:ReportEventW")).collect::<Vec<_>>().join("\n")
    }

    /// State of a service as `sc` says it (`RUNNING`, `STOPPED`, …), none where there is no such service.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn service(&self, name: &str) -> anyhow::Result<Option<String>> {
        let ran = self.run("sc.exe", &["query", name])?;
        let line = ran.stdout.lines().find(|line| line.trim_start().starts_with("STATE"));
        Ok(line.and_then(|line| line.split_whitespace().last()).map(str::to_owned))
    }

    /// Waits for a state of a service.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_service(&self, name: &str, state: &str) -> anyhow::Result<()> {
        let mut last = None;
        let there = wait_until(PATIENCE, || {
            last = self.service(name)?;
            Ok(last.as_deref() == Some(state))
        })?;
        ensure!(there, "the service {name} does not come to {state} but is {last:?}; events:\n{}", self.events());
        Ok(())
    }

    /// Starts the agent as a program.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn agent(&self, config: &Path) -> anyhow::Result<Process> {
        Process::start(self.command("berth-agent.exe", &[OsStr::new("--config"), OsStr::new(&path(config))]))
    }
}

impl Drop for Wine {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        drop(self.anchor.kill());
        drop(self.anchor.wait());
        drop(shut_down(&self.dir, &self.wine));
    }
}

fn command(dir: &Path, wine: &Path) -> Command {
    let mut command = other(wine);
    command.env("WINEPREFIX", dir.join("wineprefix")).env("WINEDEBUG", "-all");
    // What is asked for at the first start, and is not needed.
    command.env("WINEDLLOVERRIDES", "mscoree=;mshtml=");
    command
}

/// Ends every program of this one Windows, and waits until they have.
fn shut_down(dir: &Path, wine: &Path) -> anyhow::Result<()> {
    let server = wine.with_file_name("wineserver64");
    let server = if server.is_file() { server } else { wine.with_file_name("wineserver") };
    for what in ["-k", "-w"] {
        let mut server = other(&server);
        server.arg(what).env("WINEPREFIX", dir.join("wineprefix"));
        // One that is not running is what is wanted.
        run(server)?;
    }
    Ok(())
}

/// A path of this system as Windows programs see it: everything is on drive Z.
#[must_use]
pub fn path(path: &Path) -> String {
    format!("Z:{}", path.display().to_string().replace('/', "\\"))
}

/// The other way round.
#[must_use]
pub fn unix(path: &str) -> PathBuf {
    path.strip_prefix("Z:").unwrap_or(path).replace('\\', "/").into()
}
