//! Linux guests asked by the agent's own ssh: a real sshd, whose `lspci` and `dmesg` say what a test wants.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "tests")]

mod install;

use anyhow::ensure;
use berth_agent_core::guest::GuestDevices;
use berth_model::VmId;
use berth_node_agent::driver::guest::ssh::Login;
use berth_tests::sshd::{self, Guest, says};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

const VM: &str = "8fce3318-aa0f-4de3-8664-278533573cd2";

const A2: &str = "\
0000:00:00.0 Host bridge [0600]: Intel Corporation 440BX/ZX/DX [8086:7192] (rev 03)
48e0:00:00.0 3D controller [0302]: NVIDIA Corporation GA107GL [A2 / A16] [10de:25b6] (rev a1)
\tSubsystem: NVIDIA Corporation Device [10de:157e]
\tKernel driver in use: nvidia
\tKernel modules: nouveau, nvidia_drm, nvidia
";

/// A guest, and the agent's login to it. `None` where there is no sshd.
fn guest(test: &str) -> Option<(Guest, Login)> {
    let sshd = sshd::program(test)?;
    let guest = Guest::start(&sshd).unwrap_or_else(|error| panic!("{test}: {error:#}"));
    guest.known_as(&[VM]).unwrap();
    let login = Login {
        program: "ssh".into(),
        user: guest.user().unwrap(),
        identity: guest.identity(),
        known_hosts: guest.known_hosts(),
        port: guest.port(),
        connect: Duration::from_secs(10),
        limit: Duration::from_secs(60),
    };
    Some((guest, login))
}

fn vm() -> VmId {
    VM.parse().unwrap()
}

/// Asks at this address; what it shows, or why it does not.
fn ask_at(login: &Login, addresses: &[&str]) -> Result<berth_agent_core::guest::GuestView, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    runtime.block_on(login.ask(&vm(), &addresses)).map_err(|error| error.to_string())
}

fn ask(login: &Login) -> Result<berth_agent_core::guest::GuestView, String> {
    ask_at(login, &["127.0.0.1"])
}

fn why(login: &Login) -> String {
    ask(login).expect_err("it answered")
}

#[test]
fn a_guest_shows_its_devices_drivers_and_complaints() -> anyhow::Result<()> {
    let Some((guest, login)) = guest("a Linux guest is asked") else { return Ok(()) };
    guest.shows(A2)?;
    let seen = ask(&login).unwrap();
    let a2 = seen.devices[&"10de:25b6:10de:157e".parse().unwrap()];
    assert_eq!((a2, seen.devices.len()), (GuestDevices { visible: 1, driver_bound: 1 }, 2));
    assert!(seen.complaints.is_empty(), "{seen:?}");

    guest.shows("")?;
    guest.complains(
        "[ 1.0] usb 1-1: new device\n[ 2.2] hv_pci 5a5f0867-48e0-4d7f-9442-885aee2d538b: Need 0x802000000 of high MMIO space. Consider reconfiguring the VM.\n",
    )?;
    let seen = ask(&login).unwrap();
    assert!(seen.devices.is_empty() && seen.complaints.len() == 1, "{seen:?}");
    says(&seen.complaints[0].to_string(), &["0x802000000 bytes", "HighMemoryMappedIoSpace"])?;

    // The log may not be read, and neither may the journal.
    guest.runs("dmesg", "echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1\n")?;
    guest.runs("journalctl", "exit 1\n")?;
    guest.shows(A2)?;
    assert_eq!(ask(&login).unwrap().devices.len(), 2);
    // By the journal, where that may be read.
    guest.runs("journalctl", "echo 'hv_pci x: Need 0x10 of low MMIO space. Consider'\n")?;
    assert_eq!(ask(&login).unwrap().complaints.len(), 1);
    Ok(())
}

#[test]
fn a_guest_without_lspci_or_with_nonsense_is_told_apart() -> anyhow::Result<()> {
    let Some((guest, login)) = guest("guests that cannot answer") else { return Ok(()) };
    guest.runs("lspci", "exit 127\n")?;
    says(&why(&login), &["127.0.0.1", "it has no lspci: install pciutils"])?;
    guest.runs("lspci", "exit 126\n")?;
    says(&why(&login), &["the user may not run it"])?;
    guest.shows("Das ist keine Liste\n")?;
    says(&why(&login), &["its list of devices makes no sense"])?;
    // Invalid UTF-8 in names is somebody's language.
    guest.runs("lspci", "printf '48e0:00:00.0 3D controller [0302]: \\377\\376 [10de:25b6]\\n'\n")?;
    assert_eq!(ask(&login).unwrap().devices.len(), 1);
    Ok(())
}

#[test]
fn a_guest_that_never_stops_talking_is_cut_off() -> anyhow::Result<()> {
    let Some((guest, mut login)) = guest("endless answers") else { return Ok(()) };
    guest.runs("lspci", "exec yes 48e0:00:00.0\n")?;
    let begun = Instant::now();
    says(&why(&login), &["more than 1048576 bytes"])?;
    ensure!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    // And one that says nothing.
    guest.runs("lspci", "exec sleep 600\n")?;
    login.limit = Duration::from_secs(3);
    let begun = Instant::now();
    says(&why(&login), &["did not answer within 3 s"])?;
    ensure!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn only_the_guest_with_the_vms_own_key_is_asked() -> anyhow::Result<()> {
    let Some((guest, login)) = guest("host keys of guests") else { return Ok(()) };
    guest.shows(A2)?;
    // Known by its address alone: an address is what a guest says it is.
    for names in [&[][..], &["127.0.0.1", "[127.0.0.1]", "localhost"], &["11111111-aa0f-4de3-8664-278533573cd2"]] {
        guest.known_as(names)?;
        says(&why(&login), &["does not prove to be this VM's guest", &format!("add the line: {VM} KEY")])?;
    }
    let address = format!("[127.0.0.1]:{}", guest.port());
    guest.known_as(&[&address])?;
    says(&why(&login), &["does not prove to be this VM's guest"])?;
    guest.mistaken_for(VM)?;
    let before = std::fs::read_to_string(guest.known_hosts())?;
    says(&why(&login), &["does not prove to be this VM's guest"])?;
    ensure!(std::fs::read_to_string(guest.known_hosts())? == before, "a key was taken in by itself");
    guest.known_as(&[VM])?;
    ensure!(ask(&login).is_ok(), "the right guest is refused");
    Ok(())
}

#[test]
fn a_guest_that_does_not_know_the_key_or_is_not_there_is_told_apart() -> anyhow::Result<()> {
    let Some((guest, login)) = guest("keys and addresses of guests") else { return Ok(()) };
    guest.shows(A2)?;
    let stranger = Login { identity: guest.stranger(), ..login.clone() };
    says(&why(&stranger), &["does not let", "Permission denied", "stranger"])?;
    // A key's file is named, its content never shown.
    let broken = guest.dir().join("broken");
    std::fs::write(&broken, "-----BEGIN OPENSSH PRIVATE KEY-----\ngeheim\n")?;
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o600))?;
    let said = why(&Login { identity: broken, ..login.clone() });
    ensure!(said.contains("does not let") && !said.contains("geheim"), "{said}");
    let closed = Login { port: berth_tests::process::free_port()?, ..login.clone() };
    says(&why(&closed), &["cannot be reached at 127.0.0.1", "Connection refused"])?;
    // The first address is nobody's, others are none at all; what says most is told.
    let nobody = "127.0.0.2";
    assert!(ask_at(&login, &["fe80::1", "0.0.0.0", "-oProxyCommand=x", nobody, "127.0.0.1"]).is_ok());
    let said = ask_at(&stranger, &["127.0.0.1", nobody]).unwrap_err();
    says(&said, &["does not let"])?;
    says(&ask_at(&login, &[]).unwrap_err(), &["tells no address"])?;
    says(&ask_at(&login, &["fe80::1"]).unwrap_err(), &["tells no address"])?;
    let gone = Login { program: "/nowhere/ssh".into(), ..login.clone() };
    says(&why(&gone), &["cannot start /nowhere/ssh"])
}

#[test]
fn files_that_others_can_read_or_change_are_not_used() -> anyhow::Result<()> {
    let Some((guest, login)) = guest("files of keys") else { return Ok(()) };
    guest.shows(A2)?;
    let mode = |path: &Path, mode: u32| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    mode(&login.identity, 0o640)?;
    says(&why(&login), &["identity", "mode 640", "chmod"])?;
    mode(&login.identity, 0o600)?;
    mode(&login.known_hosts, 0o666)?;
    says(&why(&login), &["known_hosts", "can change it"])?;
    mode(&login.known_hosts, 0o644)?;
    std::fs::remove_file(&login.identity)?;
    says(&why(&login), &["identity"])
}

#[test]
fn an_ssh_that_is_no_longer_waited_for_is_ended() -> anyhow::Result<()> {
    let Some((guest, login)) = guest("ended ssh") else { return Ok(()) };
    guest.runs("lspci", "exec sleep 600\n")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let known_hosts = guest.known_hosts().display().to_string();
    // Whoever stops waiting in the middle drops it: the agent's own deadline, its end.
    runtime.block_on(async {
        let addresses = ["127.0.0.1".to_owned()];
        let asked = tokio::time::timeout(Duration::from_secs(2), login.ask(&vm(), &addresses)).await;
        assert!(asked.is_err(), "{asked:?}");
    });
    let runs = || -> bool {
        let Ok(processes) = std::fs::read_dir("/proc") else { return false };
        let lines = processes.flatten().filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines
            .map(|line| String::from_utf8_lossy(&line).into_owned())
            .any(|line| line.starts_with("ssh\0") && line.contains(&known_hosts))
    };
    ensure!(berth_tests::process::wait_until(Duration::from_secs(20), || Ok(!runs()))?, "an ssh is left behind");
    Ok(())
}
