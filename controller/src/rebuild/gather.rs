//! Listens to agents: who they are, what they see, what they hold. Decides nothing and sends no wish.

use crate::identity::Caller;
use berth_core::decide::MAX_GENERATION_LEAP;
use berth_model::NodeName;
use berth_model::desired::DesiredNode;
use berth_model::inventory::{Hello, InventoryReport, Listing};
use berth_proto::convert::duration;
use berth_proto::v1::node_agent_server::{NodeAgent, NodeAgentServer};
use berth_proto::v1::{self, agent_message, controller_message};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

/// Nodes that are listened to: twice the largest fleet designed for.
const MAX_NODES: usize = 20_000;
/// How long an agent may take for its first message.
const GREETING: Duration = Duration::from_secs(10);
/// Messages on their way to an agent: a welcome and a question.
const OUTGOING: usize = 2;

/// What one agent told.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) hello: Hello,
    /// What it holds, once told; nothing if it never accepted anything.
    pub(super) holdings: Option<Option<DesiredNode>>,
    /// The last complete view of its host, in full.
    pub(super) report: Option<InventoryReport>,
}

impl Heard {
    /// Whether it told all that can be told.
    pub(super) fn is_complete(&self) -> bool {
        self.holdings.is_some() && self.report.is_some()
    }
}

/// The service that agents dial.
#[derive(Clone)]
pub(super) struct Gatherer {
    /// By node; the newest session of each.
    heard: Arc<watch::Sender<BTreeMap<NodeName, Heard>>>,
    heartbeat: Duration,
    observe: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Gatherer {
    pub(super) fn new(heartbeat: Duration, observe: Duration) -> Self {
        let (heard, _) = watch::channel(BTreeMap::new());
        Self { heard: Arc::new(heard), heartbeat, observe, tasks: TaskTracker::new(), stop: CancellationToken::new() }
    }

    pub(super) fn router(&self) -> axum::Router {
        let service = NodeAgentServer::new(self.clone()).max_decoding_message_size(crate::api::MAX_REQUEST_BYTES);
        tonic::service::Routes::new(service).prepare().into_axum_router()
    }

    /// Ends every session; agents look for a controller then.
    pub(super) fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
    }

    /// Waits, then gives what was heard, in order of node. Ends early when so many `nodes` have told everything.
    pub(super) async fn wait(&self, wait: Duration, nodes: Option<usize>) -> Vec<Heard> {
        let mut heard = self.heard.subscribe();
        let all_there = |heard: &BTreeMap<NodeName, Heard>| {
            let complete = heard.values().filter(|heard| heard.is_complete()).count();
            nodes.is_some_and(|nodes| complete >= nodes && complete == heard.len())
        };
        let all = tokio::time::timeout(wait, heard.wait_for(all_there)).await.is_ok();
        tracing::debug!(all, "done listening");
        self.heard.borrow().values().cloned().collect()
    }

    fn note(&self, node: &NodeName, change: impl FnOnce(&mut Heard)) {
        self.heard.send_modify(|heard| {
            if let Some(heard) = heard.get_mut(node) {
                change(heard);
            }
        });
    }

    async fn listen(self, caller: Caller, mut inbound: Streaming<v1::AgentMessage>, out: Out) {
        let ended = tokio::select! {
            () = self.stop.cancelled() => Err(Status::unavailable("the rebuild has ended; connect again")),
            ended = self.converse(&caller, &mut inbound, &out) => ended,
        };
        if let Err(status) = ended {
            // An agent that does not listen any more needs no closing word.
            let _unheard = out.try_send(Err(status));
        }
    }

    async fn converse(
        &self,
        caller: &Caller,
        inbound: &mut Streaming<v1::AgentMessage>,
        out: &Out,
    ) -> Result<(), Status> {
        let first = match tokio::time::timeout(GREETING, inbound.message()).await {
            Ok(first) => first?.and_then(|first| first.message),
            Err(_) => return Err(Status::deadline_exceeded(format!("no Hello within {} s", GREETING.as_secs()))),
        };
        let Some(agent_message::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message of a session must be Hello"));
        };
        crate::agents::check_protocol(&hello)?;
        let bad = |invalid| Status::invalid_argument(format!("{invalid}"));
        let hello = Hello::try_from(hello).map_err(bad)?;
        let node = hello.node.clone();
        caller.may_speak_for(&node)?;
        // Its own term: a lower one it would not listen to, and there is no leadership that this could be mistaken for.
        let welcome = v1::Welcome {
            term: hello.ledger_term,
            heartbeat: Some(duration(self.heartbeat)),
            observe: Some(duration(self.observe)),
            stranger: String::new(),
        };
        self.admit(hello)?;
        for message in [
            controller_message::Message::Welcome(welcome),
            controller_message::Message::TellHoldings(v1::TellHoldings {}),
        ] {
            let sent = out.send(Ok(v1::ControllerMessage { message: Some(message) })).await;
            sent.map_err(|_| Status::cancelled("the agent went away"))?;
        }
        while let Some(message) = inbound.message().await? {
            match message.message {
                Some(agent_message::Message::Holdings(v1::Holdings { desired })) => {
                    let desired = desired.map(DesiredNode::try_from).transpose().map_err(bad)?;
                    self.note(&node, |heard| heard.holdings = Some(desired));
                }
                Some(agent_message::Message::Inventory(report)) => {
                    let report = InventoryReport::try_from(report).map_err(bad)?;
                    // What changes meanwhile is reported to the controller that follows.
                    if report.full && report.listing == Listing::Complete {
                        self.note(&node, |heard| heard.report = Some(report));
                    }
                }
                Some(
                    agent_message::Message::Heartbeat(_)
                    | agent_message::Message::Progress(_)
                    | agent_message::Message::Hello(_),
                )
                | None => {}
            }
        }
        Ok(())
    }

    fn admit(&self, hello: Hello) -> Result<(), Status> {
        let damaged =
            hello.ledger_generation > u64::MAX - MAX_GENERATION_LEAP || hello.ledger_term > berth_store::term::HIGHEST;
        if damaged {
            return Err(Status::failed_precondition("the agent's ledger has numbers that cannot be: look at the host"));
        }
        let mut admitted = true;
        self.heard.send_modify(|heard| {
            admitted = heard.len() < MAX_NODES || heard.contains_key(&hello.node);
            if admitted {
                heard.insert(hello.node.clone(), Heard { hello, holdings: None, report: None });
            }
        });
        if admitted { Ok(()) } else { Err(Status::resource_exhausted(format!("{MAX_NODES} nodes are the limit"))) }
    }
}

type Out = mpsc::Sender<Result<v1::ControllerMessage, Status>>;

#[tonic::async_trait]
impl NodeAgent for Gatherer {
    type SessionStream = ReceiverStream<Result<v1::ControllerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = Caller::of(&request).ok_or_else(|| Status::internal("it is not known who calls"))?;
        caller.may_be_agent()?;
        let (out, stream) = mpsc::channel(OUTGOING);
        self.tasks.spawn(self.clone().listen(caller, request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
