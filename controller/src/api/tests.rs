//! The whole edge over a real brain and real connections: only store and agents are left out.

mod web;

use super::forward::Forwarder;
use super::{Sources, server};
use crate::checked::Checked;
use crate::last_seen::LastSeen;
use crate::leader::{Call, Decided, From as Origin, Leader};
use crate::peers::Way;
use crate::replica::{Publisher, Replica};
use crate::serve;
use crate::standing::{Board, Standing};
use crate::testing::{hello, node, report};
use arc_swap::ArcSwap;
use axum::body::Body;
use berth_core::decide::{Brain, Input, Limits};
use berth_model::reason::ErrorClass;
use berth_model::{NodeName, Timestamp};
use berth_proto::status::Problem;
use berth_proto::v1;
use berth_proto::v1::inventory_client::InventoryClient;
use berth_proto::v1::node_agent_server::NodeAgent;
use berth_proto::v1::operations_client::OperationsClient;
use berth_proto::v1::placements_client::PlacementsClient;
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt as _;

struct NoAgents;

#[tonic::async_trait]
impl NodeAgent for NoAgents {
    type SessionStream = super::watch::Stream<v1::ControllerMessage>;
    async fn session(&self, _: Request<Streaming<v1::AgentMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unavailable("no agents here"))
    }
}

struct SeenAlways;

impl LastSeen for SeenAlways {
    fn last_seen(&self, _: &NodeName) -> Option<Timestamp> {
        Some(Timestamp::from_millis(1000))
    }
}

/// Answers calls by a brain, at once, as if every commit took no time.
async fn lead(mut brain: Brain, mut publisher: Publisher, mut calls: mpsc::Receiver<Call>, mut revision: u64) {
    while let Some(Call { input, from }) = calls.recv().await {
        let answer = brain.decide(crate::clock::now(), input).map(|decision| {
            revision += u64::from(!decision.changes.is_empty());
            publisher.publish(brain.world().clone(), revision, decision.touched, decision.nodes);
            Decided { placement: decision.placement, revision }
        });
        if let Origin::Caller(reply) = from {
            reply.tell(answer.map_err(Into::into));
        }
    }
}

/// A controller's edge over two nodes, `n1` with 4 GPUs and the VM `render`, `n2` with 2 GPUs.
struct Edge {
    router: axum::Router,
    address: SocketAddr,
    leader: Leader,
    /// Ends the task that leads.
    leading: AbortHandle,
    /// Serves as long as this is there.
    _tasks: JoinSet<()>,
}

impl Edge {
    async fn start() -> Self {
        let start = crate::clock::now();
        let mut brain = Brain::load(3, Limits::default(), vec![], vec![], start).unwrap();
        for (name, gpus, vms) in [("n1", 4, vec![(1, "render")]), ("n2", 2, vec![])] {
            brain.decide(start, Input::Connected(Box::new(hello(name)))).unwrap();
            let report = Box::new(report(gpus, &vms));
            brain.decide(start, Input::Report { node: node(name), report }).unwrap();
        }
        let (replica, publisher) = Replica::new(brain.world().clone(), 10, 3, Timestamp::from_millis(7));
        let (leader, calls) = Leader::channel(16);
        let sources = Sources {
            leader: leader.clone(),
            replica,
            seen: Arc::new(SeenAlways),
            checked: Arc::new(ArcSwap::from_pointee(Checked { violations: vec![], at: Some(start) })),
            store: "memory",
            forwarder: Forwarder::of_a_leader(),
            records: Arc::new(berth_store::memory::Memory::new()),
        };
        let router = server::router(sources, NoAgents).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = serve::run(listener, router.clone(), serve::Options::new(None), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let leading = tasks.spawn(lead(brain, publisher, calls, 10));
        tasks.spawn(serving);
        Self { router, address, leader, leading, _tasks: tasks }
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn placements(&self) -> PlacementsClient<Channel> {
        PlacementsClient::new(self.channel().await)
    }

    async fn inventory(&self) -> InventoryClient<Channel> {
        InventoryClient::new(self.channel().await)
    }

    /// A request without a connection.
    async fn send(&self, request: http::Request<Body>) -> (u16, Option<String>, String) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn json(&self, path: &str, body: impl Into<String>) -> (u16, Value) {
        let request =
            http::Request::post(path).header("content-type", "application/json").body(Body::from(body.into()));
        let (status, kind, text) = self.send(request.unwrap()).await;
        assert_eq!(kind.as_deref(), Some("application/json"), "{text}");
        (status, serde_json::from_str(&text).unwrap())
    }

    async fn refuse(&self, path: &str, body: impl Into<String>, why: Expect) {
        let (status, answer) = self.json(path, body).await;
        why.assert_eq(&format!(
            "{status} {} {} {}",
            answer["code"].as_str().unwrap(),
            answer["reason"],
            answer["message"].as_str().unwrap()
        ));
    }
}

fn ask(name: &str, gpus: u32) -> v1::CreatePlacementRequest {
    v1::CreatePlacementRequest {
        request: Some(v1::PlacementRequest {
            request_id: format!("r-{name}"),
            name: name.to_owned(),
            vm: format!("vm-{name}"),
            gpus,
            ..v1::PlacementRequest::default()
        }),
    }
}

fn problem<T: std::fmt::Debug>(result: Result<T, Status>) -> Problem {
    Problem::from_status(&result.unwrap_err())
}

#[tokio::test]
async fn a_placement_is_made_seen_and_given_back_over_grpc() {
    let edge = Edge::start().await;
    let mut placements = edge.placements().await;
    let mut request = Request::new(ask("p1", 2));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.metadata_mut().insert("traceparent", trace.parse().unwrap());
    let made = placements.create(request).await.unwrap().into_inner();
    assert_eq!((made.phase(), made.traceparent.as_str(), made.version), (v1::Phase::Held, trace, 1));
    assert!(made.caller.starts_with("127.0.0.1:"), "{}", made.caller);
    let again = placements.create(ask("p1", 2)).await.unwrap().into_inner();
    assert_eq!(again.uid, made.uid, "the same request id gets the same placement");
    let other = problem(placements.create(ask("p1", 1)).await);
    assert_eq!((other.class, other.metadata["field"].as_str()), (ErrorClass::AlreadyExists, "gpus"));

    let got = placements.get(v1::GetPlacementRequest { name: "p1".into() }).await.unwrap().into_inner();
    assert_eq!(got, made);
    let missing = problem(placements.get(v1::GetPlacementRequest { name: "p2".into() }).await);
    assert_eq!((missing.class, missing.metadata["nearest"].as_str()), (ErrorClass::NotFound, "p1"));

    let release = |version| v1::ReleasePlacementRequest { name: "p1".into(), uid: String::new(), version };
    assert_eq!(problem(placements.release(release(9)).await).reason, "VERSION_MISMATCH");
    let released = placements.release(release(0)).await.unwrap().into_inner();
    assert_eq!(released.phase(), v1::Phase::Released);
}

#[tokio::test]
async fn what_does_not_fit_says_why_and_by_how_much() {
    let edge = Edge::start().await;
    let problem = problem(edge.placements().await.create(ask("large", 16)).await);
    assert_eq!((problem.class, problem.reason.as_str()), (ErrorClass::NotPlaceable, "NOT_PLACEABLE"));
    let explanation = problem.explanation.unwrap();
    assert_eq!((explanation.gpus, explanation.nodes), (16, 2));
    assert_eq!(explanation.nearest.unwrap().node, "n1");
}

#[tokio::test]
async fn lists_are_filtered_paged_and_consistent() {
    let edge = Edge::start().await;
    let (mut inventory, mut placements) = (edge.inventory().await, edge.placements().await);
    let (mut ids, mut token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListGpusRequest { page_size: 2, page_token: token, ..v1::ListGpusRequest::default() };
        let page = inventory.list_gpus(request).await.unwrap().into_inner();
        assert!(page.gpus.iter().all(|gpu| gpu.available), "every page shows the world of the first: {page:?}");
        ids.extend(page.gpus.into_iter().map(|gpu| gpu.id));
        placements.create(ask(&format!("p{}", ids.len()), 1)).await.unwrap();
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let mut sorted = ids.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!((ids.len(), &ids), (6, &sorted));

    let taken = v1::ListGpusRequest { available: Some(false), model: "A2".into(), ..Default::default() };
    let taken = inventory.list_gpus(taken).await.unwrap().into_inner().gpus;
    let reasons: Vec<_> = taken.iter().map(|gpu| (&*gpu.unavailable[0].reason, &*gpu.unavailable[0].term)).collect();
    assert_eq!(reasons, [("Claimed", "unclaimed"); 3]);
    let on = v1::ListGpusRequest { node: "n2".into(), state: v1::GpuState::Host.into(), ..Default::default() };
    assert_eq!(inventory.list_gpus(on).await.unwrap().into_inner().gpus.len(), 2);
    let none = v1::ListGpusRequest { state: v1::GpuState::Missing.into(), model: "A2".into(), ..Default::default() };
    assert_eq!(inventory.list_gpus(none).await.unwrap().into_inner().gpus, []);

    let live = v1::ListPlacementsRequest { live_only: true, phase: v1::Phase::Held.into(), ..Default::default() };
    assert_eq!(placements.list(live).await.unwrap().into_inner().placements.len(), 3);
    let over = v1::ListPlacementsRequest { phase: v1::Phase::Released.into(), ..Default::default() };
    assert_eq!(placements.list(over).await.unwrap().into_inner().placements, []);

    let vms = inventory.list_vms(v1::ListVmsRequest { page_size: 1, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((vms.vms[0].observed.as_ref().unwrap().name.as_str(), vms.next_page_token.as_str()), ("render", ""));
    let nodes = v1::ListNodesRequest { ready: Some(true), page_size: 1, ..Default::default() };
    let nodes = inventory.list_nodes(nodes).await.unwrap().into_inner();
    assert_eq!((nodes.nodes[0].name.as_str(), nodes.nodes[0].gpus, nodes.next_page_token.is_empty()), ("n1", 4, false));
}

#[tokio::test]
async fn what_is_asked_for_by_a_wrong_name_is_refused() {
    let edge = Edge::start().await;
    let mut inventory = edge.inventory().await;
    let node = problem(inventory.get_node(v1::GetNodeRequest { name: "n3".into() }).await);
    assert_eq!((node.reason.as_str(), node.metadata.contains_key("nearest")), ("UNKNOWN_NODE", true));
    let gpu = v1::GetGpuRequest { id: "n1/PCIROOT(9)#PCI(0000)".into() };
    assert_eq!(problem(inventory.get_gpu(gpu).await).reason, "UNKNOWN_GPU");
    let list = v1::ListGpusRequest { model: "A3".into(), ..Default::default() };
    assert_eq!(problem(inventory.list_gpus(list).await).reason, "UNKNOWN_MODEL");
    let list = v1::ListVmsRequest { node: "n3".into(), ..Default::default() };
    assert_eq!(problem(inventory.list_vms(list).await).reason, "UNKNOWN_NODE");
    let bad = v1::ListGpusRequest { node: "a b".into(), model: "/".into(), state: 77, ..Default::default() };
    let fields: Vec<_> = problem(inventory.list_gpus(bad).await).fields.into_iter().map(|error| error.field).collect();
    assert_eq!(fields, ["node", "model", "state"]);
}

#[tokio::test]
async fn a_pinned_vm_shows_its_placement() {
    let edge = Edge::start().await;
    let mut asked = ask("p1", 1);
    asked.request.as_mut().unwrap().vm = "Render".into();
    let made = edge.placements().await.create(asked).await.unwrap().into_inner();
    assert_eq!(made.phase(), v1::Phase::Preparing, "its VM is there already");
    let vms = edge.inventory().await.list_vms(v1::ListVmsRequest::default()).await.unwrap().into_inner().vms;
    assert_eq!((vms[0].placement.as_str(), vms[0].fresh), ("p1", true));
    assert_eq!(vms[0].pin.as_ref().unwrap().reason(), v1::PinReason::DeviceAssignment);
}

#[tokio::test]
async fn counts_agree_with_lists() {
    let edge = Edge::start().await;
    edge.placements().await.create(ask("p1", 3)).await.unwrap();
    let summary = edge.inventory().await.summarize(v1::SummarizeRequest {}).await.unwrap().into_inner();
    assert_eq!((summary.nodes, summary.nodes_ready, summary.models.len()), (2, 2, 1));
    let model = &summary.models[0];
    assert_eq!((model.model.as_str(), model.gpus, model.available), ("A2", 6, 3));
    assert_eq!(model.reasons, [v1::Count { name: "Claimed".into(), count: 3 }]);
    let slots: Vec<_> = model.slots.iter().map(|slots| (slots.gpus, slots.vms)).collect();
    assert_eq!(slots, [(1, 3), (2, 1), (4, 0), (8, 0), (16, 0)]);
    let status = OperationsClient::new(edge.channel().await).status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.term, status.revision, status.store.as_str()), (3, summary.revision, "memory"));
    assert_eq!((status.gpus, status.gpus_available, status.claims, status.placements_live), (6, 3, 3, 1));
    assert!(status.checked_at.is_some() && status.violations.is_empty());
}

#[tokio::test]
async fn an_audit_from_beyond_its_end_is_refused() {
    let edge = Edge::start().await;
    let mut operations = OperationsClient::new(edge.channel().await);
    let problem = problem(operations.audit(v1::AuditRequest { after: 812 }).await);
    assert_eq!((problem.class, problem.reason.as_str()), (ErrorClass::InvalidArgument, "NO_SUCH_BLOCK"));
    assert!(problem.message.contains("no block 812: the last one is 0"), "{problem:?}");
    operations.audit(v1::AuditRequest { after: 0 }).await.unwrap();
}

#[tokio::test]
async fn a_plan_claims_nothing() {
    let edge = Edge::start().await;
    let requests = [ask("a", 4), ask("b", 2), ask("c", 1), ask("a", 1)].into_iter().filter_map(|ask| ask.request);
    let plan = edge.placements().await.plan(v1::PlanRequest { requests: requests.collect() }).await.unwrap();
    let planned = plan.into_inner().planned;
    let node = |at: usize| planned[at].assignment.as_ref().map(|a| a.node.as_str());
    assert_eq!((node(0), node(1), node(2)), (Some("n1"), Some("n2"), None));
    assert!(planned[2].explanation.is_some() && planned[3].refusal.contains("exists already"), "{planned:?}");
    let live = edge.placements().await.list(v1::ListPlacementsRequest::default()).await.unwrap().into_inner();
    assert_eq!(live.placements, []);
}

#[tokio::test]
async fn a_watch_lists_first_then_follows_and_resumes() {
    let edge = Edge::start().await;
    let mut placements = edge.placements().await;
    for name in ["a", "b"] {
        placements.create(ask(name, 1)).await.unwrap();
    }
    let mut watch = placements.watch(v1::WatchPlacementsRequest::default()).await.unwrap().into_inner();
    let next = async |watch: &mut Streaming<v1::PlacementChange>| {
        let change = watch.message().await.unwrap().unwrap();
        let placement = change.placement.unwrap();
        (placement.request.as_ref().unwrap().name.clone(), change.revision, placement.phase())
    };
    let first = next(&mut watch).await;
    assert_eq!(first, ("a".to_owned(), 0, v1::Phase::Held), "within the list there is nothing to resume from");
    let (name, listed, _) = next(&mut watch).await;
    assert_eq!((name.as_str(), listed > 10), ("b", true));
    let release = v1::ReleasePlacementRequest { name: "a".into(), ..Default::default() };
    placements.release(release.clone()).await.unwrap();
    let (name, revision, phase) = next(&mut watch).await;
    assert_eq!((name.as_str(), revision > listed, phase), ("a", true, v1::Phase::Released));

    let resumed = v1::WatchPlacementsRequest { after_revision: listed, name: "a".into() };
    let mut resumed = placements.watch(resumed).await.unwrap().into_inner();
    assert_eq!(next(&mut resumed).await, ("a".to_owned(), revision, v1::Phase::Released));
    let ancient = v1::WatchPlacementsRequest { after_revision: 1, ..Default::default() };
    let mut ancient = placements.watch(ancient).await;
    let status = match &mut ancient {
        Ok(watch) => watch.get_mut().message().await.unwrap_err(),
        Err(status) => status.clone(),
    };
    assert_eq!(
        (status.code(), Problem::from_status(&status).reason.as_str()),
        (tonic::Code::OutOfRange, "REVISION_TOO_OLD")
    );
}

#[tokio::test]
async fn a_gpu_watch_tells_only_of_gpus_that_changed() {
    let edge = Edge::start().await;
    let mut watch = edge.inventory().await.watch(v1::WatchGpusRequest::default()).await.unwrap().into_inner();
    let made = edge.placements().await.create(ask("p", 1)).await.unwrap().into_inner();
    let assignment = made.assignment.unwrap();
    let change = watch.message().await.unwrap().unwrap().gpu.unwrap();
    assert_eq!(change.id, format!("{}/{}", assignment.node, assignment.gpus[0].address));
    assert_eq!((change.placement.as_str(), change.available), ("p", false));
    edge.leader.submit(Input::Disconnected(node("n2"))).await.unwrap();
    for _ in 0..2 {
        let change = watch.message().await.unwrap().unwrap().gpu.unwrap();
        assert_eq!((change.node.as_str(), change.available), ("n2", false), "a lost node changes all its GPUs");
    }
}

#[tokio::test]
async fn health_is_serving_while_the_leader_publishes() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let edge = Edge::start().await;
    let mut health = HealthClient::new(edge.channel().await);
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "berth.v1.Placements"] {
        let status = health.check(ask(service)).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving);
    }
    assert_eq!(health.check(ask("x")).await.unwrap_err().code(), tonic::Code::NotFound);
    let mut watch = health.watch(ask("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    edge.leading.abort();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn supervisors_are_told_by_plain_http_whether_it_is_ready() {
    let edge = Edge::start().await;
    let get = |path: &str| http::Request::get(path).body(Body::empty()).unwrap();
    assert_eq!(edge.send(get("/livez")).await.0, 200);
    let (status, _, text) = edge.send(get("/readyz")).await;
    assert_eq!((status, text.as_str()), (200, "ready: it leads\n"));
    let head = http::Request::head("/readyz").body(Body::empty()).unwrap();
    assert_eq!(edge.send(head).await.0, 200);
    let post = http::Request::post("/readyz").header("content-type", "application/json").body(Body::from("{}"));
    assert_eq!(edge.send(post.unwrap()).await.0, 404, "it is no method of the API");

    edge.leading.abort();
    while !edge.leading.is_finished() {
        tokio::task::yield_now().await;
    }
    let (status, _, text) = edge.send(get("/readyz")).await;
    assert_eq!((status, text.as_str()), (503, "not ready: it stops\n"));
    assert_eq!(edge.send(get("/livez")).await.0, 200, "it answers still, and ends by itself");
}

#[tokio::test]
async fn a_controller_that_has_seen_nothing_yet_is_live_and_not_ready() {
    let (leader, _calls) = Leader::channel(1);
    let (replica, _publisher) = Replica::empty();
    let checked = Arc::new(ArcSwap::from_pointee(Checked::default()));
    let records = Arc::new(berth_store::memory::Memory::new());
    let (board, _standing) = Board::new(Standing::default());
    let forwarder = Forwarder::new(board, Way::default(), None);
    let sources = Sources { leader, replica, seen: Arc::new(SeenAlways), checked, store: "memory", records, forwarder };
    let router = server::router(sources, NoAgents).unwrap();
    for (path, expected) in [("/livez", 200), ("/readyz", 503)] {
        let request = http::Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(router.clone().oneshot(request).await.unwrap().status(), expected, "{path}");
    }
}

#[tokio::test]
async fn reflection_answers_both_versions() {
    let edge = Edge::start().await;
    for version in ["v1", "v1alpha"] {
        let request = http::Request::post(format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .version(http::Version::HTTP_2)
            // One message: list_services = "" (field 7).
            .body(Body::from(vec![0, 0, 0, 0, 2, 0x3a, 0]))
            .unwrap();
        let response = edge.router.clone().oneshot(request).await.unwrap();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains("berth.v1.Placements") && text.contains("grpc.health.v1.Health"), "{version}: {text}");
    }
}

#[tokio::test]
async fn a_call_that_is_never_answered_ends_and_says_that_nobody_knows() {
    let (leader, _never_read) = Leader::channel(1);
    let (replica, _publisher) = Replica::new(Default::default(), 1, 1, Timestamp::from_millis(0));
    let checked = Arc::new(ArcSwap::from_pointee(Checked::default()));
    let records = Arc::new(berth_store::memory::Memory::new());
    let forwarder = Forwarder::of_a_leader();
    let sources = Sources { leader, replica, seen: Arc::new(SeenAlways), checked, store: "memory", records, forwarder };
    let router = server::router(sources, NoAgents).unwrap();
    let request = http::Request::post("/berth.v1.Placements/Release")
        .header("content-type", "application/json")
        .header("grpc-timeout", "20m")
        .body(Body::from(r#"{"name": "p"}"#))
        .unwrap();
    let response = router.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(status == 504 && text.contains("not known whether"), "{status} {text}");
}

#[tokio::test]
async fn watches_are_bounded() {
    let edge = Edge::start().await;
    let mut open = Vec::new();
    let mut refused = None;
    for _ in 0..2000 {
        let request = http::Request::post("/berth.v1.Inventory/Watch").header("content-type", "application/json");
        let response = edge.router.clone().oneshot(request.body(Body::from("{}")).unwrap()).await.unwrap();
        match response.status().as_u16() {
            200 => open.push(response),
            status => {
                refused = Some(status);
                break;
            }
        }
    }
    assert_eq!((open.len(), refused), (1024, Some(429)));
    drop(open);
    let request = || http::Request::post("/berth.v1.Inventory/Watch").header("content-type", "application/json");
    let response = edge.router.clone().oneshot(request().body(Body::from("{}")).unwrap()).await.unwrap();
    assert_eq!(response.status().as_u16(), 200, "a closed watch gives its place back");
}
