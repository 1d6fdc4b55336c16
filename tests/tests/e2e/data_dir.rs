//! What is durable: a restart keeps it, and a data directory that cannot be used is refused by name.

use super::{READY, claims, placement, wait_phase};
use berth_tests::process::{self, Dev, berth, other};
use std::path::{Path, PathBuf};

fn on(dir: &Path) -> [String; 4] {
    ["--nodes".into(), "2".into(), "--data-dir".into(), dir.display().to_string()]
}

fn start(dir: &Path) -> anyhow::Result<Dev> {
    let args = on(dir);
    let dev = Dev::start(&args.each_ref().map(String::as_str))?;
    dev.wait_ready(2, READY)?;
    Ok(dev)
}

/// `berth dev` on a directory that it must refuse.
fn refused(dir: &Path) -> anyhow::Result<String> {
    let mut berth = other(berth()?);
    berth.args(["dev", "--listen", "127.0.0.1:0"]).args(on(dir));
    Ok(process::run(berth)?.expect(1)?.stderr)
}

#[test]
fn a_restart_keeps_placements() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let dev = start(dir.path())?;
    dev.run(&["place", "kept", "--vm", "kept-vm", "--gpus", "1", "--wait"])?.expect(0)?;
    dev.run(&["place", "gone", "--vm", "gone-vm", "--gpus", "1", "--wait"])?.expect(0)?;
    dev.run(&["release", "gone", "--wait"])?.expect(0)?;
    let before = placement(&dev, "kept")?;
    let claimed = claims(&dev)?;
    dev.kill()?;

    let dev = start(dir.path())?;
    let after = wait_phase(&dev, "kept", "PHASE_ACTIVE")?;
    assert_eq!(after["uid"], before["uid"]);
    assert_eq!(after["assignment"], before["assignment"]);
    assert_eq!(after["vmId"], before["vmId"]);
    assert_eq!(placement(&dev, "gone")?["phase"], "PHASE_RELEASED");
    assert_eq!(claims(&dev)?, claimed);
    dev.run(&["release", "kept", "--wait"])?.expect(0)?;
    assert_eq!(claims(&dev)?, []);
    Ok(())
}

#[test]
fn a_data_directory_in_use_is_refused() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let dev = start(dir.path())?;
    let said = refused(dir.path())?;
    assert!(said.contains("in use"), "{said}");
    assert!(said.contains(&dir.path().display().to_string()), "it names the directory: {said}");
    dev.run(&["status"])?.expect(0)?;
    Ok(())
}

/// All files below a directory.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

#[test]
fn a_corrupt_store_is_refused_and_left_alone() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let dev = start(dir.path())?;
    dev.run(&["place", "kept", "--vm", "kept-vm"])?.expect(0)?;
    dev.kill()?;

    let stores: Vec<_> =
        files(dir.path())?.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "redb")).collect();
    let [store] = stores.as_slice() else { panic!("not one store in {:?}", files(dir.path())?) };
    let whole = std::fs::read(store)?;
    let mut damaged = whole.clone();
    damaged[..4096.min(whole.len())].fill(0x5a);
    std::fs::write(store, &damaged)?;

    let said = refused(dir.path())?;
    assert!(said.contains("damaged"), "{said}");
    assert!(said.contains(&store.display().to_string()), "it names the file: {said}");
    assert_eq!(std::fs::read(store)?, damaged, "nobody wrote to it");

    // With the file put back everything is there again.
    std::fs::write(store, whole)?;
    let dev = start(dir.path())?;
    assert_eq!(placement(&dev, "kept")?["request"]["vm"], "kept-vm");
    Ok(())
}
