//! Several controllers by mutual TLS on a real etcd: who may follow the leader and say for whom it asks, what a call that
//! is passed on keeps, where agents end up, and certificates that are renewed under all of them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use berth_controller as controller;
use berth_controller::app::Running;
use berth_controller::config::{Config, StoreKind, Tls};
use berth_model::node::{HostFacts, Platform};
use berth_node_agent as agent;
use berth_node_agent::driver::sim::{Delays, GpuSpec, Host, HostSpec, SimDriver};
use berth_proto::v1;
use berth_proto::v1::operations_client::OperationsClient;
use berth_proto::v1::peers_client::PeersClient;
use berth_proto::v1::placements_client::PlacementsClient;
use berth_store::Store as _;
use berth_store_etcd::{Etcd, SHORTEST_LEASE_TTL};
use berth_tests::etcd::Etcd as Server;
use berth_tls::Pair;
use berth_tls::client::{Connector, Files, transport};
use berth_tls_testing::{Ca, HERE};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::{Channel, Endpoint, Identity, ServerTlsConfig};
use tonic::{Code, Request, Status};

/// Long enough for everything that must happen, short enough that a test that hangs is noticed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The subject that all controllers share.
const CONTROLLER: &str = "berth-controller";
const NODE: &str = "hv-01";

/// Waits until something is so; `holds` gives what it is instead.
async fn until<F: Future<Output = Result<(), String>>>(what: &str, mut holds: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while let Err(instead) = holds().await {
        assert!(Instant::now() < end, "not in time: {what}; {instead}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An etcd, a CA, and controllers that share both.
struct Site {
    etcd: Server,
    dir: tempfile::TempDir,
    ca: Ca,
    controllers: Vec<Running>,
}

impl Site {
    /// `None` where there is no etcd.
    fn new(test: &str) -> Option<Self> {
        let etcd = Server::one(test).unwrap()?;
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(dir.path(), "ca");
        Some(Self { etcd, dir, ca, controllers: Vec::new() })
    }

    async fn with_controllers(test: &str, count: usize) -> Option<Self> {
        let mut site = Self::new(test)?;
        for number in 0..count {
            let own = site.ca.issue(&format!("c{number}"), CONTROLLER, HERE, |_| ());
            site.start(own).await;
        }
        until("one leads, and the others hear it", || async {
            if site.settled() { Ok(()) } else { Err(format!("{:?}", site.standings())) }
        })
        .await;
        Some(site)
    }

    fn etcd_options(&self) -> berth_store_etcd::Options {
        berth_store_etcd::Options {
            endpoints: self.etcd.endpoints(),
            lease_ttl: SHORTEST_LEASE_TTL,
            ..Default::default()
        }
    }

    /// Starts a controller with this certificate.
    async fn start(&mut self, own: Pair) {
        let Pair { cert, key } = own;
        let look = Duration::from_millis(20);
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            store: StoreKind::Etcd,
            etcd: self.etcd_options(),
            tls: Tls { cert: Some(cert), key: Some(key), client_ca: Some(self.ca.file.clone()), look },
            heartbeat: Duration::from_millis(500),
            observe: Duration::from_millis(200),
            ..Config::default()
        };
        self.controllers.push(controller::app::start(config).await.unwrap());
    }

    fn standings(&self) -> Vec<controller::standing::Standing> {
        self.controllers.iter().map(|one| one.board.now()).collect()
    }

    fn settled(&self) -> bool {
        let standings = self.standings();
        let mut leaders = standings.iter().filter(|one| one.leads);
        let (Some(leader), None) = (leaders.next(), leaders.next()) else { return false };
        standings.iter().all(|one| one.leads || one.told.is_some() && one.leader == leader.leader)
    }

    fn leader(&self) -> &Running {
        self.controllers.iter().find(|one| one.board.leads()).expect("somebody leads")
    }

    fn follower(&self) -> &Running {
        self.controllers.iter().find(|one| !one.board.leads()).expect("somebody follows")
    }

    fn files(&self, own: Option<Pair>) -> Files {
        Files { ca: self.ca.file.clone(), own, server_name: None }
    }

    /// A person's certificate: a subject and no names.
    fn user(&self, name: &str) -> Pair {
        self.ca.issue(name, name, &[], |_| ())
    }

    fn agent_certificate(&self) -> Pair {
        self.ca.issue("agent", "an agent", &[NODE], |_| ())
    }

    /// An agent of a simulated host with four GPUs that knows only this controller.
    async fn agent(&self, of: &Running, tls: Files) -> agent::Running {
        let gpu = |slot: usize| {
            let address = format!("PCIROOT({slot})#PCI(0300)#PCI(0000)").parse().unwrap();
            GpuSpec::of(&"A2".parse().unwrap(), address)
        };
        let spec = HostSpec {
            node: NODE.parse().unwrap(),
            facts: HostFacts {
                platform: Platform::Simulated,
                system: "test".into(),
                cluster: None,
                cpu_milli: 64_000,
                memory_bytes: 1 << 39,
                mmio_high_cap_bytes: None,
                notes: Vec::new(),
            },
            gpus: (1..5).map(gpu).collect(),
            vms: vec![],
        };
        let driver = SimDriver::new(Arc::new(Mutex::new(Host::new(spec))), Delays::default());
        let endpoint = agent::config::endpoint(&format!("https://localhost:{}", of.local_addr.port())).unwrap();
        let mut config =
            agent::config::Config::new(NODE.parse().unwrap(), vec![endpoint], self.dir.path().join("agent"));
        config.tls = Some(tls);
        config.retry.first = Duration::from_millis(20);
        config.retry.longest = Duration::from_millis(200);
        agent::start(config, Arc::new(driver)).await.unwrap()
    }

    /// Waits until every controller shows the node as ready.
    async fn until_ready(&self) {
        until("every controller shows the node as ready", || async {
            let ready = |one: &Running| one.replica.now().world.nodes().any(|node| node.not_ready().is_none());
            if self.controllers.iter().all(ready) { Ok(()) } else { Err(format!("{:?}", self.standings())) }
        })
        .await;
    }
}

/// A connection to a controller; it comes about with the first call.
fn channel(one: &Running, files: Files) -> Channel {
    let endpoint: http::Uri = format!("https://localhost:{}", one.local_addr.port()).parse().unwrap();
    let way = Endpoint::from(transport(&endpoint).unwrap()).origin(endpoint);
    way.connect_with_connector_lazy(Connector::new(files))
}

fn asked(name: &str) -> v1::CreatePlacementRequest {
    let request = v1::PlacementRequest {
        request_id: format!("r-{name}"),
        name: name.to_owned(),
        vm: format!("vm-{name}"),
        gpus: 1,
        ..Default::default()
    };
    v1::CreatePlacementRequest { request: Some(request) }
}

/// Asks for a placement, again and again while nobody can answer; who is written down as having asked.
async fn caller_of(one: &Running, files: Files, name: &str) -> String {
    let mut api = PlacementsClient::new(channel(one, files));
    let end = Instant::now() + PATIENCE;
    loop {
        match api.create(asked(name)).await {
            Ok(placement) => return placement.into_inner().caller,
            Err(status) => assert!(status.code() == Code::Unavailable && Instant::now() < end, "{status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Tries to follow; the code it ends with, or OK when the leader tells something.
async fn follow(one: &Running, files: Files) -> Status {
    let mut api = PeersClient::new(channel(one, files));
    let told = async { api.follow(v1::FollowRequest {}).await?.into_inner().message().await };
    match tokio::time::timeout(PATIENCE, told).await.expect("it hangs") {
        Ok(told) => Status::ok(format!("it was told {:?}", told.map(|told| told.revision))),
        Err(status) => status,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_at_a_follower_keeps_who_asked_and_an_agent_there_is_sent_to_the_leader() {
    let test = "a_call_at_a_follower_keeps_who_asked_and_an_agent_there_is_sent_to_the_leader";
    let Some(site) = Site::with_controllers(test, 3).await else { return };
    let agent = site.agent(site.follower(), site.files(Some(site.agent_certificate()))).await;
    site.until_ready().await;

    let terraform = site.files(Some(site.user("terraform")));
    assert_eq!(caller_of(site.follower(), terraform, "one").await, "cert:CN=terraform");
    // Without a certificate it is the caller's address; the follower's own would have a subject.
    let caller = caller_of(site.follower(), site.files(None), "two").await;
    assert!(caller.starts_with("127.0.0.1:"), "{caller}");
    let stored = site.leader().replica.now();
    let written = |name: &str| stored.world.placement(&name.parse().unwrap()).unwrap().caller.clone();
    assert_eq!((written("one"), written("two")), ("cert:CN=terraform".to_owned(), caller));

    agent.stop().await;
    for one in site.controllers {
        one.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_controller_hears_the_leader_and_says_for_whom_it_asks() {
    let test = "only_a_controller_hears_the_leader_and_says_for_whom_it_asks";
    let Some(mut site) = Site::with_controllers(test, 2).await else { return };
    let own = site.ca.issue("a-third", CONTROLLER, HERE, |_| ());
    let told = follow(site.leader(), site.files(Some(own.clone()))).await;
    assert_eq!(told.code(), Code::Ok, "{told:?}");

    let stranger = Ca::new(site.dir.path(), "other-ca").issue("stranger", CONTROLLER, HERE, |_| ());
    let cases = [
        ("nobody", None, Code::Unauthenticated),
        ("an agent", Some(site.agent_certificate()), Code::PermissionDenied),
        ("a person", Some(site.user("terraform")), Code::PermissionDenied),
        // The names are who it is dialled as, and prove nothing here.
        ("a namesake", Some(site.ca.issue("namesake", "other", &[CONTROLLER], |_| ())), Code::PermissionDenied),
    ];
    for (who, own, code) in cases {
        let refused = follow(site.leader(), site.files(own.clone())).await;
        assert_eq!(refused.code(), code, "{who}: {refused:?}");
        assert!(refused.message().contains("only another controller may do this"), "{who}: {refused:?}");
        // Nor does anybody else ask in another's name, at the leader or through a follower.
        for at in &site.controllers {
            let mut call = Request::new(asked("forged"));
            call.metadata_mut().insert("berth-forwarded-for", "cert:CN=terraform".parse().unwrap());
            let refused = PlacementsClient::new(channel(at, site.files(own.clone()))).create(call).await.unwrap_err();
            assert_eq!(refused.code(), code, "{who}: {refused:?}");
        }
    }
    let refused = follow(site.leader(), site.files(Some(stranger))).await;
    assert!(refused.code() != Code::Ok, "a controller of another CA: {refused:?}");
    assert!(site.leader().replica.now().world.placement(&"forged".parse().unwrap()).is_none());

    // A controller whose certificate is another's shows what is stored, and takes nothing for fresh.
    let odd = site.ca.issue("odd", "somebody-else", HERE, |_| ());
    site.start(odd).await;
    let odd = site.controllers.last().unwrap();
    until("it knows who leads", || async {
        let standing = odd.board.now();
        if standing.leader.is_some() { Ok(()) } else { Err(format!("{standing:?}")) }
    })
    .await;
    let mut api = PlacementsClient::new(channel(odd, site.files(Some(site.user("terraform")))));
    let refused = api.create(asked("through-the-odd-one")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let mut operations = OperationsClient::new(channel(odd, site.files(None)));
    let status = operations.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.leader, status.leader_revision), (false, 0), "it hears nobody");
    for one in site.controllers {
        one.stop().await;
    }
}

/// What arrives at a leader that answers nothing: the headers of each call.
#[derive(Clone)]
struct Recorder(mpsc::Sender<http::HeaderMap>);

impl tonic::server::NamedService for Recorder {
    const NAME: &'static str = "berth.v1.Placements";
}

impl Service<http::Request<tonic::body::Body>> for Recorder {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let calls = self.0.clone();
        Box::pin(async move {
            calls.send(request.headers().clone()).await.unwrap();
            std::future::pending().await
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_passed_on_keeps_its_deadline_and_ends_with_it() {
    let Some(mut site) = Site::new("a_call_that_is_passed_on_keeps_its_deadline_and_ends_with_it") else { return };
    // A leader that takes calls and never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let Pair { cert, key } = site.ca.issue("mute", CONTROLLER, HERE, |_| ());
    let identity = Identity::from_pem(std::fs::read(cert).unwrap(), std::fs::read(key).unwrap());
    let (sender, mut calls) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    let mut server = tonic::transport::Server::builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tasks.spawn(async move { server.add_service(Recorder(sender)).serve_with_incoming(incoming).await.unwrap() });
    let store = Etcd::connect(site.etcd_options()).await.unwrap();
    let _leadership = store.campaign(&format!("{endpoint} 4711")).await.unwrap();

    let own = site.ca.issue("c0", CONTROLLER, HERE, |_| ());
    site.start(own).await;
    let follower = &site.controllers[0];
    until("the follower knows who leads", || async {
        let leader = follower.board.now().leader.map(|known| known.endpoint);
        if leader.as_ref() == Some(&endpoint) { Ok(()) } else { Err(format!("{leader:?} leads")) }
    })
    .await;
    let mut call = Request::new(asked("late"));
    call.set_timeout(Duration::from_secs(5));
    let begun = Instant::now();
    let mut api = PlacementsClient::new(channel(follower, site.files(Some(site.user("terraform")))));
    let (ended, headers) = tokio::join!(api.create(call), tokio::time::timeout(PATIENCE, calls.recv()));
    let headers = headers.unwrap().unwrap();
    assert_eq!(headers.get("grpc-timeout").unwrap(), "5000000u", "{headers:?}");
    assert_eq!(headers.get("berth-forwarded-for").unwrap(), "cert:CN=terraform", "{headers:?}");
    let ended = ended.unwrap_err();
    // The client's own clock may be the first to say so.
    assert!(matches!(ended.code(), Code::DeadlineExceeded | Code::Cancelled), "{ended:?}");
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(20), "{took:?}");
    for one in site.controllers {
        one.stop().await;
    }
}

/// Another CA, in the way of docs/tls.md: both CAs everywhere, then new certificates, then the old CA out. No process is
/// started anew; connections between controllers are, when the leader goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ca_is_taken_over_by_controllers_agents_and_callers_while_everything_runs() {
    let test = "another_ca_is_taken_over_by_controllers_agents_and_callers_while_everything_runs";
    let Some(mut site) = Site::with_controllers(test, 3).await else { return };
    let agent = site.agent(site.follower(), site.files(Some(site.agent_certificate()))).await;
    site.until_ready().await;
    let old_user = site.user("old-user");

    let new = Ca::new(site.dir.path(), "new-ca");
    let old_file = site.dir.path().join("old-ca.pem");
    std::fs::copy(&site.ca.file, &old_file).unwrap();
    let pem = |file: &PathBuf| std::fs::read_to_string(file).unwrap();
    let new_user = new.issue("new-user", "new-user", &[], |_| ());
    let taken = async |site: &Site, files: &Files| -> Result<(), String> {
        for one in &site.controllers {
            let mut api = OperationsClient::new(channel(one, files.clone()));
            api.status(v1::StatusRequest {}).await.map_err(|status| status.to_string())?;
        }
        Ok(())
    };
    // A whole file takes the place of the other, as a careful renewal does it.
    let replace = |text: &str| {
        let next = site.dir.path().join("next.pem");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, &site.ca.file).unwrap();
    };
    replace(&(pem(&site.ca.file) + &pem(&new.file)));
    let early = Files { ca: old_file.clone(), own: Some(new_user.clone()), server_name: None };
    until("every controller takes a caller of the new CA", || taken(&site, &early)).await;

    for number in 0..3 {
        new.issue(&format!("c{number}"), CONTROLLER, HERE, |_| ());
    }
    new.issue("agent", "an agent", &[NODE], |_| ());
    let files = Files { ca: new.file.clone(), own: Some(new_user), server_name: None };
    until("every controller shows its new certificate", || taken(&site, &files)).await;

    replace(&pem(&new.file));
    let late = Files { ca: new.file.clone(), own: Some(old_user), server_name: None };
    until("no controller takes a caller of the old CA any more", || async {
        for one in &site.controllers {
            let mut api = OperationsClient::new(channel(one, late.clone()));
            if api.status(v1::StatusRequest {}).await.is_ok() {
                return Err(format!("{} does", one.local_addr));
            }
        }
        Ok(())
    })
    .await;

    let at = site.controllers.iter().position(|one| one.board.leads()).unwrap();
    site.controllers.remove(at).stop().await;
    until("another one leads, and is heard", || async {
        if site.settled() { Ok(()) } else { Err(format!("{:?}", site.standings())) }
    })
    .await;
    site.until_ready().await;
    assert_eq!(caller_of(site.follower(), files, "after").await, "cert:CN=new-user");
    agent.stop().await;
    for one in site.controllers {
        one.stop().await;
    }
}
