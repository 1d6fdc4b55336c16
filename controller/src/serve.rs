//! Connections: takes them, finds out who is at the other end, and serves the router on each.
//!
//! Owns what bounds a connection: how many there are, how long a handshake and a first request may take, and when a
//! peer that says nothing counts as gone. On a port that speaks TLS, plain text gets a sentence and nothing else; and the
//! reverse. Must never know a method.

mod whole;

use crate::identity::{Caller, Proof};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use berth_model::reason::ErrorClass;
use berth_proto::status;
use berth_telemetry::names;
use berth_tls::server::Acceptor;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use whole::Whole;

/// Connections at one time: one for each of the 20,000 nodes that the table of sessions holds, and 4,000 callers. An
/// idle one takes some 40 KiB.
const MAX_CONNECTIONS: usize = 24_000;
/// How long the first byte and a TLS handshake may take. A fleet that comes back at once makes thousands of handshakes of
/// a millisecond each.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// How long a connection may stand without a first request, and on HTTP/1.1 between two. Whoever calls later connects
/// again by itself.
const FIRST_REQUEST: Duration = Duration::from_secs(60);
/// How often a quiet HTTP/2 connection is asked whether it is there, and how long its answer may take: a watch of a
/// machine that lost power gives its place back after 40 s and not when TCP gives up.
const PROBE: Duration = Duration::from_secs(20);
const PROBE_ANSWER: Duration = Duration::from_secs(20);
/// The same for what is not HTTP/2, by TCP: probes after 30 s of silence, three that go unanswered.
const TCP_QUIET: Duration = Duration::from_secs(30);
const TCP_PROBE: Duration = Duration::from_secs(10);
const TCP_PROBES: u32 = 3;
/// How long somebody who speaks plain text on a TLS port may take to be told.
const TELLING: Duration = Duration::from_secs(5);
/// Pause when the system gives no connection (out of files): what is open must end first.
const NO_ACCEPT: Duration = Duration::from_millis(500);
/// How long a server that ends still opens to whoever has knocked, and waits for their first words: connections are made and
/// used within milliseconds.
const LAST_KNOCK: Duration = Duration::from_millis(20);
const FIRST_WORDS: Duration = Duration::from_millis(200);

const USE_TLS: &str = "this port speaks TLS: use https:// and name the CA of its certificate";
const USE_PLAIN: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
                         this port speaks plain text: use http://\n";

/// How to serve.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// TLS, if connections are encrypted.
    pub(crate) tls: Option<Arc<Acceptor>>,
    /// Connections at one time.
    pub(crate) max_connections: usize,
    /// How long a connection may stand without a first request.
    pub(crate) first_request: Duration,
    /// How often a quiet HTTP/2 connection is asked whether it is there.
    pub(crate) probe: Duration,
    /// How long it may take to answer that.
    pub(crate) probe_answer: Duration,
}

impl Options {
    /// With the usual limits.
    pub(crate) fn new(tls: Option<Arc<Acceptor>>) -> Self {
        Self {
            tls,
            max_connections: MAX_CONNECTIONS,
            first_request: FIRST_REQUEST,
            probe: PROBE,
            probe_answer: PROBE_ANSWER,
        }
    }
}

/// What all connections share.
struct Shared {
    tls: Option<Arc<Acceptor>>,
    router: Router,
    http: Builder<TokioExecutor>,
    first_request: Duration,
    stop: CancellationToken,
}

/// Serves until `stop`, then until each connection has had its last answer.
pub(crate) async fn run(listener: TcpListener, router: Router, options: Options, stop: CancellationToken) {
    let Options { tls, max_connections, first_request, probe, probe_answer } = options;
    let mut http = Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(first_request);
    http.http2().timer(TokioTimer::new()).keep_alive_interval(probe).keep_alive_timeout(probe_answer);
    let shared = Arc::new(Shared { tls, router, http, first_request, stop: stop.clone() });
    let places = Arc::new(Semaphore::new(max_connections));
    let mut connections = JoinSet::new();
    let mut crowded = false;
    let mut refusing = false;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => {
                log_crash(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_the_peers(&error) => continue,
            Err(error) => {
                if !refusing {
                    tracing::warn!({ names::ERROR } = %error, "no connection can be taken; existing ones go on");
                }
                refusing = true;
                sleep(NO_ACCEPT).await;
                continue;
            }
        };
        refusing = false;
        // Closed at once, not kept waiting: the peer can try another controller.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            if !crowded {
                tracing::warn!(max_connections, "there are as many connections as may be; further ones are closed");
            }
            crowded = true;
            continue;
        };
        crowded = false;
        connections.spawn(connection(Arc::clone(&shared), stream, peer, place));
    }
    // Whoever knocked before the door closed is let in and told to go elsewhere: closing it on them would look like a crash
    // in the midst of a call, after which nobody knows whether to ask again.
    let last = async {
        while let Ok((stream, peer)) = listener.accept().await {
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            connections.spawn(connection(Arc::clone(&shared), stream, peer, place));
        }
    };
    let _over = timeout(LAST_KNOCK, last).await;
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        log_crash(ended);
    }
}

fn log_crash(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!({ names::ERROR } = %error, "the task of a connection crashed");
    }
}

/// Whether the peer went away between knocking and being let in.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    [ConnectionAborted, ConnectionRefused, ConnectionReset].contains(&error.kind())
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr, _place: OwnedSemaphorePermit) {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%peer, { names::ERROR } = %error, "a connection stays as the system made it");
    }
    let mut first = [0];
    let unasked = AtomicBool::new(false);
    let speaks_tls = tokio::select! {
        peeked = timeout(HANDSHAKE, stream.peek(&mut first)) => match peeked {
            Ok(Ok(1..)) => first == [berth_tls::FIRST_BYTE],
            // It said nothing: a probe of the port, or somebody who wants to keep a place.
            Ok(Ok(0) | Err(_)) | Err(_) => return,
        },
        // Its first words may be on their way.
        () = ends(&shared, &unasked) => return,
    };
    match (&shared.tls, speaks_tls) {
        (None, false) => serve(&shared, stream, Caller::new(peer, Proof::PlainText)).await,
        (Some(acceptor), true) => match timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok((stream, certificate))) => {
                let proof = certificate.map_or(Proof::Anonymous, |shown| Proof::Certificate(Box::new(shown)));
                serve(&shared, stream, Caller::new(peer, proof)).await;
            }
            Ok(Err(refused)) => tracing::info!(%peer, { names::ERROR } = %refused, "a connection was refused"),
            Err(_) => {
                let seconds = HANDSHAKE.as_secs();
                tracing::info!(%peer, "a connection was refused: no TLS handshake within {seconds} s");
            }
        },
        (Some(_), false) => {
            tracing::info!(%peer, "a connection was refused: the client speaks plain text, and this port TLS");
            tell_to_use_tls(&shared, stream).await;
        }
        (None, true) => {
            tracing::info!(%peer, "a connection was refused: the client speaks TLS, and this port plain text");
            let mut stream = stream;
            let told = async {
                stream.write_all(USE_PLAIN.as_bytes()).await?;
                stream.shutdown().await?;
                // Closing with unread bytes would reset the connection, and the sentence with it.
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
            };
            let _gone = timeout(TELLING, told).await;
        }
    }
}

/// Messages are small and answers are waited for; and a peer whose machine is gone must be noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let probes = socket2::TcpKeepalive::new().with_time(TCP_QUIET).with_interval(TCP_PROBE).with_retries(TCP_PROBES);
    socket2::SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// Serves the router on one connection.
async fn serve<I>(shared: &Shared, stream: I, caller: Caller)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = Arc::new(AtomicBool::new(false));
    let service = {
        let (asked, router) = (Arc::clone(&asked), shared.router.clone());
        service_fn(move |request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            let mut request = request.map(Body::new);
            // The one place where a caller becomes known.
            request.extensions_mut().insert(caller.clone());
            router.clone().oneshot(request)
        })
    };
    let mut connection = pin!(shared.http.serve_connection(TokioIo::new(Whole(stream)), service));
    let mut deadline = pin!(sleep(shared.first_request));
    let mut waiting = true;
    let mut ending = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = ends(shared, &asked), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = deadline.as_mut(), if waiting => {
                waiting = false;
                if !asked.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!({ names::ERROR } = %error, "a connection ended");
    }
}

/// Waits for the end of the server, as long as it is for this connection: one that nothing was asked on yet would be closed on
/// a question that is on its way.
async fn ends(shared: &Shared, asked: &AtomicBool) {
    shared.stop.cancelled().await;
    if !asked.load(Ordering::Relaxed) {
        sleep(FIRST_WORDS).await;
    }
}

/// Answers whatever is asked in plain text with one sentence, in the caller's own protocol.
async fn tell_to_use_tls(shared: &Shared, stream: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(use_tls(request.headers().get(header::CONTENT_TYPE)))
    });
    let connection = shared.http.serve_connection(TokioIo::new(stream), service);
    let _told = timeout(TELLING, connection).await;
}

fn use_tls(content_type: Option<&header::HeaderValue>) -> Response<Body> {
    if content_type.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return status::failure(ErrorClass::FailedPrecondition, "TLS_REQUIRED", USE_TLS).into_http();
    }
    (StatusCode::BAD_REQUEST, [(header::CONNECTION, "close")], format!("{USE_TLS}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::eventually;
    use axum::extract::Request;
    use axum::routing::get;
    use tokio::io::AsyncReadExt as _;

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Server {
        address: SocketAddr,
        stop: CancellationToken,
        tasks: JoinSet<()>,
    }

    /// A server that answers with the caller's name.
    async fn server(change: impl FnOnce(&mut Options)) -> Server {
        let mut options = Options::new(None);
        change(&mut options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let whoami = |request: Request| async move { request.extensions().get::<Caller>().unwrap().name().to_owned() };
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(run(listener, Router::new().route("/", get(whoami)), options, stop.clone()));
        Server { address, stop, tasks }
    }

    async fn connect(server: &Server) -> TcpStream {
        TcpStream::connect(server.address).await.unwrap()
    }

    async fn ask(stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await
    }

    /// What comes until the server closes.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it stays open");
        // Being cut off is an end, too.
        let _how = read;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[tokio::test]
    async fn every_handler_knows_the_other_end_and_connections_end_with_the_server() {
        let mut server = server(|_| ()).await;
        let mut stream = connect(&server).await;
        let me = stream.local_addr().unwrap().to_string();
        ask(&mut stream).await.unwrap();
        let mut heard = String::new();
        while !heard.contains(&me) {
            let mut bytes = [0; 1024];
            let read = timeout(PATIENCE, stream.read(&mut bytes)).await.unwrap().unwrap();
            assert!(read > 0, "{heard}");
            heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        server.stop.cancel();
        assert_eq!(rest(&mut stream).await, "");
        timeout(PATIENCE, server.tasks.join_next()).await.expect("the server goes on").unwrap().unwrap();
    }

    #[tokio::test]
    async fn whoever_knocked_before_the_end_gets_an_answer() {
        for _ in 0..20 {
            let mut server = server(|_| ()).await;
            let mut stream = connect(&server).await;
            server.stop.cancel();
            tokio::task::yield_now().await;
            ask(&mut stream).await.unwrap();
            let answer = rest(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
            timeout(PATIENCE, server.tasks.join_next()).await.expect("the server goes on").unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn beyond_the_limit_connections_are_closed_and_places_are_given_back() {
        let server = server(|options| options.max_connections = 1).await;
        let mut first = connect(&server).await;
        ask(&mut first).await.unwrap();
        assert!(timeout(PATIENCE, first.read(&mut [0; 1024])).await.unwrap().unwrap() > 0);
        assert_eq!(rest(&mut connect(&server).await).await, "", "there was room for a second");
        drop(first);
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let mut next = connect(&server).await;
            let answered = ask(&mut next).await.is_ok()
                && matches!(timeout(PATIENCE, next.read(&mut [0; 1024])).await.unwrap(), Ok(1..));
            if answered {
                break;
            }
            assert!(std::time::Instant::now() < end, "the place was never given back");
        }
    }

    #[tokio::test]
    async fn whoever_asks_nothing_or_is_gone_loses_its_place() {
        let soon = Duration::from_millis(50);
        let server = server(|options| {
            (options.first_request, options.probe, options.probe_answer) = (soon, soon, soon);
        })
        .await;
        // The beginning of a request, and nothing more.
        let mut slow = connect(&server).await;
        slow.write_all(b"G").await.unwrap();
        rest(&mut slow).await;
        // HTTP/2 that never answers a probe: preface, empty settings, a request, and silence (RFC 9113, 3.4).
        let mut gone = connect(&server).await;
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        // Headers from the static table (RFC 7541): GET, http, /, and an authority of one letter.
        let request = [0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 1, b'x'];
        gone.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings, &request].concat()).await.unwrap();
        let heard = rest(&mut gone).await;
        assert!(heard.contains("127.0.0.1:"), "the request was answered before: {heard:?}");
    }

    #[tokio::test]
    async fn tls_on_a_plain_port_is_answered_with_a_sentence() {
        let server = server(|_| ()).await;
        let mut stream = connect(&server).await;
        stream.write_all(&[berth_tls::FIRST_BYTE, 3, 1, 0, 5, 1, 0, 0, 1, 3]).await.unwrap();
        stream.shutdown().await.unwrap();
        let heard = rest(&mut stream).await;
        assert!(heard.contains("this port speaks plain text: use http://"), "{heard:?}");
        eventually("the server goes on", || !server.tasks.is_empty()).await;
    }
}
