//! Requests, placements and why one cannot be placed.

use super::{At, FromWire, MAX_PLANNED, enumeration, or_default, readable, text, timestamp};
use crate::v1;
use berth_model::history::{Adoption, ClusterRole, Forced, MAX_NOTES, MAX_TAGS, Note, Noted};
use berth_model::install::{Install, InstallEnd, InstallOutput};
use berth_model::placement::{
    AssignedGpu, Assignment, Condition, CurrentStep, FailureReason, Phase, Pin, PinReason, Placement, ReleaseCause,
    StepError, StepErrorClass, StepKind,
};
use berth_model::reason::{Explanation, NearestMiss, Rejection};
use berth_model::request::{
    Draft, Locality, MAX_ALTERNATIVES, MAX_GPUS_PER_REQUEST, PlacementRequest, Resources, ReturnTo, VerifyLevel,
};
use berth_model::vm::VmSelector;
use berth_model::{NodeName, PlacementName, Timestamp};
use std::time::Duration;

enumeration!(Locality, Locality, Preferred, Required);
enumeration!(VerifyLevel, VerifyLevel, None, Visible, DriverBound);
enumeration!(ReturnTo, ReturnTo, Host, Pool);
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
    v1::PlacementRequest => PlacementRequest,
    v1::CreatePlacementRequest => PlacementRequest,
    v1::PlanRequest => Vec<PlacementRequest>,
    v1::StepError => StepError,
    v1::FailureReason => FailureReason,
    v1::CurrentStep => CurrentStep,
    v1::Forced => Forced,
    v1::ClusterRole => ClusterRole,
    v1::Install => Install,
    v1::Assignment => Assignment,
    v1::Placement => Placement,
);

impl From<&PlacementRequest> for v1::PlacementRequest {
    fn from(model: &PlacementRequest) -> Self {
        let PlacementRequest {
            request_id,
            name,
            vm,
            gpus,
            models,
            exclude_models,
            min_vram_bytes,
            node,
            exclude_nodes,
            cluster,
            spread_group,
            locality,
            resources,
            hold,
            queue,
            allow_standalone,
            verify,
            return_to,
            install_driver,
        } = model;
        Self {
            request_id: request_id.to_string(),
            name: name.to_string(),
            vm: vm.to_string(),
            gpus: *gpus,
            models: models.iter().map(ToString::to_string).collect(),
            exclude_models: exclude_models.iter().map(ToString::to_string).collect(),
            min_vram_bytes: *min_vram_bytes,
            node: node.as_ref().map(ToString::to_string).unwrap_or_default(),
            exclude_nodes: exclude_nodes.iter().map(ToString::to_string).collect(),
            cluster: cluster.as_ref().map(ToString::to_string).unwrap_or_default(),
            spread_group: spread_group.as_ref().map(ToString::to_string).unwrap_or_default(),
            locality: v1::Locality::from(*locality).into(),
            resources: (*resources != Resources::default()).then(|| resources.into()),
            hold: hold.map(super::duration),
            queue: queue.map(super::duration),
            allow_standalone: *allow_standalone,
            verify: v1::VerifyLevel::from(*verify).into(),
            return_to: v1::ReturnTo::from(*return_to).into(),
            install_driver: install_driver.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl FromWire<v1::PlacementRequest> for PlacementRequest {
    fn read(wire: v1::PlacementRequest, at: At<'_>) -> Option<Self> {
        let v1::PlacementRequest {
            request_id,
            name,
            vm,
            gpus,
            models,
            exclude_models,
            min_vram_bytes,
            node,
            exclude_nodes,
            cluster,
            spread_group,
            locality,
            resources,
            hold,
            queue,
            allow_standalone,
            verify,
            return_to,
            install_driver,
        } = wire;
        // What the draft cannot express is read first; what is wrong with it counts although the draft goes on without.
        let locality = or_default(locality, at.field("locality"));
        let resources = at.field("resources").maybe::<_, Resources>(resources);
        let hold = at.field("hold").maybe::<_, Duration>(hold);
        let queue = at.field("queue").maybe::<_, Duration>(queue);
        let verify = or_default(verify, at.field("verify"));
        let return_to = or_default(return_to, at.field("return_to"));
        let draft = Draft {
            request_id,
            name,
            vm,
            gpus,
            models,
            exclude_models,
            min_vram_bytes,
            node,
            exclude_nodes,
            cluster,
            spread_group,
            locality: locality.unwrap_or_default(),
            resources: resources.flatten().unwrap_or_default(),
            hold: hold.flatten(),
            queue: queue.flatten(),
            allow_standalone,
            verify: verify.unwrap_or_default(),
            return_to: return_to.unwrap_or_default(),
            install_driver,
        };
        let request = match Self::new(draft) {
            Ok(request) => Some(request),
            Err(errors) => at.refuse_all(errors),
        };
        let complete = locality.is_some()
            && resources.is_some()
            && hold.is_some()
            && queue.is_some()
            && verify.is_some()
            && return_to.is_some();
        request.filter(|_| complete)
    }
}

impl FromWire<v1::CreatePlacementRequest> for PlacementRequest {
    fn read(wire: v1::CreatePlacementRequest, at: At<'_>) -> Option<Self> {
        at.field("request").message(wire.request)
    }
}

impl FromWire<v1::PlanRequest> for Vec<PlacementRequest> {
    fn read(wire: v1::PlanRequest, at: At<'_>) -> Option<Self> {
        at.field("requests").messages(wire.requests, MAX_PLANNED)
    }
}

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

impl From<&Adoption> for v1::Adoption {
    fn from(model: &Adoption) -> Self {
        let Adoption { owner, tags } = model;
        Self {
            owner: owner.as_ref().map(ToString::to_string).unwrap_or_default(),
            tags: tags.iter().map(ToString::to_string).collect(),
        }
    }
}

impl FromWire<v1::Adoption> for Adoption {
    fn read(wire: v1::Adoption, at: At<'_>) -> Option<Self> {
        let v1::Adoption { owner, tags } = wire;
        let owner = at.field("owner").optional(&owner);
        let tags = at.field("tags").list(tags, MAX_TAGS, |tag, at| at.parse(&tag));
        Some(Self { owner: owner?, tags: tags? })
    }
}

impl From<&Forced> for v1::Forced {
    fn from(model: &Forced) -> Self {
        let Forced { step, device } = model;
        Self { step: v1::Step::from(*step).into(), device: device.to_string() }
    }
}

impl FromWire<v1::Forced> for Forced {
    fn read(wire: v1::Forced, at: At<'_>) -> Option<Self> {
        let v1::Forced { step, device } = wire;
        let step = at.field("step").value(step);
        let device = at.field("device").parse(&device);
        Some(Self { step: step?, device: device? })
    }
}

impl From<&ClusterRole> for v1::ClusterRole {
    fn from(model: &ClusterRole) -> Self {
        let ClusterRole { name, owner, priority } = model;
        let owner = owner.as_ref().map(ToString::to_string).unwrap_or_default();
        Self { name: name.to_string(), owner, priority: *priority }
    }
}

impl FromWire<v1::ClusterRole> for ClusterRole {
    fn read(wire: v1::ClusterRole, at: At<'_>) -> Option<Self> {
        let v1::ClusterRole { name, owner, priority } = wire;
        let name = at.field("name").parse(&name);
        let owner = at.field("owner").optional(&owner);
        Some(Self { name: name?, owner: owner?, priority })
    }
}

impl From<&Install> for v1::Install {
    fn from(model: &Install) -> Self {
        let Install { command, end, output } = model;
        let end = match end {
            InstallEnd::Exited(code) => Some(v1::install::End::ExitCode(*code)),
            InstallEnd::Late(seconds) => Some(v1::install::End::LateSeconds(*seconds)),
            InstallEnd::Unknown => None,
        };
        Self { command: command.to_string(), end, output: output.as_str().to_owned() }
    }
}

impl FromWire<v1::Install> for Install {
    fn read(wire: v1::Install, at: At<'_>) -> Option<Self> {
        let v1::Install { command, end, output } = wire;
        let command = at.field("command").parse(&command);
        let end = match end {
            Some(v1::install::End::ExitCode(code)) => InstallEnd::Exited(code),
            Some(v1::install::End::LateSeconds(seconds)) => InstallEnd::Late(seconds),
            None => InstallEnd::Unknown,
        };
        let at_output = at.field("output");
        let output = InstallOutput::read(output).map_or_else(|bad| at_output.refuse(bad), Some);
        Some(Self { command: command?, end, output: output? })
    }
}

impl From<&Noted> for v1::Note {
    fn from(model: &Noted) -> Self {
        let Noted { at, what } = model;
        let sentence = text(&what.to_string());
        let what = match what {
            Note::Adopted(adoption) => v1::note::What::Adopted(adoption.into()),
            Note::Forced(forced) => v1::note::What::Forced(forced.into()),
            Note::Installed(install) => v1::note::What::Installed(install.into()),
            Note::RoleRemoved(role) => v1::note::What::RoleRemoved(role.into()),
        };
        Self { at: Some(timestamp(*at)), what: Some(what), text: sentence }
    }
}

impl FromWire<v1::Note> for Noted {
    fn read(wire: v1::Note, at: At<'_>) -> Option<Self> {
        let v1::Note { at: when, what, text: _ } = wire;
        let when = at.field("at").message(when);
        let what = match at.field("what").required(what)? {
            v1::note::What::Adopted(adoption) => Note::Adopted(FromWire::read(adoption, at.field("adopted"))?),
            v1::note::What::Forced(forced) => Note::Forced(FromWire::read(forced, at.field("forced"))?),
            v1::note::What::Installed(install) => Note::Installed(FromWire::read(install, at.field("installed"))?),
            v1::note::What::RoleRemoved(role) => Note::RoleRemoved(FromWire::read(role, at.field("role_removed"))?),
        };
        Some(Self { at: when?, what })
    }
}

/// What is to be adopted, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopt {
    /// On which node.
    pub node: NodeName,
    /// Only these VMs; empty means all that have a device.
    pub vms: Vec<VmSelector>,
    /// Only tell.
    pub dry_run: bool,
    /// What to call the one placement.
    pub name: Option<PlacementName>,
    /// What to put before the names of VMs.
    pub name_prefix: Option<PlacementName>,
    /// Whose they are.
    pub adoption: Adoption,
    /// Where GPUs go when a placement ends.
    pub return_to: ReturnTo,
}

readable!(v1::AdoptRequest => Adopt);

impl FromWire<v1::AdoptRequest> for Adopt {
    fn read(wire: v1::AdoptRequest, at: At<'_>) -> Option<Self> {
        let v1::AdoptRequest { node, vms, dry_run, name, name_prefix, owner, tags, return_to } = wire;
        let node = at.field("node").parse(&node);
        let vms: Option<Vec<VmSelector>> = at.field("vms").list(vms, MAX_ALTERNATIVES, |vm, at| at.parse(&vm));
        let at_name = at.field("name");
        let name: Option<Option<PlacementName>> = at_name.optional(&name);
        if let (Some(Some(_)), Some(vms)) = (&name, &vms)
            && vms.len() != 1
        {
            at_name.refuse::<()>("goes only with one VM; use name_prefix for several");
        }
        let name_prefix = at.field("name_prefix").optional(&name_prefix);
        let adoption = Adoption::read(v1::Adoption { owner, tags }, at);
        let return_to = or_default(return_to, at.field("return_to"));
        Some(Self {
            node: node?,
            vms: vms?,
            dry_run,
            name: name?,
            name_prefix: name_prefix?,
            adoption: adoption?,
            return_to: return_to?,
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

impl From<&(NodeName, Rejection)> for v1::NodeRejection {
    fn from((node, rejection): &(NodeName, Rejection)) -> Self {
        Self { node: node.to_string(), rule: rejection.name().to_owned(), text: rejection.to_string() }
    }
}

impl From<&NearestMiss> for v1::NearestMiss {
    fn from(model: &NearestMiss) -> Self {
        let NearestMiss { node, rejection, fixes } = model;
        Self {
            node: node.to_string(),
            rule: rejection.name().to_owned(),
            text: rejection.to_string(),
            fixes: fixes.clone(),
        }
    }
}

impl From<&Explanation> for v1::Explanation {
    fn from(model: &Explanation) -> Self {
        let Explanation { gpus, nodes, counts, rejected, nearest } = model;
        Self {
            text: model.to_string(),
            gpus: *gpus,
            nodes: *nodes,
            counts: counts
                .iter()
                .map(|(rule, nodes)| v1::RejectionCount { rule: (*rule).to_owned(), nodes: *nodes })
                .collect(),
            rejected: rejected.iter().take(Explanation::MAX_NODES).map(Into::into).collect(),
            nearest: nearest.as_ref().map(Into::into),
        }
    }
}
