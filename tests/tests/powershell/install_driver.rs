//! The whole way of a driver-install command: asked for by name, run in a Linux guest once, told with the placement.

#![cfg(unix)]

use super::agent::Here;
use anyhow::ensure;
use berth_tests::hyperv::site::{PATIENCE, Site};
use berth_tests::hyperv::{BUERO, UBUNTU, usual, vm_in};
use berth_tests::process::wait_until;
use berth_tests::sshd::{self, Guest};
use serde_json::{Value, json};

const SEEN: &str = "48e0:00:00.0 3D controller [0302]: NVIDIA Corporation GA107GL [A2 / A16] [10de:25b6] (rev a1)\n\
                    \tSubsystem: NVIDIA Corporation Device [10de:157e]\n";
/// Makes the driver appear, as an installer does, and leaves a trace.
const INSTALLS: &str = "here=\"${0%/bin/install-driver}\"\necho \"ran $*\" >>\"$here/trace\"\necho 'building the module'\n\
                        printf '\\tKernel driver in use: nvidia\\n' >>\"$here/lspci.txt\"\n";

/// A host with a Linux guest that shows its device without a driver, and an agent that knows one command.
fn site(test: &str) -> anyhow::Result<Option<(Here, Guest, Value)>> {
    let mut state = usual();
    vm_in(&mut state, UBUNTU)["addresses"] = json!([["127.0.0.1"]]);
    let Some(sshd) = sshd::program(test) else { return Ok(None) };
    let Some(mut site) = Here::new(test, &state)? else { return Ok(None) };
    let guest = Guest::start(&sshd)?;
    guest.known_as(&[UBUNTU])?;
    guest.shows(SEEN)?;
    let file = site.host.dir().join("agent.toml");
    let (identity, known_hosts) = (guest.identity(), guest.known_hosts());
    std::fs::write(
        &file,
        format!(
            "[hyperv.guest]\nuser = {:?}\nidentity = {identity:?}\nknown_hosts = {known_hosts:?}\nport = {}\n\
             [hyperv.guest.install.nvidia]\nlinux = [\"install-driver\", \"--quiet\"]\nseconds = 60\n",
            guest.user()?,
            guest.port()
        ),
    )?;
    site.settings = vec!["--config".to_owned(), file.display().to_string()];
    site.start_agent()?;
    Ok(Some((site, guest, state)))
}

fn place(site: &Site, command: &str) -> anyhow::Result<()> {
    site.place("one", UBUNTU, "1", &["--model", "A2", "--verify", "driver-bound", "--install-driver", command])
}

/// What `berth describe placement` says, in one line.
fn described(site: &Site) -> anyhow::Result<String> {
    let said = site.ok(&["describe", "placement", "one"])?.stdout;
    Ok(said.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn wait_failed(site: &Site) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    let failed = wait_until(PATIENCE, || {
        last = site.berth(&["get", "placements", "one", "-o", "json"])?.json().unwrap_or_default();
        Ok(last["phase"] == "PHASE_FAILED" && last["undone"] == json!(true))
    })?;
    ensure!(failed, "{last:#}\n{}", site.log());
    Ok(last)
}

#[test]
fn a_placement_is_active_once_the_command_made_the_driver_appear() -> anyhow::Result<()> {
    let Some((site, guest, state)) = site("a driver-install command on Hyper-V")? else { return Ok(()) };
    guest.runs("install-driver", INSTALLS)?;
    place(&site, "nvidia")?;
    site.wait_active("one")?;
    let said = described(&site)?;
    ensure!(said.contains("Install driver: nvidia") || said.contains("Install driver nvidia"), "{said}");
    ensure!(said.contains("command nvidia ended with exit code 0; it said: building the module"), "{said}");
    ensure!(std::fs::read_to_string(guest.dir().join("trace"))? == "ran --quiet\n", "not once, or with other words");
    site.release("one")?;
    site.as_before(&state)?;
    let log = site.log();
    ensure!(log.contains("command nvidia ended with exit code 0"), "{log}");
    ensure!(!log.contains("building the module"), "the output is in the log:\n{log}");
    Ok(())
}

#[test]
fn a_command_that_fails_or_that_nobody_knows_ends_the_placement_with_the_reason() -> anyhow::Result<()> {
    let Some((site, guest, state)) = site("failing driver-install commands on Hyper-V")? else { return Ok(()) };
    guest.runs("install-driver", "printf '\\033[31mno kernel headers\\n'\nexit 4\n")?;
    place(&site, "nvidia")?;
    let failed = wait_failed(&site)?;
    ensure!(failed.to_string().contains("ended with exit code 4, saying \\\\u{1b}[31mno kernel headers"), "{failed:#}");
    let said = described(&site)?;
    ensure!(said.contains("ended with exit code 4; it said: \\u{1b}[31mno kernel headers"), "{said}");
    ensure!(failed["history"][0]["installed"]["exitCode"] == json!(4), "{failed:#}");
    place(&site, "unheard-of")?;
    let failed = wait_failed(&site)?.to_string();
    ensure!(failed.contains("knows no driver-install command unheard-of") && failed.contains("nvidia"), "{failed}");
    site.as_before(&state)
}

#[test]
fn an_agent_that_is_killed_while_the_command_runs_does_not_run_it_again() -> anyhow::Result<()> {
    let Some((mut site, guest, state)) = site("an agent killed during a driver-install command")? else {
        return Ok(());
    };
    // It goes on in the guest without anybody to hear it.
    guest.runs(
        "install-driver",
        &format!(
            "trap '' PIPE\necho begun >>\"${{0%/bin/install-driver}}/begun\"\n\
             while [ ! -e \"${{0%/bin/install-driver}}/go\" ]; do sleep 0.2; done\n{INSTALLS}"
        ),
    )?;
    place(&site, "nvidia")?;
    let begun = guest.dir().join("begun");
    ensure!(wait_until(PATIENCE, || Ok(begun.exists()))?, "it never began:\n{}", site.log());
    site.take_agent()?.kill()?;
    site.start_agent()?;
    // The agent looks, and sees neither a driver nor a reason to begin anew.
    let told = wait_until(PATIENCE, || Ok(described(&site)?.contains("was begun, but how it ended is not known")))?;
    ensure!(told, "{}\n{}", described(&site)?, site.log());
    std::fs::write(guest.dir().join("go"), "")?;
    site.wait_active("one")?;
    ensure!(std::fs::read_to_string(begun)? == "begun\n", "it was begun twice");
    site.release("one")?;
    site.as_before(&state)
}

/// A Windows guest, asked and installed by PowerShell Direct, while the host is looked at and other guests are asked.
#[test]
fn a_command_runs_in_a_windows_guest_once_and_holds_up_nobody() -> anyhow::Result<()> {
    let mut state = usual();
    let devices = |works_with: &std::path::Path| {
        json!([{ "id": "PCI\\VEN_10DE&DEV_25B6&SUBSYS_157E10DE&REV_A1\\4&1A2B3C4D&0&0000", "name": "NVIDIA A2",
                 "status": "Error", "problem": 28, "works_with": works_with }])
    };
    let Some(mut site) = Here::new("a driver-install command in a Windows guest", &state)? else { return Ok(()) };
    let dir = site.host.dir().to_owned();
    let (program, installed, go) = (dir.join("setup"), dir.join("installed"), dir.join("go"));
    let text = format!(
        "#!/bin/sh\necho \"ran $*\" >>'{0}/trace'\nwhile [ ! -e '{1}' ]; do sleep 0.2; done\necho 'copying files'\n: >'{2}'\n",
        dir.display(),
        go.display(),
        installed.display()
    );
    std::fs::write(&program, text)?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    state["programs"] = json!({ "C:\\NVIDIA 550\\setup.exe": program });
    for vm in [UBUNTU, BUERO] {
        let vm = vm_in(&mut state, vm);
        vm["guest_password"] = json!("Geheim-4711");
        vm["guest"] = devices(&installed);
    }
    vm_in(&mut state, BUERO)["guest"] = json!([
        { "id": "PCI\\VEN_10DE&DEV_25B6&SUBSYS_14A910DE&REV_A1\\4&1A2B3C4D&0&0000", "name": "NVIDIA A16", "status": "OK", "problem": 0 },
    ]);
    site.host.set(&state)?;
    let credential = dir.join("guest.xml");
    std::fs::write(&credential, json!({ "user": "admin", "password": "Geheim-4711" }).to_string())?;
    std::fs::set_permissions(&credential, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let file = dir.join("agent.toml");
    std::fs::write(
        &file,
        format!(
            "[hyperv.guest]\ncredential = {credential:?}\n[hyperv.guest.install.nvidia]\n\
             windows = ['C:\\NVIDIA 550\\setup.exe', '-s', 'a b']\nseconds = 120\n[hyperv.guest.install.other]\nlinux = ['x']\n"
        ),
    )?;
    site.settings = vec!["--config".to_owned(), file.display().to_string()];
    site.start_agent()?;
    place(&site, "nvidia")?;
    let trace = dir.join("trace");
    ensure!(wait_until(PATIENCE, || Ok(trace.exists()))?, "it never began:\n{}", site.log());
    // Meanwhile the host is worked on and another guest is asked.
    site.place("two", BUERO, "1", &["--model", "A16", "--verify", "driver-bound"])?;
    site.wait_active("two")?;
    ensure!(!installed.exists(), "it did not wait");
    std::fs::write(&go, "")?;
    site.wait_active("one")?;
    let said = described(&site)?;
    ensure!(said.contains("command nvidia ended with exit code 0; it said: copying files"), "{said}");
    ensure!(std::fs::read_to_string(&trace)? == "ran -s a b\n", "not once, or with other words");
    site.release("one")?;
    site.release("two")?;
    std::fs::remove_file(&installed)?;
    // Named, and not for this kind of guest.
    place(&site, "other")?;
    let failed = wait_failed(&site)?.to_string();
    ensure!(failed.contains("this is a Windows guest") && failed.contains("install.other"), "{failed}");
    site.as_before(&state)?;
    let log = site.log();
    ensure!(!log.contains("copying files") && !log.contains("Geheim"), "output or password is in the log:\n{log}");
    Ok(())
}
