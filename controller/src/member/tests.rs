//! Three controllers on one store, with real ports, callers and agents by hand: everyone shows the same, anyone takes a
//! change, and who leads may change at any time.

mod agent;

use crate::api::forward::was_refused;
use crate::app::{self, Running};
use crate::config::Config;
use crate::testing::{Scripted, eventually, report, request};
use agent::Agent;
use berth_core::invariants;
use berth_model::Timestamp;
use berth_model::placement::Phase;
use berth_proto::status::Problem;
use berth_proto::v1;
use berth_proto::v1::inventory_client::InventoryClient;
use berth_proto::v1::operations_client::OperationsClient;
use berth_proto::v1::placements_client::PlacementsClient;
use berth_store::memory::Memory;
use berth_store::turns::Turns;
use berth_store::{Store, key, record};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Long enough for everything that must happen, short enough that a test that hangs is noticed.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(listen: SocketAddr) -> Config {
    Config { listen, heartbeat: Duration::from_millis(500), ..Config::default() }
}

async fn start(turns: &Turns, listen: SocketAddr) -> Running {
    app::start_with(config(listen), Arc::new(turns.another())).await.unwrap()
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn three() -> (Turns, Vec<Running>) {
    let turns = Turns::new(Arc::new(Memory::new()));
    let mut controllers = Vec::new();
    for _ in 0..3 {
        controllers.push(start(&turns, any_port()).await);
    }
    eventually("one of three leads, and the others hear it", || is_settled(&controllers)).await;
    (turns, controllers)
}

fn is_settled(controllers: &[Running]) -> bool {
    let standings: Vec<_> = controllers.iter().map(|one| one.board.now()).collect();
    let mut leaders = standings.iter().filter(|one| one.leads);
    let (Some(leader), None) = (leaders.next(), leaders.next()) else { return false };
    standings.iter().all(|one| one.leads || one.told.is_some() && one.leader == leader.leader)
}

fn leader(controllers: &[Running]) -> usize {
    controllers.iter().position(|one| one.board.leads()).expect("nobody leads")
}

fn channel(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

fn placements(one: &Running) -> PlacementsClient<Channel> {
    PlacementsClient::new(channel(one.local_addr))
}

fn asked(name: &str) -> v1::CreatePlacementRequest {
    v1::CreatePlacementRequest { request: Some((&request(name, 1)).into()) }
}

fn named(name: &str) -> v1::GetPlacementRequest {
    v1::GetPlacementRequest { name: name.to_owned() }
}

fn released(name: &str) -> v1::ReleasePlacementRequest {
    v1::ReleasePlacementRequest { name: name.to_owned(), ..Default::default() }
}

/// A request that wants to see a revision.
fn at_least<T>(message: T, revision: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("berth-min-revision", revision.parse().unwrap());
    request
}

fn addresses(controllers: &[Running]) -> Vec<SocketAddr> {
    controllers.iter().map(|one| one.local_addr).collect()
}

/// Every controller shows exactly what the leader shows.
async fn all_show_the_same(controllers: &[Running]) {
    let mut last = Vec::new();
    let end = Instant::now() + PATIENCE;
    loop {
        let original = controllers[leader(controllers)].replica.now();
        last.clear();
        for one in controllers {
            let copy = one.replica.now();
            last.extend(invariants::differences(&original.world, &copy.world));
            last.extend(invariants::check(&copy.world).iter().map(ToString::to_string));
        }
        if last.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "{last:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a controller shows so many nodes that take placements.
fn shows_ready(one: &Running, nodes: usize) -> bool {
    one.replica.now().world.nodes().filter(|node| node.not_ready().is_none()).count() == nodes
}

async fn stop_all(controllers: Vec<Running>) {
    for one in controllers {
        one.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anyone_takes_a_change_and_everyone_shows_it_to_whoever_made_it() {
    let (_turns, controllers) = three().await;
    let _agent = Agent::start("n1", &addresses(&controllers), 8, &[]);
    eventually("every controller shows the node as ready", || {
        controllers.iter().all(|one| one.replica.now().world.nodes().any(|node| node.not_ready().is_none()))
    })
    .await;
    let mut watching = placements(&controllers[(leader(&controllers) + 1) % 3])
        .watch(v1::WatchPlacementsRequest::default())
        .await
        .unwrap()
        .into_inner();
    for (at, one) in controllers.iter().enumerate() {
        let name = format!("p{at}");
        let answer = placements(one).create(asked(&name)).await.unwrap();
        let revision = answer.metadata().get("berth-revision").unwrap().to_str().unwrap().to_owned();
        assert_eq!(answer.get_ref().phase(), v1::Phase::Held);
        for reader in &controllers {
            let read = placements(reader).get(at_least(named(&name), &revision)).await.unwrap();
            assert_eq!(read.get_ref().phase(), v1::Phase::Held, "read at {}", reader.local_addr);
        }
        // Whoever goes on at the same controller need not say so.
        placements(one).release(released(&name)).await.unwrap();
        assert_eq!(placements(one).get(named(&name)).await.unwrap().get_ref().phase(), v1::Phase::Released);
    }
    // A follower's watch tells of all, and resumes by revision.
    let mut seen = BTreeMap::new();
    let mut resume = 0;
    while seen.len() < 3 || seen.values().any(|phase| *phase != v1::Phase::Released) {
        let change = tokio::time::timeout(PATIENCE, watching.message()).await.unwrap().unwrap().unwrap();
        let placement = change.placement.unwrap();
        if seen.is_empty() {
            resume = change.revision;
        }
        seen.insert(placement.request.as_ref().unwrap().name.clone(), placement.phase());
    }
    let again = v1::WatchPlacementsRequest { after_revision: resume, name: "p2".to_owned() };
    let follower = &controllers[(leader(&controllers) + 1) % 3];
    let mut resumed = placements(follower).watch(again).await.unwrap().into_inner();
    let change = tokio::time::timeout(PATIENCE, resumed.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(change.placement.unwrap().request.unwrap().name, "p2");
    all_show_the_same(&controllers).await;
    // A revision that is not there yet is waited for, not for ever.
    let far = at_least(named("p1"), "1000000");
    let status = placements(&controllers[0]).get(far).await.unwrap_err();
    assert!(status.code() == Code::Unavailable && status.message().contains("1000000"), "{status:?}");
    stop_all(controllers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_goes_another_leads_and_agent_and_placements_go_on() {
    let (_turns, mut controllers) = three().await;
    let agent = Agent::start("n1", &addresses(&controllers), 4, &[(1, "vm-a")]);
    eventually("the node is ready", || controllers.iter().all(|one| shows_ready(one, 1))).await;
    placements(&controllers[0]).create(asked("a")).await.unwrap();
    placements(&controllers[0]).create(asked("held")).await.unwrap();
    let phase =
        |one: &Running, name: &str| one.replica.now().world.placement(&name.parse().unwrap()).unwrap().phase.clone();
    eventually("a is active everywhere", || controllers.iter().all(|one| phase(one, "a") == Phase::Active)).await;
    let held = phase(&controllers[0], "held");
    assert!(matches!(held, Phase::Held { .. }), "{held:?}");
    all_show_the_same(&controllers).await;

    let first = controllers.remove(leader(&controllers));
    let first_term = first.replica.now().term;
    first.stop().await;
    eventually("another one leads", || is_settled(&controllers)).await;
    assert!(controllers.iter().all(|one| one.replica.now().term > first_term));
    eventually("the agent has found it", || {
        controllers.iter().all(|one| one.replica.now().world.nodes().all(|node| node.not_ready().is_none()))
    })
    .await;
    assert!(agent.redirects() > 0 || agent.sessions() > 1);
    for one in &controllers {
        assert_eq!((phase(one, "a"), phase(one, "held")), (Phase::Active, held.clone()), "with its deadline");
    }
    placements(&controllers[0]).release(released("a")).await.unwrap();
    eventually("it is given back", || controllers.iter().all(|one| phase(one, "a") == Phase::Released)).await;
    placements(&controllers[1]).create(asked("b")).await.unwrap();
    all_show_the_same(&controllers).await;
    stop_all(controllers).await;
}

/// The audit is sealed a second after each change, and moves the store on; nobody is shown that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lists_anew_names_no_revision_that_others_never_reach() {
    let (turns, mut controllers) = three().await;
    let _agent = Agent::start("n1", &addresses(&controllers), 1, &[(1, "vm-a")]);
    eventually("the node is ready", || controllers.iter().all(|one| shows_ready(one, 1))).await;
    placements(&controllers[0]).create(asked("a")).await.unwrap();
    let name = || "a".parse().unwrap();
    eventually("it is active everywhere", || {
        controllers
            .iter()
            .all(|one| one.replica.now().world.placement(&name()).is_some_and(|a| a.phase == Phase::Active))
    })
    .await;
    let other = turns.another();
    let sealed = async || other.get(berth_store::audit::HEAD).await.unwrap().map_or(0, |head| head.modified.0);
    let newest = || controllers.iter().map(|one| one.replica.now().revision).max().unwrap();
    while sealed().await <= newest() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let fresh = start(&turns, any_port()).await;
    eventually("it has read the store", || fresh.replica.now().is_loaded()).await;
    let shown = placements(&fresh).list(v1::ListPlacementsRequest::default()).await.unwrap().into_inner().revision;
    for one in &controllers {
        let mut api = placements(one);
        let asked = at_least(v1::ListPlacementsRequest::default(), &shown.to_string());
        let answer = tokio::time::timeout(Duration::from_secs(1), api.list(asked)).await;
        answer.expect("it is not waited for").unwrap();
    }
    controllers.push(fresh);
    stop_all(controllers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_seen_before_is_not_taken_for_one_to_be_made_because_another_leads() {
    let (_turns, mut controllers) = three().await;
    let all = addresses(&controllers);
    let (agent, _other) = (Agent::start("n1", &all, 2, &[(1, "vm-a")]), Agent::start("n2", &all, 2, &[]));
    eventually("both nodes are ready", || controllers.iter().all(|one| shows_ready(one, 2))).await;
    drop(agent);
    controllers.remove(leader(&controllers)).stop().await;
    eventually("another one leads, and n2 is ready", || {
        is_settled(&controllers) && controllers.iter().all(|one| shows_ready(one, 1))
    })
    .await;
    let status = placements(&controllers[0]).create(asked("a")).await.unwrap_err();
    assert!(status.message().contains("1 of 2 nodes have not reported"), "{status:?}");
    let _agent = Agent::start("n1", &all, 2, &[(1, "vm-a")]);
    eventually("n1 is back", || controllers.iter().all(|one| shows_ready(one, 2))).await;
    let placed = placements(&controllers[0]).create(asked("a")).await.unwrap().into_inner();
    assert_eq!(placed.assignment.unwrap().node, "n1");
    stop_all(controllers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_says_what_it_is_and_without_a_leader_it_goes_on_showing() {
    let scripted = Scripted::new(100_000);
    let turns = Turns::new(Arc::clone(&scripted) as Arc<dyn Store>);
    // Somebody leads who cannot be reached.
    let other = turns.another();
    let gone = "http://127.0.0.1:1 4711";
    other.campaign(gone).await.unwrap();
    let follower = start(&turns, any_port()).await;
    eventually("it has read the store", || follower.replica.now().is_loaded()).await;
    let status =
        OperationsClient::new(channel(follower.local_addr)).status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert!(!status.leader && status.leading_since.is_none());
    assert_eq!((status.leader_endpoint.as_str(), status.term, status.leader_revision), ("http://127.0.0.1:1", 1, 0));
    let status = placements(&follower).create(asked("a")).await.unwrap_err();
    let problem = Problem::from_status(&status);
    assert_eq!((status.code(), problem.reason.as_str()), (Code::Unavailable, "NO_LEADER"));
    assert!(problem.retry_after.is_some(), "{problem:?}");
    let list = placements(&follower).list(v1::ListPlacementsRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.revision, 1);
    // A call that was passed on once is not passed on again.
    let mut hop = Request::new(asked("a"));
    hop.metadata_mut().insert("berth-forwarded-for", "somebody".parse().unwrap());
    let status = placements(&follower).create(hop).await.unwrap_err();
    assert!(status.code() == Code::Unavailable && status.message().contains("passed on"), "{status:?}");
    follower.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_two_leaders_what_was_known_is_shown_and_nothing_passes_for_available() {
    let turns = Turns::new(Arc::new(Memory::new()));
    let leader = start(&turns, any_port()).await;
    eventually("it leads", || leader.board.leads()).await;
    // Next in turn is somebody who cannot be reached.
    let other = turns.another();
    let mut next = other.campaign("http://127.0.0.1:1 4711");
    assert!(futures::poll!(&mut next).is_pending());
    let follower = start(&turns, any_port()).await;
    let _agent = Agent::start("n1", &[leader.local_addr], 2, &[(1, "vm-a")]);
    eventually("the follower shows the node as ready", || {
        follower.replica.now().world.nodes().any(|node| node.not_ready().is_none())
    })
    .await;
    leader.stop().await;
    next.await.unwrap();
    eventually("the follower has noticed", || {
        follower.board.now().leader.is_some_and(|leader| leader.endpoint == "http://127.0.0.1:1")
    })
    .await;
    let mut api = InventoryClient::new(channel(follower.local_addr));
    let gpus = api.list_gpus(v1::ListGpusRequest::default()).await.unwrap().into_inner().gpus;
    assert_eq!(gpus.len(), 2);
    for gpu in gpus {
        assert_eq!(gpu.observed.unwrap().state(), v1::GpuState::Host, "what was known");
        assert!(!gpu.available);
        assert_eq!(gpu.unavailable[0].reason, "NodeNotFresh");
    }
    let status =
        OperationsClient::new(channel(follower.local_addr)).status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.gpus, status.gpus_available, status.leader_revision), (2, 0, 0));
    follower.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asked_and_what_json_sees_pass_through_a_follower() {
    let (_turns, controllers) = three().await;
    let _agent = Agent::start("n1", &addresses(&controllers), 2, &[]);
    let follower = &controllers[(leader(&controllers) + 1) % 3];
    eventually("the node is ready", || follower.replica.now().world.nodes().any(|node| node.not_ready().is_none()))
        .await;
    let client = placements(follower).create(asked("a")).await.unwrap().into_inner();
    let leader_sees = client.caller;
    // The follower's own connection to the leader is not who asked.
    let connection: SocketAddr = leader_sees.parse().expect("an address");
    assert!(!addresses(&controllers).contains(&connection));
    let direct = placements(&controllers[leader(&controllers)]).get(named("a")).await.unwrap().into_inner();
    assert_eq!(direct.caller, leader_sees);
    stop_all(controllers).await;
}

/// Repeats a call while nobody can answer it, as clients do.
async fn insist<T, F: Future<Output = Result<T, Status>>>(mut call: impl FnMut() -> F) -> Result<T, Status> {
    let end = Instant::now() + PATIENCE;
    loop {
        match call().await {
            // tonic calls it an internal error, or cancelled, when a server that stops did not take a call any more. And
            // a call may be under way in the moment in which its connection breaks: the answer says so, and that
            // repeating is safe.
            Err(status)
                if (matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
                    || was_refused(&status))
                    && Instant::now() < end =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Creates and releases until it is told to stop; gives how often, and the names it left held.
async fn load(
    client: usize,
    addresses: Vec<SocketAddr>,
    stop: Arc<AtomicBool>,
    all: Arc<AtomicUsize>,
) -> Result<(usize, Vec<String>), Status> {
    let mut clients: Vec<_> = addresses.iter().map(|address| PlacementsClient::new(channel(*address))).collect();
    let (mut done, mut kept) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let name = format!("c{client}-{done}");
        let mut turn = client + done;
        let mut next = || {
            turn += 1;
            let at = turn % clients.len();
            clients[at].clone()
        };
        insist(|| {
            let (mut api, name) = (next(), name.clone());
            async move { api.create(asked(&name)).await }
        })
        .await?;
        if done % 10 == 9 && kept.len() < 4 {
            kept.push(name);
        } else {
            insist(|| {
                let (mut api, name) = (next(), name.clone());
                async move { api.release(released(&name)).await }
            })
            .await?;
        }
        done += 1;
        all.fetch_add(1, Ordering::Relaxed);
    }
    clients.clear();
    Ok((done, kept))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_fails_nobody_who_retries() {
    let (turns, mut controllers) = three().await;
    let addresses = addresses(&controllers);
    let _agent = Agent::start("n1", &addresses, 32, &[]);
    eventually("the node is ready", || controllers.iter().all(|one| shows_ready(one, 1))).await;
    let (stop, all) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for client in 0..4 {
        clients.spawn(load(client, addresses.clone(), Arc::clone(&stop), Arc::clone(&all)));
    }
    for _ in 0..3 {
        let before = all.load(Ordering::Relaxed);
        eventually("the load goes on", || all.load(Ordering::Relaxed) >= before + 8).await;
        // The leader each time: the hardest order.
        let at = leader(&controllers);
        let old = controllers.remove(at);
        let address = old.local_addr;
        old.stop().await;
        eventually("another one leads", || is_settled(&controllers)).await;
        controllers.push(start(&turns, address).await);
        eventually("it follows", || is_settled(&controllers)).await;
        eventually("the agent has found the leader", || {
            controllers.iter().all(|one| one.replica.now().world.nodes().all(|node| node.not_ready().is_none()))
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let (mut done, mut kept) = (0, Vec::new());
    while let Some(ended) = clients.join_next().await {
        let (count, names) = ended.unwrap().expect("a call failed for another reason than that nobody could answer");
        done += count;
        kept.extend(names);
    }
    assert_eq!(done, all.load(Ordering::Relaxed));
    all_show_the_same(&controllers).await;

    // Nothing lost, nothing doubled: what the clients kept is held, nothing else is, and the claims say the same.
    let world = controllers[0].replica.now().world.clone();
    let mut held: Vec<_> = world.placements().filter(|p| p.phase.is_live()).map(|p| p.name().to_string()).collect();
    held.sort();
    kept.sort();
    assert_eq!(held, kept);
    let claims = turns.range(key::GPU_CLAIMS, None, None, 1_000).await.unwrap().items;
    assert_eq!(claims.len(), kept.len());
    let mut owners: Vec<_> =
        claims.iter().map(|item| record::read_claim(item).unwrap().placement.to_string()).collect();
    owners.sort();
    assert_eq!(owners, kept);
    stop_all(controllers).await;
}

/// Lists at two controllers tell the same about nodes, when they were heard of included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_lists_what_the_leader_lists() {
    let (_turns, controllers) = three().await;
    let _agent = Agent::start("n1", &addresses(&controllers), 2, &[(1, "vm-a")]);
    eventually("the node is ready", || controllers.iter().all(|one| shows_ready(one, 1))).await;
    let mut shown = Vec::new();
    for one in &controllers {
        let mut api = InventoryClient::new(channel(one.local_addr));
        let mut heard = None;
        let end = Instant::now() + PATIENCE;
        while heard.is_none() {
            let nodes = api.list_nodes(v1::ListNodesRequest::default()).await.unwrap().into_inner().nodes;
            heard = nodes[0].last_seen;
            assert!(Instant::now() < end, "it never says when the agent was heard of");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            Timestamp::from_system(std::time::SystemTime::now())
                >= berth_proto::convert::read_timestamp(heard.unwrap()).unwrap()
        );
        let gpus = api.list_gpus(v1::ListGpusRequest::default()).await.unwrap().into_inner().gpus;
        let vms = api.list_vms(v1::ListVmsRequest::default()).await.unwrap().into_inner().vms;
        shown.push((gpus, vms));
    }
    assert!(shown[0].0.iter().all(|gpu| gpu.available));
    assert_eq!(shown[0].1.len(), report(2, &[(1, "vm-a")]).vms.len());
    assert!(shown.iter().all(|one| *one == shown[0]), "{shown:#?}");
    stop_all(controllers).await;
}
