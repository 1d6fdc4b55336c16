//! What controllers and agents said: every WARN and ERROR, and every line that is none of their log, is one that is
//! expected here with a reason, or a fault.

use super::experiments::Experiment;
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
    within: &'static [Experiment],
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

/// Where only leaders die or stop, nobody is cut off from etcd.
const CUT_OFF: &[Experiment] = &[Experiment::Mixed];
/// How often is bounded elsewhere.
const LOST: &[Experiment] = &Experiment::ALL;

/// Everything that may be said, with the reason.
const ALLOWED: &[Allowed] = &[
    Allowed {
        within: LOST,
        who: Who::Controller,
        level: "WARN",
        target: "berth_controller::process",
        message: "leadership was lost; another controller takes over; this one ends, to begin anew as a follower",
        errors: &[],
        why: "a leader that slept or was cut off for longer than its lease ends",
    },
    Allowed {
        within: LOST,
        who: Who::Controller,
        level: "",
        target: "",
        message: "berth-controller: the controller has no place among the others any more: leadership was lost; another \
                  controller takes over",
        errors: &[],
        why: "the last words of a leader that ends",
    },
    Allowed {
        within: LOST,
        who: Who::Controller,
        level: "WARN",
        target: "berth_controller::app",
        message: "a task failed while the controller stopped",
        errors: &["leadership was lost; another controller takes over"],
        why: "a leader that is asked to end finds that it has slept or was cut off for longer than its lease",
    },
    Allowed {
        within: CUT_OFF,
        who: Who::Controller,
        level: "WARN",
        target: "berth_controller::follower",
        message: "the store cannot be followed; trying again",
        errors: &["the store is not available: "],
        why: "a follower is cut off from etcd",
    },
    Allowed {
        within: CUT_OFF,
        who: Who::Controller,
        level: "WARN",
        target: "berth_controller::member",
        message: "cannot stand for leader; trying again",
        errors: &["the store is not available: "],
        why: "a candidate is cut off from etcd",
    },
    Allowed {
        within: CUT_OFF,
        who: Who::Controller,
        level: "WARN",
        target: "berth_controller::leader::run::recover",
        message: "a commit failed; what was not durable is given up and the world is loaded anew",
        errors: &["it is not known whether the transaction was committed: ", "the store is not available: "],
        why: "a leader is cut off from etcd in the midst of a transaction",
    },
    Allowed {
        within: CUT_OFF,
        who: Who::Controller,
        level: "WARN",
        target: "berth_controller::leader::run::recover",
        message: "a commit failed; what rests on it is taken back",
        errors: &["the store is not available: "],
        why: "a leader is cut off from etcd before a transaction was sent",
    },
    Allowed {
        within: CUT_OFF,
        who: Who::Controller,
        level: "WARN",
        target: "berth_controller::leader::run::recover",
        message: "the world could not be loaded; trying again",
        errors: &["the store is not available: "],
        why: "a leader is cut off from etcd while it loads",
    },
    Allowed {
        within: CUT_OFF,
        who: Who::Controller,
        level: "WARN",
        target: "berth_controller::process",
        message: "waiting for etcd",
        errors: &["cannot be used: "],
        why: "a controller is started while it is cut off from etcd",
    },
    Allowed {
        within: CUT_OFF,
        who: Who::Controller,
        level: "WARN",
        target: "berth_controller::member",
        message: "the leadership is left to run out",
        errors: &[],
        why: "a leader that ends is cut off from etcd, so that it cannot resign",
    },
    Allowed {
        within: CUT_OFF,
        who: Who::Controller,
        level: "WARN",
        target: "berth_controller::app",
        message: "not everything ended after 15 s; the rest is cut off",
        errors: &[],
        why: "a controller that is asked to end waits for clients that hear nothing of it",
    },
    Allowed {
        within: &[Experiment::Mixed],
        who: Who::Agent,
        level: "WARN",
        target: "berth_node_agent::session",
        message: "disconnected",
        errors: &[" is connected already, last heard of "],
        why: "an agent comes back before the leader has noticed that its old session is dead",
    },
];

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

/// Reads every log in a directory, with what may be said in this experiment.
///
/// # Errors
/// When one cannot be read.
pub fn read(dir: &Path, experiment: Experiment) -> anyhow::Result<Logs> {
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
            logs.take(experiment, who, number, line);
        }
    }
    Ok(logs)
}

impl Logs {
    fn take(&mut self, experiment: Experiment, who: Who, number: usize, line: &str) {
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
            let here = allowed.who == who && allowed.within.contains(&experiment);
            here && allowed.level == level && allowed.target == target && message && expected
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

#[cfg(test)]
mod tests {
    use super::*;

    fn unlisted(experiment: Experiment, who: Who, line: &str) -> Option<String> {
        let mut logs = Logs::default();
        logs.take(experiment, who, 0, line);
        logs.unlisted.into_keys().next()
    }

    #[test]
    fn what_is_not_listed_is_found() {
        let warn = |message: &str, error: &str| {
            format!(
                r#"{{"level":"WARN","target":"berth_controller::follower","message":"{message}","error":"{error}"}}"#
            )
        };
        let (message, error) = ("the store cannot be followed; trying again", "the store is not available: gone");
        let listed = warn(message, error);
        assert_eq!(unlisted(Experiment::Mixed, Who::Controller, &listed), None);
        for (experiment, who, line) in [
            (Experiment::LeaderKills, Who::Controller, listed.clone()),
            (Experiment::Mixed, Who::Agent, listed.clone()),
            (Experiment::Mixed, Who::Controller, warn("something else", error)),
            (Experiment::Mixed, Who::Controller, warn(message, "the record of x is damaged")),
            (Experiment::Mixed, Who::Controller, listed.replace("WARN", "ERROR")),
            (Experiment::Mixed, Who::Controller, listed.replace("follower", "member")),
            (Experiment::Mixed, Who::Controller, "thread 'main' panicked at x.rs:1:1".to_owned()),
        ] {
            assert!(unlisted(experiment, who, &line).is_some(), "{experiment} {who:?} {line}");
        }
        assert_eq!(unlisted(Experiment::LeaderKills, Who::Agent, &listed.replace("WARN", "INFO")), None);
    }

    #[test]
    fn who_committed_a_revision_is_read() {
        let line = r#"{"level":"DEBUG","revision":12,"fence":7,"message":"committed","target":"berth_store_etcd::transaction"}"#;
        let mut logs = Logs::default();
        logs.take(Experiment::Mixed, Who::Controller, 2, line);
        let committed = Committed { controller: 2, fence: Some(Revision(7)) };
        assert_eq!(logs.committed, [(Revision(12), vec![committed])].into());
    }
}
