//! Deciding without claiming, beside the leader: on a snapshot, on a thread that may take its time.

use super::{MAX_ANSWER_BYTES, overloaded};
use crate::clock::now;
use crate::replica::Snapshot;
use berth_core::schedule::{self, Planned};
use berth_model::Timestamp;
use berth_model::reason::{ErrorClass, Refusal};
use berth_model::request::{FieldError, PlacementRequest};
use berth_proto::{status, v1};
use prost::Message as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::Status;

/// Plans at a time. Each takes a whole core for up to some seconds; on two cores the other one is the leader's.
const AT_A_TIME: usize = 1;
/// How long a plan waits for its turn: a few large plans, and less than a caller's patience.
const TURN: Duration = Duration::from_secs(20);
/// How many nodes are told one by one for each request that does not fit, the most that keeps the answer small enough.
const NODES_TOLD: [usize; 4] = [32, 4, 1, 0];

/// Makes plans, few at a time.
#[derive(Clone)]
pub(crate) struct Planner {
    places: Arc<Semaphore>,
}

impl Default for Planner {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

impl Planner {
    /// Decides requests one after the other, each as if those before it had been made.
    pub(crate) async fn plan(
        &self,
        snapshot: Arc<Snapshot>,
        requests: Vec<PlacementRequest>,
    ) -> Result<v1::PlanResponse, Status> {
        let place = match tokio::time::timeout(TURN, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) | Err(_) => return Err(overloaded("other plans are being made; try again later")),
        };
        let planned = tokio::task::spawn_blocking(move || {
            // Held until the work is done, also when the caller has gone away meanwhile.
            let _place = place;
            answer(&snapshot, &requests, now())
        });
        match planned.await {
            Ok(answer) => answer,
            Err(_) => Err(status::failure(ErrorClass::Internal, "PLAN_FAILED", "the plan could not be finished")),
        }
    }
}

/// Works out why a request that was refused for want of room does not fit, beside the leader.
#[derive(Clone)]
pub(crate) struct Explainer {
    places: Arc<Semaphore>,
}

impl Default for Explainer {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

impl Explainer {
    /// The refusal with its explanation, as the world is in `snapshot`.
    pub(crate) async fn explain(&self, snapshot: Arc<Snapshot>, request: Box<PlacementRequest>) -> Status {
        let Ok(Ok(place)) = tokio::time::timeout(TURN, Arc::clone(&self.places).acquire_owned()).await else {
            // So many are refused that explaining each would take longer than they wait: the plain answer, then.
            return status::refusal_to_status(&Refusal::NoRoom(request));
        };
        let explained = tokio::task::spawn_blocking(move || {
            let _place = place;
            schedule::schedule(&snapshot.world, &request, now())
        });
        match explained.await {
            Ok(Err(refusal)) => status::refusal_to_status(&refusal),
            Ok(Ok(_)) => status::failure(ErrorClass::Unavailable, "ROOM_APPEARED", "room has just appeared; try again"),
            Err(_) => {
                status::failure(ErrorClass::Internal, "EXPLAIN_FAILED", "nothing fits; why could not be worked out")
            }
        }
    }
}

fn answer(snapshot: &Snapshot, requests: &[PlacementRequest], now: Timestamp) -> Result<v1::PlanResponse, Status> {
    let planned = schedule::plan(&snapshot.world, requests, now).into_iter().map(show).collect();
    let mut response = v1::PlanResponse { planned, revision: snapshot.revision };
    for told in NODES_TOLD {
        for planned in &mut response.planned {
            if let Some(explanation) = &mut planned.explanation {
                explanation.rejected.truncate(told);
            }
        }
        if response.encoded_len() <= MAX_ANSWER_BYTES {
            return Ok(response);
        }
    }
    let problem = format!("the answer would be larger than {MAX_ANSWER_BYTES} bytes; plan fewer requests at a time");
    Err(status::refusal_to_status(&Refusal::Invalid(vec![FieldError::new("requests", problem)])))
}

fn show(planned: Planned) -> v1::PlannedPlacement {
    let Planned { name, outcome } = planned;
    let (assignment, explanation, refusal) = match outcome {
        Ok(assignment) => (Some((&assignment).into()), None, String::new()),
        Err(Refusal::NotPlaceable(explanation)) => (None, Some(explanation.as_ref().into()), String::new()),
        Err(refusal) => (None, None, refusal.to_string()),
    };
    v1::PlannedPlacement { name: name.to_string(), assignment, explanation, refusal }
}
