//! How the service stands in the list of services: its names, its account, and what happens when it fails.
//!
//! Pure, so that it can be read and tested anywhere.
#![cfg_attr(not(windows), expect(dead_code, reason = "only Windows has services"))]

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Name of the service, for `sc` and `Get-Service`.
pub(super) const NAME: &str = "berth-agent";
/// Name that people see.
pub(super) const DISPLAY: &str = "Berth node agent";
/// What people read about it.
pub(super) const DESCRIPTION: &str = "Gives this host's GPUs to virtual machines as the Berth controller decides, and takes them back. While it is \
     stopped, running virtual machines keep their GPUs, and nothing is given or taken back.";
/// The service that manages virtual machines, where the Hyper-V role is installed.
pub(super) const HYPERV: &str = "vmms";

/// Pauses before it is started again after the first, second, and any further failure.
pub(super) const RESTARTS: [Duration; 3] = [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120)];
/// For how long it must not fail until the next failure counts as the first again.
pub(super) const FORGIVEN: Duration = Duration::from_secs(3600);

/// How long a start may take until the next sign of life. Nothing in it waits for host or controller.
pub(super) const START_HINT: Duration = Duration::from_secs(30);
/// How long a stop may take. An agent's own bound is shorter.
pub(super) const STOP_HINT: Duration = Duration::from_secs(45);

/// The account that a service runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// The system itself: it may do everything on this host.
    LocalSystem,
    /// A group managed service account, `DOMAIN\NAME$`; Windows knows its password, nobody else does.
    Managed(String),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalSystem => f.pad("LocalSystem"),
            Self::Managed(name) => f.pad(name),
        }
    }
}

/// The text names no account that a service of Berth can run as.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is neither LocalSystem nor a group managed service account of the form DOMAIN\\NAME$; accounts with a password \
     of their own are not taken, because it would have to be kept and renewed by hand"
)]
pub struct InvalidAccount(String);

impl FromStr for Account {
    type Err = InvalidAccount;

    fn from_str(text: &str) -> Result<Self, InvalidAccount> {
        if text.eq_ignore_ascii_case("LocalSystem") || text.eq_ignore_ascii_case(r"NT AUTHORITY\SYSTEM") {
            return Ok(Self::LocalSystem);
        }
        // What Windows allows in neither part of an account's name.
        let plain = |part: &str| {
            !part.is_empty() && !part.contains(|c: char| c.is_control() || "\"/\\[]:;|=,+*?<>@".contains(c))
        };
        match text.split_once('\\') {
            Some((domain, name)) if plain(domain) && name.strip_suffix('$').is_some_and(plain) => {
                Ok(Self::Managed(text.to_owned()))
            }
            Some(_) | None => Err(InvalidAccount(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_that_need_no_password_are_taken_and_no_others() {
        for system in ["LocalSystem", "localsystem", r"NT AUTHORITY\System"] {
            assert_eq!(system.parse(), Ok(Account::LocalSystem), "{system}");
        }
        assert_eq!(r"CORP\berth$".parse(), Ok(Account::Managed(r"CORP\berth$".to_owned())));
        for bad in [
            "",
            "$",
            r"\$",
            r"CORP\$",
            r"\berth$",
            r"CORP\berth",
            "berth$",
            r"CORP\a\b$",
            "CORP\\be\nrth$",
            r"CORP\a,b$",
            r"NT AUTHORITY\LocalService",
        ] {
            assert!(bad.parse::<Account>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn pauses_grow_and_a_failure_after_the_longest_counts_still() {
        assert!(RESTARTS.is_sorted() && RESTARTS.iter().all(|pause| *pause < FORGIVEN));
        assert!(STOP_HINT > crate::process::STOP);
    }
}
