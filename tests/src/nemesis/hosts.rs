//! The truth: what simulated hosts have in their VMs, whatever anybody says.

use super::history::History;
use super::journal::Journal;
use super::load::Hosts;
use berth_model::placement::Phase;
use berth_model::vm::VmState;
use berth_model::{VmId, pci::DeviceAddress};
use berth_node_agent::driver::sim::Host;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Between two looks at all hosts.
const LOOK: Duration = Duration::from_millis(200);

/// The VMs that list each GPU of a host.
fn holders(host: &Host) -> BTreeMap<DeviceAddress, Vec<VmId>> {
    let gpus = host.look().gpus.into_keys();
    gpus.map(|address| (address.clone(), host.holders(&address).cloned().collect())).collect()
}

/// Looks at all hosts again and again, for a GPU that two VMs have.
#[must_use]
pub fn watch(runtime: &Handle, hosts: &Hosts, journal: &Arc<Journal>) -> JoinSet<()> {
    let (hosts, journal) = (Arc::clone(hosts), Arc::clone(journal));
    let mut watching = JoinSet::new();
    watching.spawn_on(
        async move {
            loop {
                for (node, host) in hosts.iter() {
                    match host.by_hand(|host| holders(host)).await {
                        Ok(holders) => {
                            for (gpu, vms) in holders.iter().filter(|(_, vms)| vms.len() > 1) {
                                journal.wrong(format!("GPU {gpu} of {node} is in several VMs at once: {vms:?}"));
                            }
                        }
                        Err(error) => journal.wrong(format!("{node} cannot be looked at: {error}")),
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        },
        runtime,
    );
    watching
}

/// Compares all hosts with what is stored, once everything is at rest: whoever is active has what was claimed for it, in
/// a VM that runs; nobody else has anything.
#[must_use]
pub fn compare(hosts: &Hosts, history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut right: BTreeMap<(String, DeviceAddress), VmId> = BTreeMap::new();
    for placement in history.placements.values().filter(|placement| placement.phase == Phase::Active) {
        let (Some(assignment), Some(vm)) = (&placement.assignment, &placement.vm_id) else {
            wrong.push(format!("{} is active without GPUs or VM", placement.name()));
            continue;
        };
        for gpu in &assignment.gpus {
            right.insert((assignment.node.to_string(), gpu.address.clone()), vm.clone());
        }
    }
    for (node, host) in hosts.iter() {
        let seen = host.by_hand_now(|host| {
            let running = |vm: &VmId| host.vm(vm).is_some_and(|vm| vm.state == VmState::Running);
            let seen = holders(host).into_iter();
            seen.map(|(gpu, vms)| (gpu, vms.into_iter().map(|vm| (running(&vm), vm)).collect::<Vec<_>>()))
                .collect::<Vec<_>>()
        });
        let seen = match seen {
            Ok(seen) => seen,
            Err(error) => {
                wrong.push(format!("{node} cannot be looked at: {error}"));
                continue;
            }
        };
        for (gpu, vms) in seen {
            let owner = right.remove(&(node.clone(), gpu.clone()));
            let expected: Vec<_> = owner.into_iter().map(|vm| (true, vm)).collect();
            if vms != expected {
                wrong.push(format!("GPU {gpu} of {node} is in (running, VM) {vms:?} and should be in {expected:?}"));
            }
        }
    }
    wrong.extend(right.into_iter().map(|((node, gpu), vm)| format!("{node} has no GPU {gpu}, which {vm} has")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Book, GPU, NODE, VM, placement};
    use super::*;
    use berth_model::node::{HostFacts, Platform};
    use berth_node_agent::driver::sim::{Delays, GpuSpec, HostSpec, KeptHost, VmSpec};
    use berth_proto::v1::Phase as Wire;
    use std::path::Path;

    fn hosts(dir: &Path) -> Hosts {
        let facts = HostFacts {
            platform: Platform::Simulated,
            system: "test".into(),
            cluster: None,
            cpu_milli: 1,
            memory_bytes: 1,
            mmio_high_cap_bytes: None,
            notes: Vec::new(),
        };
        let gpus = vec![GpuSpec::of(&"A16".parse().unwrap(), GPU.parse().unwrap())];
        let vms = vec![VmSpec { state: VmState::Running, ..VmSpec::new(VM.parse().unwrap(), "a".parse().unwrap()) }];
        let spec = HostSpec { node: NODE.parse().unwrap(), facts, gpus, vms };
        let host = KeptHost::open(spec, Delays::default(), dir).unwrap();
        Arc::new([(NODE.to_owned(), host)].into())
    }

    #[tokio::test]
    async fn whoever_is_active_has_its_gpu_and_nobody_else_has() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = hosts(dir.path());
        let book = Book::led().await;
        let nobody = book.history().await;
        book.put(&placement("a", 1, Wire::Active)).await;
        let active = book.history().await;
        assert_eq!(compare(&hosts, &nobody), Vec::<String>::new());
        assert!(compare(&hosts, &active)[0].contains("should be in [(true"), "the host does not have it");
        let given = hosts[NODE].by_hand_now(|host| {
            host.stop_vm(&VM.parse().unwrap())?;
            host.assign_by_hand(&VM.parse().unwrap(), &GPU.parse().unwrap())
        });
        given.unwrap().unwrap();
        assert!(compare(&hosts, &active)[0].contains("(false"), "its VM does not run");
        assert!(compare(&hosts, &nobody)[0].contains("should be in []"), "nobody should have it");
    }
}
