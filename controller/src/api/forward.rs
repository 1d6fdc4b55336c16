//! One of several controllers: who leads decides, everyone shows.
//!
//! A call that changes something and reaches a follower is passed on to the leader as it is, with who asked; at most once.
//! A call that only looks is answered here, as soon as this controller's copy is at the revision that the caller wants
//! to see at least. Owns the three headers for that. Must never understand a message: what it passes on it does not read.
//!
//! | header (gRPC: metadata; JSON: HTTP header) | from | says |
//! |---|---|---|
//! | `berth-min-revision` | caller | show nothing older than this revision |
//! | `berth-revision` | controller | with the answer to a change: the revision that it is part of |
//! | `berth-forwarded-for` | controller to controller | who asked; such a call is not passed on again |

use super::deadline::asked_deadline;
use super::no_leader;
use crate::identity::{self, Caller};
use crate::peers::{Peer, Way};
use crate::replica::Replica;
use crate::standing::{Board, Known, Standing};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use berth_model::reason::{ErrorClass, Refusal};
use berth_model::request::FieldError;
use berth_proto::status;
use berth_telemetry::names;
use berth_tls::server::Acceptor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::Status;
use tower::{Service as _, ServiceExt as _};

/// The least revision that an answer must show.
pub(crate) const MIN_REVISION: &str = "berth-min-revision";
/// The revision that a change is part of.
pub(crate) const REVISION: &str = "berth-revision";
/// Who asked the controller that passes a call on.
const FORWARDED: &str = "berth-forwarded-for";

/// Longest wait for a revision: a follower lags by milliseconds; one that lags longer should not be waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of the caller's own deadline, what is kept for saying that it was not reached.
const LAST_WORD: Duration = Duration::from_millis(50);
/// How long an answer from the leader may wait until this controller shows what it says, too: whoever goes on reading
/// here then sees its own change.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Longest name of a caller that is taken from another controller.
const MAX_NAME_BYTES: usize = 1024;
/// Methods that only look, by the first word of their names. Whatever begins otherwise is for the leader.
const LOOKS: [&str; 8] = ["Get", "List", "Summarize", "Watch", "Plan", "Status", "Backup", "Audit"];
/// Services whose calls are told apart here. Agents, health, reflection and controllers have their own ways.
const SERVICES: [&str; 3] = ["berth.v1.Inventory", "berth.v1.Placements", "berth.v1.Maintenance"];

/// Passes on, or waits. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Forwarder {
    board: Board,
    way: Way,
    /// This controller's own certificate, where connections are encrypted.
    own: Option<Arc<Acceptor>>,
    /// The connection to the leader of the last call that was passed on.
    peer: Arc<Mutex<Option<(String, Peer)>>>,
}

impl Forwarder {
    /// Passes on to whoever leads according to `board`.
    pub(crate) fn new(board: Board, way: Way, own: Option<Arc<Acceptor>>) -> Self {
        Self { board, way, own, peer: Arc::default() }
    }

    /// Of a controller that leads and always will.
    #[cfg(test)]
    pub(crate) fn of_a_leader() -> Self {
        let leads = Standing { leads: true, leader: None, told: None };
        let (board, _always) = Board::new(leads);
        Self::new(board, Way::default(), None)
    }

    /// Whether this controller leads, and who does.
    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// Whether a caller may be another controller, as far as its connection proves it.
    ///
    /// # Errors
    /// The status that ends the call.
    pub(crate) fn admits(&self, caller: Option<&Caller>) -> Result<(), Status> {
        let caller = caller.ok_or_else(|| Status::internal("it is not known who calls"))?;
        let own = self.own.as_ref().map(|acceptor| acceptor.certificate().who());
        caller.may_be_controller(own.as_deref())
    }

    /// Takes note of who asked the controller that passed a request on, if one did; true then.
    ///
    /// # Errors
    /// From whoever is no controller: it would be written down as who asked, or as whoever it names.
    fn unwrap(&self, request: &mut Request<Body>) -> Result<bool, Status> {
        let Some(name) = request.headers_mut().remove(FORWARDED) else { return Ok(false) };
        let caller = request.extensions().get::<Caller>();
        self.admits(caller)?;
        // Names of certificates may have any letters, which a header takes, and does not call a text.
        let name = std::str::from_utf8(name.as_bytes()).ok().filter(|name| name.len() <= MAX_NAME_BYTES);
        let name = name.ok_or_else(|| Status::invalid_argument(format!("{FORWARDED} is no name of a caller")))?;
        if let Some(caller) = caller {
            let caller = caller.relayed(name);
            request.extensions_mut().insert(caller);
        }
        Ok(true)
    }

    fn peer(&self, endpoint: &str) -> Result<Peer, Status> {
        // Every change under this lock is a single one.
        let mut kept = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((to, peer)) = kept.as_ref()
            && to == endpoint
        {
            return Ok(peer.clone());
        }
        let peer = self.way.to(endpoint).map_err(|error| no_leader(&error.to_string()))?;
        *kept = Some((endpoint.to_owned(), peer.clone()));
        Ok(peer)
    }

    async fn pass_on(&self, request: Request<Body>) -> Result<Response, Status> {
        let Standing { leader, .. } = self.board.now();
        let Some(Known { endpoint, term: _ }) = leader else {
            return Err(no_leader("no controller leads now; one takes over within seconds"));
        };
        let peer = self.peer(&endpoint)?;
        let (mut parts, body) = request.into_parts();
        let caller = parts.extensions.get::<Caller>();
        let name = HeaderValue::from_str(identity::name_of(caller)).unwrap_or(HeaderValue::from_static("unknown"));
        for gone in [header::HOST, header::CONTENT_LENGTH, header::CONNECTION, header::TRANSFER_ENCODING] {
            parts.headers.remove(gone);
        }
        parts.headers.insert(FORWARDED, name);
        parts.extensions.clear();
        parts.version = Version::HTTP_2;
        let request = Request::from_parts(parts, tonic::body::Body::new(body));
        let tell = |error: &tonic::transport::Error| {
            tracing::info!({ names::ENDPOINT } = endpoint, { names::ERROR } = %error, "a call was not passed on");
        };
        let mut channel = peer.channel.clone();
        let ready = channel.ready().await.map_err(|error| {
            tell(&error);
            unreached(&endpoint, peer.refused().as_deref())
        })?;
        let answer = ready.call(request).await.map_err(|error| {
            tell(&error);
            if was_never_sent(&error) { unreached(&endpoint, peer.refused().as_deref()) } else { lost(&endpoint) }
        })?;
        Ok(answer.map(Body::new))
    }
}

/// Whether the other end says that it has not looked at a call, and will not: a server that stops in order names the last
/// one it serves (RFC 9113, 6.8: what comes after it can be repeated safely).
pub(crate) fn was_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|error| error.downcast_ref::<h2::Error>()).any(|error| {
        let stops = error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
        stops || error.reason() == Some(h2::Reason::REFUSED_STREAM)
    })
}

/// Whether the other end surely never began with a call: it said so, there was no connection, or that had ended before
/// the call was written to it. A connection that broke later, or fell silent, proves nothing.
fn was_never_sent(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let unsent = |error: &(dyn std::error::Error + 'static)| {
        error.is::<tonic::ConnectError>() || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    };
    was_refused(error) || causes.any(unsent)
}

/// A call that never came to the leader. `refused` is only said, never judged by: it may be about another call's attempt.
fn unreached(endpoint: &str, refused: Option<&str>) -> Status {
    let why = refused.map(|why| format!(": {why}")).unwrap_or_default();
    no_leader(&format!("the leader at {endpoint} cannot be reached{why}"))
}

/// A call that came to no answer at the leader.
fn lost(endpoint: &str) -> Status {
    let text = format!(
        "the connection to the leader at {endpoint} broke; it is not known whether this happened: read back, or repeat the \
         very same call"
    );
    status::failure(ErrorClass::Unknown, "OUTCOME_UNKNOWN", &text)
}

/// What a call is to several controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Shows what is known.
    Look,
    /// Changes something.
    Change,
}

fn kind(path: &str) -> Option<Kind> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    if !SERVICES.contains(&service) {
        return None;
    }
    Some(if LOOKS.iter().any(|verb| method.starts_with(verb)) { Kind::Look } else { Kind::Change })
}

/// What the router needs to know.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) forwarder: Forwarder,
    pub(super) replica: Replica,
}

/// Answers here or passes on.
pub(super) async fn route(gate: Gate, mut request: Request<Body>, next: Next) -> Response {
    let Gate { forwarder, replica } = gate;
    let (asked, begun) = (asked_deadline(request.headers()), Instant::now());
    let outcome = match kind(request.uri().path()) {
        None => return next.run(request).await,
        Some(Kind::Look) => match wait(&replica, request.headers()).await {
            Ok(()) => return next.run(request).await,
            Err(status) => Err(status),
        },
        Some(Kind::Change) => match forwarder.unwrap(&mut request) {
            Err(status) => Err(status),
            Ok(_) if forwarder.board.leads() => return next.run(request).await,
            Ok(true) => {
                Err(no_leader("the leadership is changing: a call was passed on to a controller that does not lead"))
            }
            Ok(false) => forwarder.pass_on(request).await,
        },
    };
    match outcome {
        Ok(response) => {
            if let Some(revision) = number(response.headers(), REVISION).ok().flatten() {
                // Whoever waits longer than that goes on with `berth-min-revision`.
                let left = asked.map(|asked| asked.saturating_sub(begun.elapsed() + LAST_WORD));
                let limit = left.map_or(CATCH_UP, |left| left.min(CATCH_UP));
                let _late = tokio::time::timeout(limit, replica.reach(revision)).await;
            }
            response
        }
        Err(status) => status.into_http(),
    }
}

/// Waits until this controller shows what the caller wants to see, and anything at all.
async fn wait(replica: &Replica, headers: &HeaderMap) -> Result<(), Status> {
    let least = number(headers, MIN_REVISION)?.unwrap_or(0);
    let asked = asked_deadline(headers).map_or(PATIENCE, |asked| asked.saturating_sub(LAST_WORD));
    match tokio::time::timeout(asked.min(PATIENCE), replica.reach(least)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(ended)) => Err(no_leader(&ended.to_string())),
        Err(_) => {
            let now = replica.now();
            let text = if now.is_loaded() {
                format!(
                    "this controller shows revision {} and {least} is asked for; try again, or elsewhere",
                    now.revision
                )
            } else {
                "this controller has not read the store yet; try again, or elsewhere".to_owned()
            };
            Err(status::failure(ErrorClass::Unavailable, "BEHIND", &text))
        }
    }
}

fn number(headers: &HeaderMap, name: &str) -> Result<Option<u64>, Status> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match value.to_str().ok().and_then(|text| text.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => {
            let wrong = FieldError::new(name, "is not a revision: a whole number, as answers name it");
            Err(status::refusal_to_status(&Refusal::Invalid(vec![wrong])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::status::Problem;
    use prost_reflect::DescriptorPool;
    use tokio::io::AsyncReadExt;
    use tonic::Code;

    /// A method with a new verb goes to the leader, where it is right wherever it belongs.
    #[test]
    fn every_method_is_answered_where_it_belongs() {
        let pool = DescriptorPool::decode(berth_proto::DESCRIPTORS).unwrap();
        let methods = pool.services().flat_map(|service| {
            service.methods().map(|method| format!("/{}/{}", service.full_name(), method.name())).collect::<Vec<_>>()
        });
        let changes: Vec<_> = methods.filter(|path| kind(path) == Some(Kind::Change)).collect();
        for known in ["Create", "Commit", "Release"] {
            assert!(changes.contains(&format!("/berth.v1.Placements/{known}")), "{changes:?}");
        }
        assert_eq!(kind("/berth.v1.Placements/List"), Some(Kind::Look));
        assert_eq!(kind("/berth.v1.NodeAgent/Session"), None);
        assert_eq!(kind("/berth.v1.Operations/Status"), None, "it tells how far this controller is");
    }

    #[test]
    fn a_name_has_whatever_letters_its_certificate_has() {
        let forwarder = Forwarder::of_a_leader();
        let relayed = |name: &[u8]| {
            let mut request = Request::new(Body::empty());
            let peer = std::net::SocketAddr::from(([192, 0, 2, 7], 4711));
            request.extensions_mut().insert(Caller::new(peer, identity::Proof::PlainText));
            request.headers_mut().insert(FORWARDED, HeaderValue::from_bytes(name).unwrap());
            let unwrapped = forwarder.unwrap(&mut request).map_err(|status| status.code());
            (unwrapped, identity::name_of(request.extensions().get()).to_owned())
        };
        let name = "cert:CN=Jörg Müller";
        assert_eq!(relayed(HeaderValue::from_str(name).unwrap().as_bytes()), (Ok(true), name.to_owned()));
        // Nobody else's name takes the place of one that cannot be read.
        assert_eq!(relayed(b"J\xf6rg").0, Err(Code::InvalidArgument));
        assert_eq!(relayed(&[b'a'; MAX_NAME_BYTES + 1]).0, Err(Code::InvalidArgument));
    }

    #[tokio::test]
    async fn whoever_asks_for_more_than_is_known_is_told_both_revisions() {
        let (replica, mut publisher) = Replica::empty();
        let headers = |revision: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(MIN_REVISION, revision.parse().unwrap());
            headers.insert("grpc-timeout", "100m".parse().unwrap());
            headers
        };
        let status = wait(&replica, &headers("0")).await.unwrap_err();
        assert!(status.message().contains("has not read the store"), "{status:?}");
        publisher.restart(Default::default(), 7, 1, Default::default());
        wait(&replica, &headers("7")).await.unwrap();
        let problem = Problem::from_status(&wait(&replica, &headers("8")).await.unwrap_err());
        assert_eq!((problem.class, problem.reason.as_str()), (ErrorClass::Unavailable, "BEHIND"));
        assert!(problem.message.contains('7') && problem.message.contains('8'), "{problem:?}");
        assert!(problem.retry_after.is_some());
        let status = wait(&replica, &headers("soon")).await.unwrap_err();
        assert!(status.code() == Code::InvalidArgument && status.message().contains(MIN_REVISION), "{status:?}");
        let asked = headers("8");
        let waiting = wait(&replica, &asked);
        let publishing = async { publisher.replace(Default::default(), 8) };
        let (waited, _) = tokio::join!(waiting, publishing);
        waited.unwrap();
    }

    /// The type of the frame that begins a call.
    const HEADERS: u8 = 1;

    /// Calls somebody, and gives why there is no answer.
    async fn call(address: std::net::SocketAddr, quiet: Duration) -> tonic::transport::Error {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        let endpoint = endpoint.http2_keep_alive_interval(quiet).keep_alive_timeout(quiet);
        let mut channel = endpoint.connect_lazy();
        let request = Request::post(format!("http://{address}/berth.v1.Placements/Create"));
        let request = request.body(tonic::body::Body::empty()).unwrap();
        channel.ready().await.unwrap().call(request).await.unwrap_err()
    }

    #[tokio::test]
    async fn only_a_connection_that_never_stood_proves_that_nothing_happened() {
        let quiet = Duration::from_millis(200);
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(was_never_sent(&call(nobody, quiet).await));
        assert_eq!(unreached("http://c", None).code(), Code::Unavailable);

        // One that takes the call in and says nothing more: it hangs up in the one case, and falls silent in the other.
        for hangs_up in [true, false] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let taken = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                // The preface, then frames: their length in three bytes, their type, five bytes more (RFC 9113, 4.1).
                let mut head = [0; 24];
                AsyncReadExt::read_exact(&mut stream, &mut head).await.unwrap();
                loop {
                    let mut frame = [0; 9];
                    AsyncReadExt::read_exact(&mut stream, &mut frame).await.unwrap();
                    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
                    let mut payload = vec![0; length as usize];
                    AsyncReadExt::read_exact(&mut stream, &mut payload).await.unwrap();
                    if frame[3] == HEADERS {
                        break;
                    }
                }
                // Dropped here, or kept until the caller has given up.
                (!hangs_up).then_some(stream)
            };
            let (_kept, error) = tokio::join!(taken, call(address, quiet));
            assert!(!was_never_sent(&error), "{hangs_up}: {error:?}");
        }
        assert_eq!(lost("http://c").code(), Code::Unknown);
    }
}
