//! Settings of the ways into guests, for placements that want to know what the guest sees. Files are named, never what is
//! in them: no secret stands in a setting.

use super::{install, read};
use crate::driver::guest::ssh::{self, Login};
use clap::Args;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One source's word on them.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[group(skip)]
pub(super) struct Layer {
    /// With the driver hyperv: the credential for Windows guests, a file made by Export-Clixml.
    #[arg(long = "hyperv-guest-credential", value_name = "FILE")]
    credential: Option<PathBuf>,
    /// With the driver hyperv: the user in Linux guests.
    #[arg(long = "hyperv-guest-user", value_name = "NAME")]
    user: Option<String>,
    /// With the driver hyperv: that user's private key, without a passphrase.
    #[arg(long = "hyperv-guest-identity", value_name = "FILE")]
    identity: Option<PathBuf>,
    /// With the driver hyperv: host keys of Linux guests, each under its VM's id.
    #[arg(long = "hyperv-guest-known-hosts", value_name = "FILE")]
    known_hosts: Option<PathBuf>,
    /// With the driver hyperv: the port at which Linux guests listen.
    #[arg(long = "hyperv-guest-port", value_name = "PORT")]
    port: Option<u16>,
    /// With the driver hyperv: OpenSSH's client, if it is not where the system has it.
    #[arg(long = "hyperv-guest-ssh", value_name = "FILE")]
    ssh: Option<PathBuf>,
    /// With the driver hyperv: how long one address of a Linux guest may take to accept the connection.
    #[arg(long = "hyperv-guest-connect-seconds", value_name = "SECONDS")]
    connect_seconds: Option<u32>,
    /// What may be run in guests, by name. Only in a file.
    #[arg(skip)]
    #[serde(default)]
    pub(super) install: BTreeMap<String, install::Entry>,
}

/// Names of the variables, for whoever misspells one.
pub(super) const VARIABLES: &str = "_HYPERV_GUEST_CREDENTIAL, _HYPERV_GUEST_USER, _HYPERV_GUEST_IDENTITY, \
                                    _HYPERV_GUEST_KNOWN_HOSTS, _HYPERV_GUEST_PORT, _HYPERV_GUEST_SSH, \
                                    _HYPERV_GUEST_CONNECT_SECONDS";

impl Layer {
    pub(super) fn lies_in(&mut self, dir: &Path) {
        let Self { credential, user: _, identity, known_hosts, port: _, ssh, connect_seconds: _, install: _ } = self;
        for path in [credential, identity, known_hosts, ssh].into_iter().flatten() {
            *path = dir.join(&path);
        }
    }

    pub(super) fn variable(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        Some(match name {
            "CREDENTIAL" => read(&mut self.credential, value, "a path"),
            "USER" => read(&mut self.user, value, "a name"),
            "IDENTITY" => read(&mut self.identity, value, "a path"),
            "KNOWN_HOSTS" => read(&mut self.known_hosts, value, "a path"),
            "PORT" => read(&mut self.port, value, "a port"),
            "SSH" => read(&mut self.ssh, value, "a path"),
            "CONNECT_SECONDS" => read(&mut self.connect_seconds, value, "a whole number of seconds"),
            _ => return None,
        })
    }
}

/// The usual port of OpenSSH.
const PORT: u16 = 22;
/// A guest in the same data centre accepts within a second; the rest is for one that is just starting.
const CONNECT_SECONDS: u32 = 5;
const MOST_CONNECT_SECONDS: u32 = 60;
/// How long a guest may take to list its devices once it accepted: less than a second, unless it is still starting.
const ANSWER: Duration = Duration::from_secs(25);

/// The credential for Windows guests, and the login for Linux guests, if one is given.
pub(super) fn ways(
    layers: &[&Layer],
    system: Option<&Path>,
    mut bad: impl FnMut(&str, String),
) -> (Option<PathBuf>, Option<Login>) {
    let mut path = |name: &str, given: Option<&PathBuf>| {
        let path = given?;
        if !path.is_absolute() {
            bad(&format!("hyperv.guest.{name}"), format!("{} is not a whole path", path.display()));
        } else if name != "credential" && !ssh::is_plain(path) {
            let why = format!("{} has a character that OpenSSH takes for something else", path.display());
            bad(&format!("hyperv.guest.{name}"), why);
        }
        Some(path.clone())
    };
    let credential = path("credential", layers.iter().find_map(|l| l.credential.as_ref()));
    let identity = path("identity", layers.iter().find_map(|l| l.identity.as_ref()));
    let known_hosts = path("known_hosts", layers.iter().find_map(|l| l.known_hosts.as_ref()));
    let named = path("ssh", layers.iter().find_map(|l| l.ssh.as_ref()));
    let user = layers.iter().find_map(|l| l.user.clone());
    let port = layers.iter().find_map(|l| l.port).unwrap_or(PORT);
    let seconds = layers.iter().find_map(|l| l.connect_seconds).unwrap_or(CONNECT_SECONDS);
    if user.as_deref().is_some_and(|user| !ssh::is_user(user)) {
        bad("hyperv.guest.user", format!("{:?} is no name of a user", user.as_deref().unwrap_or_default()));
    }
    if port == 0 {
        bad("hyperv.guest.port", "0 is no port".to_owned());
    }
    if !(1..=MOST_CONNECT_SECONDS).contains(&seconds) {
        bad("hyperv.guest.connect_seconds", format!("{seconds} is not from 1 to {MOST_CONNECT_SECONDS}"));
    }
    let login = match (user, identity, known_hosts) {
        (None, None, None) => None,
        (Some(user), Some(identity), Some(known_hosts)) => {
            let connect = Duration::from_secs(seconds.into());
            let program = named.or_else(|| system.map(|root| root.join(ssh::PROGRAM)));
            Some(Login {
                program: program.unwrap_or_else(|| "ssh".into()),
                user,
                identity,
                known_hosts,
                port,
                connect,
                limit: connect + ANSWER,
            })
        }
        (user, identity, known_hosts) => {
            let lacks =
                [("user", user.is_none()), ("identity", identity.is_none()), ("known_hosts", known_hosts.is_none())];
            for (name, _) in lacks.iter().filter(|(_, lacks)| *lacks) {
                bad(
                    &format!("hyperv.guest.{name}"),
                    "is missing: Linux guests are asked with user, identity and known_hosts, all three".to_owned(),
                );
            }
            None
        }
    };
    (credential, login)
}
