//! Sessions over real connections, with a client written by hand, against a whole controller on a store in memory.

use super::*;
use crate::app::{self, Running};
use crate::config::{Config, StoreKind};
use crate::testing::{hello, node, report, request};
use berth_proto::v1::{self, agent_message, controller_message, node_agent_client::NodeAgentClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Long enough for everything that must happen, short enough that a test that hangs is noticed.
const PATIENCE: Duration = Duration::from_secs(20);

async fn controller(heartbeat: Duration) -> Running {
    start(Config { heartbeat, ..Config::default() }).await
}

async fn start(config: Config) -> Running {
    let listen = "127.0.0.1:0".parse().unwrap();
    app::start(Config { listen, store: StoreKind::Memory, ..config }).await.unwrap()
}

async fn channel(running: &Running) -> Channel {
    Channel::from_shared(format!("http://{}", running.local_addr)).unwrap().connect().await.unwrap()
}

struct Agent {
    out: mpsc::Sender<v1::AgentMessage>,
    inbound: Streaming<v1::ControllerMessage>,
}

impl Agent {
    /// Opens a stream and says `first`, if anything.
    async fn dial(running: &Running, first: Option<agent_message::Message>) -> Self {
        let (out, stream) = mpsc::channel(8);
        if let Some(first) = first {
            out.send(v1::AgentMessage { message: Some(first) }).await.unwrap();
        }
        let mut client = NodeAgentClient::new(channel(running).await);
        let inbound = client.session(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { out, inbound }
    }

    /// Connects as a node, and is welcome.
    async fn connect(running: &Running, name: &str) -> Self {
        let mut agent = Self::dial(running, Some(greeting(name))).await;
        let controller_message::Message::Welcome(welcome) = agent.hear().await else { panic!("no welcome") };
        assert!(welcome.term > 0 && welcome.heartbeat.is_some() && welcome.observe.is_some());
        let controller_message::Message::Desired(desired) = agent.hear().await else { panic!("no desired state") };
        assert_eq!(desired.term, welcome.term);
        agent
    }

    async fn say(&self, message: agent_message::Message) {
        self.out.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<v1::ControllerMessage>, Status> {
        tokio::time::timeout(PATIENCE, self.inbound.message()).await.expect("nothing came in time")
    }

    async fn hear(&mut self) -> controller_message::Message {
        self.next().await.unwrap().expect("the stream ended").message.unwrap()
    }

    /// What the controller ends the session with.
    async fn end(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a word"),
                Err(status) => return status,
            }
        }
    }
}

fn greeting(name: &str) -> agent_message::Message {
    agent_message::Message::Hello(v1::Hello::from(&hello(name)))
}

fn inventory(gpus: usize, vms: &[(u32, &str)]) -> agent_message::Message {
    agent_message::Message::Inventory(v1::InventoryReport::from(&report(gpus, vms)))
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn whoever_does_not_greet_properly_is_refused_with_a_reason() {
    let running = controller(LONG).await;
    let wire = |change: fn(&mut v1::Hello)| {
        let mut hello = v1::Hello::from(&hello("n1"));
        change(&mut hello);
        agent_message::Message::Hello(hello)
    };
    let cases = [
        (wire(|h| h.protocol = 0), Code::FailedPrecondition, "update the agent"),
        (wire(|h| h.protocol = 99), Code::FailedPrecondition, "update the controller first"),
        (wire(|h| h.node = "a b".into()), Code::InvalidArgument, "node"),
        (wire(|h| h.facts = None), Code::InvalidArgument, "facts"),
        (wire(|h| h.ledger_generation = u64::MAX), Code::FailedPrecondition, "its ledger is damaged"),
        (agent_message::Message::Heartbeat(v1::Heartbeat {}), Code::InvalidArgument, "must be Hello"),
    ];
    for (first, code, text) in cases {
        let status = Agent::dial(&running, Some(first)).await.end().await;
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(text), "{:?} does not contain {text:?}", status.message());
    }
    running.stop().await;
}

#[tokio::test]
async fn a_name_that_is_connected_is_refused_until_it_is_free() {
    let running = controller(LONG).await;
    let first = Agent::connect(&running, "n1").await;
    let status = Agent::dial(&running, Some(greeting("n1"))).await.end().await;
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("node n1 is connected already"), "{status:?}");
    Agent::connect(&running, "n2").await;
    drop(first);
    // The end of the first session is noticed by itself.
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut again = Agent::dial(&running, Some(greeting("n1"))).await;
        match again.next().await {
            Ok(Some(_)) => break,
            other => assert!(tokio::time::Instant::now() < end, "the name never became free: {other:?}"),
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn a_session_that_falls_silent_is_ended_and_its_node_is_not_ready() {
    let running = controller(Duration::from_millis(100)).await;
    let mut agent = Agent::connect(&running, "n1").await;
    agent.say(inventory(1, &[])).await;
    let status = agent.end().await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("3 heartbeats"), "{status:?}");
    let mut client = v1::inventory_client::InventoryClient::new(channel(&running).await);
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let node = client.get_node(v1::GetNodeRequest { name: "n1".into() }).await.unwrap().into_inner();
        if !node.connected {
            assert!(node.last_seen.is_some() && !node.ready);
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{node:?}");
    }
    running.stop().await;
}

#[tokio::test]
async fn heartbeats_keep_a_session_and_write_nothing() {
    let heartbeat = Duration::from_millis(200);
    let running = controller(heartbeat).await;
    let mut agent = Agent::connect(&running, "n1").await;
    agent.say(inventory(1, &[])).await;
    let mut client = v1::operations_client::OperationsClient::new(channel(&running).await);
    let end = tokio::time::Instant::now() + PATIENCE;
    let revision = loop {
        let status = client.status(v1::StatusRequest {}).await.unwrap().into_inner();
        if status.gpus_available == 1 {
            break status.revision;
        }
        assert!(tokio::time::Instant::now() < end, "{status:?}");
    };
    // Five times as long as silence would be allowed to last.
    let mut beat = tokio::time::interval(heartbeat / 2);
    for _ in 0..30 {
        tokio::select! {
            _ = beat.tick() => agent.say(agent_message::Message::Heartbeat(v1::Heartbeat {})).await,
            ended = agent.inbound.message() => panic!("the session ended, or something was sent: {ended:?}"),
        }
    }
    let status = client.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.revision, status.nodes_connected), (revision, 1));
    running.stop().await;
}

#[tokio::test]
async fn a_committed_placement_reaches_its_agent() {
    let running = controller(LONG).await;
    let mut agent = Agent::connect(&running, "n1").await;
    agent.say(inventory(2, &[(1, "vm-a")])).await;
    let mut client = v1::placements_client::PlacementsClient::new(channel(&running).await);
    let wanted = v1::CreatePlacementRequest { request: Some(v1::PlacementRequest::from(&request("a", 1))) };
    let end = tokio::time::Instant::now() + PATIENCE;
    let created = loop {
        match client.create(wanted.clone()).await {
            Ok(created) => break created.into_inner(),
            // Its report may still be on the way.
            Err(status) => assert!(tokio::time::Instant::now() < end, "{status:?}"),
        }
    };
    let controller_message::Message::Desired(desired) = agent.hear().await else { panic!("no desired state") };
    assert_eq!(desired.placements.len(), 1);
    assert_eq!(desired.placements[0].uid, created.uid);

    // Connecting again is being told again.
    drop(agent);
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut again = Agent::dial(&running, Some(greeting("n1"))).await;
        if again.next().await.is_ok() {
            let controller_message::Message::Desired(same) = again.hear().await else { panic!("no desired state") };
            assert_eq!(same.placements, desired.placements);
            break;
        }
        assert!(tokio::time::Instant::now() < end, "the name never became free");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_report_that_does_not_follow_is_asked_for_again() {
    let running = controller(LONG).await;
    let mut agent = Agent::connect(&running, "n1").await;
    let mut delta = report(1, &[]);
    delta.full = false;
    agent.say(agent_message::Message::Inventory(v1::InventoryReport::from(&delta))).await;
    assert!(matches!(agent.hear().await, controller_message::Message::Survey(_)));
    agent.say(inventory(1, &[])).await;
    agent.say(greeting("n2")).await;
    let status = agent.end().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("Hello came twice"), "{status:?}");
    running.stop().await;
}

#[tokio::test]
async fn an_agent_that_does_not_answer_a_request_for_everything_must_connect_again() {
    let running = start(Config {
        heartbeat: Duration::from_millis(200),
        observe: Duration::from_millis(100),
        ..Config::default()
    })
    .await;
    let mut agent = Agent::connect(&running, "n1").await;
    let mut delta = report(1, &[]);
    delta.full = false;
    agent.say(agent_message::Message::Inventory(v1::InventoryReport::from(&delta))).await;
    assert!(matches!(agent.hear().await, controller_message::Message::Survey(_)));
    let mut beat = tokio::time::interval(Duration::from_millis(50));
    let status = loop {
        tokio::select! {
            _ = beat.tick() => {
                // The session may end while this is said.
                let _late = agent.out.send(v1::AgentMessage {
                    message: Some(agent_message::Message::Heartbeat(v1::Heartbeat {})),
                }).await;
            }
            ended = agent.inbound.message() => break ended.unwrap_err(),
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("no full report came"), "{status:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_controller_that_stops_says_so() {
    let running = controller(LONG).await;
    let mut agent = Agent::connect(&running, "n1").await;
    let (status, ()) = tokio::join!(agent.end(), running.stop());
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

#[test]
fn a_dead_session_makes_room_and_does_not_speak_again() {
    let seen = Seen::default();
    let silence = Duration::from_secs(30);
    let at = |seconds: u64| Timestamp::from_millis(seconds * 1000);
    let first = seen.open(&node("n1"), at(0), silence).unwrap();
    assert!(matches!(seen.open(&node("n1"), at(29), silence), Err(Busy::Connected { .. })));
    let second = seen.open(&node("n1"), at(30), silence).unwrap();
    assert!(first.end.is_cancelled() && !second.end.is_cancelled());
    assert!(first.id < second.id);
    first.heard.store(at(99).as_millis(), Ordering::Relaxed);
    assert_eq!(seen.last(&node("n1")), Some(at(30)), "only the newest session counts");
    seen.close(&node("n1"), first.id);
    assert!(seen.open(&node("n1"), at(31), silence).is_err(), "the dead one cannot close the living one");
    seen.close(&node("n1"), second.id);
    assert!(seen.open(&node("n1"), at(32), silence).is_ok());
    assert_eq!(seen.last(&node("n2")), None);
}

#[test]
fn only_the_latest_desired_state_waits() {
    let seen = Seen::default();
    let mut session = seen.open(&node("n1"), Timestamp::from_millis(0), LONG).unwrap();
    for generation in 1..=3 {
        seen.send(&node("n1"), DesiredNode { term: 1, generation, fleet: None, placements: vec![] });
        seen.send(&node("n2"), DesiredNode { term: 1, generation: 9, fleet: None, placements: vec![] });
    }
    seen.look_again();
    let outgoing = session.outgoing.borrow_and_update().clone();
    assert_eq!((outgoing.desired.unwrap().generation, outgoing.looks), (3, 1));
    assert!(!session.outgoing.has_changed().unwrap());
}
