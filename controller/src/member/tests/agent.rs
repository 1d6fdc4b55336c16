//! An agent by hand: finds the leader as real ones do, reports a node, and is satisfied with every wish at once.

use super::channel;
use crate::testing::{hello, report};
use berth_model::desired::DesiredNode;
use berth_model::gpu::GpuState;
use berth_proto::v1::{self, agent_message, controller_message, node_agent_client::NodeAgentClient};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

/// One that runs until it is dropped.
pub(super) struct Agent {
    _tasks: JoinSet<()>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    sessions: AtomicUsize,
    redirects: AtomicUsize,
}

struct Node {
    name: String,
    gpus: usize,
    vms: Vec<(u32, String)>,
    counts: Arc<Counts>,
}

impl Agent {
    /// Starts the agent of a node with `gpus` GPUs and these VMs, which knows these controllers.
    pub(super) fn start(name: &str, controllers: &[SocketAddr], gpus: usize, vms: &[(u32, &str)]) -> Self {
        let counts = Arc::new(Counts::default());
        let vms = vms.iter().map(|(number, name)| (*number, (*name).to_owned())).collect();
        let node = Node { name: name.to_owned(), gpus, vms, counts: Arc::clone(&counts) };
        let controllers = controllers.to_vec();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut term = 0;
            for address in controllers.iter().cycle() {
                let mut next = Some(*address);
                while let Some(address) = next.take() {
                    next = node.session(address, &mut term).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { _tasks: tasks, counts }
    }

    pub(super) fn sessions(&self) -> usize {
        self.counts.sessions.load(Ordering::Relaxed)
    }

    pub(super) fn redirects(&self) -> usize {
        self.counts.redirects.load(Ordering::Relaxed)
    }
}

impl Node {
    /// One session to its end; where to go next, if that was said.
    async fn session(&self, address: SocketAddr, term: &mut u64) -> Option<SocketAddr> {
        use controller_message::Message;
        let (out, stream) = mpsc::channel(64);
        let say = |message| {
            let message = v1::AgentMessage { message: Some(message) };
            out.try_send(message).ok()
        };
        say(agent_message::Message::Hello(v1::Hello::from(&hello(&self.name))))?;
        let mut client = NodeAgentClient::new(channel(address));
        let mut inbound = client.session(ReceiverStream::new(stream)).await.ok()?.into_inner();
        let mut sequence = 0;
        let mut wish: Option<DesiredNode> = None;
        let mut beat = tokio::time::interval(Duration::from_millis(100));
        loop {
            let message = tokio::select! {
                message = inbound.message() => message.ok()??.message?,
                _ = beat.tick() => {
                    say(agent_message::Message::Heartbeat(v1::Heartbeat {}))?;
                    continue;
                }
            };
            match message {
                Message::Redirect(redirect) => {
                    self.counts.redirects.fetch_add(1, Ordering::Relaxed);
                    return redirect.leader.strip_prefix("http://")?.parse().ok();
                }
                Message::Welcome(welcome) => {
                    assert!(welcome.term >= *term, "term {} after {term}", welcome.term);
                    *term = welcome.term;
                    self.counts.sessions.fetch_add(1, Ordering::Relaxed);
                }
                Message::Desired(desired) => {
                    let desired = DesiredNode::try_from(desired).unwrap();
                    sequence += 1;
                    say(self.inventory(sequence, &desired))?;
                    for placement in &desired.placements {
                        say(agent_message::Message::Progress(v1::Progress {
                            generation: desired.generation,
                            placement_uid: placement.uid.to_string(),
                            report: Some(v1::progress::Report::Satisfied(v1::progress::Satisfied {})),
                            forced: Vec::new(),
                            install: None,
                            removed_role: None,
                        }))?;
                    }
                    wish = Some(desired);
                }
                // Only a rebuild asks for it.
                Message::TellHoldings(_) => return None,
                Message::Survey(v1::SurveyNow {}) => {
                    if let Some(wish) = &wish {
                        sequence += 1;
                        say(self.inventory(sequence, wish))?;
                    }
                }
            }
        }
    }

    /// The host as it is when every wish has come true.
    fn inventory(&self, sequence: u64, desired: &DesiredNode) -> agent_message::Message {
        use berth_model::desired::Intent;
        let vms: Vec<_> = self.vms.iter().map(|(number, name)| (*number, name.as_str())).collect();
        let mut seen = report(self.gpus, &vms);
        seen.sequence = sequence;
        for placement in desired.placements.iter().filter(|p| p.intent != Intent::Detached) {
            for gpu in &mut seen.gpus {
                if placement.gpus.iter().any(|wanted| wanted.address == gpu.address) {
                    gpu.state = GpuState::Attached { vm: placement.vm.clone() };
                }
            }
        }
        agent_message::Message::Inventory(v1::InventoryReport::from(&seen))
    }
}
