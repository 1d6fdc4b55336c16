//! Both ends over real sockets: who is let in, who is told what, and certificates that change underneath.

#![expect(clippy::unwrap_used, reason = "a test")]

use berth_tls::client::{Connector, Files as ClientFiles, transport};
use berth_tls::files::Error;
use berth_tls::server::{Acceptor, Files as ServerFiles};
use berth_tls::{Certificate, Pair};
use berth_tls_testing::{Ca, CertificateParams, ExtendedKeyUsagePurpose, HERE, early, expired};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower_service::Service as _;

/// Long enough for everything that must happen, short enough that a test that hangs is noticed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Issues a certificate for this machine; the subject is the file's name.
fn issue(ca: &Ca, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
    ca.issue(name, name, HERE, change)
}

/// What a server saw of one connection.
type Seen = Result<Option<Certificate>, String>;

struct Server {
    address: SocketAddr,
    acceptor: Arc<Acceptor>,
    seen: mpsc::Receiver<Seen>,
    _tasks: JoinSet<()>,
}

/// A server that greets each client it lets in with its answer.
async fn serve(files: ServerFiles) -> Server {
    let acceptor = Arc::new(Acceptor::open(files).await.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, seen) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    let accepting = Arc::clone(&acceptor);
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = match accepting.accept(stream).await {
                Ok((mut stream, certificate)) => {
                    stream.write_all(b"welcome").await.unwrap();
                    stream.flush().await.unwrap();
                    Ok(certificate)
                }
                Err(refused) => Err(refused.to_string()),
            };
            sender.send(seen).await.unwrap();
        }
    });
    let following = Arc::clone(&acceptor);
    tasks.spawn(async move { following.follow(Duration::from_millis(10)).await });
    Server { address, acceptor, seen, _tasks: tasks }
}

impl Server {
    async fn seen(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv()).await.expect("nobody connected").unwrap()
    }

    /// Connects by name and reads the welcome; what the client's side says, where it does not come to that.
    async fn dial(&self, files: ClientFiles) -> Result<(), String> {
        dial(&format!("https://localhost:{}", self.address.port()), files).await
    }
}

async fn dial(endpoint: &str, files: ClientFiles) -> Result<(), String> {
    let mut connector = Connector::new(files);
    let address = transport(&endpoint.parse().unwrap()).unwrap();
    let talked = timeout(PATIENCE, async {
        let mut stream = connector.call(address).await?.into_inner();
        // The server may refuse now only, and reads nothing of this then.
        stream.write_all(b"hello").await?;
        let mut welcome = [0; 7];
        stream.read_exact(&mut welcome).await.map(|_| welcome)
    });
    match talked.await.expect("it hangs") {
        Ok(welcome) => {
            assert_eq!(&welcome, b"welcome");
            assert_eq!(connector.failure(), None);
            Ok(())
        }
        Err(error) => {
            assert_eq!(
                connector.failure().as_deref(),
                Some(error.to_string().as_str()),
                "not known as a matter of TLS"
            );
            Err(error.to_string())
        }
    }
}

struct Setup {
    dir: tempfile::TempDir,
    ca: Ca,
    server: Server,
}

async fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(dir.path(), "ca");
    let own = issue(&ca, "server", |_| ());
    let server = serve(ServerFiles { own, client_ca: ca.file.clone() }).await;
    Setup { dir, ca, server }
}

fn client(ca: &Ca, own: Option<Pair>) -> ClientFiles {
    ClientFiles { ca: ca.file.clone(), own, server_name: None }
}

fn has(text: &str, part: &str) {
    assert!(text.contains(part), "{text:?} does not contain {part:?}");
}

#[tokio::test]
async fn the_server_knows_who_shows_a_certificate_and_takes_who_shows_none() {
    let Setup { ca, mut server, dir: _dir } = setup().await;
    server.dial(client(&ca, None)).await.unwrap();
    assert_eq!(server.seen().await, Ok(None));
    server.dial(client(&ca, Some(issue(&ca, "terraform", |_| ())))).await.unwrap();
    let seen = server.seen().await.unwrap().unwrap();
    assert_eq!(seen.who(), "CN=terraform");
    assert_eq!(seen.dns, ["localhost"]);
}

#[tokio::test]
async fn a_server_must_be_who_was_dialled() {
    let Setup { ca, server, dir } = setup().await;
    let other = Ca::new(dir.path(), "other-ca");
    has(&server.dial(client(&other, None)).await.unwrap_err(), "the server's certificate is not from the CA");
    let named = ClientFiles { server_name: Some("berth.example".to_owned()), ..client(&ca, None) };
    has(&server.dial(named).await.unwrap_err(), "is for another name");
    // By its address, which is in its certificate, too; and by a name that is not the endpoint's.
    dial(&format!("https://{}", server.address), client(&ca, None)).await.unwrap();
    let named = ClientFiles { server_name: Some("localhost".to_owned()), ..client(&ca, None) };
    dial(&format!("https://{}", server.address), named).await.unwrap();

    let old = issue(&ca, "old", expired);
    let expired = serve(ServerFiles { own: old, client_ca: ca.file.clone() }).await;
    has(&expired.dial(client(&ca, None)).await.unwrap_err(), "the server's certificate has expired");
}

#[tokio::test]
async fn a_client_with_a_bad_certificate_is_told_why_and_so_is_the_server() {
    let Setup { ca, mut server, dir } = setup().await;
    let stranger = issue(&Ca::new(dir.path(), "other-ca"), "stranger", |_| ());
    let expired = issue(&ca, "expired", expired);
    let early = issue(&ca, "early", early);
    let only_server = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let cases = [
        (stranger, "is not from its client_ca", "is not from the CA of this controller's clients"),
        (expired, "shown to it has expired", "has expired"),
        (early, "refused the connection", "is not valid yet"),
        (issue(&ca, "web", only_server), "refused the connection", "is not meant for a client"),
    ];
    for (own, to_the_client, to_the_server) in cases {
        has(&server.dial(client(&ca, Some(own))).await.unwrap_err(), to_the_client);
        has(&server.seen().await.unwrap_err(), to_the_server);
    }
}

#[tokio::test]
async fn whoever_speaks_plain_text_is_told_by_the_other_side() {
    let Setup { ca, mut server, dir: _dir } = setup().await;
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    has(&server.seen().await.unwrap_err(), "the client does not speak TLS");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let answer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    };
    let (said, _open) = tokio::join!(dial(&endpoint, client(&ca, None)), answer);
    has(&said.unwrap_err(), "does not speak TLS; if it is meant to be plain text, write http://");
    // Or it reads that, and hangs up.
    let hang_up = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read(&mut [0; 1 << 14]).await.unwrap()
    };
    let (said, _) = tokio::join!(dial(&endpoint, client(&ca, None)), hang_up);
    has(&said.unwrap_err(), "closed the connection during the TLS handshake");
}

#[tokio::test]
async fn new_files_are_taken_over_and_bad_ones_are_not() {
    let Setup { ca, mut server, dir } = setup().await;
    let first = server.acceptor.certificate();
    let subject = |server: &Server| server.acceptor.certificate().who();
    let eventually = async |server: &Server, who: &str| {
        let end = Instant::now() + PATIENCE;
        while subject(server) != who {
            assert!(Instant::now() < end, "still {}", subject(server));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Written under the same names: as a renewal does it.
    let renew = |name: &str| {
        let made = issue(&ca, name, |_| ());
        std::fs::rename(made.cert, dir.path().join("server.crt")).unwrap();
        std::fs::rename(made.key, dir.path().join("server.key")).unwrap();
    };
    std::fs::write(dir.path().join("server.crt"), "rubbish").unwrap();
    server.dial(client(&ca, None)).await.unwrap();
    assert_eq!(server.acceptor.certificate(), first);
    renew("second");
    eventually(&server, "CN=second").await;
    server.dial(client(&ca, None)).await.unwrap();
    assert_eq!((server.seen().await, server.seen().await), (Ok(None), Ok(None)));

    // The clients' CA, too: who was welcome is a stranger now.
    let own = Some(issue(&ca, "terraform", |_| ()));
    server.dial(client(&ca, own.clone())).await.unwrap();
    assert!(server.seen().await.unwrap().is_some());
    let other = Ca::new(dir.path(), "other-ca");
    let server_ca = dir.path().join("trusted.pem");
    std::fs::copy(&ca.file, &server_ca).unwrap();
    std::fs::copy(&other.file, &ca.file).unwrap();
    renew("third");
    eventually(&server, "CN=third").await;
    let refused = server.dial(ClientFiles { ca: server_ca, own, server_name: None }).await.unwrap_err();
    has(&refused, "is not from its client_ca");
}

#[tokio::test]
async fn a_client_reads_its_files_anew_for_each_connection() {
    let Setup { ca, mut server, dir: _dir } = setup().await;
    let own = issue(&ca, "first", |_| ());
    let mut connector = Connector::new(client(&ca, Some(own.clone())));
    let address = transport(&format!("https://{}", server.address).parse().unwrap()).unwrap();
    let mut who = async |server: &mut Server| {
        let _stream = connector.call(address.clone()).await.unwrap();
        server.seen().await.unwrap().unwrap().who()
    };
    assert_eq!(who(&mut server).await, "CN=first");
    let second = issue(&ca, "second", |_| ());
    std::fs::rename(second.cert, &own.cert).unwrap();
    std::fs::rename(second.key, &own.key).unwrap();
    assert_eq!(who(&mut server).await, "CN=second");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(dir.path(), "ca");
    let (own, other) = (issue(&ca, "own", |_| ()), issue(&ca, "other", |_| ()));
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let key = std::fs::read_to_string(&own.key).unwrap();
    let open = async |own: Pair, client_ca: &Path| {
        let opened = Acceptor::open(ServerFiles { own, client_ca: client_ca.to_owned() }).await;
        opened.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let with_cert = |cert: PathBuf| Pair { cert, ..own.clone() };
    let with_key = |key: PathBuf| Pair { key, ..own.clone() };
    assert_eq!(open(own.clone(), &ca.file).await, "");
    let text = open(with_cert("/nowhere/a.pem".into()), &ca.file).await;
    has(&text, "cannot read /nowhere/a.pem: No such file");
    has(&open(with_cert(own.key.clone()), &ca.file).await, "own.key holds no certificate in PEM");
    has(&open(with_key(own.cert.clone()), &ca.file).await, "own.crt holds no private key in PEM");
    has(&open(with_key(other.key), &ca.file).await, "own.crt");
    let locked = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    has(&open(with_key(file("locked.key", &locked)), &ca.file).await, "locked.key holds an encrypted key");
    let torn = key.replace("-----END PRIVATE KEY-----", "");
    has(&open(with_key(file("torn.key", &torn)), &ca.file).await, "torn.key is no PEM");
    has(&open(own.clone(), &file("empty.pem", "")).await, "empty.pem holds no certificate");
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    has(&open(own.clone(), &file("nonsense.pem", nonsense)).await, "nonsense.pem has as certificate 1 what is no CA");
    let huge = Pair { cert: file("huge.pem", &"x".repeat(2 << 20)), ..own };
    assert!(matches!(huge.check().await, Err(Error::TooLarge(_))));
}
