//! Workload files for `berth plan`: a list of requests by the names the API gives their fields, each checked before
//! anything is asked.

use crate::fleet::{Problem, Size, plain, read_text, repeat, shape};
use crate::values::duration;
use berth_model::request::{Draft, Locality, MAX_GPUS_PER_REQUEST, PlacementRequest, Resources, ReturnTo, VerifyLevel};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;
use std::path::Path;
use std::time::Duration;

/// Most requests of one plan: what the API takes in one call.
pub const MAX_REQUESTS: usize = 10_000;
/// Longest file read: 10,000 requests written out one by one stay well below.
const MAX_BYTES: u64 = 16 << 20;

/// A workload file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] crate::fleet::Error);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// How many of them.
    #[serde(default, deserialize_with = "count")]
    count: Option<u32>,
    /// Without it: the VM of the same name as the placement.
    vm: Option<String>,
    #[serde(default = "one", deserialize_with = "gpus")]
    gpus: u32,
    #[serde(default, deserialize_with = "models")]
    models: Vec<String>,
    #[serde(default, deserialize_with = "exclude_models")]
    exclude_models: Vec<String>,
    min_vram_bytes: Option<Size>,
    #[serde(default)]
    node: String,
    #[serde(default, deserialize_with = "exclude_nodes")]
    exclude_nodes: Vec<String>,
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    spread_group: String,
    #[serde(default)]
    locality: LocalityEntry,
    #[serde(default)]
    resources: ResourcesEntry,
    hold: Option<String>,
    queue: Option<String>,
    #[serde(default)]
    allow_standalone: bool,
    #[serde(default)]
    verify: VerifyEntry,
    #[serde(default)]
    return_to: ReturnEntry,
    #[serde(default)]
    install_driver: String,
}

fn one() -> u32 {
    1
}

fn count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    shape::number(from, "count", u32::try_from(MAX_REQUESTS).unwrap_or(u32::MAX)).map(Some)
}

fn gpus<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    shape::number(from, "gpus", MAX_GPUS_PER_REQUEST)
}

fn models<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    shape::names(from, "models", "A16")
}

fn exclude_models<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    shape::names(from, "exclude_models", "A16")
}

fn exclude_nodes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    shape::names(from, "exclude_nodes", "hv-01")
}

/// The file as a whole.
#[derive(Deserialize)]
#[serde(transparent)]
struct File {
    #[serde(deserialize_with = "entries")]
    entries: Vec<Spanned<Entry>>,
}

fn entries<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Spanned<Entry>>, D::Error> {
    shape::list(from, |_| "a workload file is a list: begin each with \"- name:\"".to_owned())
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LocalityEntry {
    #[default]
    #[serde(alias = "LOCALITY_PREFERRED")]
    Preferred,
    #[serde(alias = "LOCALITY_REQUIRED")]
    Required,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum VerifyEntry {
    #[default]
    #[serde(alias = "VERIFY_LEVEL_NONE")]
    None,
    #[serde(alias = "VERIFY_LEVEL_VISIBLE")]
    Visible,
    #[serde(alias = "VERIFY_LEVEL_DRIVER_BOUND")]
    DriverBound,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReturnEntry {
    #[default]
    #[serde(alias = "RETURN_TO_HOST")]
    Host,
    #[serde(alias = "RETURN_TO_POOL")]
    Pool,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ResourcesEntry {
    cpu_milli: u64,
    memory_bytes: Size,
}

/// Reads and checks a workload file.
///
/// # Errors
/// Everything that is wrong with it, by line and path.
pub fn read(file: &Path) -> Result<Vec<PlacementRequest>, Error> {
    let text = read_text(file, MAX_BYTES).map_err(|problem| failed(file, vec![problem]))?;
    parse(file, &text)
}

fn failed(file: &Path, problems: Vec<Problem>) -> Error {
    Error(crate::fleet::Error { file: file.to_owned(), problems })
}

/// Checks the text of a workload file.
///
/// # Errors
/// Everything that is wrong with it, by line and path.
pub fn parse(file: &Path, text: &str) -> Result<Vec<PlacementRequest>, Error> {
    let mut problems = Vec::new();
    let options = serde_saphyr::options! { with_snippet: false };
    let File { entries } = serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        let line = e.location().map(|at| at.line());
        failed(file, vec![Problem { line, path: String::new(), text: plain(&e) }])
    })?;
    let mut requests: Vec<PlacementRequest> = Vec::new();
    for (at, entry) in entries.into_iter().enumerate() {
        let line = Some(entry.referenced.line()).filter(|line| *line > 0);
        let mut problem =
            |field: &str, text: String| problems.push(Problem { line, path: format!("[{at}]{field}"), text });
        let entry = entry.value;
        let names = match repeat(&entry.name, entry.count) {
            Ok(names) => names,
            Err(why) => {
                problem(".name", why);
                continue;
            }
        };
        let vms = match &entry.vm {
            None => names.clone(),
            Some(vm) => match repeat(vm, (names.len() > 1).then_some(u32::try_from(names.len()).unwrap_or(u32::MAX))) {
                Ok(vms) => vms,
                Err(why) => {
                    problem(".vm", why);
                    continue;
                }
            },
        };
        for (name, vm) in names.into_iter().zip(vms) {
            match draft(&entry, name, vm) {
                Ok(request) => requests.push(request),
                Err(fields) => {
                    for (field, text) in fields {
                        problem(&format!(".{field}"), text);
                    }
                    // The others of this entry have the same faults.
                    break;
                }
            }
        }
        if requests.len() > MAX_REQUESTS {
            problem("", format!("more than {MAX_REQUESTS} requests; plan them in parts"));
            break;
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for request in &requests {
        if !seen.insert(&request.name) {
            let text = format!("workload {} is listed twice", request.name);
            problems.push(Problem { line: None, path: String::new(), text });
        }
    }
    if requests.is_empty() && problems.is_empty() {
        problems.push(Problem { line: None, path: String::new(), text: "lists no workloads".to_owned() });
    }
    if problems.is_empty() { Ok(requests) } else { Err(failed(file, problems)) }
}

fn draft(entry: &Entry, name: String, vm: String) -> Result<PlacementRequest, Vec<(String, String)>> {
    let wait = |field: &str, text: &Option<String>| -> Result<Option<Duration>, Vec<(String, String)>> {
        text.as_deref().map(duration).transpose().map_err(|e| vec![(field.to_owned(), e)])
    };
    let draft = Draft {
        request_id: format!("plan-{}", uuid::Uuid::new_v4()),
        name,
        vm,
        gpus: entry.gpus,
        models: entry.models.clone(),
        exclude_models: entry.exclude_models.clone(),
        min_vram_bytes: entry.min_vram_bytes.map(|size| size.0).unwrap_or_default(),
        node: entry.node.clone(),
        exclude_nodes: entry.exclude_nodes.clone(),
        cluster: entry.cluster.clone(),
        spread_group: entry.spread_group.clone(),
        locality: match entry.locality {
            LocalityEntry::Preferred => Locality::Preferred,
            LocalityEntry::Required => Locality::Required,
        },
        resources: Resources { cpu_milli: entry.resources.cpu_milli, memory_bytes: entry.resources.memory_bytes.0 },
        hold: wait("hold", &entry.hold)?,
        queue: wait("queue", &entry.queue)?,
        allow_standalone: entry.allow_standalone,
        verify: match entry.verify {
            VerifyEntry::None => VerifyLevel::None,
            VerifyEntry::Visible => VerifyLevel::Visible,
            VerifyEntry::DriverBound => VerifyLevel::DriverBound,
        },
        return_to: match entry.return_to {
            ReturnEntry::Host => ReturnTo::Host,
            ReturnEntry::Pool => ReturnTo::Pool,
        },
        install_driver: entry.install_driver.clone(),
    };
    PlacementRequest::new(draft).map_err(|errors| errors.into_iter().map(|e| (e.field, e.problem)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn refuse(text: &str, why: Expect) {
        why.assert_eq(&parse(Path::new("w.yaml"), text).unwrap_err().to_string());
    }

    #[test]
    fn entries_are_repeated_and_named() {
        let text = "
- name: render
  gpus: 2
  models: [A16]
  count: 2
- name: train
  gpus: 8
  min_vram_bytes: 80GiB
  resources: { cpu_milli: 96000, memory_bytes: 1TiB }
  verify: driver_bound
  locality: LOCALITY_REQUIRED
";
        let requests = parse(Path::new("w.yaml"), text).unwrap();
        let names: Vec<_> = requests.iter().map(|r| r.name.to_string()).collect();
        assert_eq!(names, ["render-01", "render-02", "train"]);
        assert_eq!(requests[1].vm.to_string(), "render-02");
        assert_eq!(requests[2].min_vram_bytes, 80 << 30);
        assert_eq!(requests[2].resources, Resources { cpu_milli: 96_000, memory_bytes: 1 << 40 });
        assert_eq!((requests[2].verify, requests[2].locality), (VerifyLevel::DriverBound, Locality::Required));
    }

    #[test]
    fn every_bad_field_is_named_by_line() {
        refuse(
            "- name: a b\n  gpus: 17\n- name: c\n  models: [A2]\n  exclude_models: [A2]\n- name: d\n  hold: soon\n",
            expect![[r#"
                w.yaml:1: [0].name: placement name "a b" has the character ' ' at position 1; allowed are letters, digits, '-', '.', '_', starting with a letter or digit
                w.yaml:1: [0].gpus: 17 is not from 1 to 16
                w.yaml:3: [1].exclude_models: excludes A2, which models asks for
                w.yaml:6: [2].hold: "soon" is no length of time; write it like 90s, 10m or 2h"#]],
        );
    }

    #[test]
    fn what_is_no_list_of_workloads_is_refused() {
        refuse("[]", expect!["w.yaml: lists no workloads"]);
        refuse("- {name: a}\n- {name: a}\n", expect!["w.yaml: workload a is listed twice"]);
        refuse(
            "- name: a\n  colour: red\n",
            expect![
                "w.yaml:2: unknown field `colour`, expected one of name, count, vm, gpus, models, exclude_models, min_vram_bytes, node, exclude_nodes, cluster, spread_group, locality, resources, hold, queue, allow_standalone, verify, return_to, install_driver"
            ],
        );
        refuse("name: a\n", expect![[r#"w.yaml: a workload file is a list: begin each with "- name:""#]]);
        refuse("nodes:\n- name: a\n", expect![[r#"w.yaml: a workload file is a list: begin each with "- name:""#]]);
        refuse("render\n", expect![[r#"w.yaml: a workload file is a list: begin each with "- name:""#]]);
    }

    #[test]
    fn what_is_no_number_no_list_or_has_no_unit_says_what_to_write() {
        refuse("- name: a\n  gpus: two\n", expect![[r#"w.yaml:2: gpus: "two" is no whole number from 1 to 16"#]]);
        refuse("- name: a\n  gpus: -1\n", expect![[r#"w.yaml:2: gpus: "-1" is no whole number from 1 to 16"#]]);
        refuse(
            "- name: a\n  count: many\n",
            expect![[r#"w.yaml:2: count: "many" is no whole number from 1 to 10000"#]],
        );
        refuse("- name: a\n  models: A16\n", expect!["w.yaml:2: models is a list: write [A16]"]);
        refuse("- name: a\n  exclude_nodes: 7\n", expect!["w.yaml:2: exclude_nodes is a list: write [7]"]);
        refuse("- name: a\n  models: { A16: 2 }\n", expect!["w.yaml:2: models is a list: write [A16]"]);
        refuse("- name: a\n\n  min_vram_bytes: 24\n", expect!["w.yaml:3: 24 has no unit; write it like 24GiB"]);
        refuse(
            "- name: a\n  resources: { memory_bytes: lots }\n",
            expect![[r#"w.yaml:2: "lots" is no size; write it like 24GiB"#]],
        );
        let none = parse(Path::new("w.yaml"), "- name: a\n  min_vram_bytes: 0\n  models:\n").unwrap();
        assert_eq!((none[0].min_vram_bytes, none[0].models.len()), (0, 0));
    }
}
