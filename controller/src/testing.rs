//! What several tests of this crate need: a store that fails on demand, and a small fleet's words.

use crate::leader::{Outbox, SessionId};
use async_trait::async_trait;
use berth_core::decide::Input;
use berth_model::desired::DesiredNode;
use berth_model::gpu::{Fingerprint, GpuHealth, GpuState, HostDriver, MmioSize, ObservedGpu, Survey, Verdict};
use berth_model::inventory::{Hello, InventoryReport, Listing};
use berth_model::node::{BootId, HostFacts, Platform};
use berth_model::request::{Draft, PlacementRequest};
use berth_model::vm::{ObservedVm, VmState};
use berth_model::{ModelName, NodeName, PlacementUid, VmId, VmName};
use berth_store::memory::Memory;
use berth_store::{CommitError, Error, KeyValue, Leadership, Page, Revision, Store, Transaction, Watch};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How one commit goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is written, and the writer is told so.
    Before,
    /// Everything is written, and the answer is lost.
    After,
    /// Nothing is written, and the answer is lost.
    Lost,
    /// There is no room.
    Full,
}

/// A store in memory whose commits wait for permits and fail as scripted.
pub(crate) struct Scripted {
    inner: Memory,
    /// One permit per commit that may begin; many by default.
    pub(crate) gate: Semaphore,
    pub(crate) faults: Mutex<VecDeque<Fault>>,
    /// Transactions in the order they arrived, and whether they are under way still.
    pub(crate) seen: Mutex<Vec<Transaction>>,
    /// Whether campaigns and reads fail.
    pub(crate) away: std::sync::atomic::AtomicBool,
}

impl Scripted {
    pub(crate) fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: Memory::new(),
            gate: Semaphore::new(permits),
            faults: Mutex::default(),
            seen: Mutex::default(),
            away: false.into(),
        })
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.faults.lock().unwrap().push_back(fault);
    }

    pub(crate) fn transactions(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn there(&self) -> Result<(), Error> {
        if self.away.load(std::sync::atomic::Ordering::SeqCst) {
            Err(Error::Unavailable("it is away".into()))
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl Store for Scripted {
    fn kind(&self) -> &'static str {
        "scripted"
    }
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.there()?;
        self.inner.get(key).await
    }
    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Page, Error> {
        self.there()?;
        self.inner.range(prefix, after, at, limit).await
    }
    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        self.seen.lock().unwrap().push(transaction.clone());
        self.gate.acquire().await.unwrap().forget();
        let fault = self.faults.lock().unwrap().pop_front();
        match fault {
            None => self.inner.commit(transaction).await,
            Some(Fault::Before) => Err(CommitError::Unavailable("scripted".into())),
            Some(Fault::Full) => Err(CommitError::Full("scripted".into())),
            Some(Fault::Lost) => Err(CommitError::Unknown("scripted".into())),
            Some(Fault::After) => {
                self.inner.commit(transaction).await?;
                Err(CommitError::Unknown("scripted".into()))
            }
        }
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        self.inner.watch(prefix, from).await
    }
    async fn campaign(&self, candidate: &str) -> Result<Leadership, Error> {
        self.there()?;
        self.inner.campaign(candidate).await
    }
}

/// An outbox that remembers.
#[derive(Default)]
pub(crate) struct Remembering {
    pub(crate) sent: Mutex<Vec<(NodeName, DesiredNode)>>,
    pub(crate) looks: std::sync::atomic::AtomicUsize,
    /// Nodes whose agents were asked alone.
    pub(crate) looked_at: Mutex<Vec<NodeName>>,
}

impl Remembering {
    /// The last desired state of each node.
    pub(crate) fn last(&self) -> BTreeMap<NodeName, DesiredNode> {
        self.sent.lock().unwrap().iter().cloned().collect()
    }
}

impl Outbox for Remembering {
    fn send(&self, node: &NodeName, desired: DesiredNode) {
        self.sent.lock().unwrap().push((node.clone(), desired));
    }
    fn look_again(&self) {
        self.looks.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
    fn look_again_at(&self, node: &NodeName) {
        self.looked_at.lock().unwrap().push(node.clone());
    }
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(std::time::Instant::now() < end, "after 20 s it still was not so: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn session(number: u64) -> SessionId {
    SessionId(number)
}

pub(crate) fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

pub(crate) fn hello(name: &str) -> Hello {
    Hello {
        node: node(name),
        agent_version: "0.1.0".into(),
        protocol: berth_proto::AGENT_PROTOCOL,
        boot: BootId::new("boot-1").unwrap(),
        facts: HostFacts {
            platform: Platform::Simulated,
            system: "test".into(),
            cluster: None,
            cpu_milli: 64_000,
            memory_bytes: 256 << 30,
            mmio_high_cap_bytes: None,
            notes: Vec::new(),
        },
        ledger_term: 0,
        ledger_generation: 0,
        ledger_fleet: None,
        ledger_placements: Some(0),
    }
}

/// A full report of a node with GPUs in the host's hands and VMs that are off.
pub(crate) fn report(gpus: usize, vms: &[(u32, &str)]) -> InventoryReport {
    InventoryReport {
        sequence: 1,
        full: true,
        listing: Listing::Complete,
        gpus: (0..gpus).map(gpu).collect(),
        vms: vms.iter().map(|(number, name)| vm(*number, name)).collect(),
        vms_gone: vec![],
    }
}

fn gpu(slot: usize) -> ObservedGpu {
    ObservedGpu {
        address: format!("PCIROOT({slot})#PCI(0000)").parse().unwrap(),
        survey: Survey {
            model: ModelName::new("A2").unwrap(),
            fingerprint: Fingerprint { id: "10de:25b6:10de:157e".parse().unwrap(), serial: None },
            vram_bytes: Some(16 << 30),
            mmio: MmioSize { low_bytes: 16 << 20, high_bytes: 16 << 30 },
            numa_node: Some(0),
            companions: vec![],
            verdict: Verdict::Assignable,
        },
        state: GpuState::Host { driver: HostDriver::None },
        health: GpuHealth::Ok,
        problem: None,
    }
}

fn vm(number: u32, name: &str) -> ObservedVm {
    ObservedVm {
        id: VmId::new(format!("00000000-0000-0000-0000-{number:012}")).unwrap(),
        name: VmName::new(name).unwrap(),
        state: VmState::Off,
        clustered: false,
        devices: vec![],
    }
}

pub(crate) fn uid(number: u32) -> PlacementUid {
    PlacementUid::new(format!("10000000-0000-0000-0000-{number:012}")).unwrap()
}

pub(crate) fn request(name: &str, gpus: u32) -> PlacementRequest {
    let (request_id, vm) = (format!("r-{name}"), format!("vm-{name}"));
    PlacementRequest::new(Draft { request_id, name: name.into(), vm, gpus, ..Draft::default() }).unwrap()
}

pub(crate) fn create(number: u32, name: &str) -> Input {
    Input::Create { request: Box::new(request(name, 1)), uid: uid(number), caller: "test".into(), trace: None }
}
