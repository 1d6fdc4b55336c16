//! Callers who ask for placements, take them up, read and give them back, all at once and without end.
//!
//! Owns what is asked for. Each request id is used for one request alone; who makes VMs for holds does so by hand on the
//! simulated hosts, as a provisioning system would.

use super::client::{Client, Outcome};
use super::journal::Journal;
use anyhow::Context as _;
use berth_model::VmId;
use berth_node_agent::driver::sim::{KeptHost, VmSpec};
use berth_proto::convert::duration;
use berth_proto::v1::{Phase, Placement, PlacementRequest};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long a caller waits to see a placement become what it asked for, before it goes on with something else: faults
/// last as long as they last.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// The simulated hosts by node name.
pub type Hosts = Arc<BTreeMap<String, KeptHost>>;

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many callers.
    pub callers: usize,
    /// Where chance begins.
    pub seed: u64,
    /// How long a hold waits for its VM.
    pub hold: Duration,
}

/// What callers are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Go on.
    Go,
    /// Finish the call under way, then wait.
    Hold,
    /// Finish the call under way, then end.
    Stop,
}

/// Callers at work.
#[derive(Debug)]
pub struct Load {
    order: watch::Sender<Order>,
    callers: JoinSet<()>,
    runtime: Handle,
}

impl Load {
    /// Starts callers against these endpoints. Equal seeds give callers who want the same.
    ///
    /// # Errors
    /// When an endpoint is no URL.
    pub fn start(
        runtime: &Handle,
        endpoints: &[String],
        hosts: &Hosts,
        journal: &Arc<Journal>,
        options: Options,
    ) -> anyhow::Result<Self> {
        let Options { callers, seed, hold } = options;
        let (order, orders) = watch::channel(Order::Go);
        let mut tasks = JoinSet::new();
        // Connections have tasks of their own.
        let _in_runtime = runtime.enter();
        for number in 0..callers {
            let caller = Caller {
                number,
                random: StdRng::seed_from_u64(seed.wrapping_add(1 + number as u64)),
                client: Client::new(endpoints, number, Arc::clone(journal))?,
                journal: Arc::clone(journal),
                hosts: Arc::clone(hosts),
                orders: orders.clone(),
                run: format!("{seed:x}"),
                hold,
            };
            tasks.spawn_on(caller.run(), runtime);
        }
        Ok(Self { order, callers: tasks, runtime: runtime.clone() })
    }

    /// Callers begin nothing new; what is under way is answered.
    pub fn hold(&self) {
        self.order.send_replace(Order::Hold);
    }

    /// Callers go on.
    pub fn go_on(&self) {
        self.order.send_replace(Order::Go);
    }

    /// Ends the callers, each when its call is answered.
    ///
    /// # Errors
    /// When one is not answered within `limit`, or a caller crashed.
    pub fn finish(mut self, limit: Duration) -> anyhow::Result<Duration> {
        self.order.send_replace(Order::Stop);
        let begun = Instant::now();
        self.runtime.clone().block_on(async {
            let all = async {
                while let Some(ended) = self.callers.join_next().await {
                    ended.context("a caller crashed")?;
                }
                anyhow::Ok(())
            };
            let ended = tokio::time::timeout(limit, all).await;
            ended.with_context(|| format!("not all callers are answered after {} s", limit.as_secs()))?
        })?;
        Ok(begun.elapsed())
    }
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// For a VM that is there.
    Existing,
    /// For a VM that is made on the node that is chosen; the agent sees it.
    Made,
    /// The same, and the caller says so.
    Committed,
    /// Given back before there is a VM.
    Withdrawn,
    /// Left to expire.
    Forgotten,
}

#[derive(Debug)]
struct Caller {
    number: usize,
    random: StdRng,
    client: Client,
    journal: Arc<Journal>,
    hosts: Hosts,
    orders: watch::Receiver<Order>,
    run: String,
    hold: Duration,
}

impl Caller {
    async fn run(mut self) {
        let mut count = 0;
        while self.may_go_on().await {
            count += 1;
            self.live(count).await;
        }
    }

    /// Waits while callers are to wait; false when they are to end.
    async fn may_go_on(&mut self) -> bool {
        self.orders.wait_for(|order| *order != Order::Hold).await.is_ok_and(|order| *order == Order::Go)
    }

    fn vm_id(&mut self) -> VmId {
        let bits: u128 = self.random.random();
        let hex = format!("{bits:032x}");
        let text = format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..]);
        VmId::new(text).expect("hexadecimal digits in groups are a VM's id")
    }

    /// One request from beginning to end.
    async fn live(&mut self, count: u32) {
        let plan = match self.random.random_range(0..100) {
            0..30 => Plan::Existing,
            30..55 => Plan::Made,
            55..80 => Plan::Committed,
            80..95 => Plan::Withdrawn,
            _ => Plan::Forgotten,
        };
        let name = format!("c{:02}-{count:04}", self.number);
        let vm = match plan {
            Plan::Existing => existing_vm(self.number % self.hosts.len()),
            Plan::Made | Plan::Committed | Plan::Withdrawn | Plan::Forgotten => name.clone(),
        };
        let request = PlacementRequest {
            request_id: format!("{}/{name}", self.run),
            name: name.clone(),
            vm: vm.clone(),
            gpus: self.random.random_range(1..=2),
            hold: Some(duration(self.hold)),
            ..PlacementRequest::default()
        };
        let Outcome::Done(placement, revision) = self.client.create(request).await else {
            tokio::time::sleep(LOOK).await;
            return;
        };
        self.read_back(&placement, revision).await;
        let made = match plan {
            Plan::Made | Plan::Committed => self.make_vm(&placement, &vm).await,
            Plan::Existing | Plan::Withdrawn | Plan::Forgotten => None,
        };
        if let (Plan::Committed, Some((_, id))) = (plan, &made) {
            if !self.may_go_on().await {
                return;
            }
            if let Outcome::Done(placement, revision) = self.client.commit(&name, id.as_str()).await {
                self.read_back(&placement, revision).await;
            }
        }
        if !matches!(plan, Plan::Withdrawn | Plan::Forgotten) {
            self.see(&name, |placement| placement.phase() == Phase::Active).await;
        }
        let pause = Duration::from_millis(self.random.random_range(0..400));
        tokio::time::sleep(pause).await;
        if plan == Plan::Forgotten || !self.may_go_on().await {
            return;
        }
        if let Outcome::Done(placement, revision) = self.client.release(&name, &placement.uid).await {
            self.read_back(&placement, revision).await;
        }
        if self.see(&name, |_| false).await
            && let Some((host, id)) = made
            && let Err(error) = host.ensure_no_vm(&id).await
        {
            self.journal.wrong(format!("VM {id} cannot be deleted: {error}"));
        }
    }

    /// Makes the VM of a hold, on the node it is held on.
    async fn make_vm(&mut self, placement: &Placement, vm: &str) -> Option<(KeptHost, VmId)> {
        let node = placement.assignment.as_ref()?.node.clone();
        let host = self.hosts.get(&node)?.clone();
        let id = self.vm_id();
        let made = host.ensure_vm(VmSpec::new(id.clone(), vm.parse().ok()?)).await;
        made.map_err(|error| self.journal.wrong(format!("VM {vm} cannot be made on {node}: {error}"))).ok()?;
        Some((host, id))
    }

    /// Whoever was told something finds it at every controller that shows as much.
    async fn read_back(&mut self, told: &Placement, revision: u64) {
        let name = told.request.as_ref().map_or("", |request| request.name.as_str()).to_owned();
        for _ in 0..self.random.random_range(0..3) {
            self.client.turn();
        }
        match self.client.get(&name, revision).await {
            Ok(read) if read.uid == told.uid && read.version >= told.version => {}
            Ok(read) => self.journal.wrong(format!(
                "{name} was told as {} version {} at revision {revision}, and read as {} version {}",
                told.uid, told.version, read.uid, read.version
            )),
            Err(status) => self.journal.wrong(format!("{name} was told at revision {revision}, and read as {status}")),
        }
    }

    /// Looks until a placement is as it should be, or over; false when that takes too long, or callers are to end.
    async fn see(&mut self, name: &str, is_right: impl Fn(&Placement) -> bool) -> bool {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && self.may_go_on().await {
            if let Ok(placement) = self.client.get(name, 0).await {
                let phase = placement.phase();
                let over = phase == Phase::Released || (phase == Phase::Failed && placement.undone);
                if over || is_right(&placement) {
                    return true;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        false
    }
}

/// The VM that every host has from the beginning.
#[must_use]
pub fn existing_vm(host: usize) -> String {
    format!("kept-{host:02}")
}
