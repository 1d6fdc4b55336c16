//! Every setting there is, and how the text of its value is read: strictly, with what is allowed when it is refused.

use super::{DEFAULT_PORT, Settings, StoreKind};
use berth_telemetry as telemetry;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// One setting: its name in the file, and how its value is taken in.
pub(super) struct Setting {
    /// As in the file, with its table.
    pub(super) name: &'static str,
    /// Takes a value in, or says what is wrong with it.
    pub(super) take: fn(&mut Settings, &str) -> Result<(), String>,
}

/// Every setting there is.
pub(super) const SETTINGS: &[Setting] = &[
    Setting { name: "listen", take: |s, v| put(&mut s.controller.listen, address(v)) },
    Setting { name: "advertise", take: |s, v| put(&mut s.controller.advertise, url(v).map(Some)) },
    Setting { name: "insecure", take: |s, v| put(&mut s.controller.insecure, yes_or_no(v)) },
    Setting { name: "tls.cert", take: |s, v| put(&mut s.controller.tls.cert, path(v).map(Some)) },
    Setting { name: "tls.key", take: |s, v| put(&mut s.controller.tls.key, path(v).map(Some)) },
    Setting { name: "tls.client_ca", take: |s, v| put(&mut s.controller.tls.client_ca, path(v).map(Some)) },
    Setting { name: "data_dir", take: |s, v| put(&mut s.controller.data_dir, path(v)) },
    Setting { name: "store", take: |s, v| put(&mut s.controller.store, store(v)) },
    Setting { name: "etcd.endpoints", take: |s, v| put(&mut s.controller.etcd.endpoints, endpoints(v)) },
    Setting { name: "etcd.ca", take: |s, v| put(&mut s.controller.etcd.ca, path(v).map(Some)) },
    Setting { name: "etcd.cert", take: |s, v| put(&mut s.controller.etcd.cert, path(v).map(Some)) },
    Setting { name: "etcd.key", take: |s, v| put(&mut s.controller.etcd.key, path(v).map(Some)) },
    Setting { name: "etcd.user", take: |s, v| put(&mut s.controller.etcd.user, text(v).map(Some)) },
    Setting { name: "etcd.password_file", take: |s, v| put(&mut s.controller.etcd.password_file, path(v).map(Some)) },
    Setting { name: "etcd.prefix", take: |s, v| put(&mut s.controller.etcd.prefix, Ok(v.to_owned())) },
    Setting { name: "etcd.lease_ttl", take: |s, v| put(&mut s.controller.etcd.lease_ttl, duration(v)) },
    Setting { name: "commit_deadline", take: |s, v| put(&mut s.controller.commit_deadline, duration(v)) },
    Setting { name: "check_interval", take: |s, v| put(&mut s.controller.check_interval, duration(v)) },
    Setting { name: "threads", take: |s, v| put(&mut s.threads, threads(v)) },
    Setting { name: "agents.heartbeat", take: |s, v| put(&mut s.controller.heartbeat, duration(v)) },
    Setting { name: "agents.observe", take: |s, v| put(&mut s.controller.observe, duration(v)) },
    Setting { name: "limits.hold", take: |s, v| put(&mut s.controller.limits.hold, duration(v)) },
    Setting { name: "limits.prepare", take: |s, v| put(&mut s.controller.limits.prepare, duration(v)) },
    Setting { name: "limits.attach", take: |s, v| put(&mut s.controller.limits.attach, duration(v)) },
    Setting { name: "limits.start", take: |s, v| put(&mut s.controller.limits.start, duration(v)) },
    Setting { name: "limits.verify", take: |s, v| put(&mut s.controller.limits.verify, duration(v)) },
    Setting { name: "limits.release", take: |s, v| put(&mut s.controller.limits.release, duration(v)) },
    Setting { name: "limits.queued", take: |s, v| put(&mut s.controller.limits.queued, count(v)) },
    Setting { name: "limits.history", take: |s, v| put(&mut s.controller.limits.history, count(v)) },
    Setting { name: "limits.history_age", take: |s, v| put(&mut s.controller.limits.history_age, duration(v)) },
    Setting { name: "limits.placements", take: |s, v| put(&mut s.controller.limits.placements, count(v)) },
    Setting {
        name: "log.format",
        take: |s, v| put(&mut s.log.format, v.parse().map_err(|e: telemetry::UnknownFormat| e.to_string())),
    },
    Setting { name: "log.filter", take: |s, v| put(&mut s.log.filter, Ok(v.to_owned())) },
    Setting { name: "telemetry.endpoint", take: |s, v| put(&mut s.export.endpoint, text(v).map(Some)) },
    Setting { name: "telemetry.ca", take: |s, v| put(&mut s.export.ca, path(v).map(Some)) },
    Setting { name: "telemetry.sample", take: |s, v| put(&mut s.export.sample, share(v)) },
    Setting {
        name: "telemetry.traces_per_second",
        take: |s, v| put(&mut s.export.traces_per_second, count(v).and_then(|n| n.try_into().map_err(|_| too_many(v)))),
    },
    Setting {
        name: "telemetry.lines_per_second",
        take: |s, v| put(&mut s.export.lines_per_second, count(v).and_then(|n| n.try_into().map_err(|_| too_many(v)))),
    },
    Setting { name: "telemetry.interval", take: |s, v| put(&mut s.export.interval, duration(v)) },
    Setting { name: "telemetry.prometheus", take: |s, v| put(&mut s.export.prometheus, yes_or_no(v)) },
];

fn put<T>(slot: &mut T, value: Result<T, String>) -> Result<(), String> {
    *slot = value?;
    Ok(())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not of the form IP:PORT, such as 127.0.0.1:{DEFAULT_PORT}"))
}

fn url(text: &str) -> Result<String, String> {
    let url: Option<http::Uri> = text.parse().ok();
    let fine = url.is_some_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
            && url.path() == "/"
            && url.query().is_none()
    });
    let form = "is not of the form http://HOST:PORT or https://HOST:PORT";
    if fine { Ok(text.trim_end_matches('/').to_owned()) } else { Err(format!("{text:?} {form}")) }
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn share(text: &str) -> Result<telemetry::export::Share, String> {
    text.parse().map_err(|error: telemetry::export::NoShare| error.to_string())
}

fn too_many(text: &str) -> String {
    format!("{text:?} is more than any process makes in a second")
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn store(text: &str) -> Result<StoreKind, String> {
    let known = StoreKind::ALL.map(StoreKind::name).join(", ");
    StoreKind::ALL
        .into_iter()
        .find(|kind| kind.name() == text)
        .ok_or_else(|| format!("{text:?} is not one of: {known}"))
}

fn text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn endpoints(text: &str) -> Result<Vec<String>, String> {
    text.split(',').map(|endpoint| self::text(endpoint.trim())).collect()
}

/// Longest of any of the times: a month. Longer ones are slips of a unit.
const LONGEST: Duration = Duration::from_secs(31 * 24 * 3600);
/// Shortest: what comes more often than this keeps the controller busy with itself.
const SHORTEST: Duration = Duration::from_millis(10);

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a time such as 500ms, 30s, 10m or 48h"))?;
    if (SHORTEST..=LONGEST).contains(&time) { Ok(time) } else { Err(format!("{text:?} is not from 10ms to 31 days")) }
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("{text:?} is not a number from 1 on"))
}

/// Most threads: above it is a slip of the pen.
const MOST_THREADS: usize = 256;

fn threads(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| (1..=MOST_THREADS).contains(n))
        .ok_or_else(|| format!("{text:?} is not a number from 1 to {MOST_THREADS}"))
}
