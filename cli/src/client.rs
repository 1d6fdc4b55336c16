//! The connection to the controllers: a channel to each, of which one is used; a deadline for every call, and retries
//! only where repeating is safe. Any controller answers every call; when one cannot, the next one is asked.

use crate::args::Tls;
use crate::error::{Error, Unsure};
use crate::tls;
use berth_proto::status::Problem;
use berth_proto::v1::inventory_client::InventoryClient;
use berth_proto::v1::operations_client::OperationsClient;
use berth_proto::v1::placements_client::PlacementsClient;
use berth_tls::client::Connector;
use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::transport::{Channel, Uri};
use tonic::{Code, Request, Response, Status};

/// Pauses between the attempts of one call: 3.1 s in all, since someone who mistyped the endpoint is waiting. The deadline
/// cuts it off earlier.
const PAUSES_MS: [u64; 5] = [100, 200, 400, 800, 1600];
/// As many more of the last one where somebody is known to be there: another controller that takes over needs up to 5 s,
/// and one that was cut off without a word is missed for 15.
const MORE_PAUSES: usize = 8;
/// Longest answer taken. A page of 1,000 GPUs is below 1 MiB; a plan of 10,000 requests may say why for each.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// How long a TCP connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a quiet stream is checked for being alive; without it a dead peer is noticed never.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// What one attempt of a call gives.
pub type Answer<T> = Result<Response<T>, Status>;

/// One controller.
#[derive(Debug)]
struct Way {
    channel: Channel,
    /// Knows why TLS did not come about.
    connector: Option<Connector>,
    endpoint: String,
}

/// The controllers, as callers see them.
#[derive(Clone, Debug)]
pub struct Client {
    /// At least one.
    ways: Arc<[Way]>,
    /// Counts up whenever a controller could not answer; all clones go on together.
    turn: Arc<AtomicUsize>,
    /// All endpoints, as they were given.
    endpoints: String,
    deadline: Duration,
}

impl Client {
    /// Prepares connections to one controller, or to several with commas between them; they come about with the first
    /// call.
    ///
    /// # Errors
    /// When one of `endpoints` is no URL, or a file for TLS is not named.
    pub fn new(endpoints: &str, files: &Tls, deadline: Duration) -> Result<Self, Error> {
        let ways = endpoints.split(',').map(|endpoint| Self::way(endpoint.trim(), files)).collect::<Result<_, _>>()?;
        Ok(Self { ways, turn: Arc::default(), endpoints: endpoints.to_owned(), deadline })
    }

    fn way(endpoint: &str, files: &Tls) -> Result<Way, Error> {
        let bad = |why: &dyn fmt::Display| {
            Error::Usage(format!("--endpoint {endpoint:?}: {why}; write it like {}", crate::args::DEFAULT_ENDPOINT))
        };
        let parsed: Uri = endpoint.parse().map_err(|e| bad(&e))?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) {
            return Err(bad(&"it must begin with http:// or https://"));
        }
        let (channel, connector) = tls::channel(&parsed, files, |channel| {
            channel.connect_timeout(CONNECT).http2_keep_alive_interval(KEEP_ALIVE).keep_alive_while_idle(true)
        })?;
        Ok(Way { channel, connector, endpoint: endpoint.to_owned() })
    }

    /// The controller that is asked now.
    fn current(&self) -> &Way {
        // Splitting gives one part at least.
        &self.ways[self.turn.load(Ordering::Relaxed) % self.ways.len()]
    }

    /// Asks the next controller from now on.
    fn turn_to_next(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// The service of what there is.
    pub fn inventory(&self) -> InventoryClient<Channel> {
        InventoryClient::new(self.current().channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The service of requests.
    pub fn placements(&self) -> PlacementsClient<Channel> {
        PlacementsClient::new(self.current().channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
            .max_encoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The service of the controller itself.
    pub fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.current().channel.clone())
    }

    /// How long a call may take.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Where the controller is looked for now.
    pub fn endpoint(&self) -> &str {
        &self.current().endpoint
    }

    /// Makes a call that changes nothing, again when nobody was there to answer.
    ///
    /// # Errors
    /// The controller's refusal, or that it does not answer.
    pub async fn read<M: Clone, T, F: Future<Output = Answer<T>> + Send>(
        &self,
        message: M,
        call: impl Fn(Request<M>) -> F,
    ) -> Result<T, Error> {
        self.repeat(message, call).await.map_err(|failed| match failed {
            Failed::Refused(status) | Failed::NotNow(status) => refused(&status),
            Failed::Tls(why) => Error::Tls { endpoint: self.endpoints.clone(), why },
            Failed::Silent(why) => Error::Unreachable { endpoint: self.endpoints.clone(), why },
        })
    }

    /// Makes a call that changes something and may be repeated as it is; `unsure` says how the user goes on when no
    /// attempt was answered.
    ///
    /// # Errors
    /// The controller's refusal, that it does not answer, or that nobody knows.
    pub async fn write<M: Clone, T, F: Future<Output = Answer<T>> + Send>(
        &self,
        message: M,
        unsure: Unsure,
        call: impl Fn(Request<M>) -> F,
    ) -> Result<T, Error> {
        self.repeat(message, call).await.map_err(|failed| self.written(failed, unsure))
    }

    /// Makes a call that must not be repeated blindly.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn write_once<M: Clone, T, F: Future<Output = Answer<T>> + Send>(
        &self,
        message: M,
        unsure: Unsure,
        call: impl Fn(Request<M>) -> F,
    ) -> Result<T, Error> {
        let end = tokio::time::Instant::now() + self.deadline;
        let mut others = self.ways.len() - 1;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            let failed = match tokio::time::timeout(left, call(request(message.clone(), left))).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => self.failed(&status),
                Err(_) => Failed::Silent(too_late(self.deadline)),
            };
            match failed {
                // Nothing was sent to this one.
                Failed::Silent(why) if others > 0 && why.starts_with(NOT_CONNECTED) => {
                    others -= 1;
                    self.turn_to_next();
                }
                failed @ (Failed::Refused(_) | Failed::NotNow(_) | Failed::Silent(_) | Failed::Tls(_)) => {
                    return Err(self.written(failed, unsure));
                }
            }
        }
    }

    /// How an attempt failed.
    fn failed(&self, status: &Status) -> Failed {
        match (Failed::of(status), self.current().connector.as_ref().and_then(Connector::failure)) {
            (Failed::Silent(_), Some(why)) => Failed::Tls(why),
            (failed, _) => failed,
        }
    }

    fn written(&self, failed: Failed, what: Unsure) -> Error {
        match failed {
            Failed::Refused(status) | Failed::NotNow(status) => refused(&status),
            // There was no connection that the controller took, so nothing can have happened.
            Failed::Tls(why) => Error::Tls { endpoint: self.endpoints.clone(), why },
            // Nothing was ever sent, so nothing can have happened.
            Failed::Silent(why) if why.starts_with(NOT_CONNECTED) => {
                Error::Unreachable { endpoint: self.endpoints.clone(), why }
            }
            Failed::Silent(why) => Error::Unsure { endpoint: self.endpoints.clone(), why, what },
        }
    }

    async fn repeat<M: Clone, T, F: Future<Output = Answer<T>> + Send>(
        &self,
        message: M,
        call: impl Fn(Request<M>) -> F,
    ) -> Result<T, Failed> {
        let end = tokio::time::Instant::now() + self.deadline;
        let mut pauses = PAUSES_MS.into_iter();
        let mut more = PAUSES_MS.last().copied().into_iter().cycle().take(MORE_PAUSES);
        // Whether an attempt may have reached a controller: then "cannot connect" later does not prove that nothing happened.
        let mut sent = false;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            let mut certain = None;
            let why = match tokio::time::timeout(left, call(request(message.clone(), left))).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => match self.failed(&status) {
                    Failed::NotNow(status) => {
                        let why = status.message().to_owned();
                        certain = Some(status);
                        why
                    }
                    // Unless an earlier attempt reached somebody: then nobody knows what that one did.
                    Failed::Tls(why) if sent => return Err(Failed::Silent(format!("at first no answer, then {why}"))),
                    failed @ (Failed::Refused(_) | Failed::Tls(_)) => return Err(failed),
                    Failed::Silent(why) => why,
                },
                Err(_) => return Err(Failed::Silent(too_late(self.deadline))),
            };
            self.turn_to_next();
            let connected = !why.starts_with(NOT_CONNECTED);
            let answered = certain.is_some();
            let why = if sent && (answered || !connected) { format!("at first no answer, then {why}") } else { why };
            sent |= connected && !answered;
            let somebody = sent || answered || self.ways.len() > 1;
            let give_up = |why| match certain {
                Some(status) if !sent => Failed::NotNow(status),
                Some(_) | None => Failed::Silent(why),
            };
            let pause = pauses.next().or_else(|| if somebody { more.next() } else { None });
            let Some(pause) = pause.map(Duration::from_millis) else { return Err(give_up(why)) };
            if tokio::time::Instant::now() + pause >= end {
                return Err(give_up(why));
            }
            tracing::debug!(why, ?pause, "trying again");
            tokio::time::sleep(pause).await;
        }
    }
}

const NOT_CONNECTED: &str = "cannot connect";

fn too_late(deadline: Duration) -> String {
    format!("no answer within {}", humantime::format_duration(deadline))
}

fn request<M>(message: M, left: Duration) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(left);
    request
}

/// How an attempt failed.
enum Failed {
    /// The controller said no.
    Refused(Box<Status>),
    /// It said that it cannot now, and that nothing was done.
    NotNow(Box<Status>),
    /// It did not say anything, or that it does not know.
    Silent(String),
    /// One side did not accept the other; trying again changes nothing.
    Tls(String),
}

impl Failed {
    fn of(status: &Status) -> Self {
        let code = status.code();
        // Nobody could answer, or nobody knows: for the caller both mean that no answer came.
        let silent = matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded);
        // tonic reports some broken connections as Internal, with the transport's error as its source.
        if code == Code::Unavailable && !Problem::from_status(status).reason.is_empty() {
            Self::NotNow(Box::new(status.clone()))
        } else if silent || (code == Code::Internal && status.source().is_some()) {
            Self::Silent(silence(status))
        } else {
            Self::Refused(Box::new(status.clone()))
        }
    }
}

/// Why there was no answer: the innermost cause says it best.
fn silence(status: &Status) -> String {
    let Some(mut cause) = status.source() else { return status.message().to_owned() };
    let mut connecting = false;
    loop {
        connecting |= cause.to_string().contains("connect");
        match cause.source() {
            Some(inner) => cause = inner,
            None if connecting => return format!("{NOT_CONNECTED}: {cause}"),
            None => return cause.to_string(),
        }
    }
}

fn refused(status: &Status) -> Error {
    Error::Refused(Box::new(Problem::from_status(status)))
}

/// An error of a stream's item: the stream is opened again on silence, and given up on a refusal.
pub fn broken(status: &Status, endpoint: &str) -> Error {
    match Failed::of(status) {
        Failed::Refused(status) => refused(&status),
        Failed::NotNow(status) => {
            Error::Unreachable { endpoint: endpoint.to_owned(), why: status.message().to_owned() }
        }
        Failed::Silent(why) | Failed::Tls(why) => Error::Unreachable { endpoint: endpoint.to_owned(), why },
    }
}
