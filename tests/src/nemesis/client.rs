//! A well-behaved client of several controllers: asks the next one when one cannot answer, says the very same again, and
//! writes down every answer.
//!
//! Must never give a call up while it may be asked for: what it was not told, it does not know.

use super::journal::{Acknowledged, Journal, Method, Refused};
use anyhow::Context as _;
use berth_model::reason::ErrorClass;
use berth_proto::status::Problem;
use berth_proto::v1::placements_client::PlacementsClient;
use berth_proto::v1::{
    CommitPlacementRequest, CreatePlacementRequest, GetPlacementRequest, Placement, PlacementRequest,
    ReleasePlacementRequest,
};
use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// How long one attempt may take: a debug build on a busy machine answers in tens of milliseconds, and a controller that
/// was stopped in its tracks should not be waited for long.
const ATTEMPT: Duration = Duration::from_secs(3);
/// First and longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// Read your own writes: the least revision that an answer must show.
const MIN_REVISION: &str = "berth-min-revision";
/// The revision that an answer to a change is part of.
const REVISION: &str = "berth-revision";

/// A connection to each controller, of which one is asked at a time.
#[derive(Clone, Debug)]
pub struct Client {
    ways: Arc<[Channel]>,
    turn: usize,
    journal: Arc<Journal>,
}

/// What became of a call.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is so.
    Done(Box<Placement>, u64),
    /// It was refused.
    Refused(Refused),
}

/// Prepares a connection; it comes about with the first call, and anew when it breaks.
///
/// # Errors
/// When `endpoint` is no URL.
pub fn channel(endpoint: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).with_context(|| format!("{endpoint} is no URL"))?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
        .connect_lazy())
}

/// Whether nobody answered, or nobody could: the same call again may be.
fn nobody_answered(status: &Status) -> bool {
    // A status with a source was made on this side, of a broken connection.
    status.source().is_some()
        || matches!(status.code(), Code::Unavailable | Code::Unknown | Code::DeadlineExceeded | Code::Cancelled)
        || Problem::from_status(status).class == ErrorClass::Overloaded
}

impl Client {
    /// Prepares connections; the `first` of them is asked first.
    ///
    /// # Errors
    /// When one is no URL.
    pub fn new(endpoints: &[String], first: usize, journal: Arc<Journal>) -> anyhow::Result<Self> {
        let ways = endpoints.iter().map(|endpoint| channel(endpoint)).collect::<anyhow::Result<_>>()?;
        Ok(Self { ways, turn: first, journal })
    }

    fn api(&self) -> PlacementsClient<Channel> {
        PlacementsClient::new(self.ways[self.turn % self.ways.len()].clone())
    }

    /// Asks another controller from now on.
    pub fn turn(&mut self) {
        self.turn += 1;
    }

    /// Makes a call until it is answered.
    async fn call<M: Clone, T, F: Future<Output = Result<Response<T>, Status>>>(
        &mut self,
        message: M,
        least: u64,
        call: impl Fn(PlacementsClient<Channel>, Request<M>) -> F,
    ) -> Result<Response<T>, Status> {
        let mut pause = PAUSE.0;
        loop {
            let mut request = Request::new(message.clone());
            request.set_timeout(ATTEMPT);
            if least > 0 {
                request.metadata_mut().insert(MIN_REVISION, AsciiMetadataValue::from(least));
            }
            let status = match tokio::time::timeout(ATTEMPT, call(self.api(), request)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer within the deadline"),
            };
            if !nobody_answered(&status) {
                return Err(status);
            }
            self.journal.silence(status.code(), status.message());
            self.turn();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn change<M: Clone, F: Future<Output = Result<Response<Placement>, Status>>>(
        &mut self,
        method: Method,
        name: &str,
        message: M,
        call: impl Fn(PlacementsClient<Channel>, Request<M>) -> F,
    ) -> Outcome {
        self.journal.asked();
        let asked = Instant::now();
        match self.call(message, 0, call).await {
            Ok(answer) => {
                let revision = answer.metadata().get(REVISION).and_then(|text| text.to_str().ok()?.parse().ok());
                let placement = answer.into_inner();
                if revision.is_none() {
                    self.journal.wrong(format!("the answer to {method:?} {name} names no revision"));
                }
                let revision = revision.unwrap_or(0);
                let told = Instant::now();
                self.journal.acknowledged(Acknowledged { asked, told, method, placement: placement.clone(), revision });
                Outcome::Done(Box::new(placement), revision)
            }
            Err(status) => {
                let Problem { reason, message: text, .. } = Problem::from_status(&status);
                let reason = if reason.is_empty() { format!("{:?}", status.code()) } else { reason };
                let refused = Refused { method, name: name.to_owned(), reason, text };
                self.journal.refused(refused.clone());
                Outcome::Refused(refused)
            }
        }
    }

    /// Asks for a placement.
    pub async fn create(&mut self, request: PlacementRequest) -> Outcome {
        let name = request.name.clone();
        let message = CreatePlacementRequest { request: Some(request) };
        self.change(Method::Create, &name, message, |mut api, ask| async move { api.create(ask).await }).await
    }

    /// Says that a placement's VM is there.
    pub async fn commit(&mut self, name: &str, vm_id: &str) -> Outcome {
        let message = CommitPlacementRequest { name: name.to_owned(), vm_id: vm_id.to_owned(), version: 0 };
        self.change(Method::Commit, name, message, |mut api, ask| async move { api.commit(ask).await }).await
    }

    /// Gives a placement back.
    pub async fn release(&mut self, name: &str, uid: &str) -> Outcome {
        let message = ReleasePlacementRequest { name: name.to_owned(), uid: uid.to_owned(), version: 0 };
        self.change(Method::Release, name, message, |mut api, ask| async move { api.release(ask).await }).await
    }

    /// Reads a placement as it is at this revision at least.
    ///
    /// # Errors
    /// The refusal.
    pub async fn get(&mut self, name: &str, least: u64) -> Result<Placement, Status> {
        let message = GetPlacementRequest { name: name.to_owned() };
        let answer = self.call(message, least, |mut api, ask| async move { api.get(ask).await }).await?;
        Ok(answer.into_inner())
    }
}
