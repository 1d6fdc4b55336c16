//! The agent as a service, under Wine's service control manager.

use super::Windows;
use anyhow::ensure;
use berth_node_agent::driver::sim::StepFault;
use berth_tests::hyperv::site::PATIENCE;
use berth_tests::hyperv::{UBUNTU, fault, usual};
use berth_tests::process::{Ran, wait_until};
use berth_tests::wine::{SERVICE as NAME, path};
use std::os::unix::fs::PermissionsExt as _;

const KEY: &str = r"HKLM\SYSTEM\CurrentControlSet\Services";

impl Windows {
    fn service_verb(&self, args: &[&str]) -> anyhow::Result<Ran> {
        self.wine.run("berth-agent.exe", &[&["service"], args].concat())
    }

    fn sc(&self, verb: &str) -> anyhow::Result<()> {
        self.wine.run("sc.exe", &[verb, NAME])?.expect(0).map(|_| ())
    }

    fn value(&self, key: &str, name: &str) -> anyhow::Result<String> {
        Ok(self.wine.run("reg.exe", &["query", key, "/v", name])?.stdout)
    }

    fn wait_event(&self, text: &str) -> anyhow::Result<()> {
        let there = wait_until(PATIENCE, || Ok(self.wine.events().contains(text)))?;
        ensure!(there, "{text:?} does not come into the event log:\n{}", self.wine.events());
        Ok(())
    }
}

#[test]
fn it_is_installed_started_stopped_in_the_middle_of_a_step_started_again_and_removed() -> anyhow::Result<()> {
    let before = usual();
    let mut state = before.clone();
    fault(&mut state, "Dismount-VMHostAssignableDevice", &StepFault::Hangs { effect: true }, 0);
    fault(&mut state, "Remove-VMAssignableDevice", &StepFault::Hangs { effect: false }, 0);
    let Some(site) = Windows::new("the Windows service", &state)? else { return Ok(()) };
    let config = path(&site.config());
    let installed = site.service_verb(&["install", "--config", &config])?.expect(0)?;
    ensure!(installed.stdout.contains("runs as LocalSystem"), "{installed:?}");
    let image = site.value(&format!(r"{KEY}\{NAME}"), "ImagePath")?;
    ensure!(image.contains("berth-agent.exe service run --config") && image.contains(&config), "{image}");
    // Started by the system.
    let start = site.value(&format!(r"{KEY}\{NAME}"), "Start")?;
    ensure!(start.contains("0x2"), "{start}");
    let source = site.value(&format!(r"{KEY}\EventLog\Application\{NAME}"), "EventMessageFile")?;
    ensure!(source.contains("EventCreate.exe"), "{source}");

    site.sc("start")?;
    site.wine.wait_service(NAME, "RUNNING")?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    site.wait_hanging("Dismount-VMHostAssignableDevice", 1)?;
    site.sc("stop")?;
    site.wine.wait_service(NAME, "STOPPED")?;
    // In order: nothing is left behind that works on the host, and the system is told of no error.
    let ended = wait_until(PATIENCE, || Ok(site.relay.running()? == 0))?;
    ensure!(ended, "PowerShell goes on after the service has stopped");
    let told = site.wine.run("sc.exe", &["query", NAME])?.stdout;
    ensure!(told.contains("WIN32_EXIT_CODE    : 0 "), "{told}");
    for text in ["PowerShell works on this host", "step ended", "the service is being stopped"] {
        site.wait_event(text)?;
    }

    site.sc("start")?;
    site.wait_active("one")?;
    site.ok(&["release", "one"])?;
    site.wait_hanging("Remove-VMAssignableDevice", 1)?;
    // Removed while it runs, in the middle of a step: it is stopped first.
    let removed = site.service_verb(&["uninstall"])?.expect(0)?;
    ensure!(removed.stdout.contains("no longer installed"), "{removed:?}");
    ensure!(site.wine.service(NAME)?.is_none(), "it is still there");
    let ended = wait_until(PATIENCE, || Ok(site.relay.running()? == 0))?;
    ensure!(ended, "PowerShell goes on after the service was removed");
    let source = site.wine.run("reg.exe", &["query", &format!(r"{KEY}\EventLog\Application\{NAME}")])?;
    ensure!(source.code != Some(0), "{source:?}");

    // Its data stayed: installed again it ends what it began.
    site.service_verb(&["install", "--config", &config])?.expect(0)?;
    site.sc("start")?;
    site.wait_phase("one", "PHASE_RELEASED")?;
    site.as_before(&before)?;
    site.service_verb(&["uninstall"])?.expect(0)?;
    site.check()
}

#[test]
fn a_service_that_cannot_start_says_why_in_the_event_log_and_fails() -> anyhow::Result<()> {
    let Some(site) = Windows::new("the Windows service, which cannot start", &usual())? else { return Ok(()) };
    let config = path(&site.config());
    site.service_verb(&["install", "--config", &config])?.expect(0)?;
    std::fs::write(site.config(), "node = \"hv-01\"\nnodes = 2\n")?;
    // What others may have written is not even read.
    std::fs::set_permissions(site.config(), std::fs::Permissions::from_mode(0o666))?;
    site.sc("start")?;
    site.wait_event("can be changed by WD")?;
    site.wine.wait_service(NAME, "STOPPED")?;
    std::fs::set_permissions(site.config(), std::fs::Permissions::from_mode(0o644))?;
    site.sc("start")?;
    site.wait_event("unknown field `nodes`")?;
    site.wine.wait_service(NAME, "STOPPED")?;
    let told = site.wine.run("sc.exe", &["query", NAME])?.stdout;
    // 1066: the service says what its error is; it is started again after it.
    ensure!(told.contains("WIN32_EXIT_CODE    : 1066") && told.contains("SERVICE_EXIT_CODE  : 1 "), "{told}");
    site.service_verb(&["uninstall"])?.expect(0).map(|_| ())
}

#[test]
fn what_cannot_be_is_said_with_what_to_do() -> anyhow::Result<()> {
    let Some(site) = Windows::new("the Windows service, what cannot be", &usual())? else { return Ok(()) };
    let config = path(&site.config());
    let refuse = |args: &[&str], code: i32, why: &[&str]| -> anyhow::Result<()> {
        let ran = site.service_verb(args)?.expect(code)?;
        for part in why {
            ensure!(ran.stderr.contains(part), "{part:?} is not said: {ran:?}");
        }
        Ok(())
    };
    refuse(&["uninstall"], 1, &["the service berth-agent is not installed"])?;
    refuse(&["run", "--config", &config], 1, &["to run the agent in this window: berth-agent --config"])?;
    refuse(
        &["install", "--config", r"Z:\no\such.toml"],
        1,
        &["would not start", "cannot read the configuration file"],
    )?;
    refuse(&["install", "--config", &config, "--account", r"CORP\someone"], 2, &["group managed service account"])?;
    refuse(&["install"], 2, &["--config"])?;
    site.configure("step_seconds = 100000")?;
    refuse(&["install", "--config", &config], 1, &["hyperv.step_seconds: 100000 is not from"])?;
    site.configure("")?;
    std::fs::set_permissions(site.config(), std::fs::Permissions::from_mode(0o666))?;
    refuse(&["install", "--config", &config], 1, &["the service is not installed", "can be changed by WD"])?;
    std::fs::set_permissions(site.config(), std::fs::Permissions::from_mode(0o644))?;
    site.service_verb(&["install", "--config", &config])?.expect(0)?;
    refuse(&["install", "--config", &config], 1, &["is installed already", "service uninstall"])?;
    site.service_verb(&["uninstall"])?.expect(0).map(|_| ())
}
