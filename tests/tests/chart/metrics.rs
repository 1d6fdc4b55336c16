//! Every metric and label that a dashboard or an alert asks for is one that Berth has (docs/metrics.md), or that etcd has.

use crate::alerts::{every_expression, promtool};
use anyhow::Context as _;
use berth_tests::chart::dashboards;
use berth_tests::etcd::Etcd;
use berth_tests::http;
use berth_tests::process::{other, root, run};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// What is used of etcd's metrics; a test asks a real etcd for them.
const OF_ETCD: [&str; 5] = [
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_server_quota_backend_bytes",
    "etcd_server_has_leader",
    "etcd_disk_wal_fsync_duration_seconds_bucket",
    "etcd_disk_wal_fsync_duration_seconds_count",
];
/// Labels that Prometheus adds, and that of a histogram's buckets.
const OF_PROMETHEUS: [&str; 3] = ["instance", "job", "le"];
/// Words of PromQL that are no metrics.
const WORDS: [&str; 12] =
    ["and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool", "inf"];
/// Words behind which labels stand in brackets.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// What an expression asks for.
#[derive(Debug, Default)]
struct Asked {
    metrics: BTreeSet<String>,
    /// Labels, each with the values it is compared with.
    labels: BTreeMap<String, BTreeSet<String>>,
}

impl Asked {
    fn read(expr: &str) -> Self {
        let mut asked = Self::default();
        let mut rest = expr;
        let mut last = String::new();
        while let Some(c) = rest.chars().next() {
            if c.is_ascii_alphabetic() || c == '_' {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                let after_it = after.trim_start();
                // `sum by (…) (…)`, or a function's brackets.
                let called = ["(", "by ", "by(", "without ", "without("].iter().any(|next| after_it.starts_with(next));
                if !called && !WORDS.contains(&word) {
                    asked.metrics.insert(word.to_owned());
                }
                last = word.to_owned();
                rest = after;
            } else if c == '(' && BEFORE_LABELS.contains(&last.as_str()) {
                let (names, after) = rest[1..].split_once(')').unwrap_or((&rest[1..], ""));
                for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                    asked.labels.entry(name.to_owned()).or_default();
                }
                last.clear();
                rest = after;
            } else if c == '{' {
                let (matchers, after) = rest[1..].split_once('}').unwrap_or((&rest[1..], ""));
                asked.matchers(matchers);
                rest = after;
            } else if c == '[' {
                rest = rest.split_once(']').map_or("", |(_, after)| after);
            } else if c.is_ascii_digit() {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len());
                rest = &rest[end..];
            } else {
                if !c.is_whitespace() {
                    last.clear();
                }
                rest = &rest[c.len_utf8()..];
            }
        }
        asked
    }

    fn matchers(&mut self, text: &str) {
        for matcher in text.split("\",").filter(|matcher| !matcher.trim().is_empty()) {
            let Some((left, value)) = matcher.split_once('"') else { continue };
            let name = left.trim_end_matches(['=', '~', '!', ' ']).trim();
            let values = self.labels.entry(name.to_owned()).or_default();
            values
                .extend(value.trim_end_matches('"').split('|').filter(|v| !v.contains(['*', '+'])).map(str::to_owned));
        }
    }
}

#[test]
fn what_an_expression_asks_for_is_read() {
    let expr =
        "histogram_quantile(0.99, sum by (le, m) (rate(a_bucket{x=~\"P|Q\",y!=\"z\"}[5m]))) and on (i) b or vector(0)";
    let asked = Asked::read(expr);
    assert_eq!(asked.metrics.into_iter().collect::<Vec<_>>(), ["a_bucket", "b"]);
    let labels: Vec<_> = asked.labels.iter().map(|(name, values)| format!("{name} {values:?}")).collect();
    assert_eq!(labels, ["i {}", "le {}", "m {}", "x {\"P\", \"Q\"}", "y {\"z\"}"]);
}

/// A metric of the page: its labels, each with what the page says of its values.
type Labels = BTreeMap<String, String>;

/// Every metric of the page by its name at Prometheus; a histogram by its three.
fn known(page: &str) -> BTreeMap<String, Labels> {
    let mut found: BTreeMap<String, Labels> = BTreeMap::new();
    let mut names: Vec<String> = Vec::new();
    for line in page.lines() {
        let parts: Vec<&str> = line.split(" · ").collect();
        if let [name, kind @ ("counter" | "gauge" | "histogram"), _] = parts[..] {
            let name = name.trim_matches('`');
            names = match kind {
                "histogram" => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).to_vec(),
                _ => vec![name.to_owned()],
            };
            for name in &names {
                found.insert(name.clone(), Labels::new());
            }
        } else if let Some((label, values)) = line.strip_prefix("| `").and_then(|row| row.split_once("` | ")) {
            for name in &names {
                found.entry(name.clone()).or_default().insert(label.to_owned(), values.to_owned());
            }
        }
    }
    found
}

#[test]
fn dashboards_and_alerts_ask_only_for_what_there_is() {
    let page = fs::read_to_string(root().join("docs").join("metrics.md")).expect("docs/metrics.md has every metric");
    let known = known(&page);
    assert!(known.len() > 40, "the page of metrics is not read as it is written: {known:?}");
    // A value that the page lists in full, and one whose values another row lists.
    let has =
        |said: &str, value: &str| !said.contains('`') || said.contains(&format!("`{value}`")) || said.contains("as of");
    let mut wrong = Vec::new();
    for query in every_expression().unwrap() {
        let asked = Asked::read(&query.expr);
        if asked.metrics.is_empty() {
            wrong.push(format!("{}: asks for nothing: {}", query.place, query.expr));
        }
        for metric in asked.metrics.iter().filter(|m| !OF_ETCD.contains(&m.as_str()) && !known.contains_key(*m)) {
            wrong.push(format!("{}: there is no metric {metric}", query.place));
        }
        for (label, values) in asked.labels.iter().filter(|(label, _)| !OF_PROMETHEUS.contains(&label.as_str())) {
            let rows: Vec<_> = asked.metrics.iter().filter_map(|metric| known.get(metric)?.get(label)).collect();
            if rows.is_empty() {
                wrong.push(format!("{}: no metric in it has the label {label}", query.place));
            }
            for value in values.iter().filter(|value| !rows.iter().any(|said| has(said, value))) {
                wrong.push(format!("{}: {label} is never {value}", query.place));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn every_query_is_promql() {
    let Some(promtool) = promtool("every_query_is_promql") else { return };
    let queries = every_expression().unwrap();
    let rules: Vec<_> =
        queries.iter().enumerate().map(|(n, q)| json!({ "record": format!("q{n}"), "expr": q.expr })).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.yaml");
    fs::write(&file, json!({ "groups": [{ "name": "queries", "rules": rules }] }).to_string()).unwrap();
    let mut check = other(promtool);
    check.args(["check", "rules"]).arg(&file);
    let said = run(check).unwrap().expect(0).unwrap();
    assert!(said.stdout.contains(&format!("{} rules found", queries.len())), "{}", said.stdout);
}

#[test]
fn etcd_has_what_is_asked_of_it() {
    let Some(etcd) = Etcd::one("etcd_has_what_is_asked_of_it").unwrap() else { return };
    let endpoint = etcd.endpoints().into_iter().next().unwrap();
    let metrics = http::get(&endpoint, "/metrics").unwrap().body;
    for name in OF_ETCD {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "etcd has no {name}");
    }
    // Its probes, too.
    for path in ["/livez", "/readyz"] {
        let answer = http::get(&endpoint, path).with_context(|| path.to_owned()).unwrap();
        // Older ones have only /health; the chart asks for a newer one.
        assert!(answer.status == 200 || answer.status == 404, "{path}: {}", answer.status);
    }
}

#[test]
fn dashboards_are_whole() {
    let mut uids = BTreeSet::new();
    for (file, dashboard) in dashboards().unwrap() {
        let uid = dashboard["uid"].as_str().unwrap();
        assert_eq!(format!("{uid}.json"), file, "the file has the dashboard's name");
        assert!(uids.insert(uid.to_owned()), "{uid} is there twice");
        let panels = dashboard["panels"].as_array().unwrap();
        let mut taken = BTreeSet::new();
        for panel in panels {
            let at = |side: &str| panel["gridPos"][side].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{file}: {} is too far right", panel["title"]);
            for cell in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{file}: {} lies on another panel", panel["title"]);
            }
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{file}: {}", panel["title"]);
        }
        let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{file}: panels share an id");
        // Every variable that is used is there.
        let text = serde_json::to_string(panels).unwrap();
        let variables: Vec<_> =
            dashboard["templating"]["list"].as_array().unwrap().iter().filter_map(|v| v["name"].as_str()).collect();
        for used in ["model", "cluster", "instance"] {
            assert!(!text.contains(&format!("${used}")) || variables.contains(&used), "{file}: there is no ${used}");
        }
    }
}
