//! What is measured and told of changes, beside what callers and readers hear. Decides nothing, and waits for nothing.

use crate::metrics::INSTRUMENTS;
use berth_core::decide::{Brain, Input};
use berth_core::world::{Node, World};
use berth_model::gpu::{GpuState, HostDriver};
use berth_model::placement::{FailureReason, Phase, Placement, StepError, StepKind, StepReport};
use berth_model::{GpuId, NodeName, PlacementName};
use berth_telemetry::metrics::controller::INPUT;
use berth_telemetry::metrics::fleet::{CLASS, OUTCOME, REASON, STEP};
use berth_telemetry::traces::Here;
use berth_telemetry::{KeyValue, names};
use std::collections::BTreeSet;

/// Which kind of input, as a label.
pub(super) fn kind(input: &Input) -> KeyValue {
    let kind = match input {
        Input::Create { .. } => "Create",
        Input::Commit { .. } => "Commit",
        Input::Release { .. } => "Release",
        Input::Adopt(_) => "Adopt",
        Input::Connected(_) => "Connected",
        Input::Disconnected(_) => "Disconnected",
        Input::Report { .. } => "Report",
        Input::Progress { .. } => "Progress",
        Input::Tick => "Tick",
    };
    KeyValue::new(INPUT, kind)
}

/// Takes note of an input that is about to be decided.
pub(super) fn before(brain: &Brain, input: &Input) {
    let Input::Progress { node: _, progress } = input else { return };
    let Some(placement) = brain.placement_by_uid(&progress.uid) else { return };
    let told = brain.world().live(placement.name()).and_then(|live| live.step.as_ref());
    match &progress.report {
        // An agent that comes back says again where it is.
        StepReport::Working { step, attempt, last_error: Some(error) }
            if told.is_none_or(|told| (told.step, told.attempt) != (*step, *attempt)) =>
        {
            failed(*step, error);
        }
        StepReport::Failed { step, error } if !is_undone(&placement.phase) => failed(*step, error),
        StepReport::Working { .. } | StepReport::Failed { .. } | StepReport::Satisfied => {}
    }
}

fn failed(step: StepKind, error: &StepError) {
    let about = [KeyValue::new(STEP, step.name()), KeyValue::new(CLASS, error.class.name())];
    INSTRUMENTS.steps_failed.add(1, &about);
}

/// Whether the end of it has begun already.
fn is_undone(phase: &Phase) -> bool {
    match phase {
        Phase::Releasing { .. } | Phase::Released | Phase::Failed { .. } => true,
        Phase::Requested
        | Phase::Queued { .. }
        | Phase::Held { .. }
        | Phase::Preparing { .. }
        | Phase::Attaching { .. }
        | Phase::Starting { .. }
        | Phase::Verifying { .. }
        | Phase::Active => false,
    }
}

/// Takes note of what became durable: one event for each placement that is in another phase and each GPU that is seen
/// elsewhere. Phases that a caller brought about are in the line about its call.
pub(super) fn after(before: &World, after: &World, placements: &BTreeSet<PlacementName>, nodes: &BTreeSet<NodeName>) {
    for name in placements {
        if let Some(placement) = after.placement(name) {
            let was = before.placement(name).filter(|was| was.uid == placement.uid);
            if was.is_none_or(|was| was.phase.name() != placement.phase.name()) {
                measure(was.map(AsRef::as_ref), placement);
                tell(was.map(AsRef::as_ref), placement);
            }
        }
    }
    for name in nodes {
        if let (Some(was), Some(node)) = (before.node(name), after.node(name)) {
            tell_gpus(was, node);
        }
    }
}

fn measure(was: Option<&Placement>, placement: &Placement) {
    let since = |from| placement.phase_since.since(from).as_secs_f64();
    if let Some(Placement { phase: Phase::Queued { .. }, phase_since, .. }) = was {
        let outcome = if is_undone(&placement.phase) { "given_up" } else { "placed" };
        INSTRUMENTS.queue_wait.record(since(*phase_since), &[KeyValue::new(OUTCOME, outcome)]);
    }
    if placement.phase == Phase::Active {
        INSTRUMENTS.placement_duration.record(since(placement.created), &[]);
    }
    let began_to_end = was.is_none_or(|was| !is_undone(&was.phase));
    let failed = placement.phase.failure().filter(|_| began_to_end).map(reason_name);
    let reason = failed.or((placement.phase == Phase::Released).then_some("Released"));
    if let Some(reason) = reason {
        INSTRUMENTS.placements_ended.add(1, &[KeyValue::new(REASON, reason)]);
    }
}

fn reason_name(reason: &FailureReason) -> &'static str {
    match reason {
        FailureReason::HoldExpired => "HoldExpired",
        FailureReason::QueueExpired => "QueueExpired",
        FailureReason::Step { .. } => "Step",
        FailureReason::Deadline { .. } => "Deadline",
        FailureReason::VmOnOtherNode { .. } => "VmOnOtherNode",
    }
}

fn tell(was: Option<&Placement>, placement: &Placement) {
    let error = placement.phase.failure().map(ToString::to_string);
    // Only a call brings a new placement about, and its line says so.
    let Some(was) = was else { return };
    Here::of(placement.trace.as_ref()).in_scope(|| {
        tracing::info!(
            { names::PLACEMENT } = %placement.name(),
            { names::UID } = %placement.uid,
            { names::PHASE } = placement.phase.name(),
            { names::WAS } = was.phase.name(),
            { names::NODE } = placement.assignment.as_ref().map(|assignment| assignment.node.as_str()),
            { names::VM } = placement.vm_id.as_ref().map(tracing::field::display),
            { names::TRACE_ID } = placement.trace.as_ref().map(|trace| trace.trace_id()),
            { names::ERROR } = error,
            "{}",
            names::EVENT_PHASE
        );
    });
}

/// Where a GPU is, and whose driver runs it there.
fn place(state: &GpuState) -> &'static str {
    match state {
        GpuState::Host { driver: HostDriver::Bound } => "Host",
        GpuState::Host { driver: HostDriver::None } => "Host, no driver",
        GpuState::Host { driver: HostDriver::Disabled } => "Host, disabled",
        GpuState::Pooled
        | GpuState::Attached { .. }
        | GpuState::Stale { .. }
        | GpuState::Missing
        | GpuState::Unknown => state.name(),
    }
}

fn tell_gpus(was: &Node, node: &Node) {
    for (address, gpu) in &node.gpus {
        // The first look after a start is no change.
        let Some(before) = was.gpus.get(address).filter(|before| before.observed_at.is_some()) else { continue };
        let (old, new) = (&before.observed, &gpu.observed);
        if old.state != new.state || old.health != new.health {
            tracing::info!(
                { names::GPU } = %GpuId { node: node.name.clone(), address: address.clone() },
                { names::STATE } = place(&new.state),
                { names::WAS } = place(&old.state),
                { names::HEALTH } = new.health.name(),
                { names::VM } = new.state.vm().map(tracing::field::display),
                { names::PLACEMENT } = gpu.claim.as_ref().map(tracing::field::display),
                "{}",
                names::EVENT_GPU
            );
        }
    }
}
