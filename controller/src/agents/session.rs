//! One agent's session: greets, listens, passes on, and ends when nothing is heard.

use super::{Busy, Opened, Outgoing, Seen};
use crate::clock::now;
use crate::identity::Caller;
use crate::leader::{Gone, Leader, MAX_TERM_LEAP};
use crate::replica::Replica;
use crate::standing::Board;
use berth_core::decide::{Input, MAX_GENERATION_LEAP};
use berth_model::desired::{DesiredNode, DesiredPlacement};
use berth_model::inventory::{Hello, InventoryReport, Listing};
use berth_model::placement::Progress;
use berth_proto::AGENT_PROTOCOL;
use berth_proto::convert::{Invalid, duration};
use berth_proto::v1::{self, agent_message, controller_message, node_agent_server};
use berth_telemetry::traces::{self, Span};
use berth_telemetry::{names, spans};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

/// How long an agent that comes while no leader is heard is kept for the next one: a change of leaders, and less than agents
/// wait for a welcome.
const CHANGE: Duration = Duration::from_secs(6);
/// How long an agent gets for its first message.
const GREETING: Duration = Duration::from_secs(10);
/// Heartbeats that may be missed before a session counts as dead: one may be lost to a busy host, two to bad luck.
const MISSED: u32 = 3;
/// Messages on their way into an agent's stream. What matters waits in the slot; this only decouples two tasks.
const OUTGOING: usize = 2;
/// How long a closing word may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often agents say that they are there, and look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// Between heartbeats, when nothing else is said.
    pub heartbeat: Duration,
    /// Between looks at the host, when nothing is to be done.
    pub observe: Duration,
}

/// The service that agents dial.
#[derive(Clone, Debug)]
pub struct NodeAgentService {
    leader: Leader,
    replica: Replica,
    seen: Seen,
    intervals: Intervals,
    board: Board,
    tasks: TaskTracker,
    stop: CancellationToken,
}

type Out = mpsc::Sender<Result<v1::ControllerMessage, Status>>;

impl NodeAgentService {
    /// The service. Its sessions are tasks of `tasks` and end with `stop`.
    pub fn new(
        leader: Leader,
        replica: Replica,
        seen: Seen,
        intervals: Intervals,
        board: Board,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { leader, replica, seen, intervals, board, tasks, stop }
    }

    fn silence(&self) -> Duration {
        self.intervals.heartbeat.saturating_mul(MISSED)
    }

    async fn run(self, caller: Caller, mut inbound: Streaming<v1::AgentMessage>, out: Out) {
        if !self.board.leads() {
            return self.redirect(&mut inbound, &out).await;
        }
        let end = match self.greet(&caller, &mut inbound).await {
            Ok(Some((hello, opened))) => {
                let span = spans::session(&hello.node);
                self.serve(hello, opened, inbound, &out).instrument(span).await
            }
            Ok(None) => End::Closed,
            Err(status) => {
                tracing::info!({ names::ERROR } = status.message(), "an agent was refused");
                End::Status(status)
            }
        };
        if let End::Status(status) = end {
            // An agent that does not listen any more needs no closing word.
            let _unheard = tokio::time::timeout(FAREWELL, out.send(Err(status))).await;
        }
    }

    /// Tells an agent who leads, or that nobody does.
    async fn redirect(&self, inbound: &mut Streaming<v1::AgentMessage>, out: &Out) {
        let greeted = tokio::select! {
            first = tokio::time::timeout(GREETING, inbound.message()) => matches!(first, Ok(Ok(Some(_)))),
            () = self.stop.cancelled() => return,
        };
        if greeted {
            let mut board = self.board.clone();
            tokio::select! {
                // Between two leaders an agent that is sent away is sent to one who is gone, tries again ever more rarely, and
                // comes to the next one late.
                _ = tokio::time::timeout(CHANGE, board.wait_to_hear()) => {}
                () = out.closed() => return,
                () = self.stop.cancelled() => return,
            }
            let leader = self.board.now().leader.map(|leader| leader.endpoint).unwrap_or_default();
            let message = controller_message::Message::Redirect(v1::Redirect { leader });
            let _unheard =
                tokio::time::timeout(FAREWELL, out.send(Ok(v1::ControllerMessage { message: Some(message) }))).await;
        }
    }

    /// The first message, and the session if it is as it must be. `None`: the agent went away.
    async fn greet(
        &self,
        caller: &Caller,
        inbound: &mut Streaming<v1::AgentMessage>,
    ) -> Result<Option<(Hello, Opened)>, Status> {
        let first = tokio::select! {
            first = tokio::time::timeout(GREETING, inbound.message()) => first,
            () = self.stop.cancelled() => return Err(stopping()),
        };
        let first = match first {
            Err(_) => {
                return Err(Status::deadline_exceeded(format!("no Hello within {} s", GREETING.as_secs())));
            }
            Ok(Err(_)) | Ok(Ok(None)) => return Ok(None),
            Ok(Ok(Some(message))) => message.message,
        };
        let hello = match first {
            Some(agent_message::Message::Hello(hello)) => hello,
            Some(
                agent_message::Message::Inventory(_)
                | agent_message::Message::Heartbeat(_)
                | agent_message::Message::Progress(_)
                | agent_message::Message::Holdings(_),
            )
            | None => return Err(Status::invalid_argument("the first message of a session must be Hello")),
        };
        check_protocol(&hello)?;
        let hello = Hello::try_from(hello).map_err(|invalid| refuse("hello", &invalid))?;
        check_term(&hello, self.replica.now().term)?;
        let stored = self.replica.now().world.node(&hello.node).map_or(0, |node| node.generation);
        check_generation(&hello, stored)?;
        caller.may_speak_for(&hello.node)?;
        let opened = self.seen.open(&hello.node, now(), self.silence()).map_err(|busy| match busy {
            Busy::Connected { .. } => Status::already_exists(busy.to_string()),
            Busy::TooMany => Status::resource_exhausted(busy.to_string()),
        })?;
        Ok(Some((hello, opened)))
    }

    async fn serve(&self, hello: Hello, opened: Opened, inbound: Streaming<v1::AgentMessage>, out: &Out) -> End {
        let node = hello.node.clone();
        let id = opened.id;
        tracing::info!(agent_version = %hello.agent_version, "{}", names::EVENT_CONNECTED);
        let mut session =
            Session { service: self, node: &node, opened, out, sequence: None, looks: 0, asked: None, told: None };
        let end = session.exchange(hello, inbound).await.err().unwrap_or(End::Closed);
        self.seen.close(&node, id);
        tracing::info!(reason = %end, "{}", names::EVENT_DISCONNECTED);
        // Fails only when the leader is gone, and then nobody needs to know.
        let _gone = self.leader.feed(id, Input::Disconnected(node)).await;
        end
    }
}

/// Why a session ended.
enum End {
    /// The agent closed it, or its connection broke.
    Closed,
    /// The controller ended it, and says why.
    Status(Status),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("the agent's connection closed"),
            Self::Status(status) => f.write_str(status.message()),
        }
    }
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Status(stopping())
    }
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

struct Session<'a> {
    service: &'a NodeAgentService,
    node: &'a berth_model::NodeName,
    opened: Opened,
    out: &'a Out,
    /// Of the last report that was passed on.
    sequence: Option<u64>,
    /// Requests to look again that were sent.
    looks: u64,
    /// Since when a full report is awaited that was asked for.
    asked: Option<Instant>,
    /// What was sent last.
    told: Option<Arc<DesiredNode>>,
}

impl Session<'_> {
    /// Runs until something ends it, which is told as the error.
    async fn exchange(&mut self, hello: Hello, mut inbound: Streaming<v1::AgentMessage>) -> Result<(), End> {
        let Intervals { heartbeat, observe } = self.service.intervals;
        let world = self.service.replica.now();
        let stranger = world.world.stranger(&hello);
        // A stranger hears its own term at least: a lower one it would not listen to. It is sent no wish that could bear it.
        let term = if stranger.is_some() { world.term.max(hello.ledger_term) } else { world.term };
        drop(world);
        if let Some(why) = &stranger {
            tracing::error!({ names::ERROR } = why, "an agent is a stranger; look before anything is lost");
        }
        let welcome = v1::Welcome {
            term,
            heartbeat: Some(duration(heartbeat)),
            observe: Some(duration(observe)),
            stranger: stranger.unwrap_or_default(),
        };
        self.send(controller_message::Message::Welcome(welcome)).await?;
        self.feed(Input::Connected(Box::new(hello))).await?;
        let silence = self.service.silence();
        // Two looks of a busy host, and the time that an agent may be silent anyway.
        let patience = silence.saturating_add(observe.saturating_mul(2));
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                message = inbound.message() => {
                    match message {
                        Ok(Some(message)) => {
                            self.opened.heard.store(now().as_millis(), Ordering::Relaxed);
                            self.take(message).await?;
                            // Only now: time that this side took is not the agent's silence.
                            heard = Instant::now();
                        }
                        Ok(None) | Err(_) => return Err(End::Closed),
                    }
                }
                changed = self.opened.outgoing.changed() => {
                    if changed.is_err() {
                        return Err(taken_over().into());
                    }
                    let outgoing = self.opened.outgoing.borrow_and_update().clone();
                    self.pass_on(outgoing).await?;
                }
                () = tokio::time::sleep_until(heard + silence) => {
                    let text = format!("nothing was heard for {} ms, that is {MISSED} heartbeats", silence.as_millis());
                    return Err(Status::deadline_exceeded(text).into());
                }
                // A new session begins with everything: what asking does not bring about, connecting again does.
                () = tokio::time::sleep_until(self.asked.unwrap_or(heard) + patience), if self.asked.is_some() => {
                    return Err(Status::unavailable("no full report came although one was asked for; connect again").into());
                }
                () = self.out.closed() => return Err(End::Closed),
                () = self.opened.end.cancelled() => return Err(taken_over().into()),
                () = self.service.stop.cancelled() => return Err(stopping().into()),
            }
        }
    }

    async fn pass_on(&mut self, outgoing: Outgoing) -> Result<(), End> {
        let Outgoing { desired, looks } = outgoing;
        if looks != self.looks {
            self.looks = looks;
            self.asked = None;
            self.ask_for_all().await?;
        }
        if let Some(desired) = desired {
            let spans = self.begin_spans(&desired);
            self.send(controller_message::Message::Desired(v1::DesiredNode::from(desired.as_ref()))).await?;
            drop(spans);
            self.told = Some(desired);
        }
        Ok(())
    }

    /// A span for each placement whose wish goes out for the first time, in the trace of the call that asked for it.
    fn begin_spans(&self, desired: &DesiredNode) -> Vec<Span> {
        let told = self.told.as_ref().map(|told| told.placements.as_slice()).unwrap_or_default();
        let fresh = desired.placements.iter().filter(|wish| wish.trace.is_some() && !told.contains(wish));
        let begin = |wish: &DesiredPlacement| {
            let span = traces::follow(names::TRACE_SEND, wish.trace.as_ref());
            span.set(names::NODE, self.node.to_string());
            span.set(names::GENERATION, i64::try_from(desired.generation).unwrap_or(i64::MAX));
            span
        };
        fresh.map(begin).collect()
    }

    async fn take(&mut self, message: v1::AgentMessage) -> Result<(), End> {
        let node = self.node.clone();
        match message.message {
            Some(agent_message::Message::Heartbeat(v1::Heartbeat {})) => Ok(()),
            Some(agent_message::Message::Inventory(report)) => {
                let report = InventoryReport::try_from(report).map_err(|invalid| refuse("inventory", &invalid))?;
                if !self.follows(&report) {
                    return self.ask_for_all().await;
                }
                self.feed(Input::Report { node, report: Box::new(report) }).await
            }
            Some(agent_message::Message::Progress(progress)) => {
                let progress = Progress::try_from(progress).map_err(|invalid| refuse("progress", &invalid))?;
                self.feed(Input::Progress { node, progress: Box::new(progress) }).await
            }
            Some(agent_message::Message::Holdings(_)) => {
                Err(Status::invalid_argument("Holdings were not asked for").into())
            }
            Some(agent_message::Message::Hello(_)) => {
                Err(Status::invalid_argument("Hello came twice; it opens a session and cannot change it").into())
            }
            None => {
                Err(Status::invalid_argument("a message says nothing, or something this controller does not know")
                    .into())
            }
        }
    }

    /// Whether a report continues what was reported: a full one always does, a delta only right after its predecessor.
    fn follows(&mut self, report: &InventoryReport) -> bool {
        let complete = report.listing == Listing::Complete;
        let next = self.sequence.and_then(|last| last.checked_add(1)) == Some(report.sequence);
        if complete && !report.full && !next {
            return false;
        }
        if report.full && complete {
            self.asked = None;
        }
        if self.sequence.is_some() || report.full {
            self.sequence = Some(report.sequence);
        }
        true
    }

    async fn ask_for_all(&mut self) -> Result<(), End> {
        if self.asked.is_some() {
            return Ok(());
        }
        self.asked = Some(Instant::now());
        tracing::debug!("the agent is asked to tell everything anew");
        self.send(controller_message::Message::Survey(v1::SurveyNow {})).await
    }

    /// Hands an input to the leader, waiting for room. Meanwhile the agent's stream is not read, so that it waits, too.
    async fn feed(&self, input: Input) -> Result<(), End> {
        tokio::select! {
            fed = self.service.leader.feed(self.opened.id, input) => Ok(fed?),
            () = self.opened.end.cancelled() => Err(taken_over().into()),
            () = self.service.stop.cancelled() => Err(stopping().into()),
        }
    }

    async fn send(&self, message: controller_message::Message) -> Result<(), End> {
        let message = v1::ControllerMessage { message: Some(message) };
        match tokio::time::timeout(self.service.silence(), self.out.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Closed),
            Err(_) => Err(Status::deadline_exceeded("the agent does not read what it is sent").into()),
        }
    }
}

pub(crate) fn check_protocol(hello: &v1::Hello) -> Result<(), Status> {
    let theirs = hello.protocol;
    let update = match theirs.cmp(&AGENT_PROTOCOL) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less => "update the agent",
        std::cmp::Ordering::Greater => "update the controller first",
    };
    Err(Status::failed_precondition(format!(
        "the agent speaks version {theirs} of the agent protocol, this controller version {AGENT_PROTOCOL}: {update}"
    )))
}

/// A leader rises above any term that its agents have obeyed, if it can be one.
fn check_term(hello: &Hello, term: u64) -> Result<(), Status> {
    if hello.ledger_term <= term.saturating_add(MAX_TERM_LEAP) {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "the agent of node {} says that it has obeyed term {}, and this is term {term}: its ledger is damaged, or it belongs \
         to another Berth. Look at the host, then remove the agent's ledger",
        hello.node, hello.ledger_term
    )))
}

/// A node's generation rises above the one that its agent has accepted, if it can be one.
fn check_generation(hello: &Hello, stored: u64) -> Result<(), Status> {
    if hello.ledger_generation <= stored.saturating_add(MAX_GENERATION_LEAP) {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "the agent of node {} says that it has accepted generation {}, and this controller knows of {stored}: its ledger is \
         damaged, or it belongs to another Berth. Look at the host, then remove the agent's ledger",
        hello.node, hello.ledger_generation
    )))
}

fn refuse(message: &str, invalid: &Invalid) -> Status {
    Status::invalid_argument(format!("{message}: {invalid}"))
}

fn stopping() -> Status {
    Status::unavailable("the controller is stopping; connect again")
}

fn taken_over() -> Status {
    Status::aborted("another session of this node has taken over")
}

#[tonic::async_trait]
impl node_agent_server::NodeAgent for NodeAgentService {
    type SessionStream = ReceiverStream<Result<v1::ControllerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = Caller::of(&request).ok_or_else(|| Status::internal("it is not known who calls"))?;
        caller.may_be_agent()?;
        let (out, stream) = mpsc::channel(OUTGOING);
        // Answered at once: some clients wait for the answer's headers before they say anything.
        self.tasks.spawn(self.clone().run(caller, request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
