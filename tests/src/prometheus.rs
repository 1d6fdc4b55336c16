//! A real Prometheus for tests and pictures: started on a free port, told what to scrape, asked, never left behind.

use crate::http;
use crate::process::{Process, free_port, other};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// A Prometheus that ends with its owner.
#[derive(Debug)]
pub struct Prometheus {
    /// Where it is: `http://127.0.0.1:PORT`.
    pub url: String,
    // Kept for its Drop.
    _process: Process,
}

impl Prometheus {
    /// Starts this program with its data in `dir`, to scrape `HOST:PORT`s every so many seconds.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, dir: &Path, targets: &[String], every: Duration) -> anyhow::Result<Self> {
        let targets: Vec<_> = targets.iter().map(|target| format!("'{target}'")).collect();
        let settings = format!(
            "global: {{scrape_interval: {}ms}}\nscrape_configs:\n- job_name: berth\n  static_configs:\n  - targets: [{}]\n",
            every.as_millis(),
            targets.join(", ")
        );
        let file = dir.join("prometheus.yml");
        std::fs::write(&file, settings).with_context(|| format!("cannot write {}", file.display()))?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let mut command = other(program);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()));
        command.arg(format!("--web.listen-address={listen}"));
        Ok(Self { url: format!("http://{listen}"), _process: Process::start(command)? })
    }
}

/// What a Prometheus answers to this query now, one for each series.
///
/// # Errors
/// When it does not answer, or finds the query wrong.
pub fn query(prometheus: &str, expr: &str) -> anyhow::Result<Vec<Value>> {
    ask(prometheus, expr, &format!("/api/v1/query?query={}", encoded(expr)))
}

/// The same for a span of time, in seconds of the Unix epoch, and every so many seconds in it.
///
/// # Errors
/// As [`query`].
pub fn query_range(prometheus: &str, expr: &str, span: (f64, f64), step: f64) -> anyhow::Result<Vec<Value>> {
    let (start, end) = span;
    let path = format!("/api/v1/query_range?query={}&start={start:.3}&end={end:.3}&step={step:.3}", encoded(expr));
    ask(prometheus, expr, &path)
}

fn ask(prometheus: &str, expr: &str, path: &str) -> anyhow::Result<Vec<Value>> {
    let answer = http::get(prometheus, path)?.json()?;
    ensure!(answer["status"] == "success", "{expr}: {answer}");
    Ok(answer["data"]["result"].as_array().context("no result")?.clone())
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut url, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => url.push(byte.into()),
            // Writing to a text cannot fail.
            _ => drop(write!(url, "%{byte:02X}")),
        }
        url
    })
}
