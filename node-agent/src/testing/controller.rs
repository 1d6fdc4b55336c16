//! A controller of which a test plays the brain.

use super::soon;
use berth_model::desired::DesiredNode;
use berth_model::inventory::InventoryReport;
use berth_model::placement::{Progress, StepReport};
use berth_proto::v1;
use berth_proto::v1::agent_message::Message as Said;
use berth_proto::v1::controller_message::Message as Say;
use berth_proto::v1::node_agent_server::{NodeAgent, NodeAgentServer};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// A listening controller. Dropping it closes its port.
pub(crate) struct Controller {
    pub(crate) address: SocketAddr,
    sessions: mpsc::Receiver<Talk>,
    _server: JoinSet<()>,
}

/// One session, from the controller's side. Dropping it ends the session.
pub(crate) struct Talk {
    said: Streaming<v1::AgentMessage>,
    say: mpsc::Sender<Result<v1::ControllerMessage, Status>>,
}

struct Service(mpsc::Sender<Talk>);

#[tonic::async_trait]
impl NodeAgent for Service {
    type SessionStream = ReceiverStream<Result<v1::ControllerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (say, said_to_agent) = mpsc::channel(16);
        let talk = Talk { said: request.into_inner(), say };
        self.0.send(talk).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(said_to_agent)))
    }
}

impl Controller {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, sessions) = mpsc::channel(16);
        let mut server = JoinSet::new();
        let service = NodeAgentServer::new(Service(sender));
        server.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, sessions, _server: server }
    }

    pub(crate) fn uri(&self) -> tonic::transport::Uri {
        format!("http://{}", self.address).parse().unwrap()
    }

    /// The next session that an agent opens, with its hello.
    pub(crate) async fn session(&mut self) -> (Talk, v1::Hello) {
        let mut talk = soon("a session", self.sessions.recv()).await.unwrap();
        match talk.hear().await {
            Some(Said::Hello(hello)) => (talk, hello),
            other => panic!("{other:?} instead of a hello"),
        }
    }

    /// The next session, welcomed.
    pub(crate) async fn welcome(&mut self, term: u64) -> (Talk, v1::Hello) {
        let (talk, hello) = self.session().await;
        talk.say(Say::Welcome(v1::Welcome {
            term,
            heartbeat: Duration::from_millis(200).try_into().ok(),
            observe: Duration::from_millis(200).try_into().ok(),
            ..Default::default()
        }))
        .await;
        (talk, hello)
    }
}

impl Talk {
    pub(crate) async fn say(&self, message: Say) {
        self.say.send(Ok(v1::ControllerMessage { message: Some(message) })).await.unwrap();
    }

    pub(crate) async fn desire(&self, desired: &DesiredNode) {
        self.say(Say::Desired(desired.into())).await;
    }

    pub(crate) async fn redirect(self, leader: &str) {
        self.say(Say::Redirect(v1::Redirect { leader: leader.to_owned() })).await;
    }

    pub(crate) async fn refuse(self, status: Status) {
        self.say.send(Err(status)).await.unwrap();
    }

    /// What the agent says next; `None` at its end of the session.
    pub(crate) async fn hear(&mut self) -> Option<Said> {
        let heard = soon("a message", self.said.message()).await;
        heard.ok().flatten().map(|message| message.message.unwrap())
    }

    /// The next message that `wanted` takes. Heartbeats go on for ever, so the bound is on all of it.
    async fn until<T>(&mut self, what: &str, wanted: impl Fn(Said) -> Option<T>) -> T {
        let heard = async {
            loop {
                match self.said.message().await.unwrap_or_default() {
                    Some(message) => match wanted(message.message.unwrap()) {
                        Some(found) => return found,
                        None => continue,
                    },
                    None => panic!("the agent ended the session before {what}"),
                }
            }
        };
        soon(what, heard).await
    }

    /// The next inventory.
    pub(crate) async fn inventory(&mut self) -> InventoryReport {
        self.until("an inventory", |said| match said {
            Said::Inventory(report) => Some(report.try_into().unwrap()),
            Said::Heartbeat(_) | Said::Progress(_) | Said::Hello(_) | Said::Holdings(_) => None,
        })
        .await
    }

    /// The next holdings.
    pub(crate) async fn holdings(&mut self) -> Option<DesiredNode> {
        self.until("its holdings", |said| match said {
            Said::Holdings(v1::Holdings { desired }) => Some(desired.map(|desired| desired.try_into().unwrap())),
            Said::Heartbeat(_) | Said::Inventory(_) | Said::Progress(_) | Said::Hello(_) => None,
        })
        .await
    }

    /// The next heartbeat.
    pub(crate) async fn heartbeat(&mut self) {
        self.until("a heartbeat", |said| matches!(said, Said::Heartbeat(_)).then_some(())).await;
    }

    /// The next report about a placement that ends work on it.
    pub(crate) async fn outcome(&mut self) -> Progress {
        self.until("an outcome", |said| match said {
            Said::Progress(progress) => {
                let progress = Progress::try_from(progress).unwrap();
                match progress.report {
                    StepReport::Working { .. } => None,
                    StepReport::Satisfied | StepReport::Failed { .. } => Some(progress),
                }
            }
            Said::Heartbeat(_) | Said::Inventory(_) | Said::Hello(_) | Said::Holdings(_) => None,
        })
        .await
    }

    /// Waits until the agent has left.
    pub(crate) async fn left(mut self) {
        soon("the agent's leaving", async { while matches!(self.said.message().await, Ok(Some(_))) {} }).await;
    }
}
