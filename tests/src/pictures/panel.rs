//! A panel of a shipped dashboard: its queries, and what a Prometheus says to them.

use super::draw::{Series, Unit};
use crate::chart::{dashboards, plain};
use crate::prometheus::query_range;
use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use std::time::Duration;

/// A panel with lines over time.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) unit: Unit,
    pub(super) stacked: bool,
    /// Expression and legend of each query, as they stand in the dashboard.
    targets: Vec<(String, String)>,
}

impl Panel {
    /// The panel of this title.
    pub(super) fn read(file: &str, title: &str) -> anyhow::Result<Self> {
        let all = dashboards()?;
        let (_, dashboard) =
            all.iter().find(|(name, _)| name == file).with_context(|| format!("there is no {file}"))?;
        let panels = dashboard["panels"].as_array().with_context(|| format!("{file} has no panels"))?;
        let panel = panels.iter().find(|panel| panel["title"] == title);
        let panel = panel.with_context(|| format!("{file} has no panel {title:?}"))?;
        ensure!(panel["type"] == "timeseries", "{file}: {title} has no lines over time");
        let defaults = &panel["fieldConfig"]["defaults"];
        let unit = match defaults["unit"].as_str() {
            Some("short") => Unit::Count,
            Some("s") => Unit::Seconds,
            other => bail!("{file}: {title} has the unit {other:?}, which nobody has drawn yet"),
        };
        let mut targets = Vec::new();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |name: &str| target[name].as_str().map(str::to_owned);
            let expr = text("expr").with_context(|| format!("{file}: {title} has a target without expr"))?;
            targets.push((expr, text("legendFormat").unwrap_or_default()));
        }
        let stacked = defaults["custom"]["stacking"]["mode"] == "normal";
        Ok(Self { title: title.to_owned(), unit, stacked, targets })
    }

    /// What a Prometheus has for it, from `start` (seconds of the Unix epoch) on.
    pub(super) fn ask(
        &self,
        prometheus: &str,
        start: f64,
        lasts: Duration,
        step: Duration,
        rate_interval: &str,
    ) -> anyhow::Result<Vec<Series>> {
        let step = step.as_secs_f64();
        let mut found = Vec::new();
        for (expr, legend) in &self.targets {
            let expr = plain(expr, rate_interval);
            for result in query_range(prometheus, &expr, (start, start + lasts.as_secs_f64()), step)? {
                let values = result["values"].as_array().with_context(|| format!("{expr}: a series without values"))?;
                let mut points = Vec::new();
                for value in values {
                    let at = value[0].as_f64().with_context(|| format!("{expr}: a value without a time"))?;
                    let value: f64 = value[1].as_str().unwrap_or_default().parse()?;
                    // A quantile of nothing is no number.
                    points.push((at - start, Some(value).filter(|value| value.is_finite())));
                }
                found.push(Series {
                    name: named(legend, &result["metric"]),
                    points: even(&points, lasts.as_secs_f64(), step),
                });
            }
        }
        found.retain(|series| series.points.iter().any(|(_, value)| value.is_some_and(|value| value != 0.0)));
        ensure!(!found.is_empty(), "{}: there is nothing to draw", self.title);
        Ok(found)
    }
}

/// A legend with the labels of a series in it.
fn named(legend: &str, labels: &Value) -> String {
    let labels = labels.as_object().into_iter().flatten();
    labels.fold(legend.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{{{name}}}}}"), value.as_str().unwrap_or_default())
    })
}

/// One point for each step, without a value where the answer has none.
fn even(points: &[(f64, Option<f64>)], lasts: f64, step: f64) -> Vec<(f64, Option<f64>)> {
    let times = std::iter::successors(Some(0.0), |at| Some(at + step)).take_while(|at| *at <= lasts + step / 2.0);
    let value = |at: f64| points.iter().find(|(time, _)| (time - at).abs() < step / 2.0).and_then(|(_, value)| *value);
    times.map(|at| (at, value(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_legend_names_what_a_series_is_of() {
        let labels = serde_json::json!({"model": "A16", "size": "2"});
        assert_eq!(named("{{model}} × {{size}}", &labels), "A16 × 2");
        assert_eq!(named("99 of 100", &labels), "99 of 100");
    }

    #[test]
    fn where_a_prometheus_has_nothing_there_is_no_value() {
        let points = [(0.0, Some(1.0)), (4.001, Some(3.0))];
        assert_eq!(even(&points, 6.0, 2.0), [(0.0, Some(1.0)), (2.0, None), (4.0, Some(3.0)), (6.0, None)]);
    }

    #[test]
    fn every_panel_that_is_drawn_is_one_of_a_dashboard() {
        for (file, title) in super::super::PANELS {
            let panel = Panel::read(file, title).unwrap();
            assert!(!panel.targets.is_empty(), "{title}");
        }
    }
}
