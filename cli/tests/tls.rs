//! Controller, agent and command line by TLS over real sockets: who may come in, who may speak for what, what each is
//! told otherwise, and certificates that are renewed while everything runs.
#![cfg(feature = "dev")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use berth::args::Cli;
use berth::error::Exit;
use berth::fleet;
use berth::output::{Style, system_clock};
use berth_controller as controller;
use berth_controller::config::{Config, StoreKind, Tls};
use berth_model::inventory::Hello;
use berth_model::node::{BootId, HostFacts, Platform};
use berth_node_agent as agent;
use berth_node_agent::driver::sim::{Delays, Host, SimDriver};
use berth_proto::v1::node_agent_client::NodeAgentClient;
use berth_proto::v1::{self, agent_message};
use berth_tls::Pair;
use berth_tls::client::{Connector, Files, transport};
use berth_tls_testing::{Ca, HERE, expired};
use clap::Parser as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

/// Long enough for everything that must happen, short enough that a test that hangs is noticed.
const PATIENCE: Duration = Duration::from_secs(30);
/// The simulated node.
const NODE: &str = "hv-01";

/// A person's certificate: a subject and no names.
fn user(ca: &Ca, name: &str) -> Pair {
    ca.issue(name, name, &[], |_| ())
}

fn files(ca: &Ca, own: Option<Pair>) -> Files {
    Files { ca: ca.file.clone(), own, server_name: None }
}

/// A controller that speaks TLS.
struct Berth {
    dir: tempfile::TempDir,
    ca: Ca,
    running: controller::app::Running,
    endpoint: String,
}

async fn start() -> Berth {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(dir.path(), "ca");
    let Pair { cert, key } = ca.issue("server", "controller", HERE, |_| ());
    let look = Duration::from_millis(20);
    let tls = Tls { cert: Some(cert), key: Some(key), client_ca: Some(ca.file.clone()), look };
    let running = controller::app::start(Config { tls, ..plain() }).await.unwrap();
    let endpoint = format!("https://localhost:{}", running.local_addr.port());
    Berth { dir, ca, running, endpoint }
}

fn plain() -> Config {
    let often = Duration::from_millis(200);
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        store: StoreKind::Memory,
        heartbeat: Duration::from_secs(1),
        observe: often,
        ..Config::default()
    }
}

impl Berth {
    /// An agent with a simulated host.
    async fn agent(&self, tls: Files) -> agent::Running {
        let spec = fleet::standard(1).unwrap().hosts().remove(0);
        let driver = SimDriver::new(Arc::new(Mutex::new(Host::new(spec))), Delays::default());
        let data_dir = self.dir.path().join("agent");
        let endpoint = agent::config::endpoint(&self.endpoint).unwrap();
        let mut config = agent::config::Config::new(NODE.parse().unwrap(), vec![endpoint], data_dir);
        config.tls = Some(tls);
        config.retry.first = Duration::from_millis(20);
        config.retry.longest = Duration::from_millis(100);
        agent::start(config, Arc::new(driver)).await.unwrap()
    }

    fn agent_certificate(&self) -> Pair {
        self.ca.issue("agent", "an agent", &[NODE], |_| ())
    }

    /// The command line with the CA and, if given, a certificate.
    async fn berth(&self, line: &str, own: Option<&Pair>) -> (Exit, String) {
        let mut words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        words.extend(["--ca".to_owned(), self.ca.file.display().to_string()]);
        if let Some(Pair { cert, key }) = own {
            words.extend(["--cert".to_owned(), cert.display().to_string()]);
            words.extend(["--key".to_owned(), key.display().to_string()]);
        }
        berth(&self.endpoint, words).await
    }

    async fn until_ready(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let (_, text) = self.berth("status", None).await;
            if text.contains("1 connected, 1 ready") {
                return;
            }
            assert!(Instant::now() < end, "the node is not ready: {text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn berth(endpoint: &str, words: Vec<String>) -> (Exit, String) {
    let words = ["berth".to_owned()].into_iter().chain(words).chain(["--endpoint".to_owned(), endpoint.to_owned()]);
    let cli = Cli::try_parse_from(words).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = berth::run(cli, &mut out, &mut err, Style { colour: false, clock: system_clock }).await;
    out.extend_from_slice(&err);
    (exit, String::from_utf8(out).unwrap())
}

async fn run(endpoint: &str, words: &[&str]) -> (Exit, String) {
    berth(endpoint, words.iter().map(ToString::to_string).collect()).await
}

#[track_caller]
fn has(text: &str, part: &str) {
    assert!(text.contains(part), "{text:?} does not contain {part:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_three_parties_work_by_mutual_tls_and_the_caller_is_written_down() {
    let berth = start().await;
    let agent = berth.agent(files(&berth.ca, Some(berth.agent_certificate()))).await;
    berth.until_ready().await;
    let terraform = user(&berth.ca, "terraform");

    let line = "place one --vm one --node hv-01 -o json";
    let (exit, placed) = berth.berth(line, Some(&terraform)).await;
    assert_eq!(exit, Exit::Done, "{placed}");
    has(&placed, "\"caller\": \"cert:CN=terraform\"");
    // Callers need no certificate; then they are known by their address only.
    let (exit, placed) = berth.berth("place two --vm two --node hv-01 -o json", None).await;
    assert_eq!(exit, Exit::Done, "{placed}");
    has(&placed, "\"caller\": \"127.0.0.1:");

    let (exit, text) = berth.berth("release one --wait --timeout 30s", Some(&terraform)).await;
    assert_eq!(exit, Exit::Done, "{text}");
    agent.stop().await;
    berth.running.stop().await;
}

/// Opens a session as an agent with these files, and says how it ends.
async fn session(berth: &Berth, files: Files, node: &str) -> Status {
    let endpoint: tonic::transport::Uri = berth.endpoint.parse().unwrap();
    let way = Endpoint::from(transport(&endpoint).unwrap()).origin(endpoint);
    let channel = way.connect_with_connector(Connector::new(files)).await.unwrap();
    greet(channel, node).await
}

async fn greet(channel: Channel, node: &str) -> Status {
    let hello = Hello {
        node: node.parse().unwrap(),
        agent_version: "0".into(),
        protocol: berth_proto::AGENT_PROTOCOL,
        boot: BootId::new("boot").unwrap(),
        facts: HostFacts {
            platform: Platform::Simulated,
            system: "test".into(),
            cluster: None,
            cpu_milli: 1000,
            memory_bytes: 1 << 30,
            mmio_high_cap_bytes: None,
            notes: Vec::new(),
        },
        ledger_term: 0,
        ledger_generation: 0,
        ledger_fleet: None,
        ledger_placements: Some(0),
    };
    let (out, stream) = tokio::sync::mpsc::channel(1);
    let first = agent_message::Message::Hello(v1::Hello::from(&hello));
    out.send(v1::AgentMessage { message: Some(first) }).await.unwrap();
    let talk = async {
        let mut inbound = NodeAgentClient::new(channel).session(ReceiverStream::new(stream)).await?.into_inner();
        let heard = inbound.message().await?;
        Err(Status::ok(format!("it was heard: {heard:?}")))
    };
    let ended: Result<(), Status> = tokio::time::timeout(PATIENCE, talk).await.expect("nothing came in time");
    ended.unwrap_err()
}

#[tokio::test]
async fn an_agent_speaks_only_for_the_node_of_its_certificate() {
    let berth = start().await;
    let own = berth.agent_certificate();
    let welcome = session(&berth, files(&berth.ca, Some(own.clone())), NODE).await;
    assert_eq!(welcome.code(), Code::Ok, "{welcome:?}");

    let refused = session(&berth, files(&berth.ca, Some(own)), "hv-02").await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    for part in ["speak for node hv-02", "CN=an agent", "DNS names: hv-01"] {
        has(refused.message(), part);
    }
    // A person's certificate is no agent's, even with the node's name as its subject.
    let refused = session(&berth, files(&berth.ca, Some(user(&berth.ca, NODE))), NODE).await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let refused = session(&berth, files(&berth.ca, None), NODE).await;
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    has(refused.message(), "an agent must show a certificate");
    berth.running.stop().await;
}

#[tokio::test]
async fn the_command_line_says_what_is_wrong_between_both_sides() {
    let berth = start().await;
    let other = Ca::new(berth.dir.path(), "other");
    let refused = async |line: &str, own: Option<&Pair>, part: &str| {
        let (exit, text) = berth.berth(line, own).await;
        assert_eq!(exit, Exit::Failed, "{text}");
        has(&text, "error: no TLS with https://localhost:");
        has(&text, part);
    };
    // What the controller does not like of us.
    let old = berth.ca.issue("old", "old", &[], expired);
    refused("status", Some(&old), "the server refused the connection: the certificate shown to it has expired").await;
    refused("release x", Some(&user(&other, "stranger")), "is not from its client_ca").await;
    // What we do not like of the controller.
    refused("status --server-name berth.example", None, "the server's certificate is for another name").await;
    let ca = other.file.display().to_string();
    let (exit, text) = run(&berth.endpoint, &["place", "x", "--vm", "x", "--ca", &ca]).await;
    assert_eq!(exit, Exit::Failed, "{text}");
    has(&text, "the server's certificate is not from the CA that was named");
    has(&text, "Nothing was asked of the controller.");
    // Files and flags.
    let gone = Pair { cert: "/nowhere.crt".into(), key: "/nowhere.key".into() };
    refused("status", Some(&gone), "cannot read /nowhere.crt").await;
    let (exit, text) = run(&berth.endpoint, &["status"]).await;
    assert_eq!(exit, Exit::Usage, "{text}");
    has(&text, "--ca FILE (or BERTH_CA) is missing");
    berth.running.stop().await;
}

#[tokio::test]
async fn plain_text_and_tls_tell_one_another_apart() {
    let berth = start().await;
    let plain_endpoint = berth.endpoint.replace("https", "http");
    let (exit, text) = run(&plain_endpoint, &["status"]).await;
    assert_eq!(exit, Exit::Failed, "{text}");
    has(&text, "error: this port speaks TLS: use https://");
    let channel = Channel::from_shared(plain_endpoint).unwrap().connect().await.unwrap();
    let refused = greet(channel, NODE).await;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    has(refused.message(), "this port speaks TLS");
    let mut curl = TcpStream::connect(berth.running.local_addr).await.unwrap();
    let answer = post(&mut curl, "berth.v1.Operations/Status").await;
    has(&answer, "HTTP/1.1 400 Bad Request");
    has(&answer, "this port speaks TLS: use https://");

    let open = controller::app::start(plain()).await.unwrap();
    let endpoint = format!("https://localhost:{}", open.local_addr.port());
    let ca = berth.ca.file.display().to_string();
    let (exit, text) = run(&endpoint, &["status", "--ca", &ca]).await;
    assert_eq!(exit, Exit::Failed, "{text}");
    has(&text, "what answers there does not speak TLS; if it is meant to be plain text, write http://");
    open.stop().await;
    berth.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_while_everything_runs() {
    let berth = start().await;
    // An agent whose certificate has expired, until somebody renews it.
    let own = berth.ca.issue("agent", "an agent", &[NODE], expired);
    let agent = berth.agent(files(&berth.ca, Some(own))).await;
    let (_, text) = berth.berth("status", None).await;
    has(&text, "0 known, 0 connected");
    berth.agent_certificate();
    berth.until_ready().await;

    // The controller goes over to a certificate of another CA. The agent's session goes on.
    let new = Ca::new(berth.dir.path(), "new");
    let ca = new.file.display().to_string();
    let Pair { cert, key } = new.issue("renewed", "controller", HERE, |_| ());
    std::fs::rename(cert, berth.dir.path().join("server.crt")).unwrap();
    std::fs::rename(key, berth.dir.path().join("server.key")).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        let (exit, text) = run(&berth.endpoint, &["status", "--ca", &ca]).await;
        if exit == Exit::Done {
            has(&text, "1 connected, 1 ready");
            break;
        }
        has(&text, "is not from the CA that was named");
        assert!(Instant::now() < end, "{text}");
    }
    let (exit, text) = berth.berth("status", None).await;
    assert_eq!(exit, Exit::Failed, "{text}");
    agent.stop().await;
    berth.running.stop().await;
}

#[tokio::test]
async fn json_and_grpc_clients_of_any_make_come_in_by_tls_1_3() {
    let berth = start().await;
    let ca_pem = std::fs::read(&berth.ca.file).unwrap();
    let me = user(&berth.ca, "curl");

    // As curl does it: HTTP/1.1, TLS 1.3 only.
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&ca_pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(berth.running.local_addr).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let answer = post(&mut stream, "berth.v1.Operations/Status").await;
    has(&answer, "HTTP/1.1 200 OK");
    has(&answer, "\"store\":\"memory\"");

    // And tonic with its own TLS, as any gRPC library has it.
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca_pem))
        .identity(Identity::from_pem(std::fs::read(me.cert).unwrap(), std::fs::read(me.key).unwrap()));
    let channel = Endpoint::from_shared(berth.endpoint.clone()).unwrap().tls_config(tls).unwrap();
    let mut api = v1::operations_client::OperationsClient::new(channel.connect().await.unwrap());
    assert_eq!(api.status(v1::StatusRequest {}).await.unwrap().into_inner().store, "memory");
    berth.running.stop().await;
}

/// `curl -d '{}'`; the whole answer.
async fn post<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(stream: &mut S, path: &str) -> String {
    let request = format!(
        "POST /{path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\
         connection: close\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("no answer in time").unwrap();
    String::from_utf8(answer).unwrap()
}
