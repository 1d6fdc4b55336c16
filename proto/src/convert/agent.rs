//! What controller and agents tell one another.

use super::{At, FromWire, enumeration, readable, text};
use crate::v1;
use berth_model::desired::{DesiredGpu, DesiredNode, DesiredPlacement, Intent};
use berth_model::history::MAX_NOTES;
use berth_model::inventory::{Hello, InventoryReport, Listing, MAX_GPUS_PER_NODE, MAX_VMS_PER_NODE};
use berth_model::node::BootId;
use berth_model::placement::{Progress, StepReport};
use berth_model::request::MAX_GPUS_PER_REQUEST;

enumeration!(Intent, Intent, Attached, Kept, Detached);
readable!(
    v1::Hello => Hello,
    v1::InventoryReport => InventoryReport,
    v1::Progress => Progress,
    v1::DesiredNode => DesiredNode,
);

impl From<&Hello> for v1::Hello {
    fn from(model: &Hello) -> Self {
        let Hello {
            node,
            agent_version,
            protocol,
            boot,
            facts,
            ledger_term,
            ledger_generation,
            ledger_fleet,
            ledger_placements,
        } = model;
        Self {
            node: node.to_string(),
            agent_version: text(agent_version),
            protocol: *protocol,
            boot_id: boot.to_string(),
            facts: Some(facts.into()),
            ledger_term: *ledger_term,
            ledger_generation: *ledger_generation,
            ledger_fleet: ledger_fleet.as_ref().map(ToString::to_string).unwrap_or_default(),
            ledger_placements: *ledger_placements,
        }
    }
}

impl FromWire<v1::Hello> for Hello {
    fn read(wire: v1::Hello, at: At<'_>) -> Option<Self> {
        let v1::Hello {
            node,
            agent_version,
            protocol,
            boot_id,
            facts,
            ledger_term,
            ledger_generation,
            ledger_fleet,
            ledger_placements,
        } = wire;
        let node = at.field("node").parse(&node);
        let agent_version = at.field("agent_version").text(agent_version);
        let boot = match BootId::new(&boot_id) {
            Ok(boot) => Some(boot),
            Err(problem) => at.field("boot_id").refuse(problem),
        };
        let facts = at.field("facts").message(facts);
        let ledger_fleet = at.field("ledger_fleet").optional(&ledger_fleet);
        Some(Self {
            node: node?,
            agent_version: agent_version?,
            protocol,
            boot: boot?,
            facts: facts?,
            ledger_term,
            ledger_generation,
            ledger_fleet: ledger_fleet?,
            ledger_placements,
        })
    }
}

impl From<&InventoryReport> for v1::InventoryReport {
    fn from(model: &InventoryReport) -> Self {
        let InventoryReport { sequence, full, listing, gpus, vms, vms_gone } = model;
        let failed = match listing {
            Listing::Complete => String::new(),
            // An empty text would say that the listing was complete.
            Listing::Failed { why } if why.is_empty() => "the listing failed and did not say why".to_owned(),
            Listing::Failed { why } => text(why),
        };
        Self {
            sequence: *sequence,
            full: *full,
            failed,
            gpus: gpus.iter().map(Into::into).collect(),
            vms: vms.iter().map(Into::into).collect(),
            vms_gone: vms_gone.iter().map(ToString::to_string).collect(),
        }
    }
}

impl FromWire<v1::InventoryReport> for InventoryReport {
    fn read(wire: v1::InventoryReport, at: At<'_>) -> Option<Self> {
        let v1::InventoryReport { sequence, full, failed, gpus, vms, vms_gone } = wire;
        let failed = at.field("failed").text(failed);
        let (at_gpus, at_vms) = (at.field("gpus"), at.field("vms"));
        let gpus = at_gpus.messages::<_, berth_model::gpu::ObservedGpu>(gpus, MAX_GPUS_PER_NODE);
        let vms = at_vms.messages::<_, berth_model::vm::ObservedVm>(vms, MAX_VMS_PER_NODE);
        let vms_gone = at.field("vms_gone").list(vms_gone, MAX_VMS_PER_NODE, |id, at| at.parse(&id));
        let gpus_once = gpus.as_ref().and_then(|gpus| at_gpus.distinct("address", gpus, |gpu| gpu.address.clone()));
        let vms_once = vms.as_ref().and_then(|vms| at_vms.distinct("id", vms, |vm| vm.id.clone()));
        gpus_once.and(vms_once)?;
        Some(Self {
            sequence,
            full,
            listing: match failed? {
                why if why.is_empty() => Listing::Complete,
                why => Listing::Failed { why },
            },
            gpus: gpus?,
            vms: vms?,
            vms_gone: vms_gone?,
        })
    }
}

impl From<&Progress> for v1::Progress {
    fn from(model: &Progress) -> Self {
        use v1::progress::{Failed, Report, Satisfied, Working};
        let Progress { generation, uid, report, forced, install, removed_role } = model;
        let report = match report {
            StepReport::Working { step, attempt, last_error } => Report::Working(Working {
                step: v1::Step::from(*step).into(),
                attempt: *attempt,
                last_error: last_error.as_ref().map(Into::into),
            }),
            StepReport::Satisfied => Report::Satisfied(Satisfied {}),
            StepReport::Failed { step, error } => {
                Report::Failed(Failed { step: v1::Step::from(*step).into(), error: Some(error.into()) })
            }
        };
        Self {
            generation: *generation,
            placement_uid: uid.to_string(),
            report: Some(report),
            forced: forced.iter().map(Into::into).collect(),
            install: install.as_ref().map(Into::into),
            removed_role: removed_role.as_ref().map(Into::into),
        }
    }
}

impl FromWire<v1::Progress> for Progress {
    fn read(wire: v1::Progress, at: At<'_>) -> Option<Self> {
        let v1::Progress { generation, placement_uid, report, forced, install, removed_role } = wire;
        let uid = at.field("placement_uid").parse(&placement_uid);
        let report = at.field("report").required(report).and_then(|report| read_report(report, at));
        let forced = at.field("forced").messages(forced, MAX_NOTES);
        let install = at.field("install").maybe(install);
        let removed_role = at.field("removed_role").maybe(removed_role);
        Some(Self {
            generation,
            uid: uid?,
            report: report?,
            forced: forced?,
            install: install?,
            removed_role: removed_role?,
        })
    }
}

fn read_report(report: v1::progress::Report, at: At<'_>) -> Option<StepReport> {
    use v1::progress::{Failed, Report, Satisfied, Working};
    match report {
        Report::Working(Working { step, attempt, last_error }) => {
            let at = at.field("working");
            let step = at.field("step").value(step);
            let attempt = at.field("attempt").demand(attempt > 0, "counts from 1").map(|()| attempt);
            let last_error = at.field("last_error").maybe(last_error);
            Some(StepReport::Working { step: step?, attempt: attempt?, last_error: last_error? })
        }
        Report::Satisfied(Satisfied {}) => Some(StepReport::Satisfied),
        Report::Failed(Failed { step, error }) => {
            let at = at.field("failed");
            let step = at.field("step").value(step);
            let error = at.field("error").message(error);
            Some(StepReport::Failed { step: step?, error: error? })
        }
    }
}

impl From<&DesiredGpu> for v1::DesiredGpu {
    fn from(model: &DesiredGpu) -> Self {
        let DesiredGpu { address, fingerprint, mmio } = model;
        Self { address: address.to_string(), fingerprint: Some(fingerprint.into()), mmio: Some(mmio.into()) }
    }
}

impl FromWire<v1::DesiredGpu> for DesiredGpu {
    fn read(wire: v1::DesiredGpu, at: At<'_>) -> Option<Self> {
        let v1::DesiredGpu { address, fingerprint, mmio } = wire;
        let address = at.field("address").parse(&address);
        let fingerprint = at.field("fingerprint").message(fingerprint);
        let mmio = at.field("mmio").message(mmio);
        Some(Self { address: address?, fingerprint: fingerprint?, mmio: mmio? })
    }
}

impl From<&DesiredPlacement> for v1::DesiredPlacement {
    fn from(model: &DesiredPlacement) -> Self {
        let DesiredPlacement {
            uid,
            name,
            vm,
            gpus,
            intent,
            allow_standalone,
            verify,
            return_to,
            install_driver,
            trace,
        } = model;
        Self {
            uid: uid.to_string(),
            name: name.to_string(),
            vm_id: vm.to_string(),
            gpus: gpus.iter().map(Into::into).collect(),
            intent: v1::Intent::from(*intent).into(),
            allow_standalone: *allow_standalone,
            verify: v1::VerifyLevel::from(*verify).into(),
            return_to: v1::ReturnTo::from(*return_to).into(),
            traceparent: trace.as_ref().map(ToString::to_string).unwrap_or_default(),
            install_driver: install_driver.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl FromWire<v1::DesiredPlacement> for DesiredPlacement {
    fn read(wire: v1::DesiredPlacement, at: At<'_>) -> Option<Self> {
        let v1::DesiredPlacement {
            uid,
            name,
            vm_id,
            gpus,
            intent,
            allow_standalone,
            verify,
            return_to,
            traceparent,
            install_driver,
        } = wire;
        let uid = at.field("uid").parse(&uid);
        let name = at.field("name").parse(&name);
        let vm = at.field("vm_id").parse(&vm_id);
        let at_gpus = at.field("gpus");
        // A placement without GPUs would be an order about nothing; the agent must not guess what it means.
        let gpus: Option<Vec<DesiredGpu>> = at_gpus
            .demand(!gpus.is_empty(), "are missing: a placement has at least one")
            .and_then(|()| at_gpus.messages(gpus, MAX_GPUS_PER_REQUEST as usize));
        // Said by the controller, never by a person: here nothing may be left to a default.
        let intent = at.field("intent").value(intent);
        let verify = at.field("verify").value(verify);
        let return_to = at.field("return_to").value(return_to);
        let trace = at.field("traceparent").optional(&traceparent);
        let install_driver = at.field("install_driver").optional(&install_driver);
        Some(Self {
            uid: uid?,
            name: name?,
            vm: vm?,
            gpus: gpus?,
            intent: intent?,
            allow_standalone,
            verify: verify?,
            return_to: return_to?,
            install_driver: install_driver?,
            trace: trace?,
        })
    }
}

impl From<&DesiredNode> for v1::DesiredNode {
    fn from(model: &DesiredNode) -> Self {
        let DesiredNode { term, generation, fleet, placements } = model;
        Self {
            term: *term,
            generation: *generation,
            placements: placements.iter().map(Into::into).collect(),
            fleet: fleet.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl FromWire<v1::DesiredNode> for DesiredNode {
    fn read(wire: v1::DesiredNode, at: At<'_>) -> Option<Self> {
        let v1::DesiredNode { term, generation, placements, fleet } = wire;
        let fleet = at.field("fleet").optional(&fleet);
        let at_placements = at.field("placements");
        // Every placement owns at least one GPU of the node.
        let placements: Option<Vec<DesiredPlacement>> = at_placements.messages(placements, MAX_GPUS_PER_NODE);
        if let Some(placements) = &placements {
            at_placements.distinct("uid", placements, |p| p.uid.clone());
            one_owner(placements, at_placements);
        }
        Some(Self { term, generation, fleet: fleet?, placements: placements? })
    }
}

/// Refuses a GPU that two placements name: obeying both would take it from one VM for the other.
fn one_owner(placements: &[DesiredPlacement], at: At<'_>) {
    let mut owners = std::collections::BTreeMap::new();
    for (index, placement) in placements.iter().enumerate() {
        for (gpu, desired) in placement.gpus.iter().enumerate() {
            if let Some(other) = owners.insert(&desired.address, &placement.uid) {
                let item = at.item(index);
                let gpus = item.field("gpus");
                gpus.item(gpu)
                    .field("address")
                    .refuse::<()>(format_args!("{} belongs to placement {other} already", desired.address));
            }
        }
    }
}
