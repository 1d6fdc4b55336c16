//! Rules of the house that no compiler checks: who may depend on whom, what may stand in a file, whether what the pages
//! say is there.
//!
//! Reads files only. Every rule reports all its offenders at once, each with file and line.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates each crate may name in its manifest: imports run downward only, and the two shells never meet
/// below the front door.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("berth-model", &[]),
    ("berth-telemetry", &["berth-model"]),
    ("berth-proto", &["berth-model"]),
    // Only its tests do.
    ("berth-tls", &["berth-tls-testing"]),
    ("berth-tls-testing", &["berth-tls"]),
    ("berth-core", &["berth-model"]),
    ("berth-agent-core", &["berth-model"]),
    ("berth-store", &["berth-model", "berth-proto"]),
    ("berth-store-etcd", &["berth-model", "berth-proto", "berth-store"]),
    (
        "berth-controller",
        &[
            "berth-model",
            "berth-telemetry",
            "berth-proto",
            "berth-tls",
            "berth-core",
            "berth-store",
            "berth-store-etcd",
        ],
    ),
    ("berth-node-agent", &["berth-model", "berth-telemetry", "berth-proto", "berth-tls", "berth-agent-core"]),
    ("berth", EVERYTHING),
    ("berth-tests", EVERYTHING),
    ("xtask", &[]),
];
const EVERYTHING: &[&str] = &[
    "berth",
    "berth-model",
    "berth-telemetry",
    "berth-proto",
    "berth-tls",
    "berth-tls-testing",
    "berth-core",
    "berth-agent-core",
    "berth-store",
    "berth-store-etcd",
    "berth-controller",
    "berth-node-agent",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// All files of the repository with one of these endings, by path from its root, in order.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    fn walk(dir: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                let ours = !name.starts_with('.') || matches!(name, ".ci" | ".cargo" | ".config" | ".github");
                if ours && !matches!(name, "target" | "node_modules") {
                    walk(&path, endings, found);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), endings, &mut found);
    found.sort();
    assert!(!found.is_empty(), "no file ends with one of {endings:?}");
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, text)
        })
        .collect()
}

/// Everything that people write, of any language.
const WRITTEN: &[&str] = &[
    ".rs", ".toml", ".proto", ".md", ".yaml", ".yml", ".json", ".py", ".ps1", ".sh", ".html", ".js", ".ts", ".css",
    "run", "README", ".csv",
];

fn nothing_wrong(offenders: &[String]) {
    assert!(offenders.is_empty(), "\n{}\n", offenders.join("\n"));
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `needle` stands in `line` without being part of a longer word.
fn has_word(line: &str, needle: &str) -> bool {
    line.match_indices(needle).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_none_or(|c| !is_word(c));
        let after = line[at + needle.len()..].chars().next().is_none_or(|c| !is_word(c));
        (before || !needle.starts_with(is_word)) && (after || !needle.ends_with(is_word))
    })
}

/// `file:line: problem` for each line that holds one of the words.
fn lines_with(files: &[(String, String)], words: &[String], problem: &str) -> Vec<String> {
    let mut offenders = Vec::new();
    for (name, text) in files {
        for (at, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| has_word(line, word)) {
                offenders.push(format!("{name}:{}: {word} {problem}", at + 1));
            }
        }
    }
    offenders
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let offenders: Vec<_> = files(&[".rs"])
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(name, _)| format!("{name}: does not open with //! and what it is for, owns, and must never do"))
        .collect();
    nothing_wrong(&offenders);
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not offend itself.
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["todo", "!"], ["unimplemented", "!"], ["#[ig", "nore"]];
    nothing_wrong(&lines_with(&files(WRITTEN), &words.map(|word| word.concat()), "is for later, and later is never"));
}

#[test]
fn modules_are_files_of_their_own_name() {
    let offenders: Vec<_> = files(&[".rs"])
        .into_iter()
        .filter(|(name, _)| name.ends_with("/mod.rs"))
        .map(|(name, _)| format!("{name}: name the file after its module"))
        .collect();
    nothing_wrong(&offenders);
}

#[test]
fn only_config_reads_the_environment() {
    let sources: Vec<_> = files(&[".rs"])
        .into_iter()
        .filter(|(name, _)| !name.ends_with("/config.rs") && !name.ends_with("/build.rs"))
        .collect();
    let words = [["env::", "var"], ["env::", "var_os"], ["env::", "vars"], ["env::", "vars_os"]];
    nothing_wrong(&lines_with(&sources, &words.map(|word| word.concat()), "belongs into a config.rs"));
}

#[test]
fn only_host_drivers_start_processes() {
    // The task runner and the tests start Berth itself.
    let allowed = ["node-agent/src/driver/", "tests/", "xtask/"];
    let sources: Vec<_> = files(&[".rs"])
        .into_iter()
        .filter(|(name, text)| text.contains("process::Command") && !allowed.iter().any(|dir| name.starts_with(dir)))
        .collect();
    nothing_wrong(&lines_with(&sources, &["Command::new".to_owned()], "belongs into a host driver"));
}

#[test]
fn only_its_adapter_names_the_etcd_client() {
    let files: Vec<_> = files(&[".rs", "Cargo.toml"])
        .into_iter()
        .filter(|(name, _)| !name.starts_with("controller/store-etcd/") && name != "Cargo.toml")
        .collect();
    let words = [["etcd_", "client"], ["etcd-", "client"]].map(|word| word.concat());
    nothing_wrong(&lines_with(&files, &words, "belongs into controller/store-etcd"));
}

#[test]
fn no_path_of_one_machine() {
    let mut offenders = Vec::new();
    for (name, text) in files(WRITTEN) {
        for (at, line) in text.lines().enumerate() {
            for dir in [["/ro", "ot/"], ["/ho", "me/"], ["/wo", "rk/"], ["/Us", "ers/"]] {
                let dir = dir.concat();
                // A folder of that name further down (docs/work/) is another matter.
                let absolute = |at: usize| {
                    let before = line[..at].chars().next_back();
                    before.is_none_or(|c| !is_word(c) && !matches!(c, '.' | '-' | '/' | '}' | '>' | ')'))
                };
                if line.match_indices(&dir).any(|(at, _)| absolute(at)) {
                    offenders.push(format!("{name}:{}: {dir}… is a path of one machine", at + 1));
                }
            }
        }
    }
    nothing_wrong(&offenders);
}

/// All manifests of the workspace by package name, each with its path.
fn manifests() -> BTreeMap<String, (String, toml::Table)> {
    files(&["Cargo.toml"])
        .into_iter()
        .filter_map(|(path, text)| {
            let manifest: toml::Table = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
            let name = manifest.get("package")?.get("name")?.as_str()?.to_owned();
            Some((name, (path, manifest)))
        })
        .collect()
}

/// Names of all dependencies of a manifest, of every kind and target.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else { continue };
        if matches!(key.as_str(), "dependencies" | "dev-dependencies" | "build-dependencies") {
            for (name, how) in table {
                let package = how.get("package").and_then(toml::Value::as_str).unwrap_or(name);
                found.insert(package.to_owned());
            }
        } else if key == "target" {
            for target in table.values().filter_map(toml::Value::as_table) {
                found.extend(dependencies(target));
            }
        }
    }
    found
}

#[test]
fn crates_depend_downward_only() {
    let rules: BTreeMap<_, _> = MAY_DEPEND_ON.iter().copied().collect();
    let mut offenders = Vec::new();
    for (name, (path, manifest)) in manifests() {
        let Some(allowed) = rules.get(name.as_str()) else {
            offenders.push(format!("{path}: nobody has said yet what {name} may depend on: add it to MAY_DEPEND_ON"));
            continue;
        };
        for dependency in dependencies(&manifest) {
            let ours = dependency == "berth" || dependency == "xtask" || dependency.starts_with("berth-");
            if ours && !allowed.contains(&dependency.as_str()) {
                offenders.push(format!("{path}: {name} must not depend on {dependency}"));
            }
        }
    }
    nothing_wrong(&offenders);
}

#[test]
fn brains_touch_nothing_outside() {
    // What a brain must not name: files, sockets, processes, threads, clocks, randomness, async.
    let words: Vec<String> = [
        "std::fs",
        "std::net",
        "std::process",
        "std::thread",
        "std::env",
        "SystemTime",
        "Instant",
        "tokio",
        "rand",
        "async",
    ]
    .map(str::to_owned)
    .to_vec();
    let brains: Vec<_> = files(&[".rs"])
        .into_iter()
        .filter(|(name, _)| name.starts_with("controller/core/src/") || name.starts_with("node-agent/core/src/"))
        .collect();
    assert!(brains.len() > 10, "the brains are not where they were");
    nothing_wrong(&lines_with(&brains, &words, "a brain does no I/O, reads no clock and draws no randomness"));
}

#[test]
fn every_crate_obeys_the_same_lints() {
    let offenders: Vec<_> = manifests()
        .into_iter()
        .filter(|(_, (_, manifest))| {
            let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
            lints.and_then(toml::Value::as_bool) != Some(true)
        })
        .map(|(name, (path, _))| format!("{path}: {name} lacks [lints] workspace = true"))
        .collect();
    nothing_wrong(&offenders);
}

#[test]
fn integration_tests_have_names_of_their_own() {
    // cargo xtask test chooses them by name for the whole workspace.
    let mut seen = BTreeMap::new();
    let mut offenders = Vec::new();
    for (path, _) in files(&[".rs"]) {
        if let Some((krate, file)) = path.rsplit_once("/tests/").filter(|(_, file)| !file.contains('/'))
            && let Some(before) = seen.insert(file.to_owned(), krate.to_owned())
        {
            offenders.push(format!("{path}: {before} has a test of that name, too"));
        }
    }
    nothing_wrong(&offenders);
}

/// The pieces of a page that begin with an invariant's id, each up to the next or an empty line.
fn invariant_items(page: &str) -> BTreeMap<u32, String> {
    let mut items: BTreeMap<u32, String> = BTreeMap::new();
    let mut current = None;
    for line in page.lines() {
        let start = line.trim_start_matches([' ', '-', '*', '|', '#', '`']);
        let id = start.strip_prefix('I').and_then(|rest| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let ends = rest[digits.len()..].chars().next().is_none_or(|c| !is_word(c));
            digits.parse::<u32>().ok().filter(|_| ends)
        });
        if line.trim().is_empty() {
            current = None;
        } else if id.is_some() {
            current = id;
        }
        if let Some(id) = current {
            let item = items.entry(id).or_default();
            item.push_str(line);
            item.push('\n');
        }
    }
    items
}

#[test]
fn every_invariant_names_a_check_that_exists() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md names the invariants");
    let items = invariant_items(&page);
    let mut offenders = Vec::new();
    for id in 1..=12 {
        let Some(item) = items.get(&id) else {
            offenders.push(format!("ARCHITECTURE.md: no line begins with I{id}"));
            continue;
        };
        let checks: Vec<&str> = match item.split_once("checked by") {
            Some((_, checks)) => checks.split('`').skip(1).step_by(2).collect(),
            None => Vec::new(),
        };
        if checks.is_empty() {
            offenders.push(format!("ARCHITECTURE.md: I{id} does not say: checked by `path::name`"));
        }
        for check in checks {
            let Some((path, name)) = check.split_once("::") else {
                offenders.push(format!("ARCHITECTURE.md: I{id}: `{check}` is not of the form path::name"));
                continue;
            };
            let name = name.rsplit("::").next().unwrap_or(name);
            match fs::read_to_string(root().join(path)) {
                Err(_) => offenders.push(format!("ARCHITECTURE.md: I{id}: there is no file {path}")),
                Ok(text) if !text.lines().any(|line| has_word(line, name)) => {
                    offenders.push(format!("ARCHITECTURE.md: I{id}: nothing in {path} is named {name}"));
                }
                Ok(_) => {}
            }
        }
    }
    nothing_wrong(&offenders);
}

/// A page without its fenced code and without inline code.
fn prose(page: &str) -> String {
    let mut fenced = false;
    let mut kept = String::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            kept.extend(line.split('`').step_by(2));
        }
        kept.push('\n');
    }
    kept
}

/// The anchors that headings of a page make.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in page.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if !fenced && line.starts_with('#') {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            found.insert(
                heading
                    .chars()
                    .filter_map(|c| match c {
                        ' ' => Some('-'),
                        c if is_word(c) || c == '-' => Some(c),
                        _ => None,
                    })
                    .collect(),
            );
        }
    }
    found
}

#[test]
fn links_of_the_pages_lead_somewhere() {
    let mut offenders = Vec::new();
    for (name, page) in files(&[".md"]) {
        for (at, line) in prose(&page).lines().enumerate() {
            for (_, rest) in line.match_indices("](").map(|(at, found)| line.split_at(at + found.len())) {
                let Some(link) = rest.split([')', ' ']).next() else { continue };
                if link.contains("://") || link.starts_with("mailto:") {
                    continue;
                }
                let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = match path {
                    "" => root().join(&name),
                    path => root().join(&name).parent().unwrap().join(path),
                };
                let inside =
                    target.canonicalize().is_ok_and(|target| target.starts_with(root().canonicalize().unwrap()));
                let lands =
                    anchor.is_empty() || fs::read_to_string(&target).is_ok_and(|page| anchors(&page).contains(anchor));
                if !inside || !lands {
                    offenders.push(format!("{name}:{}: {link} leads nowhere", at + 1));
                }
            }
        }
    }
    nothing_wrong(&offenders);
}
