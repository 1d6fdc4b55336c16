//! gRPC health: serving exactly while this controller shows the store, as leader or as follower. Nobody has to set it, so
//! nobody can forget to.

use super::overloaded;
use super::watch::{Source, Stream, Watches};
use crate::replica::{Follow, Replica};
use berth_proto::v1;
use futures::FutureExt as _;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// `grpc.health.v1.Health`.
#[derive(Clone)]
pub(crate) struct HealthService {
    pub(crate) replica: Replica,
    pub(crate) watches: Watches,
}

/// What can be asked about: the server as a whole (the empty name), and each service.
fn is_known(service: &str) -> bool {
    [
        "",
        v1::inventory_server::SERVICE_NAME,
        v1::placements_server::SERVICE_NAME,
        v1::operations_server::SERVICE_NAME,
        v1::node_agent_server::SERVICE_NAME,
    ]
    .contains(&service)
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn follow(replica: &Replica) -> Result<Follow, Status> {
    replica.follow(None).map_err(|_| overloaded("the controller is loading; ask again"))
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !is_known(&service) {
            return Err(Status::not_found(format!("there is no service {service:?}")));
        }
        // Whoever follows is told at once when nobody publishes any more.
        let ended = matches!(follow(&self.replica)?.next().now_or_never(), Some(None));
        let serves = !ended && self.replica.now().is_loaded();
        Ok(Response::new(answer(if serves { ServingStatus::Serving } else { ServingStatus::NotServing })))
    }

    type WatchStream = Stream<HealthCheckResponse>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = is_known(&request.into_inner().service);
        let replica = self.replica.clone();
        let source = Changes { follow: follow(&replica)?, replica, known, told: None, ended: false };
        Ok(Response::new(self.watches.open(source)?))
    }
}

/// Changes of the serving status: when something is there to show, and at the end.
struct Changes {
    replica: Replica,
    follow: Follow,
    known: bool,
    told: Option<ServingStatus>,
    ended: bool,
}

impl Source for Changes {
    type Change = HealthCheckResponse;

    async fn next(&mut self) -> Result<HealthCheckResponse, Status> {
        let status = match self.told {
            None if self.known && self.replica.now().is_loaded() => ServingStatus::Serving,
            None if self.known => ServingStatus::NotServing,
            None => ServingStatus::ServiceUnknown,
            Some(ServingStatus::Serving) => {
                loop {
                    match self.follow.next().await {
                        Some(Ok(_)) => {}
                        // The world was loaded anew; whoever did so leads.
                        Some(Err(_)) => self.follow = follow(&self.replica)?,
                        None => break,
                    }
                }
                self.ended = true;
                ServingStatus::NotServing
            }
            Some(ServingStatus::NotServing) if !self.ended => {
                if self.replica.reach(0).await.is_err() {
                    std::future::pending::<()>().await;
                }
                self.follow = follow(&self.replica)?;
                ServingStatus::Serving
            }
            // Nothing can change any more in this process.
            Some(ServingStatus::NotServing | ServingStatus::ServiceUnknown | ServingStatus::Unknown) => {
                std::future::pending().await
            }
        };
        self.told = Some(status);
        Ok(answer(status))
    }
}
