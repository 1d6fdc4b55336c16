//! The life of an alert, from the rules of the chart in a real Prometheus: pending, firing, gone. What brings it about is
//! real: an agent dies whose node holds a placement's GPU, and comes back.

use super::prometheus;
use super::scene::{GOOD_VM, PATIENCE, Scene};
use anyhow::{Context as _, ensure};
use berth_tests::chart;
use berth_tests::otlp::Collector;
use berth_tests::process::wait_until;
use berth_tests::prometheus::Prometheus;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const ALERT: &str = "BerthNodeLostWithClaims";
/// What it is about, and what its expression is made of.
const CAUSE: &str = "berth_nodes_lost_holding";
/// The same of placements.
const LOST: &str = "berth_placements_conditions{condition=\"NodeLost\"}";
/// For how long each cause must be there. The chart says minutes; everything else stays as the chart has it.
const FOR_SECONDS: u32 = 5;

/// The chart's rules, with shorter waits.
fn rules() -> anyhow::Result<Value> {
    let mut rules = chart::rules()?;
    for group in rules["groups"].as_array_mut().context("no groups")? {
        for rule in group["rules"].as_array_mut().context("no rules")? {
            if rule.get("for").is_some() {
                rule["for"] = json!(format!("{FOR_SECONDS}s"));
            }
        }
    }
    Ok(rules)
}

/// Prometheus has all rules, and can evaluate each.
fn loaded(prometheus: &Prometheus, rules: &Value) -> anyhow::Result<()> {
    let wanted: BTreeSet<_> = chart::alerts(rules).into_iter().map(|(name, _)| name).collect();
    ensure!(wanted.contains(ALERT), "there is no {ALERT} among {wanted:?}");
    let mut last = Value::Null;
    let fine = wait_until(PATIENCE, || {
        last = prometheus.get("rules")?;
        let groups = last["groups"].as_array().into_iter().flatten();
        let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
        let fine = rules.filter(|rule| rule["health"] == "ok").filter_map(|rule| rule["name"].as_str());
        Ok(fine.map(str::to_owned).collect::<BTreeSet<_>>() == wanted)
    })?;
    ensure!(fine, "not all rules are evaluated: {last:#}\n{}", prometheus.log());
    Ok(())
}

/// Where the alert stands: `pending`, `firing`, or `gone`; and what Prometheus says of it.
fn stands(prometheus: &Prometheus) -> anyhow::Result<(String, Value)> {
    let alerts = prometheus.get("alerts")?["alerts"].clone();
    let ours: Vec<_> =
        alerts.as_array().context("no alerts")?.iter().filter(|alert| alert["labels"]["alertname"] == ALERT).collect();
    ensure!(ours.len() <= 1, "one cluster has it more than once: {ours:?}");
    let ours = ours.first().map_or(Value::Null, |&alert| alert.clone());
    Ok((ours["state"].as_str().unwrap_or("gone").to_owned(), ours))
}

/// Looks at the alert again and again, and writes down each change, until it stands so.
fn wait(prometheus: &Prometheus, seen: &mut Vec<String>, until: &str) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    let there = wait_until(PATIENCE, || {
        let (state, alert) = stands(prometheus)?;
        if seen.last() != Some(&state) {
            seen.push(state.clone());
        }
        last = alert;
        Ok(state == until)
    })?;
    ensure!(there, "it is not {until}; it was {seen:?}, and is {last}");
    Ok(last)
}

/// When a series had a value that counts, in seconds.
fn times(prometheus: &Prometheus, series: &str, counts: impl Fn(f64) -> bool) -> anyhow::Result<Vec<f64>> {
    let result = prometheus.ask(&format!("{series}[1h]"))?;
    let all = result.as_array().context("no series")?;
    ensure!(all.len() == 1, "{series} is not one series: {result}");
    let samples = all[0]["values"].as_array().into_iter().flatten();
    let number = |sample: &Value| Some((sample[0].as_f64()?, sample[1].as_str()?.parse::<f64>().ok()?));
    Ok(samples.filter_map(number).filter(|(_, value)| counts(*value)).map(|(time, _)| time).collect())
}

fn ends(times: &[f64], what: &str) -> anyhow::Result<(f64, f64)> {
    Ok((*times.first().context(what.to_owned())?, *times.last().context(what.to_owned())?))
}

#[test]
fn an_alert_is_pending_then_firing_and_gone_when_its_cause_is_mended() -> anyhow::Result<()> {
    let collector = Collector::start()?;
    let mut scene = Scene::start(&collector.endpoint(), &[])?;
    scene.call("Placements/Create", &Scene::request("kept", GOOD_VM))?;
    scene.wait_phase("kept", "PHASE_ACTIVE")?;
    let rules = rules()?;
    let test = "an_alert_is_pending_then_firing_and_gone_when_its_cause_is_mended";
    let Some(prometheus) = prometheus::of(test, &scene, Some(&rules))? else { return Ok(()) };
    loaded(&prometheus, &rules)?;

    let mut seen = Vec::new();
    wait(&prometheus, &mut seen, "gone")?;
    scene.kill_good_agent()?;
    wait(&prometheus, &mut seen, "pending")?;
    let fires = wait(&prometheus, &mut seen, "firing")?;
    ensure!(fires["labels"]["cluster"] == "c1" && fires["labels"]["severity"] == "critical", "{fires}");
    let says = fires["annotations"]["description"].as_str().unwrap_or_default();
    ensure!(says.starts_with("1 nodes of the cluster c1;"), "{fires}");
    // It is over when the agent is back, and by nothing else.
    let (state, _) = stands(&prometheus)?;
    ensure!(state == "firing", "it is {state}, and nothing was mended");
    scene.start_good_agent()?;
    wait(&prometheus, &mut seen, "gone")?;
    ensure!(seen == ["gone", "pending", "firing", "gone"], "it was {seen:?}");
    scene.wait_phase("kept", "PHASE_ACTIVE")?;

    // The same in what Prometheus has written down.
    let state = |state: &str| format!("ALERTS{{alertname=\"{ALERT}\",alertstate=\"{state}\"}}");
    let pending = times(&prometheus, &state("pending"), |value| value == 1.0)?;
    let firing = times(&prometheus, &state("firing"), |value| value == 1.0)?;
    let cause = times(&prometheus, CAUSE, |value| value > 0.0)?;
    let none = times(&prometheus, LOST, |value| value == 0.0)?;
    let story = format!("cause {cause:?}\npending {pending:?}\nfiring {firing:?}\nno cause {none:?}");
    let ((pends, pended), (fires, fired)) = (ends(&pending, "never pending")?, ends(&firing, "never firing")?);
    let ((begins, ends), (_, mended)) = (ends(&cause, "no cause")?, ends(&none, "always a cause")?);
    ensure!(begins <= pends && pended < fires && fired < mended && ends < mended, "not in that order:\n{story}");
    ensure!(fires - pends >= f64::from(FOR_SECONDS), "it did not wait:\n{story}");
    ensure!(!none.iter().any(|time| (begins..=ends).contains(time)), "the cause came and went:\n{story}");

    // Nothing else fired meanwhile but what says the same of the agent. Before its first scrape a Prometheus knows of no leader.
    let since = std::time::UNIX_EPOCH.elapsed()?.as_secs_f64() - begins;
    let query = format!("count by (alertname) (count_over_time(ALERTS{{alertstate=\"firing\"}}[{since:.0}s]))");
    let fired = prometheus.ask(&query)?;
    let fired = fired.as_array().into_iter().flatten().filter_map(|one| one["metric"]["alertname"].as_str());
    let fired: BTreeSet<_> = fired.collect();
    ensure!(fired == BTreeSet::from(["BerthAgentGone", ALERT]), "{fired:?} fired");
    Ok(())
}
