//! Asking a Linux guest over the network, by OpenSSH's own program.
//!
//! A guest is known by its host key, under its VM's id: the addresses come from the guest itself, which may name another
//! machine's, and change whenever it likes. What the program is told stands here in full; no configuration file of the
//! system or a user is read, so that nothing turns the checks off.

use super::file::{BadFile, Secrecy};
use super::linux::{self, COMMAND, MAX_ANSWER_BYTES, Unreadable, plain};
use berth_agent_core::guest::GuestView;
use berth_model::VmId;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{ChildStdout, Command};
use tokio::time::timeout;

/// Where Windows keeps OpenSSH's client, under `%SystemRoot%`. Always by this path, as PowerShell.
pub const PROGRAM: &str = r"System32\OpenSSH\ssh.exe";
/// Most addresses of one guest that are tried: some adapters with two or three each.
pub(super) const MAX_ADDRESSES: usize = 8;
/// How much of what the program complains about is kept.
const MAX_SAID_BYTES: usize = 4096;

/// How Linux guests are logged in to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// OpenSSH's client.
    pub program: PathBuf,
    /// The user in the guests.
    pub user: String,
    /// That user's private key, without a passphrase: nobody is there to type it.
    pub identity: PathBuf,
    /// The guests' host keys, each under its VM's id.
    pub known_hosts: PathBuf,
    /// The port that guests listen at.
    pub port: u16,
    /// How long one address may take to accept the connection.
    pub connect: Duration,
    /// How long the guest may take at one address, connecting included.
    pub limit: Duration,
}

/// A guest gave no answer. Says no secret: files are named, never shown.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The guest tells no address that can be tried.
    #[error(
        "the guest tells no address: it has not started so far, has no network, or lacks hv_kvp_daemon (linux-cloud-tools, \
         hyperv-daemons)"
    )]
    NoAddress,
    /// One of the files cannot be used.
    #[error(transparent)]
    File(#[from] BadFile),
    /// The program cannot be started.
    #[error("cannot start {}, which asks Linux guests: {why}", program.display())]
    Start {
        /// It.
        program: PathBuf,
        /// Why not.
        why: io::Error,
    },
    /// Nobody answers there, so far.
    #[error("the guest cannot be reached at {address}: {why}")]
    NotReached {
        /// Where.
        address: IpAddr,
        /// In OpenSSH's words.
        why: String,
    },
    /// Whoever answers there is not known as this guest.
    #[error(
        "{address} does not prove to be this VM's guest: {} has no such host key under the VM's id. Take the key from the \
         guest itself (/etc/ssh/ssh_host_ed25519_key.pub) and add the line: {vm} KEY", known_hosts.display()
    )]
    Stranger {
        /// Where.
        address: IpAddr,
        /// Which VM it should be.
        vm: VmId,
        /// Where its key should stand.
        known_hosts: PathBuf,
    },
    /// The guest does not let the user in.
    #[error("the guest at {address} does not let {user} in with the key {}: {why}", identity.display())]
    LoggedOut {
        /// Where.
        address: IpAddr,
        /// Who.
        user: String,
        /// With which key.
        identity: PathBuf,
        /// In OpenSSH's words.
        why: String,
    },
    /// It takes too long.
    #[error("the guest at {address} did not answer within {} s", limit.as_secs())]
    Late {
        /// Where.
        address: IpAddr,
        /// The limit.
        limit: Duration,
    },
    /// It answers something else.
    #[error("the guest at {address}: {why}")]
    Unreadable {
        /// Where.
        address: IpAddr,
        /// What is wrong with it.
        why: Unreadable,
    },
}

impl Login {
    /// Checks the files, without reading them.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn check(&self) -> Result<(), BadFile> {
        Secrecy::Secret.check(&self.identity)?;
        Secrecy::Trusted.check(&self.known_hosts)
    }

    /// Asks the guest of a VM, at one of the addresses that it tells.
    ///
    /// # Errors
    /// Why none answered: what went furthest.
    pub async fn ask(&self, vm: &VmId, addresses: &[String]) -> Result<GuestView, Unanswered> {
        self.check()?;
        let mut furthest: Option<Unanswered> = None;
        for address in addresses.iter().filter_map(|text| usable(text)).take(MAX_ADDRESSES) {
            match self.ask_at(vm, address).await {
                Ok(guest) => return Ok(guest),
                Err(error) => {
                    tracing::debug!(%address, %error, "a guest gave no answer");
                    if furthest.as_ref().is_none_or(|before| before.depth() <= error.depth()) {
                        furthest = Some(error);
                    }
                }
            }
        }
        Err(furthest.unwrap_or(Unanswered::NoAddress))
    }

    async fn ask_at(&self, vm: &VmId, address: IpAddr) -> Result<GuestView, Unanswered> {
        let mut answer = Vec::new();
        let hear = async |stdout: ChildStdout| {
            // One byte more than is allowed shows that there is more.
            let most = u64::try_from(MAX_ANSWER_BYTES).unwrap_or(u64::MAX).saturating_add(1);
            stdout.take(most).read_to_end(&mut answer).await?;
            // It would wait for ever to say the rest.
            Ok(answer.len() > MAX_ANSWER_BYTES)
        };
        let ended = self.talk((vm, address), COMMAND, self.limit, hear).await?;
        let Some((code, said)) = ended else { return Err(Unanswered::Late { address, limit: self.limit }) };
        match linux::read(&answer) {
            Ok(guest) => Ok(guest),
            // OpenSSH's own failure; what the guest's shell says ends with other codes.
            Err(Unreadable::NoAnswer { .. }) if code == Some(255) => Err(self.refused(vm, address, &said)),
            Err(why) => Err(Unanswered::Unreadable { address, why }),
        }
    }

    /// Runs a command in the guest at an address. What it says goes to `hear`, which says whether it
    /// must be ended; given back are the exit code
    /// and the last of what OpenSSH itself said, or nothing when that took longer than `limit`.
    pub(super) async fn talk(
        &self,
        (vm, address): (&VmId, IpAddr),
        command: &str,
        limit: Duration,
        hear: impl AsyncFnOnce(ChildStdout) -> io::Result<bool>,
    ) -> Result<Option<(Option<i32>, Vec<u8>)>, Unanswered> {
        #[expect(clippy::disallowed_methods, reason = "this is part of a host driver")]
        let mut ssh = Command::new(&self.program);
        ssh.args(self.arguments(vm, address, command)).env("LC_ALL", "C").env("SSH_ASKPASS_REQUIRE", "never");
        for name in ["SSH_AUTH_SOCK", "SSH_ASKPASS", "DISPLAY"] {
            ssh.env_remove(name);
        }
        ssh.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // No window where somebody is logged in.
        #[cfg(windows)]
        ssh.creation_flags(0x0800_0000);
        let cannot = |why| Unanswered::Start { program: self.program.clone(), why };
        let mut child = ssh.spawn().map_err(cannot)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let talk = async {
            let said = async {
                match stderr {
                    Some(stderr) => tail(stderr).await,
                    None => Vec::new(),
                }
            };
            let heard = async {
                let Some(stdout) = stdout else { return Ok(()) };
                if hear(stdout).await? { child.start_kill() } else { Ok(()) }
            };
            let (heard, said) = tokio::join!(heard, said);
            heard?;
            let status = child.wait().await?;
            Ok((status.code(), said))
        };
        // Leaving this drops, and so kills, what still runs.
        match timeout(limit, talk).await {
            Ok(Ok(ended)) => Ok(Some(ended)),
            Ok(Err(why)) => Err(cannot(why)),
            Err(_) => Ok(None),
        }
    }

    /// What OpenSSH's failure was. Its messages are English everywhere; a guest may have a hand in some of them, so they
    /// choose only what people are told.
    pub(super) fn refused(&self, vm: &VmId, address: IpAddr, said: &[u8]) -> Unanswered {
        let text = String::from_utf8_lossy(said);
        let says = |words: &[&str]| words.iter().any(|words| text.contains(words));
        let why = plain(said);
        if says(&["Host key verification failed", "HOST IDENTIFICATION HAS CHANGED", "host key is known for"]) {
            Unanswered::Stranger { address, vm: vm.clone(), known_hosts: self.known_hosts.clone() }
        } else if says(&["Permission denied", "Load key", "Too many authentication failures"]) {
            Unanswered::LoggedOut { address, user: self.user.clone(), identity: self.identity.clone(), why }
        } else {
            Unanswered::NotReached { address, why }
        }
    }

    /// The whole command line. Values that begin with a dash or hold blanks cannot become options: each has its own name
    /// before it, and behind `--` stands an address, which was read as one.
    fn arguments(&self, vm: &VmId, address: IpAddr, command: &str) -> Vec<OsString> {
        let hosts = quoted(&self.known_hosts);
        let seconds = self.connect.as_secs().max(1);
        let mut arguments: Vec<OsString> = ["-F", "none", "-T", "-x", "-a"].map(OsString::from).to_vec();
        for option in [
            "BatchMode=yes".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            format!("HostKeyAlias={vm}"),
            "CheckHostIP=no".to_owned(),
            "UpdateHostKeys=no".to_owned(),
            "VerifyHostKeyDNS=no".to_owned(),
            format!("UserKnownHostsFile={hosts}"),
            // Instead of the system's, which is nobody's business here.
            format!("GlobalKnownHostsFile={hosts}"),
            "PreferredAuthentications=publickey".to_owned(),
            "PasswordAuthentication=no".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            "ForwardAgent=no".to_owned(),
            "ForwardX11=no".to_owned(),
            "ClearAllForwardings=yes".to_owned(),
            "Tunnel=no".to_owned(),
            "PermitLocalCommand=no".to_owned(),
            "ControlMaster=no".to_owned(),
            "ControlPath=none".to_owned(),
            "RequestTTY=no".to_owned(),
            "ConnectionAttempts=1".to_owned(),
            format!("ConnectTimeout={seconds}"),
            "ServerAliveInterval=5".to_owned(),
            "ServerAliveCountMax=3".to_owned(),
            "LogLevel=ERROR".to_owned(),
        ] {
            arguments.push("-o".into());
            arguments.push(option.into());
        }
        arguments.extend(["-i".into(), slashes(&self.identity).into()]);
        arguments.extend(["-p".into(), self.port.to_string().into(), "-l".into(), self.user.clone().into()]);
        arguments.extend(["--".into(), address.to_string().into(), command.into()]);
        arguments
    }
}

impl Unanswered {
    /// Whether OpenSSH's failure surely came before it logged in: what it should run was then not begun.
    pub(super) fn is_before_login(&self, said: &[u8]) -> bool {
        let text = String::from_utf8_lossy(said);
        match self {
            Self::NoAddress | Self::File(_) | Self::Start { .. } | Self::Stranger { .. } | Self::LoggedOut { .. } => {
                true
            }
            Self::NotReached { .. } => {
                ["connect to host", "banner exchange", "kex_exchange_identification"].iter().any(|at| text.contains(at))
            }
            Self::Late { .. } | Self::Unreadable { .. } => false,
        }
    }

    /// How far it got: of several addresses, the one that got furthest says most about the guest.
    fn depth(&self) -> u8 {
        match self {
            Self::NoAddress => 0,
            Self::NotReached { .. } => 1,
            Self::Late { .. } => 2,
            Self::Stranger { .. } => 3,
            Self::LoggedOut { .. } => 4,
            Self::Unreadable { .. } => 5,
            Self::File(_) | Self::Start { .. } => 6,
        }
    }
}

/// Characters that OpenSSH gives a meaning of its own in the paths it is told.
const SPECIAL: [char; 6] = ['"', '%', '$', '\n', '\r', '\0'];

/// Whether OpenSSH takes a path as it is.
pub fn is_plain(path: &Path) -> bool {
    path.to_str().is_some_and(|text| !text.contains(SPECIAL) && !text.starts_with('~'))
}

/// A name that OpenSSH and every guest take for one: letters, digits, `.`, `_`, `-`, the first a letter or `_`.
pub fn is_user(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let first = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
    (1..=64).contains(&text.len()) && text.as_bytes().first().is_some_and(first) && text.bytes().all(legal)
}

/// Windows' OpenSSH takes both slashes; to its reader of options a backslash is more than a character.
fn slashes(path: &Path) -> String {
    let text = path.display().to_string();
    if cfg!(windows) { text.replace('\\', "/") } else { text }
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", slashes(path))
}

/// An address at which a guest can be, of what it says. One that is this host's own is no danger: whoever answers there
/// has not the guest's key.
pub(super) fn usable(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let nobody = address.is_unspecified() || address.is_multicast();
    let no_way = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
        // Which of the host's networks it is on, it does not say.
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    (!nobody && !no_way).then_some(address)
}

/// Reads to the end and keeps the last of it.
pub(super) async fn tail(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let (mut kept, mut part) = (Vec::new(), [0; 1024]);
    while let Ok(read @ 1..) = from.read(&mut part).await {
        kept.extend_from_slice(part.get(..read).unwrap_or_default());
        let surplus = kept.len().saturating_sub(MAX_SAID_BYTES);
        kept.drain(..surplus);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Login {
        Login {
            program: "ssh".into(),
            user: "berth".to_owned(),
            identity: "/etc/berth/guest key".into(),
            known_hosts: "/etc/berth/known hosts".into(),
            port: 22,
            connect: Duration::from_secs(5),
            limit: Duration::from_secs(30),
        }
    }

    #[test]
    fn the_checks_are_on_whatever_any_file_says() {
        let vm: VmId = "8fce3318-aa0f-4de3-8664-278533573cd2".parse().unwrap();
        let given = login().arguments(&vm, "192.0.2.7".parse().unwrap(), COMMAND);
        let given: Vec<_> = given.iter().map(|argument| argument.to_str().unwrap()).collect();
        assert_eq!(given[..2], ["-F", "none"]);
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "HostKeyAlias=8fce3318-aa0f-4de3-8664-278533573cd2",
            "UserKnownHostsFile=\"/etc/berth/known hosts\"",
            "GlobalKnownHostsFile=\"/etc/berth/known hosts\"",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "ForwardAgent=no",
            "ClearAllForwardings=yes",
            "PasswordAuthentication=no",
            "ConnectTimeout=5",
        ] {
            let at = given.iter().position(|given| *given == option).unwrap_or_else(|| panic!("{option}: {given:?}"));
            assert_eq!(given[at - 1], "-o");
        }
        // The first word on an option counts for OpenSSH.
        let names: Vec<_> = given.iter().filter_map(|given| given.split_once('=')).map(|(name, _)| name).collect();
        assert!(
            names.iter().enumerate().all(|(at, name)| !names[..at].contains(name) || *name == "LC_ALL"),
            "{names:?}"
        );
        assert_eq!(given[given.len() - 3..], ["--", "192.0.2.7", COMMAND]);
    }

    #[test]
    fn only_addresses_are_dialled() {
        for good in ["192.0.2.7", "2001:db8::7", "127.0.0.1", "10.0.0.1", "::1"] {
            assert!(usable(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "0.0.0.0",
            "::",
            "fe80::1",
            "fe80::1%eth0",
            "169.254.3.4",
            "224.0.0.1",
            "255.255.255.255",
            "host",
            "-oProxyCommand=x",
            "192.0.2.7 -v",
            "1",
        ] {
            assert!(usable(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn names_that_could_be_something_else_are_none() {
        assert!(is_user("berth") && is_user("_agent-1") && is_user("a.b"));
        for bad in ["", "-l", "a b", "a@b", "a\\b", "a\nb", "\u{fc}ser", "1a", &"a".repeat(65)] {
            assert!(!is_user(bad), "{bad:?}");
        }
        assert!(is_plain(Path::new("/etc/berth/known hosts")) && is_plain(Path::new(r"C:\ProgramData\Berth\key")));
        for bad in ["/a\"b", "/a%h", "/${HOME}/x", "~/key", "/a\nb"] {
            assert!(!is_plain(Path::new(bad)), "{bad}");
        }
    }

    #[test]
    fn what_openssh_says_becomes_a_reason() {
        let vm: VmId = "8fce3318-aa0f-4de3-8664-278533573cd2".parse().unwrap();
        let told = |said: &str| login().refused(&vm, "192.0.2.7".parse().unwrap(), said.as_bytes()).to_string();
        let stranger = told(
            "No ED25519 host key is known for 8fce and you have requested strict checking.\r\nHost key verification failed.\r\n",
        );
        assert!(
            stranger.contains("does not prove") && stranger.contains("8fce3318-aa0f-4de3-8664-278533573cd2 KEY"),
            "{stranger}"
        );
        let out = told("berth@192.0.2.7: Permission denied (publickey).\r\n");
        assert!(out.contains("does not let berth in") && out.contains("/etc/berth/guest key"), "{out}");
        let refused = told("ssh: connect to host 192.0.2.7 port 22: Connection refused\r\n");
        assert_eq!(
            refused,
            "the guest cannot be reached at 192.0.2.7: ssh: connect to host 192.0.2.7 port 22: Connection refused"
        );
        assert!(told(&"\u{1b}[31m".repeat(9000)).len() < 400);
    }
}
