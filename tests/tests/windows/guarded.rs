//! What PowerShell is given to run, and what the agent obeys, lies where nobody else can change it.
//!
//! Wine makes access lists out of Linux's modes and modes out of access lists: a folder that everybody may write to is one for
//! Windows programs, too, and one that was restricted is restricted. Administrators are the owner's group there.

use super::Windows;
use berth_node_agent::driver::hyperv::script;
use berth_tests::hyperv::site::PATIENCE;
use berth_tests::hyperv::{UBUNTU, usual};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

fn allow(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn others(path: &Path) -> std::io::Result<u32> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o002)
}

#[test]
fn a_folder_that_others_can_write_to_is_closed_while_it_is_empty_and_refused_once_it_is_not() -> anyhow::Result<()> {
    let state = usual();
    let Some(mut site) = Windows::new("the Windows agent, folders open to others", &state)? else { return Ok(()) };
    let data_dir = site.data_dir();
    std::fs::create_dir(&data_dir)?;
    allow(&data_dir, 0o777)?;
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    site.wait_active("one")?;
    assert_eq!(others(&data_dir)?, 0, "the data directory is still open to others");
    site.take_agent()?.kill()?;

    // What others may have written is not obeyed.
    allow(&data_dir, 0o777)?;
    site.start_agent()?;
    let mut agent = site.take_agent()?;
    let ended = agent.ended_within(PATIENCE)?;
    let log = agent.log();
    assert!(ended.is_some_and(|status| !status.success()), "it runs on:\n{log}");
    assert!(log.contains("can be changed by WD") && log.contains("icacls"), "{log}");
    allow(&data_dir, 0o700)?;

    // Nor is it run.
    let folder = site.script().parent().map(Path::to_path_buf).unwrap_or_default();
    allow(&folder, 0o777)?;
    site.start_agent()?;
    let agent = site.site.agent.as_mut().unwrap();
    let said =
        agent.wait_for_line(PATIENCE, |line| line.contains("the host script is not safe").then(|| line.to_owned()))?;
    assert!(said.contains("hyperv can be changed by WD"), "{said}");
    // Once it is as it should be, it goes on by itself.
    allow(&folder, 0o700)?;
    site.release("one")?;
    site.as_before(&state)?;
    site.check()
}

#[test]
fn a_script_that_somebody_changed_is_not_what_runs() -> anyhow::Result<()> {
    let state = usual();
    let Some(mut site) = Windows::new("the Windows agent, a changed script", &state)? else { return Ok(()) };
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    site.wait_active("one")?;
    std::fs::write(site.script(), "throw 'somebody else wrote this'\n")?;
    site.relay.kill_last()?;
    site.release("one")?;
    assert_eq!(std::fs::read_to_string(site.script())?, script::TEXT);
    // Its rights are those of its folder.
    assert_eq!(others(&site.script())?, 0);
    site.as_before(&state)?;
    assert!(!site.log().contains("somebody else wrote this"), "{}", site.log());
    site.check()
}
