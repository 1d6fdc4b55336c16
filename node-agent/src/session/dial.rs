//! One attempt to get a session: connect, say hello, hear welcome or where the leader is.

use super::End;
use crate::config::{self, Config};
use crate::link::Host;
use crate::tls::Way;
use berth_agent_core::ledger::Ledger;
use berth_model::inventory::Hello;
use berth_proto::v1::agent_message::Message as Say;
use berth_proto::v1::controller_message::Message as Hear;
use berth_proto::v1::node_agent_client::NodeAgentClient;
use berth_proto::{AGENT_PROTOCOL, convert, v1};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Uri;
use tonic::{Code, Status as Answer, Streaming};

/// How long connecting may take: a host that is up answers in milliseconds, one that is down must not hold up the next
/// in the list.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long the controller may take for its first word. A new leader gets thousands of agents at once, and writes down
/// those it does not know.
const WELCOME_LIMIT: Duration = Duration::from_secs(15);
/// How often an idle connection is probed. A controller whose machine lost power says nothing; this finds out.
const PROBE: Duration = Duration::from_secs(5);
/// How long the answer to a probe may take: a busy leader may pause for seconds.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// Messages on their way out. Few: what waits is decided again when there is room.
const QUEUE: usize = 4;
/// Bounds on the intervals a controller may ask for: below, an agent would do nothing else; above, it would look dead.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);

/// An open session.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: mpsc::Sender<v1::AgentMessage>,
    pub(super) receiver: Streaming<v1::ControllerMessage>,
}

/// What a Welcome says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) term: u64,
    pub(super) heartbeat: Duration,
    pub(super) observe: Duration,
    /// Why no desired state will come.
    pub(super) stranger: Option<String>,
}

/// The agent's first words.
pub(super) fn hello(config: &Config, host: Host, ledger: &Ledger) -> Hello {
    let Host { facts, boot } = host;
    Hello {
        node: config.node.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: AGENT_PROTOCOL,
        boot,
        facts,
        ledger_term: ledger.term,
        ledger_generation: ledger.generation(),
        ledger_fleet: ledger.fleet().cloned(),
        ledger_placements: Some(ledger.placements()),
    }
}

/// Opens a session, or says why there is none.
pub(super) async fn dial(config: &Config, endpoint: &Uri, hello: &Hello) -> Result<(Connection, Greeting), End> {
    let dialled = timeout(WELCOME_LIMIT, async {
        let way = connect(config, endpoint).await?;
        // What ends a session before its welcome is often the refusal of the certificate.
        greet(&way, hello).await.map_err(|end| way.refused().map_or(end, End::Lost))
    });
    match dialled.await {
        Ok(result) => result,
        Err(_) => Err(End::Lost(format!("no welcome within {} s", WELCOME_LIMIT.as_secs()))),
    }
}

async fn connect(config: &Config, endpoint: &Uri) -> Result<Way, End> {
    let prepare = |endpoint: tonic::transport::Endpoint| {
        endpoint
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PROBE)
            .keep_alive_timeout(PROBE_LIMIT)
            .keep_alive_while_idle(true)
            .buffer_size(QUEUE)
    };
    let way = Way::connect(endpoint, config.tls.as_ref(), prepare).await;
    way.map_err(|error| End::Lost(format!("cannot connect: {error}")))
}

async fn greet(way: &Way, hello: &Hello) -> Result<(Connection, Greeting), End> {
    let (sender, outgoing) = mpsc::channel(QUEUE);
    let first = v1::AgentMessage { message: Some(Say::Hello(hello.into())) };
    sender.send(first).await.map_err(|_| End::Lost("the connection broke".to_owned()))?;
    let mut receiver = NodeAgentClient::new(way.channel.clone())
        .session(ReceiverStream::new(outgoing))
        .await
        .map_err(|status| ended_by(&status))?
        .into_inner();
    let first = receiver.message().await.map_err(|status| ended_by(&status))?;
    match first.map(|first| first.message) {
        Some(Some(Hear::Welcome(welcome))) => Ok((Connection { sender, receiver }, greeting(&welcome)?)),
        Some(Some(Hear::Redirect(redirect))) => Err(redirected(&redirect)),
        Some(Some(Hear::Desired(_) | Hear::Survey(_) | Hear::TellHoldings(_)) | None) => {
            Err(End::Lost("the controller did not begin with a welcome".to_owned()))
        }
        None => Err(End::Lost("the controller ended the session before its welcome".to_owned())),
    }
}

fn greeting(welcome: &v1::Welcome) -> Result<Greeting, End> {
    let bad =
        |field: &str, why: String| End::Refused(format!("the controller's welcome makes no sense: {field} {why}"));
    let interval = |field: &str, wire: Option<_>| {
        let wire = wire.ok_or_else(|| bad(field, "is missing".to_owned()))?;
        let value = convert::read_duration(wire).map_err(|invalid| bad(field, invalid.to_string()))?;
        if INTERVALS.contains(&value) { Ok(value) } else { Err(bad(field, format!("of {value:?} is out of bounds"))) }
    };
    Ok(Greeting {
        term: welcome.term,
        heartbeat: interval("heartbeat", welcome.heartbeat)?,
        observe: interval("observe", welcome.observe)?,
        stranger: Some(&welcome.stranger).filter(|why| !why.is_empty()).cloned(),
    })
}

/// What a redirect means.
pub(super) fn redirected(redirect: &v1::Redirect) -> End {
    if redirect.leader.is_empty() {
        return End::Lost("no controller leads".to_owned());
    }
    match config::endpoint(&redirect.leader) {
        Ok(leader) => End::Redirected(leader),
        Err(error) => End::Lost(format!("the controller names a leader that cannot be dialled: {error}")),
    }
}

/// What the end of a stream with an error means.
pub(super) fn ended_by(status: &Answer) -> End {
    // Of a broken connection the innermost error says what happened; the status only says that it broke.
    let cause = std::iter::successors(std::error::Error::source(status), |error| error.source()).last();
    let text = match cause {
        Some(cause) => cause.to_string(),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    };
    // The controller speaks so about this agent; everything else is about the connection or the controller.
    let refused = matches!(
        status.code(),
        Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    );
    if refused { End::Refused(text) } else { End::Lost(text) }
}
