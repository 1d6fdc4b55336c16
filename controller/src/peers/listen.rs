//! The follower's side: a stream from whoever leads, opened again whenever it ends.

use super::wire;
use crate::standing::Known;
use berth_core::mirror::SeenNode;
use berth_core::world::Live;
use berth_model::{NodeName, PlacementName, Timestamp};
use berth_proto::convert::Invalid;
use berth_proto::v1::{self, peers_client::PeersClient};
use berth_telemetry::names;
use berth_tls::client;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

/// Messages that wait to be taken in; the rest waits at the leader, as names.
const WAITING: usize = 4;
/// How long a connection may take: a leader that is there answers in milliseconds.
const CONNECT: Duration = Duration::from_secs(2);
/// How often a quiet connection is probed, and how long the answer may take: a leader whose machine lost power says
/// nothing, and what it told must not pass for fresh much longer.
const PROBE: Duration = Duration::from_secs(2);
/// Pause before the stream is opened again: a new leader needs some hundred milliseconds to load its world.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause. A leader that is there and tells nothing leaves this follower's view not fresh.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Largest message: 50 nodes with 1,024 VMs each are some MiB.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What is heard of the leader.
#[derive(Debug)]
pub(crate) enum News {
    /// The leader tells.
    Told(Box<Observed>),
    /// It is not heard any more.
    Lost,
}

/// One message, read.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) term: u64,
    pub(crate) revision: u64,
    pub(crate) nodes: Vec<SeenNode>,
    pub(crate) placements: Vec<(PlacementName, Live)>,
    pub(crate) complete: bool,
    pub(crate) heard: Vec<(NodeName, Timestamp)>,
}

impl TryFrom<v1::Observations> for Observed {
    type Error = Invalid;
    fn try_from(wire: v1::Observations) -> Result<Self, Invalid> {
        let v1::Observations { term, revision, nodes, placements, complete, heard } = wire;
        Ok(Self {
            term,
            revision,
            nodes: nodes.into_iter().map(wire::read_node).collect::<Result<_, _>>()?,
            placements: placements.into_iter().map(wire::read_placement).collect::<Result<_, _>>()?,
            complete,
            heard: heard.into_iter().map(wire::read_heard).collect::<Result<_, _>>()?,
        })
    }
}

/// The way to other controllers: in plain text, or by TLS with this controller's certificate. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Way {
    tls: Option<client::Files>,
}

/// A connection to another controller, with what finds out why it does not come about. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) channel: Channel,
    tls: Option<client::Connector>,
}

impl Peer {
    /// Why it did not come about, where that lies in TLS: it changes only when somebody changes a file.
    pub(crate) fn refused(&self) -> Option<String> {
        self.tls.as_ref()?.failure()
    }
}

/// Why there is no way to a controller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoWay {
    /// The leader record holds no URL.
    #[error("the leader's endpoint {0:?} is no URL")]
    NoUrl(String),
    /// It is reached by TLS, and this one has no files for it.
    #[error("the leader's endpoint {0} is https://, and this controller has no [tls] configured")]
    NoTls(String),
}

impl Way {
    /// A way that uses these files for `https://`.
    pub(crate) fn new(tls: Option<client::Files>) -> Self {
        Self { tls }
    }

    /// A connection to another controller; it comes about with the first call.
    ///
    /// # Errors
    /// [`NoWay`].
    pub(crate) fn to(&self, endpoint: &str) -> Result<Peer, NoWay> {
        let no_url = || NoWay::NoUrl(endpoint.to_owned());
        let uri: Uri = endpoint.parse().map_err(|_| no_url())?;
        let prepare = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(PROBE)
                .keep_alive_timeout(PROBE)
                .keep_alive_while_idle(true)
        };
        match (uri.scheme_str(), &self.tls) {
            (Some("http"), _) => Ok(Peer { channel: prepare(Endpoint::from(uri)).connect_lazy(), tls: None }),
            (Some("https"), Some(files)) => {
                let address = client::transport(&uri).map_err(|_| no_url())?;
                let endpoint = prepare(Endpoint::from(address).origin(uri));
                let connector = client::Connector::new(files.clone());
                Ok(Peer { channel: endpoint.connect_with_connector_lazy(connector.clone()), tls: Some(connector) })
            }
            (Some("https"), None) => Err(NoWay::NoTls(endpoint.to_owned())),
            (Some(_) | None, _) => Err(no_url()),
        }
    }
}

/// Listens to one leader at a time.
#[derive(Debug)]
pub(crate) struct Listener {
    way: Way,
    tasks: JoinSet<()>,
    leader: Option<Known>,
    news: mpsc::Receiver<News>,
}

impl Listener {
    /// Listens to nobody yet.
    pub(crate) fn new(way: Way) -> Self {
        let (_, news) = mpsc::channel(1);
        Self { way, tasks: JoinSet::new(), leader: None, news }
    }

    /// Listens to this leader from now on; nothing more comes from another one. True when it is another one.
    pub(crate) fn turn_to(&mut self, leader: Option<Known>) -> bool {
        if self.leader == leader {
            return false;
        }
        self.tasks = JoinSet::new();
        let (sender, news) = mpsc::channel(WAITING);
        self.news = news;
        self.leader.clone_from(&leader);
        if let Some(Known { endpoint, term: _ }) = leader {
            self.tasks.spawn(listen(self.way.clone(), endpoint, sender));
        }
        true
    }

    /// Waits for the next news; forever while there is nobody to listen to. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }
}

async fn listen(way: Way, endpoint: String, news: mpsc::Sender<News>) {
    let mut pause = PAUSE;
    let mut refused = None;
    loop {
        let mut told = false;
        let end = hear(&way, &endpoint, &news, &mut told).await;
        // A leader that goes is nothing to look at; certificates that do not fit are, once.
        let denied = matches!(end.code(), Code::PermissionDenied | Code::Unauthenticated);
        if denied && refused.as_deref() != Some(end.message()) {
            tracing::warn!(
                { names::ENDPOINT } = endpoint,
                { names::ERROR } = end.message(),
                "the leader cannot be followed"
            );
            refused = Some(end.message().to_owned());
        } else {
            tracing::debug!(
                { names::ENDPOINT } = endpoint,
                { names::ERROR } = end.message(),
                "the leader is not heard"
            );
        }
        if news.send(News::Lost).await.is_err() {
            return;
        }
        pause = if told { PAUSE } else { pause.saturating_mul(2).min(LONGEST_PAUSE) };
        tokio::time::sleep(pause).await;
    }
}

/// Passes on what the leader tells, until that ends.
async fn hear(way: &Way, endpoint: &str, news: &mpsc::Sender<News>, told: &mut bool) -> Status {
    let peer = match way.to(endpoint) {
        Ok(peer) => peer,
        Err(error) => return Status::unauthenticated(error.to_string()),
    };
    let mut client = PeersClient::new(peer.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut stream = match client.follow(v1::FollowRequest {}).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return peer.refused().map_or(status, Status::unauthenticated),
    };
    loop {
        let observed = match stream.message().await {
            Ok(Some(message)) => Observed::try_from(message),
            Ok(None) => return Status::unavailable("the leader ended the stream"),
            Err(status) => return status,
        };
        match observed {
            Ok(observed) => {
                *told = true;
                if news.send(News::Told(Box::new(observed))).await.is_err() {
                    return Status::cancelled("nobody listens any more");
                }
            }
            Err(invalid) => {
                tracing::warn!({ names::ENDPOINT } = endpoint, { names::ERROR } = %invalid, "the leader tells what makes no sense");
                return Status::internal(invalid.to_string());
            }
        }
    }
}
