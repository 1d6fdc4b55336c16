//! Calls of the public API: repeated with the same content while nobody answers, and refusals read for their reasons.

use anyhow::Context as _;
use berth_model::reason::ErrorClass;
use berth_proto::status::Problem as Told;
use berth_proto::v1::inventory_client::InventoryClient;
use berth_proto::v1::operations_client::OperationsClient;
use berth_proto::v1::placements_client::PlacementsClient;
use berth_proto::v1::{
    Gpu, ListGpusRequest, ListPlacementsRequest, ListVmsRequest, Placement, StatusRequest, StatusResponse, Vm,
};
use std::error::Error as _;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// How long one attempt may take. A durable write takes milliseconds; ten seconds tell slowness from silence.
const ATTEMPT: Duration = Duration::from_secs(10);
/// First and longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Longest answer taken: a page of 10,000 GPUs is some megabytes.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// Pages as large as the API gives them.
const PAGE: u32 = 10_000;

/// Why a call was not answered with what was asked for.
#[derive(Clone, Debug)]
pub enum Problem {
    /// The controller refused, with a reason.
    Refused {
        /// The stable name of the reason.
        reason: String,
        /// The gRPC code.
        code: Code,
        /// The sentence.
        text: String,
    },
    /// The controller refused without saying why: a fault of Berth.
    NoReason(String),
    /// Nobody answered for as long as was to be tried. It may or may not have happened.
    Silent(String),
}

impl Problem {
    fn read(status: &Status) -> Self {
        let told = Told::from_status(status);
        let why = match (&told.explanation, told.class) {
            // Why nothing fits is the reason that somebody asks for; "nothing fits" alone is none.
            (Some(explanation), _) => {
                let first = explanation.counts.first().map(|count| count.rule.as_str());
                explanation.nearest.as_ref().map(|nearest| nearest.rule.as_str()).or(first)
            }
            (None, ErrorClass::NotPlaceable) => None,
            (None, _) => Some(""),
        };
        match why {
            Some(why) if !told.reason.is_empty() && !told.message.is_empty() => {
                let reason = if why.is_empty() { told.reason } else { format!("{} ({why})", told.reason) };
                Self::Refused { reason, code: status.code(), text: told.message }
            }
            Some(_) | None => Self::NoReason(format!("{:?}: {:?}", status.code(), status.message())),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { reason, text, .. } => write!(f, "{reason}: {text}"),
            Self::NoReason(what) => write!(f, "refused without a reason: {what}"),
            Self::Silent(what) => write!(f, "no answer: {what}"),
        }
    }
}

impl std::error::Error for Problem {}

/// Whether the same call again may be answered: nobody was there, or the answer was lost on the way.
fn nobody_answered(status: &Status) -> bool {
    // A status with a source was made on this side, of a broken connection.
    status.source().is_some()
        || matches!(status.code(), Code::Unavailable | Code::Unknown | Code::DeadlineExceeded | Code::Cancelled)
}

/// A connection to the API.
#[derive(Clone, Debug)]
pub struct Caller {
    channel: Channel,
    give_up: Duration,
}

impl Caller {
    /// Prepares a connection; calls are repeated for as long as `give_up` while nobody answers.
    ///
    /// # Errors
    /// When `endpoint` is no URL.
    pub fn new(endpoint: &str, give_up: Duration) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(endpoint.to_owned())
            .with_context(|| format!("{endpoint} is no URL"))?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .connect_lazy();
        Ok(Self { channel, give_up })
    }

    /// The service of requests.
    #[must_use]
    pub fn placements(&self) -> PlacementsClient<Channel> {
        PlacementsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The service of what there is.
    #[must_use]
    pub fn inventory(&self) -> InventoryClient<Channel> {
        InventoryClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Makes a call, again and again with the same content while nobody answers.
    ///
    /// # Errors
    /// The controller's refusal, or that nobody answered in all the time.
    pub async fn call<M: Clone, T, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        message: M,
        call: impl Fn(Request<M>) -> F,
    ) -> Result<T, Problem> {
        let begun = tokio::time::Instant::now();
        let mut pause = PAUSE.0;
        loop {
            let status = match tokio::time::timeout(ATTEMPT, call(Request::new(message.clone()))).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("not answered in time"),
            };
            if !nobody_answered(&status) {
                return Err(Problem::read(&status));
            }
            if begun.elapsed() + pause > self.give_up {
                return Err(Problem::Silent(status.to_string()));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// All GPUs.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub async fn gpus(&self) -> Result<Vec<Gpu>, Problem> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let ask = ListGpusRequest { page_size: PAGE, page_token, ..ListGpusRequest::default() };
            let mut page = self
                .call(ask, |ask| {
                    let mut api = self.inventory();
                    async move { api.list_gpus(ask).await }
                })
                .await?;
            all.append(&mut page.gpus);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            page_token = page.next_page_token;
        }
    }

    /// All VMs.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub async fn vms(&self) -> Result<Vec<Vm>, Problem> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let ask = ListVmsRequest { page_size: PAGE, page_token, ..ListVmsRequest::default() };
            let mut page = self
                .call(ask, |ask| {
                    let mut api = self.inventory();
                    async move { api.list_vms(ask).await }
                })
                .await?;
            all.append(&mut page.vms);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            page_token = page.next_page_token;
        }
    }

    /// All placements that are not over.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub async fn live_placements(&self) -> Result<Vec<Placement>, Problem> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let ask = ListPlacementsRequest {
                page_size: PAGE,
                page_token,
                live_only: true,
                ..ListPlacementsRequest::default()
            };
            let mut page = self
                .call(ask, |ask| {
                    let mut api = self.placements();
                    async move { api.list(ask).await }
                })
                .await?;
            all.append(&mut page.placements);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            page_token = page.next_page_token;
        }
    }

    /// How the controller is.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub async fn status(&self) -> Result<StatusResponse, Problem> {
        self.call(StatusRequest {}, |ask| {
            let mut operations = OperationsClient::new(self.channel.clone());
            async move { operations.status(ask).await }
        })
        .await
    }
}
