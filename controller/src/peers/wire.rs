//! Observations ↔ the wire. What comes in is checked like everything from outside, although a controller says it.

use berth_core::mirror::{SeenGpu, SeenNode, Unstored};
use berth_core::world::{Gpu, Link, Live, Node, View, World};
use berth_model::gpu::{Fingerprint, ObservedGpu};
use berth_model::node::{BootId, HostFacts};
use berth_model::placement::{CurrentStep, Drift};
use berth_model::request::FieldError;
use berth_model::vm::ObservedVm;
use berth_model::{NodeName, PlacementName, Timestamp, VmId};
use berth_proto::convert::{Invalid, read, read_timestamp, timestamp};
use berth_proto::v1::{self, drift::What};
use std::collections::BTreeMap;
use std::fmt::Display;

/// A node as the leader sees it.
pub(super) fn node(node: &Node) -> v1::NodeObservation {
    let (connected, since) = match node.link {
        Link::Connected { since } => (true, since),
        // A leader hears of every node itself.
        Link::Disconnected { since } | Link::Unheard { since } => (false, since),
    };
    let (view, view_failed) = match &node.view {
        View::NotReported => (v1::NodeView::NotReported, String::new()),
        View::Complete => (v1::NodeView::Complete, String::new()),
        View::Failed { why } => (v1::NodeView::Failed, why.clone()),
        View::Stranger { why } => (v1::NodeView::Stranger, why.clone()),
    };
    let unstored = node.version == 0;
    let gpu = |gpu: &Gpu| v1::GpuObservation {
        observed: Some((&gpu.observed).into()),
        observed_at: gpu.observed_at.map(timestamp),
        since: gpu.since.map(timestamp),
    };
    v1::NodeObservation {
        node: node.name.to_string(),
        connected,
        since: Some(timestamp(since)),
        view: view.into(),
        view_failed,
        boot_id: node.boot.as_ref().map(ToString::to_string).unwrap_or_default(),
        gpus: node.gpus.values().map(gpu).collect(),
        vms: node.vms.values().map(Into::into).collect(),
        facts: unstored.then(|| (&node.facts).into()),
        agent_version: if unstored { node.agent_version.clone() } else { String::new() },
        first_seen: unstored.then(|| timestamp(node.first_seen)),
        stale: node.stale_since.iter().map(stale).collect(),
    }
}

fn stale((vm, since): (&VmId, &Timestamp)) -> v1::StaleRecords {
    v1::StaleRecords { vm_id: vm.to_string(), since: Some(timestamp(*since)) }
}

/// What an agent last said about a placement, if anything.
pub(super) fn placement(world: &World, name: &PlacementName) -> v1::PlacementObservation {
    let live = world.live(name);
    v1::PlacementObservation {
        placement: name.to_string(),
        step: live.and_then(|live| live.step.as_ref()).map(Into::into),
        drift: live.and_then(|live| live.drift.as_ref()).map(|(since, what)| drift(*since, what)),
    }
}

fn drift(since: Timestamp, what: &Drift) -> v1::Drift {
    use v1::drift::{InOtherVm, NotAttached, OtherCard, VmClustered, VmGone};
    let what = match what {
        Drift::VmGone => What::VmGone(VmGone {}),
        Drift::VmClustered => What::VmClustered(VmClustered {}),
        Drift::NotAttached { address, seen } => {
            What::NotAttached(NotAttached { address: address.to_string(), seen: seen.clone() })
        }
        Drift::InOtherVm { address, vm } => {
            What::InOtherVm(InOtherVm { address: address.to_string(), vm_id: vm.to_string() })
        }
        Drift::WrongCard { address, found } => {
            What::OtherCard(OtherCard { address: address.to_string(), found: Some(found.into()) })
        }
    };
    v1::Drift { since: Some(timestamp(since)), what: Some(what) }
}

/// A node as it was told.
pub(super) fn read_node(wire: v1::NodeObservation) -> Result<SeenNode, Invalid> {
    let v1::NodeObservation {
        node,
        connected,
        since,
        view,
        view_failed,
        boot_id,
        gpus,
        vms,
        facts,
        agent_version,
        first_seen,
        stale,
    } = wire;
    let name: NodeName = read(|at| at.field("node").parse(&node))?;
    let since = read_timestamp(present("since", since)?)?;
    let why = || read(|at| at.field("view_failed").text(view_failed));
    let view = match v1::NodeView::try_from(view) {
        Ok(v1::NodeView::NotReported) => View::NotReported,
        Ok(v1::NodeView::Complete) => View::Complete,
        Ok(v1::NodeView::Failed) => View::Failed { why: why()? },
        Ok(v1::NodeView::Stranger) => View::Stranger { why: why()? },
        Ok(v1::NodeView::Unspecified) | Err(_) => return Err(invalid("view", format_args!("{view} is no NodeView"))),
    };
    let boot = if boot_id.is_empty() { None } else { Some(BootId::new(&boot_id).map_err(|e| invalid("boot_id", e))?) };
    let mut seen_gpus = BTreeMap::new();
    for v1::GpuObservation { observed, observed_at, since } in gpus {
        let observed = ObservedGpu::try_from(present("gpus.observed", observed)?)?;
        let (at, since) = (observed_at.map(read_timestamp).transpose()?, since.map(read_timestamp).transpose()?);
        seen_gpus.insert(observed.address.clone(), SeenGpu { observed, at, since });
    }
    let mut seen_vms = BTreeMap::new();
    for vm in vms {
        let vm = ObservedVm::try_from(vm)?;
        seen_vms.insert(vm.id.clone(), vm);
    }
    let mut stale_since = BTreeMap::new();
    for v1::StaleRecords { vm_id, since } in stale {
        let vm: VmId = read(|at| at.field("stale.vm_id").parse(&vm_id))?;
        stale_since.insert(vm, read_timestamp(present("stale.since", since)?)?);
    }
    let link = if connected { Link::Connected { since } } else { Link::Disconnected { since } };
    let agent_version = read(|at| at.field("agent_version").text(agent_version))?;
    let unstored = match facts {
        None => None,
        Some(facts) => Some(Unstored {
            facts: HostFacts::try_from(facts)?,
            agent_version,
            first_seen: read_timestamp(present("first_seen", first_seen)?)?,
        }),
    };
    Ok(SeenNode { name, link, view, boot, gpus: seen_gpus, vms: seen_vms, stale_since, unstored })
}

/// What was told about a placement.
pub(super) fn read_placement(wire: v1::PlacementObservation) -> Result<(PlacementName, Live), Invalid> {
    let v1::PlacementObservation { placement, step, drift } = wire;
    let name = read(|at| at.field("placement").parse(&placement))?;
    let step = step.map(CurrentStep::try_from).transpose()?;
    Ok((name, Live { step, drift: drift.map(read_drift).transpose()? }))
}

fn read_drift(wire: v1::Drift) -> Result<(Timestamp, Drift), Invalid> {
    use v1::drift::{InOtherVm, NotAttached, OtherCard, VmClustered, VmGone};
    let v1::Drift { since, what } = wire;
    let address = |text: &str| read(|at| at.field("drift.address").parse(text));
    let what = match present("drift.what", what)? {
        What::VmGone(VmGone {}) => Drift::VmGone,
        What::VmClustered(VmClustered {}) => Drift::VmClustered,
        What::NotAttached(NotAttached { address: at, seen }) => Drift::NotAttached { address: address(&at)?, seen },
        What::InOtherVm(InOtherVm { address: at, vm_id }) => {
            Drift::InOtherVm { address: address(&at)?, vm: read(|at| at.field("drift.vm_id").parse(&vm_id))? }
        }
        What::OtherCard(OtherCard { address: at, found }) => {
            Drift::WrongCard { address: address(&at)?, found: Fingerprint::try_from(present("drift.found", found)?)? }
        }
    };
    Ok((read_timestamp(present("drift.since", since)?)?, what))
}

/// When an agent was heard of.
pub(super) fn read_heard(wire: v1::Heard) -> Result<(NodeName, Timestamp), Invalid> {
    let v1::Heard { node, at: heard } = wire;
    Ok((read(|at| at.field("heard.node").parse(&node))?, read_timestamp(present("heard.at", heard)?)?))
}

fn present<T>(field: &str, value: Option<T>) -> Result<T, Invalid> {
    value.ok_or_else(|| invalid(field, "is missing"))
}

fn invalid(field: &str, problem: impl Display) -> Invalid {
    Invalid(vec![FieldError::new(field, problem)])
}
