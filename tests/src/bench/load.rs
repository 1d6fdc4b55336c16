//! Callers that ask for placements and wait for each answer, as provisioning systems do.

use super::controller::Controller;
use super::hosts;
use anyhow::Context as _;
use berth_proto::v1::placements_client::PlacementsClient;
use berth_proto::v1::{CreatePlacementRequest, PlacementRequest, ReleasePlacementRequest};
use berth_store::Revision;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Longer than any benchmark: nothing expires meanwhile.
const HOLD_SECONDS: i64 = 24 * 3600;

/// Some callers, each with a connection of its own.
pub(super) struct Callers {
    clients: Vec<PlacementsClient<Channel>>,
    /// The first one's connection.
    health: Option<HealthClient<Channel>>,
    /// Number of the next placement.
    next: usize,
}

/// What one round of calls came to.
pub(super) struct Round {
    /// The placements made.
    pub(super) made: std::ops::Range<usize>,
    /// From the first question to the last answer.
    pub(super) took: Duration,
    /// How long each caller waited.
    pub(super) times: Vec<Duration>,
}

impl Callers {
    /// Connects so many.
    ///
    /// # Errors
    /// When the controller cannot be reached.
    pub(super) async fn connect(controller: &Controller, count: usize) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(controller.endpoint.clone())?.tcp_nodelay(true);
        let (mut clients, mut health) = (Vec::new(), None);
        for _ in 0..count {
            let channel = endpoint.connect().await.context("the controller cannot be reached")?;
            health.get_or_insert_with(|| HealthClient::new(channel.clone()));
            clients.push(PlacementsClient::new(channel));
        }
        Ok(Self { clients, health, next: 0 })
    }

    /// One placement by the first caller; the revision that it is part of.
    ///
    /// # Errors
    /// When it is refused.
    pub(super) async fn create_one(&mut self) -> anyhow::Result<Revision> {
        let number = self.next;
        self.next += 1;
        let client = self.clients.first_mut().context("there is no caller")?;
        let answer = client.create(create(number)).await?;
        let revision = answer.metadata().get("berth-revision").context("an answer without a revision")?;
        Ok(Revision(revision.to_str()?.parse()?))
    }

    /// One call by the first caller that asks for next to nothing.
    ///
    /// # Errors
    /// When it is not answered.
    pub(super) async fn ask_for_nothing(&mut self) -> anyhow::Result<()> {
        let health = self.health.as_mut().context("there is no caller")?;
        health.check(HealthCheckRequest::default()).await?;
        Ok(())
    }

    /// So many placements by all callers together, each with one question at a time.
    ///
    /// # Errors
    /// When one is refused: there is room for all.
    pub(super) async fn create(&mut self, count: usize) -> anyhow::Result<Round> {
        let made = self.next..self.next + count;
        self.next = made.end;
        let begun = Instant::now();
        let times = self.each(made.clone(), |mut client, number| async move {
            client.create(create(number)).await.with_context(|| format!("placement {number}"))?;
            Ok(())
        });
        let times = times.await?;
        Ok(Round { made, took: begun.elapsed(), times })
    }

    /// Gives the GPUs of these placements back.
    ///
    /// # Errors
    /// When that is refused.
    pub(super) async fn release(&self, made: std::ops::Range<usize>) -> anyhow::Result<()> {
        let release = |mut client: PlacementsClient<Channel>, number| async move {
            let request = ReleasePlacementRequest { name: name(number), ..ReleasePlacementRequest::default() };
            client.release(request).await.with_context(|| format!("the release of placement {number}"))?;
            Ok(())
        };
        self.each(made, release).await.map(|_| ())
    }

    async fn each<F>(
        &self,
        numbers: std::ops::Range<usize>,
        call: impl Fn(PlacementsClient<Channel>, usize) -> F + Clone + Send + 'static,
    ) -> anyhow::Result<Vec<Duration>>
    where
        F: Future<Output = anyhow::Result<()>> + Send,
    {
        let next = Arc::new(AtomicUsize::new(numbers.start));
        let mut callers = JoinSet::new();
        for client in self.clients.clone() {
            let (next, call) = (Arc::clone(&next), call.clone());
            callers.spawn(async move {
                let mut times = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        return anyhow::Ok(times);
                    }
                    let begun = Instant::now();
                    call(client.clone(), number).await?;
                    times.push(begun.elapsed());
                }
            });
        }
        let mut all = Vec::new();
        while let Some(times) = callers.join_next().await {
            all.extend(times??);
        }
        Ok(all)
    }
}

fn name(number: usize) -> String {
    format!("bench-{number}")
}

fn create(number: usize) -> CreatePlacementRequest {
    let request = PlacementRequest {
        request_id: format!("order-{number}"),
        name: name(number),
        vm: format!("bench-vm-{number}"),
        gpus: 1,
        models: vec![hosts::model(number).to_string()],
        hold: Some(prost_types::Duration { seconds: HOLD_SECONDS, nanos: 0 }),
        ..PlacementRequest::default()
    };
    CreatePlacementRequest { request: Some(request) }
}
