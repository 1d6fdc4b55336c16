//! Plays the provisioning system of `berth dev`: creates the VM of a hold on the node that was chosen, commits the
//! placement, and deletes the VM when the placement is over.
//!
//! Works through the public API alone, as Terraform or a script would. Its VMs carry ids made of node and name: so it
//! knows them again after a restart, and never touches a VM it did not make. Levels, not edges: a placement that is held
//! or being prepared needs its VM, one that is over does not.

use super::Hosts;
use crate::client::Client;
use crate::command::list;
use crate::error::{Error, Unsure};
use berth_model::id::VmName;
use berth_model::reason::ErrorClass;
use berth_model::vm::VmSelector;
use berth_model::{NodeName, VmId};
use berth_node_agent::driver::sim::{KeptError, VmSpec};
use berth_proto::v1;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long one call may take: longer than a controller's restart, shorter than any hold.
pub(super) const DEADLINE: Duration = Duration::from_secs(15);
/// Placements worked on at once: enough for commits to be grouped, few enough for one process.
const AT_ONCE: usize = 64;
/// Pause before watching begins again.
const AGAIN: Duration = Duration::from_millis(500);

/// Works until stopped. What fails is tried again when watching begins again; a hold nobody takes up expires.
pub(super) async fn run(client: Client, hosts: Hosts, stop: CancellationToken) {
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = pass(&client, &hosts) => ended,
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "provisioning was interrupted, beginning again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// One stream's worth of work. First the stream, then the list: what ends in between is in one of them.
async fn pass(client: &Client, hosts: &Hosts) -> Result<(), Error> {
    let request = v1::WatchPlacementsRequest { after_revision: 0, name: String::new() };
    let broken = |status: &tonic::Status| crate::client::broken(status, client.endpoint());
    let mut stream = client.placements().watch(request).await.map_err(|status| broken(&status))?.into_inner();
    let (ended, live): (Vec<_>, Vec<_>) =
        list::placements(client, v1::ListPlacementsRequest::default()).await?.items.into_iter().partition(over);
    // A name may have been used again: what is over goes first, so that nothing live loses its VM.
    for placement in ended.into_iter().chain(live) {
        handle(client.clone(), Arc::clone(hosts), placement).await;
    }
    let mut at_work = AtWork::default();
    loop {
        tokio::select! {
            biased;
            () = at_work.one(), if !at_work.jobs.is_empty() => {}
            change = stream.message() => match change {
                Ok(Some(v1::PlacementChange { placement: Some(placement), revision: _ })) => {
                    if matters(&placement) {
                        at_work.add(client, hosts, placement).await;
                    }
                }
                Ok(Some(v1::PlacementChange { placement: None, revision: _ })) => {}
                Ok(None) => return Ok(()),
                Err(status) => return Err(broken(&status)),
            }
        }
    }
}

fn over(placement: &v1::Placement) -> bool {
    match placement.phase() {
        v1::Phase::Released => true,
        v1::Phase::Failed => placement.undone,
        v1::Phase::Unspecified
        | v1::Phase::Queued
        | v1::Phase::Held
        | v1::Phase::Preparing
        | v1::Phase::Attaching
        | v1::Phase::Starting
        | v1::Phase::Verifying
        | v1::Phase::Active
        | v1::Phase::Releasing => false,
    }
}

fn matters(placement: &v1::Placement) -> bool {
    matches!(placement.phase(), v1::Phase::Held | v1::Phase::Preparing) || over(placement)
}

/// Jobs under way, never two for one VM name: changes to a VM happen in the order of what asks for them.
#[derive(Default)]
struct AtWork {
    jobs: FuturesUnordered<BoxFuture<'static, String>>,
    names: BTreeSet<String>,
}

impl AtWork {
    async fn one(&mut self) {
        if let Some(name) = self.jobs.next().await {
            self.names.remove(&name);
        }
    }

    async fn add(&mut self, client: &Client, hosts: &Hosts, placement: v1::Placement) {
        let name = placement.request.as_ref().map(|r| r.vm.to_lowercase()).unwrap_or_default();
        while self.jobs.len() >= AT_ONCE || self.names.contains(&name) {
            self.one().await;
        }
        self.names.insert(name.clone());
        let (client, hosts) = (client.clone(), Arc::clone(hosts));
        self.jobs.push(Box::pin(async move {
            handle(client, hosts, placement).await;
            name
        }));
    }
}

/// The id of the VM made on a node under a name; names of VMs differ by more than case.
fn vm_id(node: &NodeName, vm: &VmName) -> Option<VmId> {
    let text = format!("berth dev {node}/{}", vm.as_str().to_lowercase());
    VmId::new(uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes()).to_string()).ok()
}

async fn handle(client: Client, hosts: Hosts, placement: v1::Placement) {
    let request = placement.request.clone().unwrap_or_default();
    let node = placement.assignment.as_ref().and_then(|a| a.node.parse::<NodeName>().ok());
    // A VM named by id exists already, or it could not have been placed.
    let Ok(VmSelector::Name(vm)) = request.vm.parse() else { return };
    let Some(node) = node else { return };
    let (Some(host), Some(id)) = (hosts.get(&node), vm_id(&node, &vm)) else { return };
    let ours = placement.vm_id == id.as_str();
    let done = if over(&placement) {
        host.ensure_no_vm(&id).await.map_err(lost)
    } else if placement.phase() == v1::Phase::Held && placement.vm_id.is_empty() {
        match host.ensure_vm(VmSpec::new(id.clone(), vm)).await {
            Ok(()) => commit(&client, &request.name, &id).await,
            Err(e) => Err(lost(e)),
        }
    } else if matches!(placement.phase(), v1::Phase::Held | v1::Phase::Preparing) && ours {
        // Its name was used before, and the agent has not seen yet that this VM went with that placement.
        host.ensure_vm(VmSpec::new(id, vm)).await.map_err(lost)
    } else {
        Ok(())
    };
    if let Err(error) = done {
        tracing::warn!(placement = request.name, %error, "provisioning failed");
    }
}

fn lost(error: KeptError) -> Error {
    Error::Dev(format!("a simulated host cannot be worked on: {:#}", anyhow::Error::new(error)))
}

async fn commit(client: &Client, name: &str, id: &VmId) -> Result<(), Error> {
    let commit = v1::CommitPlacementRequest { name: name.to_owned(), vm_id: id.to_string(), version: 0 };
    let unsure = Unsure::ReadBack { name: name.to_owned() };
    let call = |r| {
        let mut api = client.placements();
        async move { api.commit(r).await }
    };
    match client.write_once(commit, unsure, call).await {
        Ok(_) => Ok(()),
        // The agent saw the VM first, or the hold is over: both are told by the next change.
        Err(Error::Refused(problem))
            if matches!(problem.class, ErrorClass::FailedPrecondition | ErrorClass::NotFound) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}
