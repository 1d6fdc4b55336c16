//! Alerts: each fires when it should and not when it should not (`tests/chart/alerts.yaml`), and each has a runbook.

use berth_tests::chart::{Query, alerts, dashboard_queries, example, helm, object, objects, rules};
use berth_tests::process::{other, root, run, skip};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

/// Promtool, or none: that was said then.
pub(crate) fn promtool(test: &str) -> Option<PathBuf> {
    let program = berth_tests::config::promtool();
    if program.is_none() {
        skip(
            test,
            "there is no promtool; cargo xtask test chart gets one from Debian's packages, or put it in the PATH",
        );
    }
    program
}

/// Of dashboards and alerts.
pub(crate) fn every_expression() -> anyhow::Result<Vec<Query>> {
    let mut found = dashboard_queries()?;
    for (name, rule) in alerts(&rules()?) {
        found.push(Query { place: name, expr: rule["expr"].as_str().unwrap_or_default().to_owned() });
    }
    Ok(found)
}

/// The alerts whose numbers come from values.
const FROM_VALUES: [&str; 1] = ["BerthCapacityLow"];

fn names() -> BTreeSet<String> {
    let known = alerts(&rules().unwrap()).into_iter().map(|(name, _)| name);
    known.chain(FROM_VALUES.map(str::to_owned)).collect()
}

/// What Prometheus is told by a chart with alerts for capacity.
fn rendered(test: &str) -> Option<Value> {
    let helm = helm(test)?;
    let objects = objects(&helm.render(&[&example("ha")], &[]).unwrap()).unwrap();
    Some(object(&objects, "PrometheusRule", "berth").unwrap()["spec"].clone())
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    let test = "alerts_fire_when_they_should_and_only_then";
    let (Some(promtool), Some(rules)) = (promtool(test), rendered(test)) else { return };
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rules.yaml"), rules.to_string()).unwrap();
    let cases = root().join("tests").join("chart").join("alerts.yaml");
    fs::copy(cases, dir.path().join("alerts.yaml")).unwrap();
    let mut promtool = other(promtool);
    promtool.args(["test", "rules"]).arg(dir.path().join("alerts.yaml"));
    run(promtool).unwrap().expect(0).unwrap();
}

#[test]
fn every_alert_is_tested_firing_and_not_firing() {
    let text = fs::read_to_string(root().join("tests").join("chart").join("alerts.yaml")).unwrap();
    let cases: Value = serde_saphyr::from_str(&text).unwrap();
    let mut seen: BTreeMap<String, (bool, bool)> = BTreeMap::new();
    for case in cases["tests"].as_array().unwrap().iter().flat_map(|t| t["alert_rule_test"].as_array().unwrap()) {
        let (fires, rests) = seen.entry(case["alertname"].as_str().unwrap().to_owned()).or_default();
        let expected = case["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
        *fires |= expected;
        *rests |= !expected;
    }
    let tested: BTreeSet<_> =
        seen.iter().filter(|(_, both)| **both == (true, true)).map(|(name, _)| name.clone()).collect();
    assert_eq!(tested, names(), "alerts tested both ways, and alerts there are");
}

#[test]
fn every_alert_has_a_runbook() {
    let dir = root().join("docs").join("runbooks");
    let names = names();
    for name in &names {
        let page = fs::read_to_string(dir.join(format!("{name}.md"))).unwrap_or_else(|_| panic!("{name} has no page"));
        assert!(page.starts_with(&format!("# {name}\n")), "{name}: its page has another title");
        for section in ["## What it means", "## Look", "## Do"] {
            assert!(page.contains(section), "{name}: its page has no {section}");
        }
    }
    for entry in fs::read_dir(&dir).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let alert = file.trim_end_matches(".md");
        assert!(names.contains(alert) || alert == "README", "{file} is the page of no alert");
    }
    for (name, rule) in alerts(&rules().unwrap()) {
        assert_eq!(rule["annotations"]["runbook_url"], format!("RUNBOOKS/{name}.md"));
        assert!(matches!(rule["labels"]["severity"].as_str(), Some("warning" | "critical")), "{name}");
    }
}

#[test]
fn rendered_alerts_lead_to_their_pages() {
    let Some(rules) = rendered("rendered_alerts_lead_to_their_pages") else { return };
    let found = alerts(&rules);
    assert_eq!(found.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>(), names());
    for (name, rule) in found {
        let url = rule["annotations"]["runbook_url"].as_str().unwrap();
        assert!(url.starts_with("https://") && url.ends_with(&format!("/docs/runbooks/{name}.md")), "{url}");
    }
}
