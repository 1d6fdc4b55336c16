//! What controllers and agents said: every WARN and ERROR, and every line that is none of their log, is one that is
//! expected here with a reason, or a fault.

use anyhow::Context as _;
use berth_store::Revision;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A controller.
    Controller,
    /// An agent.
    Agent,
}

/// A line that may be said.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    who: Who,
    level: &'static str,
    /// The module that says it; empty for a line that is not of the log.
    target: &'static str,
    /// The message as it is, or its beginning where it ends with `…`.
    message: &'static str,
    /// What the field `error` may contain: one of these; any or none when there are none.
    errors: &'static [&'static str],
    why: &'static str,
}

/// Everything that may be said, with the reason.
const ALLOWED: &[Allowed] = &[];

/// A transaction that a process says it has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The controller.
    pub controller: usize,
    /// The fence that it carried.
    pub fence: Option<Revision>,
}

/// What the logs came to.
#[derive(Debug, Default)]
pub struct Logs {
    /// Lines in all.
    pub lines: u64,
    /// Lines that are allowed, by reason.
    pub allowed: BTreeMap<&'static str, u64>,
    /// Lines that are not, each with how often it was said.
    pub unlisted: BTreeMap<String, u64>,
    /// Which process committed a revision.
    pub committed: BTreeMap<Revision, Vec<Committed>>,
}

/// Reads every log in a directory.
///
/// # Errors
/// When one cannot be read.
pub fn read(dir: &Path) -> anyhow::Result<Logs> {
    let mut logs = Logs::default();
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let (who, number) = match name.split_once('-') {
            Some(("controller", number)) => (Who::Controller, number),
            Some(("agent", number)) => (Who::Agent, number),
            Some(_) | None => continue,
        };
        let number = number.parse().with_context(|| format!("{name} is no log"))?;
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for line in String::from_utf8_lossy(&text).lines().filter(|line| !line.trim().is_empty()) {
            logs.take(who, number, line);
        }
    }
    Ok(logs)
}

impl Logs {
    fn take(&mut self, who: Who, number: usize, line: &str) {
        self.lines += 1;
        let parsed: Option<Value> = serde_json::from_str(line).ok();
        let field = |name: &str| parsed.as_ref().and_then(|line| line[name].as_str()).unwrap_or_default();
        let (level, target, message, error) = match &parsed {
            Some(_) => (field("level"), field("target"), field("message"), field("error")),
            None => ("", "", line, ""),
        };
        if matches!(level, "INFO" | "DEBUG" | "TRACE") {
            if let (Some(line), "berth_store_etcd::transaction", "committed") = (&parsed, target, message)
                && let Some(revision) = line["revision"].as_u64()
            {
                let committed = Committed { controller: number, fence: line["fence"].as_u64().map(Revision) };
                self.committed.entry(Revision(revision)).or_default().push(committed);
            }
            return;
        }
        let fits = |allowed: &&Allowed| {
            let message = match allowed.message.strip_suffix('…') {
                Some(beginning) => message.starts_with(beginning),
                None => message == allowed.message,
            };
            let expected = allowed.errors.is_empty() || allowed.errors.iter().any(|known| error.contains(known));
            allowed.who == who && allowed.level == level && allowed.target == target && message && expected
        };
        match ALLOWED.iter().find(fits) {
            Some(allowed) => *self.allowed.entry(allowed.why).or_default() += 1,
            None => {
                let said = match level {
                    "" => format!("{who:?} {message}"),
                    _ => format!("{who:?} {level} {target}: {message}: {error}"),
                };
                *self.unlisted.entry(said).or_default() += 1;
            }
        }
    }
}
