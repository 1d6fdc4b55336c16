//! What can go wrong for someone at the command line: a sentence, an exit code, and what to do next.

use crate::output::count;
use crate::{fleet, workloads};
use berth_model::reason::ErrorClass;
use berth_proto::status::Problem;
use std::fmt::{self, Write as _};

/// Exit codes; scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// The command line or a file is wrong.
    Usage,
    /// Not placeable now.
    NotPlaceable,
    /// What was named does not exist.
    NotFound,
    /// Nobody answers.
    Unavailable,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotPlaceable => 3,
            Self::NotFound => 4,
            Self::Unavailable => 5,
        }
    }
}

/// What to do when it is not known whether a call took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsure {
    /// Repeating it with the same id is safe.
    Repeat {
        /// The id.
        request_id: String,
    },
    /// Repeating it as it is is safe.
    Again,
    /// It must be read back.
    ReadBack {
        /// The placement.
        name: String,
    },
}

impl fmt::Display for Unsure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repeat { request_id } => {
                write!(
                    f,
                    "Repeat the same command with --request-id {request_id}: if it did happen, you get the same placement."
                )
            }
            Self::Again => write!(f, "Repeat the same command: doing it twice is no error."),
            Self::ReadBack { name } => write!(f, "`berth get placements {name}` says whether it did."),
        }
    }
}

/// An error of a verb.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag or argument has no meaning here.
    #[error("{0}")]
    Usage(String),
    /// The controller refused.
    #[error("{}", .0.message)]
    Refused(Box<Problem>),
    /// Nobody answered.
    #[error("no controller answers at {endpoint}: {why}")]
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// What happened.
        why: String,
    },
    /// One side did not accept the other, or a file for that cannot be used.
    #[error("no TLS with {endpoint}: {why}")]
    Tls {
        /// Where the controller was looked for.
        endpoint: String,
        /// Why not.
        why: String,
    },
    /// Something was asked for and it is not known whether it happened.
    #[error("no answer from {endpoint}: {why}. It is not known whether it happened")]
    Unsure {
        /// Where.
        endpoint: String,
        /// What happened.
        why: String,
        /// How to find out, or to repeat it safely.
        what: Unsure,
    },
    /// A list has nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// A placement came to an end that was not asked for.
    #[error("{0}")]
    Ended(String),
    /// What was waited for did not come in time.
    #[error("{what} is still {phase} after {} of waiting; {}", humantime::format_duration(*.waited), goes_on(waits_for.as_deref()))]
    WaitedTooLong {
        /// Which placement.
        what: String,
        /// Its phase.
        phase: String,
        /// How long was waited.
        waited: std::time::Duration,
        /// Who must come back first, where that is known.
        waits_for: Option<String>,
    },
    /// Some workloads do not fit. The answer says which.
    #[error("{unfit} of {all} {} not fit", if *.unfit == 1 { "does" } else { "do" })]
    DoNotFit {
        /// How many do not.
        unfit: usize,
        /// How many there are.
        all: usize,
    },
    /// A fleet file is wrong.
    #[error(transparent)]
    Fleet(#[from] fleet::Error),
    /// A workload file is wrong.
    #[error(transparent)]
    Workloads(#[from] workloads::Error),
    /// A file that was asked for cannot be written: its name, and why not.
    #[error("cannot write {0}")]
    CannotWrite(String),
    /// The answer cannot be put into the form asked for.
    #[error("cannot encode the answer: {0}")]
    Encode(String),
    /// Standard output is closed.
    #[error("cannot print: {0}")]
    Print(#[source] std::io::Error),
    /// The audit was changed, or does not come whole.
    #[error("the audit is not whole: {0}")]
    NotWhole(String),
    /// A simulated fleet cannot start or go on.
    #[error("{0}")]
    Dev(String),
}

fn goes_on(waits_for: Option<&str>) -> String {
    match waits_for {
        Some(who) => format!("it waits for {who}; start it"),
        None => "it goes on by itself".to_owned(),
    }
}

impl Error {
    /// Whether whoever only looks can go on: nobody answered, or not now.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Unsure { .. })
            || matches!(self, Self::Refused(problem) if problem.class == ErrorClass::Unavailable)
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Fleet(_) | Self::Workloads(_) => Exit::Usage,
            Self::Refused(problem) => match problem.class {
                ErrorClass::InvalidArgument => Exit::Usage,
                ErrorClass::NotPlaceable => Exit::NotPlaceable,
                ErrorClass::NotFound => Exit::NotFound,
                ErrorClass::Unavailable | ErrorClass::Overloaded => Exit::Unavailable,
                ErrorClass::AlreadyExists
                | ErrorClass::FailedPrecondition
                | ErrorClass::Aborted
                | ErrorClass::Unknown
                | ErrorClass::Internal => Exit::Failed,
            },
            Self::Unreachable { .. } | Self::Unsure { .. } => Exit::Unavailable,
            Self::NotFound(_) => Exit::NotFound,
            Self::DoNotFit { .. } => Exit::NotPlaceable,
            Self::Ended(_)
            | Self::Tls { .. }
            | Self::WaitedTooLong { .. }
            | Self::CannotWrite(_)
            | Self::Encode(_)
            | Self::Print(_)
            | Self::NotWhole(_)
            | Self::Dev(_) => Exit::Failed,
        }
    }

    /// The error in full: the sentence, its details, and what to do next.
    pub fn report(&self) -> String {
        let mut text = format!("error: {self}");
        match self {
            Self::Refused(problem) => {
                if let Some(explanation) = &problem.explanation {
                    text = format!("error: {}", explain(explanation));
                } else if !problem.fields.is_empty() {
                    text = "error: the request is not legal".to_owned();
                    for field in &problem.fields {
                        let _ = write!(text, "\n  {}: {}", flag(&field.field), field.problem);
                    }
                }
                if let Some(next) = next(problem.class) {
                    let _ = write!(text, "\n{next}");
                }
            }
            Self::Unreachable { .. } => {
                text.push_str(
                    "\nIs it running? `berth dev` starts one here; --endpoint or BERTH_ENDPOINT names another.",
                );
            }
            Self::Tls { .. } => text.push_str(
                "\nNothing was asked of the controller. --ca, --cert, --key and --server-name (BERTH_CA, BERTH_CERT, BERTH_KEY, \
                 BERTH_SERVER_NAME) say whom to trust and what to show; docs/tls.md shows how to make such files.",
            ),
            Self::Unsure { what, .. } => {
                let _ = write!(text, "\n{what}");
            }
            Self::WaitedTooLong { what, .. } => {
                let _ = write!(text, "\n`berth describe placement {what}` says where it is; --timeout waits longer.");
            }
            Self::Usage(_)
            | Self::NotFound(_)
            | Self::Ended(_)
            | Self::DoNotFit { .. }
            | Self::Fleet(_)
            | Self::Workloads(_)
            | Self::CannotWrite(_)
            | Self::Encode(_)
            | Self::Print(_)
            | Self::NotWhole(_)
            | Self::Dev(_) => {}
        }
        text
    }
}

/// What somebody can do about an error of this class, where it is not in the sentence already.
fn next(class: ErrorClass) -> Option<&'static str> {
    match class {
        ErrorClass::NotPlaceable => {
            Some("`berth capacity` says what fits now; --queue DURATION waits for room instead of giving up.")
        }
        ErrorClass::Aborted => Some("Read it again (`berth get`), then decide again."),
        ErrorClass::Overloaded => Some("A limit was reached: try again more slowly."),
        ErrorClass::Unavailable => Some("Try again in some seconds: another controller may be taking over."),
        ErrorClass::Unknown => Some("Read it back (`berth get placements NAME`) before trying again."),
        ErrorClass::Internal => Some("This is a fault of Berth; the controller's log says more."),
        ErrorClass::InvalidArgument
        | ErrorClass::NotFound
        | ErrorClass::AlreadyExists
        | ErrorClass::FailedPrecondition => None,
    }
}

/// The flag that sets a field of a request, so that the user reads what they typed.
fn flag(field: &str) -> String {
    let name = field.split('[').next().unwrap_or(field).trim_start_matches("request.");
    match name {
        "name" => "NAME".to_owned(),
        "models" => "--model".to_owned(),
        "exclude_models" => "--exclude-model".to_owned(),
        "exclude_nodes" => "--exclude-node".to_owned(),
        "min_vram_bytes" => "--min-vram".to_owned(),
        "vm" | "gpus" | "node" | "cluster" | "spread_group" | "hold" | "queue" | "request_id" | "vm_id" | "version"
        | "uid" => {
            format!("--{}", name.replace('_', "-"))
        }
        _ => field.to_owned(),
    }
}

/// Most nodes told one by one on a terminal; the counts before them cover all.
const NODES_SHOWN: usize = 8;

/// Why something cannot be placed: the counts, the nearest miss with what would make it fit, then node by node.
pub fn explain(explanation: &berth_proto::v1::Explanation) -> String {
    let mut text = if explanation.nodes == 0 {
        "no node has ever connected".to_owned()
    } else {
        format!("none of {} can give {} now", count(explanation.nodes, "node"), count(explanation.gpus, "GPU"))
    };
    let counts: Vec<_> = explanation.counts.iter().map(|c| format!("{} {}", c.rule, c.nodes)).collect();
    if !counts.is_empty() {
        let _ = write!(text, "\n  nodes by reason: {}", counts.join(", "));
    }
    if let Some(nearest) = &explanation.nearest {
        let _ = write!(text, "\n  nearest is {}: {}", nearest.node, nearest.text);
        for (at, fix) in nearest.fixes.iter().enumerate() {
            let _ = write!(text, "\n    {} {fix}", if at == 0 { "it would fit if" } else { "and" });
        }
    }
    let nearest = explanation.nearest.as_ref().map(|n| n.node.as_str());
    let others: Vec<_> = explanation.rejected.iter().filter(|r| Some(r.node.as_str()) != nearest).collect();
    for rejected in others.iter().take(NODES_SHOWN) {
        let _ = write!(text, "\n  {}: {}", rejected.node, rejected.text);
    }
    let told = others.len().min(NODES_SHOWN) + usize::from(nearest.is_some());
    let untold = usize::try_from(explanation.nodes).unwrap_or(usize::MAX).saturating_sub(told);
    if untold > 0 && told > 0 {
        let _ = write!(text, "\n  and {untold} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::v1;
    use expect_test::expect;

    #[test]
    fn an_explanation_names_the_nearest_miss_first() {
        let explanation = v1::Explanation {
            text: String::new(),
            gpus: 4,
            nodes: 3,
            counts: vec![
                v1::RejectionCount { rule: "NoSuchGpu".into(), nodes: 2 },
                v1::RejectionCount { rule: "NotEnoughFree".into(), nodes: 1 },
            ],
            rejected: vec![
                v1::NodeRejection {
                    node: "hv-02".into(),
                    rule: "NotEnoughFree".into(),
                    text: "only 2 of 4 A16 are available".into(),
                },
                v1::NodeRejection { node: "hv-01".into(), rule: "NoSuchGpu".into(), text: "it has A2".into() },
            ],
            nearest: Some(v1::NearestMiss {
                node: "hv-02".into(),
                rule: "NotEnoughFree".into(),
                text: "only 2 of 4 A16 are available".into(),
                fixes: vec!["placement a were released".into(), "placement b were released".into()],
            }),
        };
        expect![[r#"
            none of 3 nodes can give 4 GPUs now
              nodes by reason: NoSuchGpu 2, NotEnoughFree 1
              nearest is hv-02: only 2 of 4 A16 are available
                it would fit if placement a were released
                and placement b were released
              hv-01: it has A2
              and 1 more"#]]
        .assert_eq(&explain(&explanation));
    }

    #[test]
    fn fields_are_named_by_their_flags() {
        assert_eq!(
            [flag("models[2]"), flag("request.min_vram_bytes"), flag("name"), flag("resources.cpu")],
            ["--model", "--min-vram", "NAME", "resources.cpu"]
        );
    }
}
