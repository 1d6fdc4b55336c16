//! What of traces, metrics and logs leaves the process, and how: settings, each checked.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The collector: `http://HOST:PORT` or `https://HOST:PORT`, OTLP over gRPC. None: nothing is sent.
    pub endpoint: Option<String>,
    /// The CA of an `https://` collector (PEM).
    pub ca: Option<PathBuf>,
    /// Which part of the calls that come without a trace gets one. A caller's own decision is followed.
    pub sample: Share,
    /// Most traces that begin here in one second. A fleet places a few VMs a second, of which every one is worth a trace;
    /// of the thousands of a storm, a hundred a second say as much, and cost nothing that anyone could measure.
    pub traces_per_second: u32,
    /// Most log lines at INFO and below that are exported in one second; warnings and errors always are. A fleet at work
    /// says some dozens a second. In a storm of thousands, building, sending and storing each costs more than the placements
    /// it tells of, and nobody reads them: what is left out stands on stderr as ever, and its changes in the audit.
    pub lines_per_second: u32,
    /// Between two exports of metrics.
    pub interval: Duration,
    /// Whether metrics are kept for Prometheus.
    pub prometheus: bool,
}

impl Default for Export {
    fn default() -> Self {
        Self {
            endpoint: None,
            ca: None,
            sample: Share::ALL,
            traces_per_second: 100,
            lines_per_second: 1_000,
            // What Prometheus asks at, too, in most places.
            interval: Duration::from_secs(15),
            prometheus: false,
        }
    }
}

impl Export {
    /// Checks what its settings mean together.
    ///
    /// # Errors
    /// [`Wrong`], naming the setting.
    pub fn check(&self) -> Result<(), Wrong> {
        let wrong = |setting, why: String| Err(Wrong { setting, why });
        match &self.endpoint {
            None if self.ca.is_some() => wrong("ca", "is the CA of a collector, and endpoint names none".to_owned()),
            None => Ok(()),
            Some(endpoint) => {
                let url: Option<http::Uri> = endpoint.parse().ok();
                let fine = url.as_ref().is_some_and(|url| {
                    matches!(url.scheme_str(), Some("http" | "https"))
                        && url.host().is_some_and(|host| !host.is_empty())
                        && matches!(url.path(), "" | "/")
                        && url.query().is_none()
                });
                if !fine {
                    return wrong(
                        "endpoint",
                        format!(
                            "{endpoint:?} is not of the form http://HOST:PORT or https://HOST:PORT; OTLP over gRPC has port 4317"
                        ),
                    );
                }
                let encrypted = url.is_some_and(|url| url.scheme_str() == Some("https"));
                match (encrypted, &self.ca) {
                    (true, None) => wrong("ca", format!("is missing: the file of the CA (PEM) of {endpoint}")),
                    (false, Some(_)) => wrong("ca", format!("has no meaning: {endpoint} is plain text")),
                    (true, Some(_)) | (false, None) => Ok(()),
                }
            }
        }
    }
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("telemetry.{setting}: {why}")]
pub struct Wrong {
    /// Its name within `telemetry`.
    pub setting: &'static str,
    /// What is wrong, and what is allowed.
    pub why: String,
}

/// A part of a whole, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// All of it.
    pub const ALL: Self = Self(Self::WHOLE);
    /// None of it.
    pub const NONE: Self = Self(0);
    const WHOLE: u32 = 1_000_000;

    /// In millionths.
    pub(crate) fn millionths(self) -> u32 {
        self.0
    }
}

/// The text is no share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a share from 0 to 1, such as 0.1")]
pub struct NoShare(String);

impl FromStr for Share {
    type Err = NoShare;
    fn from_str(text: &str) -> Result<Self, NoShare> {
        let bad = || NoShare(text.to_owned());
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.len() <= 6 && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) {
            return Err(bad());
        }
        let millionths = format!("{whole}{part:0<6}").parse().map_err(|_| bad())?;
        if millionths <= Self::WHOLE { Ok(Self(millionths)) } else { Err(bad()) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / Self::WHOLE, self.0 % Self::WHOLE)
    }
}

/// Who a process is, for whoever reads what it exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its program.
    pub name: &'static str,
    /// The program's version.
    pub version: &'static str,
    /// Tells it from others of its program, and from itself after a restart.
    pub instance: String,
    /// The node it works on, of an agent.
    pub node: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_strictly() {
        for (text, millionths) in [("1", 1_000_000), ("0", 0), ("0.1", 100_000), ("1.0", 1_000_000), ("0.000001", 1)] {
            assert_eq!(text.parse::<Share>().unwrap().millionths(), millionths, "{text}");
        }
        for bad in ["", "1.1", "-1", "2", ".5", "1.", "0.0000001", "1e-1", "10%", "0,1"] {
            assert!(bad.parse::<Share>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_collector_is_named_whole_or_refused() {
        let with = |endpoint: &str, ca: Option<&str>| Export {
            endpoint: Some(endpoint.to_owned()),
            ca: ca.map(PathBuf::from),
            ..Export::default()
        };
        assert_eq!(Export::default().check(), Ok(()));
        assert_eq!(with("http://otel.example:4317", None).check(), Ok(()));
        assert_eq!(with("https://otel.example:4317", Some("ca.pem")).check(), Ok(()));
        for (endpoint, ca, setting) in [
            ("otel.example:4317", None, "endpoint"),
            ("http://", None, "endpoint"),
            ("http://otel.example/v1/traces", None, "endpoint"),
            ("grpc://otel.example", None, "endpoint"),
            ("https://otel.example", None, "ca"),
            ("http://otel.example", Some("ca.pem"), "ca"),
        ] {
            assert_eq!(with(endpoint, ca).check().unwrap_err().setting, setting, "{endpoint}");
        }
        let only_ca = Export { ca: Some("ca.pem".into()), ..Export::default() };
        assert_eq!(only_ca.check().unwrap_err().setting, "ca");
    }
}
