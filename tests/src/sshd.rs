//! A real sshd that plays a Linux guest: on a loopback port, with its own keys and settings, as the user that runs the
//! tests. What it shows as `lspci` and `dmesg` are scripts of a test.

use crate::process::{Process, free_port, other, run, skip};
use anyhow::{Context as _, ensure};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// A start on a machine that does other work, too.
const START: Duration = Duration::from_secs(30);

/// A guest that can be logged in to.
#[derive(Debug)]
pub struct Guest {
    dir: TempDir,
    port: u16,
    _sshd: Process,
}

/// The sshd there is, or none: that was said then.
#[must_use]
pub fn program(test: &str) -> Option<PathBuf> {
    let program = crate::config::sshd().filter(|_| crate::config::in_path("ssh").is_some());
    if program.is_none() {
        skip(
            test,
            "there is no OpenSSH server and client here; Debian's packages are openssh-server and openssh-client",
        );
    }
    program
}

fn keygen(file: &Path) -> anyhow::Result<()> {
    let mut keygen = other("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(file);
    run(keygen)?.expect(0).map(|_| ())
}

impl Guest {
    /// Starts one.
    ///
    /// # Errors
    /// When sshd does not start here.
    pub fn start(sshd: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("no temporary directory")?;
        let at = |name: &str| dir.path().join(name);
        for key in ["host_key", "identity", "stranger"] {
            keygen(&at(key))?;
        }
        std::fs::copy(at("identity.pub"), at("authorized_keys"))?;
        std::fs::create_dir(at("bin"))?;
        // Where it drops its privileges to, if it has any.
        let me = run(id("-u"))?.stdout;
        if me.trim() == "0" {
            std::fs::create_dir_all("/run/sshd").context("sshd needs /run/sshd when root starts it")?;
        }
        // sshd cannot be told to take any.
        let port = free_port()?;
        let here = dir.path().display();
        std::fs::write(
            at("sshd_config"),
            format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {here}/host_key\nPidFile none\n\
                 AuthorizedKeysFile {here}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n\
                 PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\nBanner {here}/banner\n\
                 LogLevel VERBOSE\nSetEnv PATH={here}/bin:/usr/bin:/bin\n"
            ),
        )?;
        std::fs::write(at("banner"), "This system is watched.\nberth-guest ends\n")?;
        let mut command = other(sshd);
        command.args(["-D", "-e", "-f"]).arg(at("sshd_config"));
        let mut sshd = Process::start(command)?;
        sshd.wait_for_line(START, |line| line.contains("Server listening on").then_some(()))?;
        let guest = Self { dir, port, _sshd: sshd };
        guest.shows("")?;
        guest.complains("")?;
        guest.known_as(&[])?;
        Ok(guest)
    }

    /// Where it listens, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The user to log in as.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn user(&self) -> anyhow::Result<String> {
        Ok(run(id("-un"))?.stdout.trim().to_owned())
    }

    /// The key it lets in.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.dir.path().join("identity")
    }

    /// A key it does not let in.
    #[must_use]
    pub fn stranger(&self) -> PathBuf {
        self.dir.path().join("stranger")
    }

    /// The file of host keys: see [`Guest::known_as`].
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.path().join("known_hosts")
    }

    /// Under which names the file of host keys has its key, besides another key under a name of its own.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn known_as(&self, names: &[&str]) -> anyhow::Result<()> {
        let line = |name: &str, key: &str| -> anyhow::Result<String> {
            let key = std::fs::read_to_string(self.dir.path().join(key))?;
            Ok(format!("{name} {}\n", key.trim()))
        };
        let mut text = line("another", "stranger.pub")?;
        for name in names {
            text.push_str(&line(name, "host_key.pub")?);
        }
        self.write(&self.known_hosts(), &text, 0o644)
    }

    /// Gives the file of host keys another key under a name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mistaken_for(&self, name: &str) -> anyhow::Result<()> {
        let key = std::fs::read_to_string(self.dir.path().join("stranger.pub"))?;
        self.write(&self.known_hosts(), &format!("{name} {}\n", key.trim()), 0o644)
    }

    /// What its `lspci` says.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn shows(&self, list: &str) -> anyhow::Result<()> {
        std::fs::write(self.dir.path().join("lspci.txt"), list)?;
        self.runs("lspci", "[ \"$*\" = -Dnnk ] || exit 64\nexec cat \"${0%/bin/lspci}/lspci.txt\"\n")
    }

    /// What its `dmesg` says.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn complains(&self, log: &str) -> anyhow::Result<()> {
        std::fs::write(self.dir.path().join("dmesg.txt"), log)?;
        self.runs("dmesg", "exec cat \"${0%/bin/dmesg}/dmesg.txt\"\n")
    }

    /// Makes a program there do this.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn runs(&self, program: &str, script: &str) -> anyhow::Result<()> {
        self.write(&self.dir.path().join("bin").join(program), &format!("#!/bin/sh\n{script}"), 0o755)
    }

    /// Takes a program away. A shell then finds the system's own, if it has one.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn lacks(&self, program: &str) -> anyhow::Result<()> {
        std::fs::remove_file(self.dir.path().join("bin").join(program)).context("it has none")
    }

    /// Written beside and moved: a shell that runs the old one must not read half of the new one.
    fn write(&self, file: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
        let new = file.with_extension("new");
        std::fs::write(&new, text)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&new, file).with_context(|| format!("cannot write {}", file.display()))
    }

    /// A folder of its own.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn id(what: &str) -> std::process::Command {
    let mut id = other("id");
    id.arg(what);
    id
}

/// Fails unless a text holds all of these.
///
/// # Errors
/// The first that it lacks.
pub fn says(text: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in: {text}");
    }
    Ok(())
}
