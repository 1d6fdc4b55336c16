//! A fleet and its placements as they are stored, written past any controller: what a benchmark begins with that is not
//! about how it came to be.
//!
//! Must never write what a controller would not: the controller that loads it checks every claim.

use super::hosts;
use crate::scene::legal;
use anyhow::ensure;
use berth_model::placement::{AssignedGpu, Assignment, Phase, Pin, PinReason, Placement};
use berth_model::request::{Locality, PlacementRequest, Resources, ReturnTo, VerifyLevel};
use berth_model::vm::VmSelector;
use berth_model::{PlacementUid, Timestamp, VmId, VmName};
use berth_store::{CommitError, MAX_OPERATIONS, Store as _, Transaction, Write, key, record};
use berth_store_etcd::Etcd;
use futures::{StreamExt as _, TryStreamExt as _};
use std::time::SystemTime;

/// Transactions on their way at once; etcd takes no more a second with more of them.
const IN_FLIGHT: usize = 8;

/// Writes so many hosts, and so many active placements spread evenly over them.
///
/// # Errors
/// When there are fewer GPUs than placements, or etcd does not take it.
pub(super) async fn fill(client: &Etcd, nodes: usize, placements: usize) -> anyhow::Result<()> {
    ensure!(placements <= nodes * hosts::GPUS, "{nodes} hosts have fewer than {placements} GPUs");
    let now = Timestamp::from_system(SystemTime::now());
    let mut writes: Vec<Write> = Vec::new();
    for number in 0..nodes {
        let node = hosts::stored(number, now);
        writes.push(Write::Put { key: key::node(&node.name), value: record::node(&node) });
    }
    for number in 0..placements {
        writes.extend(writes_of(&placement(number, number % nodes, number / nodes, now)));
    }
    let groups = writes.chunks(MAX_OPERATIONS).map(<[Write]>::to_vec);
    let commit = |writes| client.commit(Transaction { writes, ..Transaction::default() });
    futures::stream::iter(groups)
        .map(commit)
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|_| async { Ok::<(), CommitError>(()) })
        .await?;
    Ok(())
}

/// The placement of this number, active on one GPU of a host.
fn placement(number: usize, node: usize, slot: usize, now: Timestamp) -> Placement {
    let id = |kind: u8| format!("0000000{kind}-0000-4000-8000-{number:012x}");
    let gpu = hosts::gpus(node).into_iter().nth(slot);
    let assigned = |gpu: berth_model::gpu::ObservedGpu| AssignedGpu {
        model: gpu.survey.model.clone(),
        fingerprint: gpu.survey.fingerprint.clone(),
        mmio: gpu.survey.mmio,
        address: gpu.address,
    };
    let request = PlacementRequest {
        request_id: legal(format!("order-{number}").parse()),
        name: legal(format!("stored-{number}").parse()),
        vm: VmSelector::Name(legal(VmName::new(format!("stored-vm-{number}")))),
        gpus: 1,
        models: vec![hosts::model(node)],
        exclude_models: Vec::new(),
        min_vram_bytes: 0,
        node: None,
        exclude_nodes: Vec::new(),
        cluster: None,
        spread_group: None,
        locality: Locality::Preferred,
        resources: Resources::default(),
        hold: None,
        queue: None,
        allow_standalone: false,
        verify: VerifyLevel::None,
        return_to: ReturnTo::Host,
        install_driver: None,
    };
    Placement {
        uid: legal(PlacementUid::new(id(1))),
        request,
        caller: "cert:CN=provisioning,O=Example".to_owned(),
        trace: None,
        created: now,
        version: 1,
        phase: Phase::Active,
        phase_since: now,
        assignment: Some(Assignment {
            node: hosts::name(node),
            gpus: gpu.into_iter().map(assigned).collect(),
            pin: Pin { reason: PinReason::DeviceAssignment, since: now },
        }),
        vm_id: Some(legal(VmId::new(id(2)))),
        generation: 1,
        history: Vec::new(),
    }
}

/// Its record and its claims.
fn writes_of(placement: &Placement) -> Vec<Write> {
    let Placement { uid, request, assignment, vm_id, .. } = placement;
    let gpus = assignment.iter().flat_map(Assignment::gpu_ids).map(|gpu| key::gpu_claim(&gpu));
    let by_id = vm_id.iter().map(|id| key::vm_claim(&VmSelector::Id(id.clone())));
    let claims = gpus.chain(by_id).chain([key::vm_claim(&request.vm), key::request(&request.request_id)]);
    let claim = |key| Write::Put { key, value: record::claim(&request.name, uid) };
    let record = Write::Put { key: key::placement(&request.name), value: record::placement(placement) };
    claims.map(claim).chain([record]).collect()
}
