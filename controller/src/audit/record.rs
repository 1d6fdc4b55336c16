//! What stands in a record.

use berth_core::decide::{Change, Decision, Input, Learned};
use berth_model::history::{Forced, Note};
use berth_model::placement::{Phase, Placement};
use berth_model::reason::Refusal;
use berth_model::{PlacementName, Timestamp};
use berth_proto::v1::AuditRecord;
use berth_proto::{convert, v1};

/// What somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Who.
    pub caller: String,
    /// What: Create, Commit, Release, Adopt.
    pub action: &'static str,
    /// Of which placement.
    pub placement: PlacementName,
}

impl Asked {
    /// What an input asks for; `None` if it is nobody's wish.
    pub fn by(caller: &str, input: &Input) -> Option<Self> {
        let (action, placement) = match input {
            Input::Create { request, .. } => ("Create", &request.name),
            Input::Commit { name, .. } => ("Commit", name),
            Input::Release { name, .. } => ("Release", name),
            Input::Adopt(adopt) => ("Adopt", &adopt.name),
            Input::Connected(_)
            | Input::Disconnected(_)
            | Input::Report { .. }
            | Input::Progress { .. }
            | Input::Tick => return None,
        };
        Some(Self { caller: caller.to_owned(), action, placement: placement.clone() })
    }
}

/// The records of a decision: one for whoever asked, and one for each placement that somebody must be able to account for
/// and that nobody asked about. Steps on the way are told by agents, not here.
pub fn records(now: Timestamp, asked: Option<&Asked>, decision: &Decision) -> Vec<AuditRecord> {
    let mut records = Vec::new();
    for change in &decision.changes {
        let Change::PutPlacement(placement) = change else { continue };
        match asked.filter(|asked| asked.placement == *placement.name()) {
            Some(asked) => records.push(record(now, &asked.caller, asked.action, placement)),
            None if placement.phase_since == now && counts(&placement.phase) => {
                records.push(record(now, "", "Phase", placement));
            }
            None => {}
        }
    }
    for Learned { node, placement, uid, caller, what } in &decision.learned {
        let learned = |action: &str| AuditRecord {
            at: Some(convert::timestamp(now)),
            caller: caller.clone(),
            action: action.to_owned(),
            placement: placement.to_string(),
            uid: uid.to_string(),
            node: node.to_string(),
            ..AuditRecord::default()
        };
        match what {
            Note::Forced(Forced { step, device }) => records.push(AuditRecord {
                gpus: vec![device.to_string()],
                forced: step.to_string(),
                ..learned("Forced")
            }),
            Note::RoleRemoved(role) => {
                records.push(AuditRecord { removed_role: Some(role.into()), ..learned("RoleRemoved") });
            }
            // In the history only; who adopts is a caller, and asks.
            Note::Installed(_) | Note::Adopted(_) => {}
        }
    }
    records
}

/// Whether coming into this phase gives or takes GPUs, or ends something.
fn counts(phase: &Phase) -> bool {
    match phase {
        Phase::Queued { .. }
        | Phase::Held { .. }
        | Phase::Active
        | Phase::Releasing { .. }
        | Phase::Released
        | Phase::Failed { .. } => true,
        Phase::Requested
        | Phase::Preparing { .. }
        | Phase::Attaching { .. }
        | Phase::Starting { .. }
        | Phase::Verifying { .. } => false,
    }
}

fn record(now: Timestamp, caller: &str, action: &str, placement: &Placement) -> AuditRecord {
    let assignment = placement.assignment.as_ref();
    AuditRecord {
        at: Some(convert::timestamp(now)),
        caller: caller.to_owned(),
        action: action.to_owned(),
        placement: placement.name().to_string(),
        uid: placement.uid.to_string(),
        phase: v1::Phase::from(&placement.phase).into(),
        node: assignment.map(|assignment| assignment.node.to_string()).unwrap_or_default(),
        gpus: assignment.into_iter().flat_map(|a| &a.gpus).map(|gpu| gpu.address.to_string()).collect(),
        refused: String::new(),
        forced: String::new(),
        traceparent: placement.trace.as_ref().map(ToString::to_string).unwrap_or_default(),
        removed_role: None,
    }
}

/// The record of a placement that was put into the store by hand: `Restore`, `Rebuild`.
pub(crate) fn filled(now: Timestamp, action: &str, placement: &Placement) -> AuditRecord {
    record(now, "", action, placement)
}

/// The record of a refused call.
pub(crate) fn refused(now: Timestamp, asked: &Asked, refusal: &Refusal) -> AuditRecord {
    AuditRecord {
        at: Some(convert::timestamp(now)),
        caller: asked.caller.clone(),
        action: asked.action.to_owned(),
        placement: asked.placement.to_string(),
        refused: refusal.name().to_owned(),
        ..AuditRecord::default()
    }
}
