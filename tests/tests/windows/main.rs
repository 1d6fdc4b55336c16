//! The shipped Windows agent as one with everything: berth-agent.exe under Wine, the shipped script in a real PowerShell over
//! the fake Hyper-V, a real controller. Killed, stopped and started again at every step.
//!
//! `cargo xtask test windows` builds what is tested; each of these tests is skipped without it. One at a time: there is one
//! Windows.

mod agent;
mod guarded;
mod service;

use anyhow::{Context as _, ensure};
use berth_tests::hyperv::site::{NODE, Site};
use berth_tests::process::wait_until;
use berth_tests::pwsh;
use berth_tests::wine::relay::Relay;
use berth_tests::wine::{Wine, path};
use serde_json::Value;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

/// A site whose agent is a Windows program.
struct Windows {
    // In this order: what uses it ends before it.
    site: Site,
    wine: Wine,
    relay: Relay,
}

impl Deref for Windows {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl DerefMut for Windows {
    fn deref_mut(&mut self) -> &mut Site {
        &mut self.site
    }
}

impl Windows {
    /// A host in this state, its agent not started yet. `None` where something is missing.
    fn new(test: &str, state: &Value) -> anyhow::Result<Option<Self>> {
        let Some(pwsh) = pwsh::program(test) else { return Ok(None) };
        let site = Site::new(pwsh, state)?;
        let Some(wine) = Wine::boot(test, site.host.dir())? else { return Ok(None) };
        let relay = Relay::start(&site.host)?;
        let windows = Self { site, wine, relay };
        let dir = windows.host.dir().join("powershell");
        std::fs::create_dir(&dir)?;
        std::fs::copy(windows.wine.stand_in(), dir.join("powershell.exe"))?;
        std::fs::write(dir.join("powershell.port"), windows.relay.port().to_string())?;
        windows.configure("")?;
        Ok(Some(windows))
    }

    fn config(&self) -> PathBuf {
        self.host.dir().join("agent.toml")
    }

    fn data_dir(&self) -> PathBuf {
        self.host.dir().join("agent")
    }

    fn script(&self) -> PathBuf {
        self.data_dir().join("hyperv").join("host.ps1")
    }

    /// Writes the agent's configuration, with this in `[hyperv]`.
    fn configure(&self, hyperv: &str) -> anyhow::Result<()> {
        let powershell = path(&self.host.dir().join("powershell").join("powershell.exe"));
        let data_dir = path(&self.data_dir());
        let text = format!(
            "node = \"{NODE}\"\ncontrollers = [\"{}\"]\ndriver = \"hyperv\"\ndata_dir = '{data_dir}'\n[hyperv]\npowershell = \
             '{powershell}'\n{hyperv}\n",
            self.endpoint
        );
        std::fs::write(self.config(), text).context("cannot write the configuration")
    }

    fn start_agent(&mut self) -> anyhow::Result<()> {
        self.site.agent = Some(self.wine.agent(&self.config())?);
        Ok(())
    }

    /// Kills the agent. Its PowerShell must end with it: Windows sees to that (`driver/hyperv/powershell/leash.rs`).
    fn kill_agent(&mut self, how: Kill) -> anyhow::Result<()> {
        let mut agent = self.site.take_agent()?;
        match how {
            Kill::Signal => agent.kill()?,
            Kill::TerminateProcess => {
                self.wine.run("taskkill.exe", &["/f", "/im", "berth-agent.exe"])?.expect(0)?;
                let ended = agent.ended_within(berth_tests::hyperv::site::PATIENCE)?;
                ensure!(ended.is_some(), "taskkill says that it ended the agent, and it goes on");
            }
        }
        // In the middle of a cmdlet that never returns here, it would go on for ever.
        let ended = wait_until(berth_tests::hyperv::site::PATIENCE, || Ok(self.relay.running()? == 0))?;
        ensure!(ended, "PowerShell goes on although its agent was killed");
        Ok(())
    }

    /// Fails if anything was wrong that no single step shows.
    fn check(&self) -> anyhow::Result<()> {
        self.relay.check().with_context(|| self.log())?;
        ensure!(!self.log().contains("panicked"), "{}", self.log());
        self.site.only_named_things_were_touched()
    }
}

/// How an agent is killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    /// By Linux, as if the machine had lost it.
    Signal,
    /// By Windows, as the task manager does.
    TerminateProcess,
}
