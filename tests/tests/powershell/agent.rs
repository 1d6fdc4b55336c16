//! The whole way: controller, `berth-agent` with the driver hyperv, the host script in a real PowerShell, the fake host.
//! Placed, in use, released: host and VM are then as they were, field by field, whatever was killed in between.

use anyhow::{Context as _, ensure};
use berth_node_agent::driver::sim::StepFault;
use berth_tests::hyperv::site::{NODE, PATIENCE, Site, listed};
use berth_tests::hyperv::{
    A2, A16, BUERO, HABITS, PLACING, RELEASING, UBUNTU, assign, at, facts, fault, habits, hang_in_each_step, usual,
    vm_in,
};
use berth_tests::process::{Ran, binary, other, run, wait_until};
use berth_tests::pwsh;
use serde_json::{Value, json};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A site whose agent is this system's own, and starts PowerShell itself.
pub(crate) struct Here {
    site: Site,
    pwsh: PathBuf,
    pub(crate) settings: Vec<String>,
}

impl Deref for Here {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl DerefMut for Here {
    fn deref_mut(&mut self) -> &mut Site {
        &mut self.site
    }
}

impl Drop for Here {
    /// An agent that was killed while its PowerShell hung leaves it behind.
    fn drop(&mut self) {
        self.end_powershells();
    }
}

impl Here {
    /// A host in this state, its agent not started yet. `None` where there is no PowerShell.
    pub(crate) fn new(test: &str, state: &Value) -> anyhow::Result<Option<Self>> {
        let Some(pwsh) = pwsh::program(test) else { return Ok(None) };
        // Now, so that no build comes between an agent's start and the first question about it.
        binary("berth-agent")?;
        binary("berth")?;
        Ok(Some(Self { site: Site::new(pwsh.clone(), state)?, pwsh, settings: Vec::new() }))
    }

    /// `berth-agent` as it is started here.
    fn agent_command(&self) -> anyhow::Result<Command> {
        let mut agent = other(binary("berth-agent")?);
        agent.args(["--node", NODE, "--controller", &self.endpoint, "--driver", "hyperv", "--data-dir"]);
        agent.arg(self.host.dir().join("agent")).arg("--hyperv-powershell").arg(&self.pwsh).args(&self.settings);
        // What PowerShell inherits: the fake modules, and where the fake host is.
        for (name, value) in self.host.powershell().get_envs() {
            agent.env(name, value.unwrap_or_default());
        }
        Ok(agent)
    }

    pub(crate) fn start_agent(&mut self) -> anyhow::Result<()> {
        let command = self.agent_command()?;
        self.site.start(command)
    }

    /// Ids of the PowerShell processes that agents said they had started, in order.
    fn powershells(&self) -> Vec<u32> {
        let said = self.log();
        let lines = said.lines().filter(|line| line.contains("PowerShell works on this host"));
        let id = |line: &str| {
            let (_, rest) = line.split_once("process=")?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        lines.filter_map(id).collect()
    }

    /// Kills the PowerShell that was started last, as a crash would.
    fn kill_powershell(&self) -> anyhow::Result<()> {
        let id = self.powershells().pop().with_context(|| format!("no PowerShell was started:\n{}", self.log()))?;
        run(kill(id))?.expect(0).map(|_| ())
    }

    /// Ends what is left of them, as far as it is still PowerShell.
    fn end_powershells(&self) {
        for id in self.powershells() {
            let script = self.host.dir().join("agent").join("hyperv").join("host.ps1").display().to_string();
            if std::fs::read_to_string(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.contains(&script)) {
                drop(run(kill(id)));
            }
        }
    }

    /// Kills the agent, and then its PowerShell: that one is in the middle of a cmdlet which never returns here, and a
    /// real one would return and end with its input.
    pub(crate) fn kill_agent(&mut self) -> anyhow::Result<()> {
        let last = self.powershells().pop().context("no PowerShell was started")?;
        self.take_agent()?.kill()?;
        run(kill(last))?.expect(0).map(|_| ())
    }
}

fn kill(id: u32) -> Command {
    let mut kill = other("kill");
    kill.args(["-KILL", &id.to_string()]);
    kill
}

#[test]
fn a_card_of_two_functions_and_four_gpus_go_into_vms_and_come_back_and_all_is_as_before() -> anyhow::Result<()> {
    let mut state = usual();
    habits(&mut state, &["registration-lag", "noisy", "text-problem-codes", "raw-keys", "silent-pool"]);
    // The bounds of a VM's memory are gone once it is static: whoever did not keep them cannot give them back.
    habits(&mut state, &["static-memory-forgets-bounds"]);
    state["language"] = json!("de");
    // A guest that sees the card and has a driver for it: the placement wants to know.
    let vm = vm_in(&mut state, UBUNTU);
    vm["guest_password"] = json!("Geheim-4711");
    vm["guest"] = json!([
        { "id": "PCI\\VEN_10DE&DEV_25B6&SUBSYS_157E10DE&REV_A1\\4&1A2B3C4D&0&0000", "name": "NVIDIA A2", "status": "OK", "problem": 0 },
    ]);
    let Some(mut site) = Here::new("a whole placement on Hyper-V", &state)? else { return Ok(()) };
    let credential = site.host.dir().join("guest.xml");
    std::fs::write(&credential, json!({ "user": "admin", "password": "Geheim-4711" }).to_string())?;
    #[cfg(unix)]
    std::fs::set_permissions(&credential, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    site.settings = vec!["--hyperv-guest-credential".to_owned(), credential.display().to_string()];
    site.start_agent()?;

    site.place("one", UBUNTU, "1", &["--model", "A2", "--verify", "driver-bound"])?;
    site.place("four", BUERO, "4", &["--model", "A16"])?;
    site.wait_active("one")?;
    site.wait_active("four")?;
    let mut during = site.host.state()?;
    assert_eq!(
        (listed(&mut during, UBUNTU), listed(&mut during, BUERO)),
        (A2.map(str::to_owned).to_vec(), A16.map(str::to_owned).to_vec())
    );
    for vm in [UBUNTU, BUERO] {
        assert_eq!(vm_in(&mut during, vm)["state"], "Running");
        assert_eq!(vm_in(&mut during, vm)["stop_action"], "TurnOff");
    }
    let shown = site.ok(&["describe", "node", NODE])?.stdout;
    assert!(shown.contains("Windows Server 2022") && shown.contains("Hyper-V module"), "{shown}");

    site.release("one")?;
    site.release("four")?;
    site.as_before(&state)?;
    let log = site.log();
    println!("{} steps; the agent: {}", log.matches("step ended").count(), site.cost());
    assert_eq!(site.powershells().len(), 2, "one process for the host and one for guests are enough:\n{log}");
    assert!(!log.contains("Geheim"), "the password is in the log");
    assert!(!log.contains("ERROR"), "{log}");
    Ok(())
}

/// The guest is asked again and again until it shows the driver; meanwhile the placement says what is missing.
#[test]
#[cfg(unix)]
fn a_linux_guest_must_show_its_driver_before_the_placement_is_active() -> anyhow::Result<()> {
    const TEST: &str = "a Linux guest on Hyper-V";
    const SEEN: &str = "48e0:00:00.0 3D controller [0302]: NVIDIA Corporation GA107GL [A2 / A16] [10de:25b6] (rev a1)\n\
                        \tSubsystem: NVIDIA Corporation Device [10de:157e]\n";
    let mut state = usual();
    // Its first adapter has no network yet.
    vm_in(&mut state, UBUNTU)["addresses"] = json!([["169.254.7.7"], []]);
    let Some(sshd) = berth_tests::sshd::program(TEST) else { return Ok(()) };
    let Some(mut site) = Here::new(TEST, &state)? else { return Ok(()) };
    let guest = berth_tests::sshd::Guest::start(&sshd)?;
    guest.complains("hv_pci 5a5f0867-48e0-4d7f-9442-885aee2d538b: Need 0x802000000 of high MMIO space. Consider\n")?;
    let told = |name: &str, value: String| [format!("--hyperv-guest-{name}"), value];
    site.settings = [
        told("user", guest.user()?),
        told("identity", guest.identity().display().to_string()),
        told("known-hosts", guest.known_hosts().display().to_string()),
        told("port", guest.port().to_string()),
    ]
    .concat();
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2", "--verify", "driver-bound"])?;
    // Each reason in its turn, while the placement stays where it is.
    let waits = |site: &Site, words: &str| -> anyhow::Result<()> {
        let mut last = String::new();
        let said = wait_until(PATIENCE, || {
            let placement = site.berth(&["get", "placements", "one", "-o", "json"])?.json().unwrap_or_default();
            ensure!(["PHASE_FAILED", "PHASE_ACTIVE"].iter().all(|phase| placement["phase"] != *phase), "{placement:#}");
            last = site.ok(&["describe", "placement", "one"])?.stdout;
            // It may be broken over lines.
            Ok(last.split_whitespace().collect::<Vec<_>>().join(" ").contains(words))
        })?;
        ensure!(said, "{words:?} is not said: {last}\n{}", site.log());
        Ok(())
    };
    waits(&site, "the guest tells no address")?;
    site.host.change(|state| vm_in(state, UBUNTU)["addresses"] = json!([["169.254.7.7"], ["127.0.0.1"]]))?;
    waits(&site, "does not prove to be this VM's guest")?;
    guest.known_as(&[UBUNTU])?;
    waits(&site, "the guest shows 0 of 1 devices 10de:25b6:10de:157e; its system needs 0x802000000 bytes")?;
    guest.complains("")?;
    guest.shows(SEEN)?;
    waits(&site, "a driver runs only 0 of 1: install the vendor's driver")?;
    guest.shows(&format!("{SEEN}\tKernel driver in use: nvidia\n"))?;
    site.wait_active("one")?;
    site.release("one")?;
    vm_in(&mut state, UBUNTU)["addresses"] = json!([["169.254.7.7"], ["127.0.0.1"]]);
    site.as_before(&state)?;
    let log = site.log();
    assert!(!log.contains("PRIVATE KEY") && !log.contains("ERROR"), "{log}");
    assert_eq!(site.powershells().len(), 1, "{log}");
    Ok(())
}

/// A survey that fails costs what it would have measured, and not the sight of the host: its VMs and devices are shown, and
/// why nothing can be placed on them.
#[test]
fn a_host_whose_survey_fails_is_seen_all_the_same() -> anyhow::Result<()> {
    let mut state = usual();
    state["host"]["policy"] = json!({ "RequireSecureDeviceAssignment": 1 });
    let mut faulty = state.clone();
    fault(&mut faulty, "Get-VMHost", &StepFault::Fails("Zugriff verweigert".to_owned()), 0);
    // The look asks for one class, the survey for two, and then for the devices' resources.
    fault(&mut faulty, "Get-CimInstance", &StepFault::Fails("kaputt".to_owned()), 3);
    let Some(mut site) = Here::new("failing surveys on Hyper-V", &faulty)? else { return Ok(()) };
    site.start_agent()?;
    let mut last = String::new();
    let mut wait_for = |site: &Site, words: &[&str]| -> anyhow::Result<()> {
        let said = wait_until(PATIENCE, || {
            let ran = site.berth(&["describe", "node", NODE])?;
            last = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
            Ok(words.iter().all(|word| last.contains(word)))
        })?;
        ensure!(said, "{words:?} are not said: {last}\n{}", site.log());
        Ok(())
    };
    wait_for(
        &site,
        &["does not say what it is: Zugriff verweigert", "cannot be measured: kaputt", "Status: Ready", "ubuntu"],
    )?;
    let gpus = site.ok(&["get", "gpus", "-o", "json"])?.stdout;
    ensure!(gpus.matches("VERDICT_NOT_MEASURED").count() == 5, "{gpus}");
    // It is asked again later, and then all is known.
    wait_for(&site, &["Windows Server 2022", "64 cores", "RequireSecureDeviceAssignment is set"])?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    site.wait_active("one")?;
    site.release("one")?;
    site.as_before(&state)
}

/// Without a way into guests nothing is tried over and over: the reason comes at once, and all is given back.
#[test]
fn a_host_without_a_way_into_guests_says_so_at_once() -> anyhow::Result<()> {
    let state = usual();
    let Some(mut site) = Here::new("no way into guests on Hyper-V", &state)? else { return Ok(()) };
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2", "--verify", "visible"])?;
    let mut last = Value::Null;
    let failed = wait_until(PATIENCE, || {
        last = site.berth(&["get", "placements", "one", "-o", "json"])?.json().unwrap_or_default();
        Ok(last["phase"] == "PHASE_FAILED")
    })?;
    ensure!(failed && last["undone"] == json!(true), "{last:#}\n{}", site.log());
    ensure!(last.to_string().contains("no guest can be asked here"), "{last:#}");
    site.as_before(&state)
}

#[test]
fn a_cmdlet_that_hangs_is_ended_at_its_deadline_and_a_killed_powershell_is_replaced() -> anyhow::Result<()> {
    let state = usual();
    let mut faulty = state.clone();
    // One takes effect and never returns; in the middle of another the process is killed.
    fault(&mut faulty, "Dismount-VMHostAssignableDevice", &StepFault::Hangs { effect: true }, 0);
    fault(&mut faulty, "Add-VMAssignableDevice", &StepFault::Hangs { effect: false }, 1);
    let Some(mut site) = Here::new("hangs and kills on Hyper-V", &faulty)? else { return Ok(()) };
    site.settings = vec!["--hyperv-step-seconds".to_owned(), "10".to_owned()];
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    site.wait_hanging("Add-VMAssignableDevice", 1)?;
    assert_eq!(site.powershells().len(), 2, "the first was not ended at its deadline:\n{}", site.log());
    site.kill_powershell()?;
    site.wait_active("one")?;
    // Between two requests, too.
    site.kill_powershell()?;
    site.release("one")?;
    site.as_before(&state)?;
    let log = site.log();
    assert!(log.contains("not done after 10000 ms") || log.contains("within 10000 ms"), "{log}");
    assert!(log.contains("ended without an answer"), "{log}");
    assert!(site.powershells().len() >= 4, "{log}");
    Ok(())
}

#[test]
fn an_agent_that_is_killed_at_any_step_goes_on_where_the_host_is() -> anyhow::Result<()> {
    let before = usual();
    let mut state = before.clone();
    hang_in_each_step(&mut state);
    let Some(mut site) = Here::new("an agent killed at each step", &state)? else { return Ok(()) };
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    for command in PLACING {
        site.wait_hanging(command, 1)?;
        site.kill_agent()?;
        site.start_agent()?;
    }
    site.wait_active("one")?;
    site.ok(&["release", "one"])?;
    for (command, times) in RELEASING {
        site.wait_hanging(command, times)?;
        site.kill_agent()?;
        site.start_agent()?;
    }
    site.wait_phase("one", "PHASE_RELEASED")?;
    site.as_before(&before)?;
    // Killed ten times all the same.
    site.only_named_things_were_touched()
}

/// An administrator has disabled the sound function of the card, for reasons of their own: it is so again afterwards, although
/// the agent was killed after it had disabled the other one itself.
#[test]
fn what_was_disabled_on_the_host_before_is_disabled_afterwards() -> anyhow::Result<()> {
    let mut before = usual();
    at(&mut before, A2[1])["disabled"] = json!(true);
    at(&mut before, A16[1])["disabled"] = json!(true);
    let mut state = before.clone();
    fault(&mut state, "Disable-PnpDevice", &StepFault::Hangs { effect: true }, 0);
    let Some(mut site) = Here::new("functions that were disabled before", &state)? else { return Ok(()) };
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    site.wait_hanging("Disable-PnpDevice", 1)?;
    site.kill_agent()?;
    site.start_agent()?;
    site.wait_active("one")?;
    site.kill_agent()?;
    site.start_agent()?;
    site.release("one")?;
    site.as_before(&before)?;
    site.only_named_things_were_touched()
}

/// A VM that could go back to a saved state is refused before anything is done to it, with what to do; then it is placed.
#[test]
fn a_vm_with_a_saved_state_is_refused_untouched_and_says_what_to_do() -> anyhow::Result<()> {
    let mut state = usual();
    vm_in(&mut state, UBUNTU)["state"] = json!("Running");
    vm_in(&mut state, UBUNTU)["checkpoints"] = json!(["nightly", { "name": "before the update", "state": "Saved" }]);
    vm_in(&mut state, BUERO)["state"] = json!("Saved");
    let Some(mut site) = Here::new("saved states on Hyper-V", &state)? else { return Ok(()) };
    site.start_agent()?;
    for (name, vm, why, what) in [
        ("one", UBUNTU, "1 checkpoints that hold a saved state", "Remove-VMSnapshot"),
        ("two", BUERO, "has a saved state that would be lost", "Remove-VMSavedState"),
    ] {
        site.place(name, vm, "1", &["--model", "A2"])?;
        let mut told = String::new();
        let refused = wait_until(PATIENCE, || {
            told = site.ok(&["describe", "placement", name])?.stdout;
            Ok(told.contains("Failed") && told.contains("Undone"))
        })?;
        ensure!(refused && told.contains(why) && told.contains(what), "{told}\n{}", site.log());
    }
    site.as_before(&state)?;
    site.host.change(|state| vm_in(state, UBUNTU)["checkpoints"] = json!(["nightly"]))?;
    site.place("three", UBUNTU, "1", &["--model", "A2"])?;
    site.wait_active("three")
}

/// Killed alone: its PowerShell goes on with the step, as it may wherever nothing ties it to the agent.
#[test]
fn a_step_whose_agent_was_killed_gives_nothing_to_a_second_vm() -> anyhow::Result<()> {
    let mut state = usual();
    habits(&mut state, &["registration-lag", "cache-never"]);
    let Some(mut site) = Here::new("an orphan on Hyper-V", &state)? else { return Ok(()) };
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    let mut late = String::new();
    // What was dismounted last is what the host's cache never shows.
    let waits = wait_until(PATIENCE, || {
        late = site.host.state()?["late"][0].as_str().unwrap_or_default().to_owned();
        let tries = site.host.calls()?.into_iter().filter(|call| call["command"] == "Add-VMAssignableDevice");
        Ok(tries.filter(|call| call["given"]["LocationPath"] == late).count() > 1)
    })?;
    ensure!(waits, "it does not wait for the host's cache:\n{}", site.log());
    let orphan = site.powershells().pop().context("no PowerShell was started")?;
    site.take_agent()?.kill()?;
    // Somebody else gives the device away before the host would take it.
    site.host.change(|state| {
        assign(state, BUERO, &late);
        state["habits"] = json!(HABITS);
    })?;
    site.start_agent()?;
    let ended = wait_until(PATIENCE, || Ok(!Path::new(&format!("/proc/{orphan}")).exists()))?;
    ensure!(ended, "it goes on without its agent:\n{}", site.log());
    let mut last = Value::Null;
    let given_up = wait_until(PATIENCE, || {
        last = site.berth(&["get", "placements", "one", "-o", "json"])?.json().unwrap_or_default();
        Ok(last["phase"] == "PHASE_FAILED")
    })?;
    ensure!(given_up, "{last:#}\n{}", site.log());
    let mut now = site.host.state()?;
    ensure!(listed(&mut now, BUERO) == [late.clone()] && !listed(&mut now, UBUNTU).contains(&late), "{now:#}");
    Ok(())
}

/// Saved with its device, by hand or as the host went down: the state is somebody's work, and only a person lets go of it.
/// Until then the card stays claimed, and the placement says what to do; then it comes back by itself.
#[test]
fn a_card_comes_back_from_a_vm_that_was_saved() -> anyhow::Result<()> {
    let state = usual();
    let Some(mut site) = Here::new("a saved VM on Hyper-V", &state)? else { return Ok(()) };
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    site.wait_active("one")?;
    site.host.change(|state| vm_in(state, UBUNTU)["state"] = json!("Saved"))?;
    site.ok(&["release", "one"])?;
    let mut told = String::new();
    let said = wait_until(PATIENCE, || {
        told = site.ok(&["describe", "placement", "one"])?.stdout;
        Ok(told.contains("saved state"))
    })?;
    ensure!(said, "{told}\n{}", site.log());
    let mut now = site.host.state()?;
    ensure!(vm_in(&mut now, UBUNTU)["state"] == "Saved" && !listed(&mut now, UBUNTU).is_empty(), "{now:#}");
    site.host.change(|state| vm_in(state, UBUNTU)["state"] = json!("Off"))?;
    wait_until(PATIENCE, || Ok(facts(&site.host.state()?) == facts(&state)))?;
    site.as_before(&state)
}

#[test]
fn a_configuration_is_checked_and_a_machine_without_powershell_is_told_what_to_do() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let check = |powershell: Option<&Path>| -> anyhow::Result<Ran> {
        let file = dir.path().join("agent.toml");
        let mut text = "node = \"hv-01\"\ncontrollers = [\"http://127.0.0.1:7600\"]\ndriver = \"hyperv\"\n".to_owned();
        if let Some(powershell) = powershell {
            text.push_str(&format!("[hyperv]\npowershell = {:?}\n", powershell.display().to_string()));
        }
        std::fs::write(&file, text)?;
        let mut agent = other(binary("berth-agent")?);
        agent.arg("--config").arg(file).arg("--check-config");
        run(agent)
    };
    let refused = check(Some(&dir.path().join("no-such.exe")))?;
    assert!(refused.code == Some(1) && refused.stderr.contains("name its program in hyperv.powershell"), "{refused:?}");
    if cfg!(not(windows)) {
        let refused = check(None)?;
        assert!(refused.code == Some(1) && refused.stderr.contains("hyperv.powershell: is missing"), "{refused:?}");
    }
    let there = dir.path().join("powershell.exe");
    std::fs::write(&there, "")?;
    check(Some(&there))?.expect(0)?;
    Ok(())
}
