//! Settings of what is exported:
//!
//! ```toml
//! [telemetry]                                     # all of it optional
//! endpoint = "http://otel.example:4317"           # the collector, OTLP over gRPC; nothing is sent without one
//! ca = "otel-ca.pem"                              # the CA of an https:// collector
//! sample = 1.0                                    # which part of the calls without a trace gets one
//! traces_per_second = 100                         # and how many of them at most
//! lines_per_second = 1000                         # most log lines at INFO and below; warnings and errors always go
//! interval_seconds = 15                           # between two exports of metrics
//! prometheus = "127.0.0.1:9464"                   # where Prometheus finds metrics; on this machine only
//! ```

use berth_telemetry::Export;
use berth_telemetry::export::NoShare;
use clap::Args;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One source's word on them.
#[derive(Args, Clone, Debug, Default, Deserialize)]
// Its name is another layer's, too.
#[group(skip)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    /// Collector of traces, metrics and logs (OTLP over gRPC), http://HOST:PORT or https://HOST:PORT.
    #[arg(long = "telemetry-endpoint", value_name = "URL")]
    endpoint: Option<String>,
    /// The CA of an https:// collector (PEM).
    #[arg(long = "telemetry-ca", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Which part of what begins without a trace gets one, from 0 to 1.
    #[arg(long = "telemetry-sample", value_name = "SHARE")]
    sample: Option<f64>,
    /// Most traces that begin in one second.
    #[arg(long = "telemetry-traces-per-second", value_name = "N")]
    traces_per_second: Option<u32>,
    /// Most log lines at INFO and below that are sent in one second.
    #[arg(long = "telemetry-lines-per-second", value_name = "N")]
    lines_per_second: Option<u32>,
    /// Between two exports of metrics.
    #[arg(long = "telemetry-interval-seconds", value_name = "SECONDS")]
    interval_seconds: Option<u32>,
    /// Address at which Prometheus finds metrics, on this machine.
    #[arg(long = "telemetry-prometheus", value_name = "ADDRESS")]
    prometheus: Option<String>,
}

/// Names of the variables, for whoever misspells one.
pub(super) const VARIABLES: &str = "_TELEMETRY_ENDPOINT, _TELEMETRY_CA, _TELEMETRY_SAMPLE, _TELEMETRY_TRACES_PER_SECOND, \
                                    _TELEMETRY_LINES_PER_SECOND, _TELEMETRY_INTERVAL_SECONDS, _TELEMETRY_PROMETHEUS";

impl Layer {
    /// What a file names lies beside that file.
    pub(super) fn lies_in(&mut self, dir: &Path) {
        if let Some(path) = &mut self.ca {
            *path = dir.join(&path);
        }
    }

    /// Takes in a variable by the rest of its name; `None` when there is no such.
    pub(super) fn variable(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        fn read<T: std::str::FromStr>(into: &mut Option<T>, value: &str, what: &str) -> Result<(), String> {
            *into = Some(value.parse().map_err(|_| format!("{value:?} is not {what}"))?);
            Ok(())
        }
        Some(match name {
            "ENDPOINT" => read(&mut self.endpoint, value, "a URL"),
            "CA" => read(&mut self.ca, value, "a path"),
            "SAMPLE" => read(&mut self.sample, value, "a number from 0 to 1"),
            "TRACES_PER_SECOND" => read(&mut self.traces_per_second, value, "a whole number"),
            "LINES_PER_SECOND" => read(&mut self.lines_per_second, value, "a whole number"),
            "INTERVAL_SECONDS" => read(&mut self.interval_seconds, value, "a whole number of seconds"),
            "PROMETHEUS" => read(&mut self.prometheus, value, "an address"),
            _ => return None,
        })
    }
}

/// Longest time between two exports of metrics: a day. Longer ones are slips of a unit.
const LONGEST: u32 = 24 * 3600;

/// Puts the layers together, strongest first: what is exported, and where Prometheus asks.
pub(super) fn export(layers: &[&Layer], problem: &mut impl FnMut(&str, String)) -> (Export, Option<SocketAddr>) {
    let mut export = Export {
        endpoint: layers.iter().find_map(|l| l.endpoint.clone()),
        ca: layers.iter().find_map(|l| l.ca.clone()),
        ..Export::default()
    };
    if let Some(sample) = layers.iter().find_map(|l| l.sample) {
        match sample.to_string().parse() {
            Ok(share) => export.sample = share,
            Err(error) => problem("telemetry.sample", NoShare::to_string(&error)),
        }
    }
    if let Some(traces) = layers.iter().find_map(|l| l.traces_per_second) {
        export.traces_per_second = traces;
    }
    if let Some(lines) = layers.iter().find_map(|l| l.lines_per_second) {
        export.lines_per_second = lines;
    }
    match layers.iter().find_map(|l| l.interval_seconds) {
        Some(seconds) if (1..=LONGEST).contains(&seconds) => export.interval = Duration::from_secs(seconds.into()),
        Some(seconds) => problem("telemetry.interval_seconds", format!("{seconds} is not from 1 to {LONGEST}")),
        None => {}
    }
    let prometheus = layers.iter().find_map(|l| l.prometheus.as_deref()).and_then(|text| match text.parse() {
        Ok(address) if SocketAddr::ip(&address).is_loopback() => Some(address),
        Ok(address) => {
            let why = "can be reached from other machines, and hosts open no port: use 127.0.0.1, or an endpoint that is sent to";
            problem("telemetry.prometheus", format!("{address} {why}"));
            None
        }
        Err(_) => {
            problem("telemetry.prometheus", format!("{text:?} is not of the form IP:PORT, such as 127.0.0.1:9464"));
            None
        }
    });
    export.prometheus = prometheus.is_some();
    if let Err(wrong) = export.check() {
        problem(&format!("telemetry.{}", wrong.setting), wrong.why);
    }
    (export, prometheus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn read(text: &str) -> Result<(Export, Option<SocketAddr>), String> {
        let layer: Layer = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut problems = String::new();
        let read = export(&[&Layer::default(), &layer], &mut |setting, why| {
            problems.push_str(&format!("{setting}: {why}\n"));
        });
        if problems.is_empty() { Ok(read) } else { Err(problems) }
    }

    fn refuse(text: &str, why: &Expect) {
        why.assert_eq(&read(text).unwrap_err());
    }

    #[test]
    fn nothing_is_exported_unless_told_and_all_of_it_can_be_told() {
        assert_eq!(read("").unwrap(), (Export::default(), None));
        let text = "endpoint = \"https://o:4317\"\nca = \"ca.pem\"\nsample = 0.25\ntraces_per_second = 7\nlines_per_second = 9\ninterval_seconds = 60\nprometheus = \"127.0.0.1:9464\"\n";
        let (export, prometheus) = read(text).unwrap();
        assert_eq!(export.endpoint.as_deref(), Some("https://o:4317"));
        assert_eq!((export.sample.to_string().as_str(), export.traces_per_second), ("0.250000", 7));
        assert_eq!(export.lines_per_second, 9);
        assert_eq!((export.interval.as_secs(), export.prometheus), (60, true));
        assert_eq!(prometheus, Some(SocketAddr::from(([127, 0, 0, 1], 9464))));
    }

    #[test]
    fn what_cannot_be_is_named_with_what_to_do() {
        refuse(
            "endpoint = \"otel\"\nsample = 1.5\ninterval_seconds = 0\nprometheus = \"0.0.0.0:9464\"\n",
            &expect![[r#"
                telemetry.sample: "1.5" is not a share from 0 to 1, such as 0.1
                telemetry.interval_seconds: 0 is not from 1 to 86400
                telemetry.prometheus: 0.0.0.0:9464 can be reached from other machines, and hosts open no port: use 127.0.0.1, or an endpoint that is sent to
                telemetry.endpoint: "otel" is not of the form http://HOST:PORT or https://HOST:PORT; OTLP over gRPC has port 4317
            "#]],
        );
        assert!(read("port = 1\n").unwrap_err().contains("unknown field"));
    }

    #[test]
    fn variables_are_read_by_their_names() {
        let mut layer = Layer::default();
        assert_eq!(layer.variable("ENDPOINT", "http://o:4317"), Some(Ok(())));
        assert_eq!(layer.variable("SAMPLE", "0.5"), Some(Ok(())));
        assert!(layer.variable("SAMPLE", "half").unwrap().is_err());
        assert_eq!(layer.variable("PORT", "1"), None);
        assert_eq!((layer.endpoint.as_deref(), layer.sample), (Some("http://o:4317"), Some(0.5)));
    }
}
