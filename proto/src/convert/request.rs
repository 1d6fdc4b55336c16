//! Requests, and why one cannot be placed.

use super::{At, FromWire, MAX_PLANNED, enumeration, or_default, readable};
use crate::v1;
use berth_model::history::Adoption;
use berth_model::reason::{Explanation, NearestMiss, Rejection};
use berth_model::request::{Draft, Locality, MAX_ALTERNATIVES, PlacementRequest, Resources, ReturnTo, VerifyLevel};
use berth_model::vm::VmSelector;
use berth_model::{NodeName, PlacementName};
use std::time::Duration;

enumeration!(Locality, Locality, Preferred, Required);
enumeration!(VerifyLevel, VerifyLevel, None, Visible, DriverBound);
enumeration!(ReturnTo, ReturnTo, Host, Pool);
readable!(
    v1::PlacementRequest => PlacementRequest,
    v1::CreatePlacementRequest => PlacementRequest,
    v1::PlanRequest => Vec<PlacementRequest>,
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
