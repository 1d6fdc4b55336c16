//! The Helm chart as tests see it: rendered, taken apart, and checked by programs that others made.

use crate::config;
use crate::process::{Ran, other, root, run, skip};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files in `charts/berth/examples`: ways to run Berth that are tested.
pub const EXAMPLES: [&str; 4] = ["small", "ha", "external-etcd", "vfio"];
/// The Kubernetes that manifests are rendered for and checked against: neither the oldest nor the newest supported.
pub const KUBERNETES: &str = "1.31";

/// The chart.
#[must_use]
pub fn dir() -> PathBuf {
    root().join("charts").join("berth")
}

/// The values of an example.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    dir().join("examples").join(format!("{name}.yaml"))
}

/// Helm, or none: that was said then.
#[must_use]
pub fn helm(test: &str) -> Option<Helm> {
    let program = config::helm();
    if program.is_none() {
        skip(test, "there is no helm; cargo xtask test chart gets one where there is Go, or put it in the PATH");
    }
    program.map(Helm)
}

/// Helm.
#[derive(Clone, Debug)]
pub struct Helm(PathBuf);

impl Helm {
    /// `helm`, without arguments.
    #[must_use]
    pub fn command(&self) -> Command {
        other(&self.0)
    }

    /// `helm COMMAND` on the chart as release and namespace `berth`, with these values.
    ///
    /// # Errors
    /// When it cannot be run; not when it finds something wrong.
    pub fn call(&self, command: &[&str], values: &[&Path], set: &[&str]) -> anyhow::Result<Ran> {
        let mut helm = other(&self.0);
        helm.args(command).arg(dir()).args(["--namespace", "berth", "--kube-version"]).arg(format!("{KUBERNETES}.0"));
        for file in values {
            helm.arg("--values").arg(file);
        }
        for value in set {
            helm.args(["--set", value]);
        }
        run(helm)
    }

    /// The manifests that the chart makes of these values, as text.
    ///
    /// # Errors
    /// With what helm says.
    pub fn render(&self, values: &[&Path], set: &[&str]) -> anyhow::Result<String> {
        Ok(self.call(&["template", "berth"], values, set)?.expect(0)?.stdout + "\n")
    }
}

/// The objects in rendered manifests.
///
/// # Errors
/// When they are no YAML.
pub fn objects(manifests: &str) -> anyhow::Result<Vec<Value>> {
    let found: Vec<Value> = serde_saphyr::from_multiple(manifests).context("the manifests are no YAML")?;
    Ok(found.into_iter().filter(|object| !object.is_null()).collect())
}

/// The object of this kind and name.
///
/// # Errors
/// When there is none.
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> anyhow::Result<&'a Value> {
    let is = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.iter().find(is).with_context(|| format!("there is no {kind} {name}"))
}

/// An expression for Prometheus, and where it stands.
#[derive(Clone, Debug)]
pub struct Query {
    /// For messages: file and panel or alert.
    pub place: String,
    /// In PromQL; of a dashboard with its variables replaced.
    pub expr: String,
}

/// The expressions of all dashboards.
///
/// # Errors
/// When a dashboard is none.
pub fn dashboard_queries() -> anyhow::Result<Vec<Query>> {
    let mut found = Vec::new();
    for (file, dashboard) in dashboards()? {
        for panel in dashboard["panels"].as_array().with_context(|| format!("{file} has no panels"))? {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expr = target["expr"].as_str().with_context(|| format!("{file}: a target without expr"))?;
                let expr = plain(expr, "5m");
                found.push(Query { place: format!("{file}: {}", panel["title"]), expr });
            }
        }
    }
    ensure!(!found.is_empty(), "there is no query in any dashboard");
    Ok(found)
}

/// All dashboards by the names of their files.
///
/// # Errors
/// When one is no JSON.
pub fn dashboards() -> anyhow::Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir().join("dashboards")).context("there are no dashboards")? {
        let path = entry?.path();
        let file = path.file_name().and_then(|name| name.to_str()).context("a name that is no text")?.to_owned();
        let text = fs::read_to_string(&path)?;
        found.push((file.clone(), serde_json::from_str(&text).with_context(|| format!("{file} is no JSON"))?));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// The groups of alert rules as they lie in the chart.
///
/// # Errors
/// When they are no YAML.
pub fn rules() -> anyhow::Result<Value> {
    let text = fs::read_to_string(dir().join("rules").join("berth.yaml")).context("there are no rules")?;
    serde_saphyr::from_str(&text).context("the rules are no YAML")
}

/// Every alert: its name, and the rule. Those whose numbers come from values are not among them.
#[must_use]
pub fn alerts(rules: &Value) -> Vec<(String, Value)> {
    let groups = rules["groups"].as_array().into_iter().flatten();
    let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
    rules.map(|rule| (rule["alert"].as_str().unwrap_or_default().to_owned(), rule.clone())).collect()
}

/// A dashboard's expression with every value chosen for its variables, an instance for the one that is chosen, and this
/// span for rates.
#[must_use]
pub fn plain(expr: &str, rate_interval: &str) -> String {
    let mut expr = expr.replace("$__rate_interval", rate_interval);
    for variable in ["model", "cluster", "instance"] {
        expr =
            expr.replace(&format!("=~\"${variable}\""), "=~\".*\"").replace(&format!("=\"${variable}\""), "=~\".+\"");
    }
    expr
}
