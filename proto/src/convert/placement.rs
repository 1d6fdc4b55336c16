//! Placements: where they are, how far, and why they failed.

use super::{At, FromWire, enumeration, readable, text, timestamp};
use crate::v1;
use berth_model::Timestamp;
use berth_model::history::MAX_NOTES;
use berth_model::placement::{
    AssignedGpu, Assignment, Condition, CurrentStep, FailureReason, Phase, Pin, PinReason, Placement, ReleaseCause,
    StepError, StepErrorClass, StepKind,
};
use berth_model::request::MAX_GPUS_PER_REQUEST;

enumeration!(
    Step,
    StepKind,
    Check,
    MakeStandalone,
    StopVm,
    ConfigureVm,
    Disable,
    Dismount,
    Attach,
    StartVm,
    Verify,
    InstallDriver,
    Detach,
    Mount,
    Enable,
    RestoreVm
);
enumeration!(StepErrorClass, StepErrorClass, Failed, TimedOut, NoEffect, Forbidden, NotThere);
enumeration!(PinReason, PinReason, DeviceAssignment);
readable!(
    v1::StepError => StepError,
    v1::FailureReason => FailureReason,
    v1::CurrentStep => CurrentStep,
    v1::Assignment => Assignment,
    v1::Placement => Placement,
);

impl From<&StepError> for v1::StepError {
    fn from(model: &StepError) -> Self {
        Self { class: v1::StepErrorClass::from(model.class).into(), text: text(&model.text) }
    }
}

impl FromWire<v1::StepError> for StepError {
    fn read(wire: v1::StepError, at: At<'_>) -> Option<Self> {
        let class = at.field("class").value(wire.class);
        let text = at.field("text").text(wire.text);
        Some(Self { class: class?, text: text? })
    }
}

impl From<&FailureReason> for v1::FailureReason {
    fn from(model: &FailureReason) -> Self {
        use v1::failure_reason::{DeadlinePassed, HoldExpired, QueueExpired, Reason, StepFailed, VmOnOtherNode};
        let reason = match model {
            FailureReason::HoldExpired => Reason::HoldExpired(HoldExpired {}),
            FailureReason::QueueExpired => Reason::QueueExpired(QueueExpired {}),
            FailureReason::Step { step, error } => {
                Reason::Step(StepFailed { step: v1::Step::from(*step).into(), error: Some(error.into()) })
            }
            FailureReason::Deadline { phase, step, last_error } => Reason::Deadline(DeadlinePassed {
                phase: text(phase),
                step: step.map_or(v1::Step::Unspecified, v1::Step::from).into(),
                last_error: last_error.as_ref().map(Into::into),
            }),
            FailureReason::VmOnOtherNode { node } => Reason::VmOnOtherNode(VmOnOtherNode { node: node.to_string() }),
        };
        Self { reason: Some(reason), text: text(&model.to_string()) }
    }
}

impl FromWire<v1::FailureReason> for FailureReason {
    fn read(wire: v1::FailureReason, at: At<'_>) -> Option<Self> {
        use v1::failure_reason::{DeadlinePassed, HoldExpired, QueueExpired, Reason, StepFailed, VmOnOtherNode};
        match at.field("reason").required(wire.reason)? {
            Reason::HoldExpired(HoldExpired {}) => Some(Self::HoldExpired),
            Reason::QueueExpired(QueueExpired {}) => Some(Self::QueueExpired),
            Reason::Step(StepFailed { step, error }) => {
                let at = at.field("step");
                let step = at.field("step").value(step);
                let error = at.field("error").message(error);
                Some(Self::Step { step: step?, error: error? })
            }
            Reason::Deadline(DeadlinePassed { phase, step, last_error }) => {
                let at = at.field("deadline");
                let phase = at.field("phase").text(phase);
                let step = if step == 0 { Some(None) } else { at.field("step").value(step).map(Some) };
                let last_error = at.field("last_error").maybe(last_error);
                Some(Self::Deadline { phase: phase?, step: step?, last_error: last_error? })
            }
            Reason::VmOnOtherNode(VmOnOtherNode { node }) => {
                Some(Self::VmOnOtherNode { node: at.field("vm_on_other_node").field("node").parse(&node)? })
            }
        }
    }
}

impl From<&CurrentStep> for v1::CurrentStep {
    fn from(model: &CurrentStep) -> Self {
        let CurrentStep { step, attempt, last_error } = model;
        Self { step: v1::Step::from(*step).into(), attempt: *attempt, last_error: last_error.as_ref().map(Into::into) }
    }
}

impl FromWire<v1::CurrentStep> for CurrentStep {
    fn read(wire: v1::CurrentStep, at: At<'_>) -> Option<Self> {
        let v1::CurrentStep { step, attempt, last_error } = wire;
        let step = at.field("step").value(step);
        let attempt = at.field("attempt").demand(attempt > 0, "counts from 1").map(|()| attempt);
        let last_error = at.field("last_error").maybe(last_error);
        Some(Self { step: step?, attempt: attempt?, last_error: last_error? })
    }
}

impl From<&AssignedGpu> for v1::AssignedGpu {
    fn from(model: &AssignedGpu) -> Self {
        let AssignedGpu { address, model, fingerprint, mmio } = model;
        Self {
            address: address.to_string(),
            model: model.to_string(),
            fingerprint: Some(fingerprint.into()),
            mmio: Some(mmio.into()),
        }
    }
}

impl FromWire<v1::AssignedGpu> for AssignedGpu {
    fn read(wire: v1::AssignedGpu, at: At<'_>) -> Option<Self> {
        let v1::AssignedGpu { address, model, fingerprint, mmio } = wire;
        let address = at.field("address").parse(&address);
        let model = at.field("model").parse(&model);
        let fingerprint = at.field("fingerprint").message(fingerprint);
        let mmio = at.field("mmio").message(mmio);
        Some(Self { address: address?, model: model?, fingerprint: fingerprint?, mmio: mmio? })
    }
}

impl From<&Pin> for v1::Pin {
    fn from(model: &Pin) -> Self {
        let Pin { reason, since } = *model;
        Self { reason: v1::PinReason::from(reason).into(), since: Some(timestamp(since)) }
    }
}

impl FromWire<v1::Pin> for Pin {
    fn read(wire: v1::Pin, at: At<'_>) -> Option<Self> {
        let reason = at.field("reason").value(wire.reason);
        let since = at.field("since").message(wire.since);
        Some(Self { reason: reason?, since: since? })
    }
}

impl From<&Assignment> for v1::Assignment {
    fn from(model: &Assignment) -> Self {
        let Assignment { node, gpus, pin } = model;
        Self { node: node.to_string(), gpus: gpus.iter().map(Into::into).collect(), pin: Some(pin.into()) }
    }
}

impl FromWire<v1::Assignment> for Assignment {
    fn read(wire: v1::Assignment, at: At<'_>) -> Option<Self> {
        let v1::Assignment { node, gpus, pin } = wire;
        let node = at.field("node").parse(&node);
        let at_gpus = at.field("gpus");
        let gpus: Option<Vec<AssignedGpu>> = at_gpus
            .demand(!gpus.is_empty(), "are missing: an assignment has at least one")
            .and_then(|()| at_gpus.messages(gpus, MAX_GPUS_PER_REQUEST as usize));
        let distinct = gpus.as_ref().and_then(|gpus| at_gpus.distinct("address", gpus, |gpu| gpu.address.clone()));
        let pin = at.field("pin").message(pin);
        distinct?;
        Some(Self { node: node?, gpus: gpus?, pin: pin? })
    }
}

impl From<&Phase> for v1::Phase {
    /// [`Phase::Requested`] never leaves the controller; it has no value of its own on the wire.
    fn from(model: &Phase) -> Self {
        match model {
            Phase::Requested => Self::Unspecified,
            Phase::Queued { .. } => Self::Queued,
            Phase::Held { .. } => Self::Held,
            Phase::Preparing { .. } => Self::Preparing,
            Phase::Attaching { .. } => Self::Attaching,
            Phase::Starting { .. } => Self::Starting,
            Phase::Verifying { .. } => Self::Verifying,
            Phase::Active => Self::Active,
            Phase::Releasing { .. } => Self::Releasing,
            Phase::Released => Self::Released,
            Phase::Failed { .. } => Self::Failed,
        }
    }
}

/// The fields of a placement that make up its phase.
struct WirePhase {
    phase: i32,
    deadline: Option<prost_types::Timestamp>,
    failure: Option<v1::FailureReason>,
    undone: bool,
}

impl FromWire<WirePhase> for Phase {
    fn read(wire: WirePhase, at: At<'_>) -> Option<Self> {
        let WirePhase { phase, deadline, failure, undone } = wire;
        let kind = match v1::Phase::try_from(phase) {
            Ok(kind) => kind,
            Err(_) => return at.field("phase").refuse(format_args!("{phase} is no Phase")),
        };
        let until = match kind {
            v1::Phase::Queued
            | v1::Phase::Held
            | v1::Phase::Preparing
            | v1::Phase::Attaching
            | v1::Phase::Starting
            | v1::Phase::Verifying
            | v1::Phase::Releasing => at.field("deadline").message::<_, Timestamp>(deadline).map(Some),
            v1::Phase::Active | v1::Phase::Released | v1::Phase::Failed => at
                .field("deadline")
                .absent(deadline.is_none(), "goes only with a phase that ends by itself")
                .map(|()| None),
            v1::Phase::Unspecified => return at.field("phase").refuse("is missing"),
        };
        let at_failure = at.field("failure");
        let failure = match kind {
            v1::Phase::Failed => at_failure.message::<_, FailureReason>(failure).map(Some),
            v1::Phase::Releasing => at_failure.maybe(failure),
            v1::Phase::Unspecified
            | v1::Phase::Queued
            | v1::Phase::Held
            | v1::Phase::Preparing
            | v1::Phase::Attaching
            | v1::Phase::Starting
            | v1::Phase::Verifying
            | v1::Phase::Active
            | v1::Phase::Released => {
                at_failure.absent(failure.is_none(), "goes only with PHASE_RELEASING and PHASE_FAILED").map(|()| None)
            }
        };
        at.field("undone").absent(!undone || kind == v1::Phase::Failed, "goes only with PHASE_FAILED")?;
        let (until, failure) = (until?, failure?);
        match kind {
            v1::Phase::Unspecified => None,
            v1::Phase::Queued => Some(Self::Queued { until: until? }),
            v1::Phase::Held => Some(Self::Held { until: until? }),
            v1::Phase::Preparing => Some(Self::Preparing { until: until? }),
            v1::Phase::Attaching => Some(Self::Attaching { until: until? }),
            v1::Phase::Starting => Some(Self::Starting { until: until? }),
            v1::Phase::Verifying => Some(Self::Verifying { until: until? }),
            v1::Phase::Active => Some(Self::Active),
            v1::Phase::Releasing => Some(Self::Releasing {
                cause: failure.map_or(ReleaseCause::Asked, ReleaseCause::Failure),
                until: until?,
            }),
            v1::Phase::Released => Some(Self::Released),
            v1::Phase::Failed => Some(Self::Failed { reason: failure?, undone }),
        }
    }
}

impl From<&Placement> for v1::Placement {
    /// Without conditions and current step: those are observed, and the API adds them.
    fn from(model: &Placement) -> Self {
        let Placement {
            uid,
            request,
            caller,
            trace,
            created,
            version,
            phase,
            phase_since,
            assignment,
            vm_id,
            generation,
            history,
        } = model;
        let failure = phase.failure().map(Into::into);
        let undone = matches!(phase, Phase::Failed { undone: true, .. });
        Self {
            uid: uid.to_string(),
            request: Some(request.into()),
            caller: text(caller),
            traceparent: trace.as_ref().map(ToString::to_string).unwrap_or_default(),
            created: Some(timestamp(*created)),
            version: *version,
            phase: v1::Phase::from(phase).into(),
            phase_since: Some(timestamp(*phase_since)),
            deadline: phase.deadline().map(timestamp),
            assignment: assignment.as_ref().map(Into::into),
            vm_id: vm_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            failure,
            undone,
            conditions: Vec::new(),
            current_step: None,
            generation: *generation,
            history: history.iter().map(Into::into).collect(),
        }
    }
}

impl FromWire<v1::Placement> for Placement {
    fn read(wire: v1::Placement, at: At<'_>) -> Option<Self> {
        let v1::Placement {
            uid,
            request,
            caller,
            traceparent,
            created,
            version,
            phase,
            phase_since,
            deadline,
            assignment,
            vm_id,
            failure,
            undone,
            // Observed, not part of the placement itself.
            conditions: _,
            current_step: _,
            generation,
            history,
        } = wire;
        let uid = at.field("uid").parse(&uid);
        let request = at.field("request").message(request);
        let caller = at.field("caller").text(caller);
        let trace = at.field("traceparent").optional(&traceparent);
        let created = at.field("created").message(created);
        let phase = Phase::read(WirePhase { phase, deadline, failure, undone }, at);
        let phase_since = at.field("phase_since").message(phase_since);
        let assignment = at.field("assignment").maybe(assignment);
        let vm_id = at.field("vm_id").optional(&vm_id);
        let history = at.field("history").messages(history, MAX_NOTES);
        Some(Self {
            uid: uid?,
            request: request?,
            caller: caller?,
            trace: trace?,
            created: created?,
            version,
            phase: phase?,
            phase_since: phase_since?,
            assignment: assignment?,
            vm_id: vm_id?,
            generation,
            history: history?,
        })
    }
}

impl From<&Condition> for v1::Condition {
    fn from(model: &Condition) -> Self {
        let text = match model {
            Condition::NodeLost { .. } => "its node has not been heard of; it keeps its GPUs".to_owned(),
            Condition::Drifted { what, .. } => what.to_string(),
            Condition::Stuck { what, .. } => what.clone(),
        };
        Self { r#type: model.name().to_owned(), since: Some(timestamp(model.since())), text }
    }
}
