//! How to reach etcd: what can be set, and what is wrong with it.
//!
//! Owns the reading of certificates, keys and the password from their files. Must never show a password.

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A leader that died is replaced after at most this time and half a second; a pause of etcd that lasts longer costs the
/// leader its place.
pub const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(3);
/// etcd grants no shorter ones with its default election timeout.
pub const SHORTEST_LEASE_TTL: Duration = Duration::from_secs(2);
/// Longer ones would leave a fleet without a leader for minutes.
pub const LONGEST_LEASE_TTL: Duration = Duration::from_secs(300);

/// A healthy etcd answers in milliseconds, one that elects a new leader of its own within two seconds.
const DEADLINE: Duration = Duration::from_secs(5);
/// On a local network a connection is there at once, or never.
const CONNECT: Duration = Duration::from_secs(2);
/// etcd takes a client that pings more often than every five seconds for an attack.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How to reach etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its members, each `http://HOST:PORT` or `https://HOST:PORT`; without a scheme, `https` if `ca` is given.
    pub endpoints: Vec<String>,
    /// The certificates that vouch for etcd's own (PEM).
    pub ca: Option<PathBuf>,
    /// Our certificate (PEM), where etcd asks for one.
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
    /// The user, where etcd has users.
    pub user: Option<String>,
    /// The file with the user's password; a line break at its end does not count.
    pub password_file: Option<PathBuf>,
    /// Begins every key, so that several Berths can share one etcd.
    pub prefix: String,
    /// How long a leader may be silent before another takes over; etcd counts whole seconds.
    pub lease_ttl: Duration,
    /// How long one call may take.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            ca: None,
            cert: None,
            key: None,
            user: None,
            password_file: None,
            prefix: String::new(),
            lease_ttl: DEFAULT_LEASE_TTL,
            deadline: DEADLINE,
        }
    }
}

/// Why etcd cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A setting.
    #[error("{setting}: {why}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A file cannot be read.
    #[error("{setting}: cannot read {path}")]
    Read {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No member answers, or they do not let us in.
    #[error("etcd at {endpoints} cannot be used: {why}")]
    Unreachable {
        /// The members.
        endpoints: String,
        /// Why.
        why: String,
        /// Whether nobody answered, so that a later attempt may do better without anyone changing anything here.
        silent: bool,
    },
}

impl ConnectError {
    /// Whether a later attempt may do better without anyone changing anything here.
    pub fn retry_helps(&self) -> bool {
        matches!(self, Self::Unreachable { silent: true, .. })
    }

    fn setting(setting: &'static str, why: impl Into<String>) -> Self {
        Self::Setting { setting, why: why.into() }
    }
}

impl Options {
    /// Checks what can be checked without looking at anything outside.
    ///
    /// # Errors
    /// The first setting that cannot be, by its name in configuration files without the section.
    pub fn check(&self) -> Result<(), ConnectError> {
        self.urls()?;
        match (&self.cert, &self.key) {
            (Some(_), None) => return Err(ConnectError::setting("cert", "needs key, the file with its private key")),
            (None, Some(_)) => return Err(ConnectError::setting("key", "needs cert, the file with its certificate")),
            (Some(_), Some(_)) | (None, None) => {}
        }
        match (&self.user, &self.password_file) {
            (Some(_), None) => return Err(ConnectError::setting("user", "needs password_file")),
            (None, Some(_)) => return Err(ConnectError::setting("password_file", "needs user")),
            (Some(_), Some(_)) | (None, None) => {}
        }
        if !(SHORTEST_LEASE_TTL..=LONGEST_LEASE_TTL).contains(&self.lease_ttl) || self.lease_ttl.subsec_nanos() > 0 {
            let (from, to) = (SHORTEST_LEASE_TTL.as_secs(), LONGEST_LEASE_TTL.as_secs());
            return Err(ConnectError::setting("lease_ttl", format!("must be whole seconds from {from}s to {to}s")));
        }
        Ok(())
    }

    fn uses_tls(&self) -> bool {
        self.ca.is_some() || self.cert.is_some()
    }

    /// The members with their scheme.
    pub(crate) fn urls(&self) -> Result<Vec<String>, ConnectError> {
        if self.endpoints.is_empty() {
            return Err(ConnectError::setting("endpoints", "name at least one, such as http://127.0.0.1:2379"));
        }
        let scheme = if self.uses_tls() { "https" } else { "http" };
        let url = |endpoint: &String| {
            let url = if endpoint.contains("://") { endpoint.clone() } else { format!("{scheme}://{endpoint}") };
            let refuse = |why: &str| ConnectError::setting("endpoints", format!("{endpoint:?} {why}"));
            let uri: http::Uri = url.parse().map_err(|_| refuse("is not of the form http://HOST:PORT"))?;
            if uri.host().is_none_or(str::is_empty) || uri.port().is_none() || !matches!(uri.path(), "" | "/") {
                return Err(refuse("is not of the form http://HOST:PORT"));
            }
            match uri.scheme_str() {
                Some("https") => Ok(url),
                Some("http") if !self.uses_tls() => Ok(url),
                Some("http") => Err(refuse("is not encrypted, but ca or cert is set: begin it with https://")),
                Some(_) | None => Err(refuse("begins with neither http:// nor https://")),
            }
        };
        self.endpoints.iter().map(url).collect()
    }

    /// What etcd's client is told.
    pub(crate) fn client(&self) -> Result<ConnectOptions, ConnectError> {
        self.check()?;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT.min(self.deadline))
            .with_keep_alive(KEEP_ALIVE, self.deadline)
            .with_keep_alive_while_idle(true)
            // A member that has lost the others must say so, not keep its watchers waiting.
            .with_require_leader(true)
            // Says the call anew only after etcd has refused it unread, because its token was too old.
            .with_auto_token_refresh(true);
        if self.urls()?.iter().any(|url| url.starts_with("https://")) {
            let mut tls = TlsOptions::new();
            if let Some(ca) = &self.ca {
                tls = tls.ca_certificate(Certificate::from_pem(read("ca", ca)?));
            }
            if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
                tls = tls.identity(Identity::from_pem(read("cert", cert)?, read("key", key)?));
            }
            options = options.with_tls(tls);
        }
        if let (Some(user), Some(file)) = (&self.user, &self.password_file) {
            let password = String::from_utf8(read("password_file", file)?)
                .map_err(|_| ConnectError::setting("password_file", "is not valid UTF-8"))?;
            options = options.with_user(user, password.trim_end_matches(['\n', '\r']));
        }
        Ok(options)
    }
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path).map_err(|source| ConnectError::Read { setting, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(endpoints: &[&str]) -> Options {
        Options { endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(), ..Options::default() }
    }

    #[test]
    fn endpoints_get_the_scheme_that_the_certificates_ask_for() {
        assert_eq!(options(&["etcd-1:2379", "http://h:1"]).urls().unwrap(), ["http://etcd-1:2379", "http://h:1"]);
        let tls = Options { ca: Some("ca.pem".into()), ..options(&["etcd-1:2379"]) };
        assert_eq!(tls.urls().unwrap(), ["https://etcd-1:2379"]);
        assert_eq!(options(&["https://[::1]:2379/"]).urls().unwrap(), ["https://[::1]:2379/"]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = || options(&["h:1"]);
        for (options, expected) in [
            (options(&[]), "endpoints: name at least one, such as http://127.0.0.1:2379"),
            (options(&["h"]), "endpoints: \"h\" is not of the form http://HOST:PORT"),
            (options(&["http://:1"]), "endpoints: \"http://:1\" is not of the form http://HOST:PORT"),
            (options(&["http://h:1/x"]), "endpoints: \"http://h:1/x\" is not of the form http://HOST:PORT"),
            (options(&["ftp://h:1"]), "endpoints: \"ftp://h:1\" begins with neither http:// nor https://"),
            (
                Options { ca: Some("ca".into()), ..options(&["http://h:1"]) },
                "endpoints: \"http://h:1\" is not encrypted, but ca or cert is set: begin it with https://",
            ),
            (Options { cert: Some("c".into()), ..base() }, "cert: needs key, the file with its private key"),
            (Options { key: Some("k".into()), ..base() }, "key: needs cert, the file with its certificate"),
            (Options { user: Some("u".into()), ..base() }, "user: needs password_file"),
            (Options { password_file: Some("p".into()), ..base() }, "password_file: needs user"),
            (
                Options { lease_ttl: Duration::from_millis(2500), ..base() },
                "lease_ttl: must be whole seconds from 2s to 300s",
            ),
            (
                Options { lease_ttl: Duration::from_secs(1), ..base() },
                "lease_ttl: must be whole seconds from 2s to 300s",
            ),
        ] {
            assert_eq!(options.check().unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let nowhere = PathBuf::from("nowhere/ca.pem");
        let tls = Options { ca: Some(nowhere.clone()), ..options(&["h:1"]) };
        assert_eq!(tls.client().unwrap_err().to_string(), "ca: cannot read nowhere/ca.pem");
        let user = Options { user: Some("u".into()), password_file: Some(nowhere), ..options(&["h:1"]) };
        assert_eq!(user.client().unwrap_err().to_string(), "password_file: cannot read nowhere/ca.pem");
    }
}
