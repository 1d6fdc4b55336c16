//! A real Prometheus for tests and pictures: started on a free port, told what to scrape, asked, never left behind.

use crate::http;
use crate::process::{Process, free_port, other};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// A Prometheus that ends with its owner.
#[derive(Debug)]
pub struct Prometheus {
    /// Where it is: `http://127.0.0.1:PORT`.
    pub url: String,
    process: Process,
}

impl Prometheus {
    /// Starts this program with its data in `dir`, to scrape `HOST:PORT`s every so many seconds, and to evaluate rules as often.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        program: &Path,
        dir: &Path,
        targets: &[String],
        every: Duration,
        rules: Option<&Value>,
    ) -> anyhow::Result<Self> {
        let every = format!("{}ms", every.as_millis());
        let mut settings = json!({
            "global": {"scrape_interval": every, "evaluation_interval": every},
            "scrape_configs": [{"job_name": "berth", "static_configs": [{"targets": targets}]}],
        });
        // JSON is YAML.
        if let Some(rules) = rules {
            let file = dir.join("rules.yml");
            std::fs::write(&file, rules.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
            settings["rule_files"] = json!([file]);
        }
        let file = dir.join("prometheus.yml");
        std::fs::write(&file, settings.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let mut command = other(program);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()));
        command.arg(format!("--web.listen-address={listen}"));
        Ok(Self { url: format!("http://{listen}"), process: Process::start(command)? })
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// What stands under `/api/v1/`.
    ///
    /// # Errors
    /// When it does not answer, or finds the question wrong.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        get(&self.url, path)
    }

    /// The result of a query.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn ask(&self, expr: &str) -> anyhow::Result<Value> {
        Ok(Value::Array(query(&self.url, expr)?))
    }
}

/// What a Prometheus answers to this query now, one for each series.
///
/// # Errors
/// When it does not answer, or finds the query wrong.
pub fn query(prometheus: &str, expr: &str) -> anyhow::Result<Vec<Value>> {
    ask(prometheus, expr, &format!("query?query={}", encoded(expr)))
}

/// The same for a span of time, in seconds of the Unix epoch, and every so many seconds in it.
///
/// # Errors
/// As [`query`].
pub fn query_range(prometheus: &str, expr: &str, span: (f64, f64), step: f64) -> anyhow::Result<Vec<Value>> {
    let (start, end) = span;
    let path = format!("query_range?query={}&start={start:.3}&end={end:.3}&step={step:.3}", encoded(expr));
    ask(prometheus, expr, &path)
}

fn ask(prometheus: &str, expr: &str, path: &str) -> anyhow::Result<Vec<Value>> {
    let data = get(prometheus, path).with_context(|| expr.to_owned())?;
    Ok(data["result"].as_array().context("no result")?.clone())
}

fn get(prometheus: &str, path: &str) -> anyhow::Result<Value> {
    let answer = http::get(prometheus, &format!("/api/v1/{path}"))?.json()?;
    ensure!(answer["status"] == "success", "{path}: {answer}");
    Ok(answer["data"].clone())
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
