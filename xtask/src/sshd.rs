//! Gets an SSH server for the tests that play a Linux guest, on machines that are CI's own to change.

use crate::config;
use crate::process::{Running, command, wait_until, works};
use anyhow::{Context as _, bail, ensure};
use std::path::Path;
use std::time::Duration;

/// A download over a slow line.
const LIMIT: Duration = Duration::from_secs(300);
/// Debian asks this program whether services of a new package may be started.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Sees to it that there is an SSH server. It is installed only where CI runs as root: nobody else's machine gets a
/// service because of a test.
///
/// # Errors
/// Why there is none; the tests then say that they were skipped.
pub(crate) fn get() -> anyhow::Result<()> {
    let usual = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"];
    if config::in_path("sshd").is_some() || usual.iter().any(|path| Path::new(path).is_file()) {
        return Ok(());
    }
    ensure!(config::is_ci(), "no sshd here; Debian's package is openssh-server");
    ensure!(is_root(), "no sshd here, and only root can install it");
    ensure!(works("apt-get", &["--version"]), "no sshd here, and no apt-get to install it");
    println!("No sshd here; installing openssh-server with apt-get.");
    let quiet = !Path::new(POLICY).exists();
    if quiet {
        // It is to be started by tests alone.
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY}"))?;
        let mut chmod = command("chmod");
        chmod.args(["755", POLICY]);
        ensure!(chmod.status().is_ok_and(|status| status.success()), "cannot make {POLICY} a program");
    }
    let installed = apt(&["update"])
        .and_then(|()| apt(&["install", "--yes", "--no-install-recommends", "openssh-server", "openssh-client"]));
    if quiet {
        std::fs::remove_file(POLICY).with_context(|| format!("cannot remove {POLICY}"))?;
    }
    installed
}

pub(crate) fn is_root() -> bool {
    let output = command("id").arg("-u").output();
    output.is_ok_and(|output| output.status.success() && output.stdout.trim_ascii() == b"0")
}

fn apt(args: &[&str]) -> anyhow::Result<()> {
    let mut apt = command("apt-get");
    apt.args(["-o", "DPkg::Lock::Timeout=120", "--quiet=2"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
    let mut child = Running(apt.spawn().context("cannot start apt-get")?);
    let mut status = None;
    wait_until("apt-get", LIMIT, || {
        status = child.ended()?;
        Ok(status.is_some())
    })?;
    if status.is_some_and(|status| status.success()) { Ok(()) } else { bail!("apt-get {} failed", args.join(" ")) }
}
