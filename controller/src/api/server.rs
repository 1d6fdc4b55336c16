//! Everything that answers on the one port: gRPC, gRPC-Web, JSON, health, probes and reflection.

use super::deadline::asked_deadline;
use super::forward::{self, Gate};
use super::health::HealthService;
use super::inventory::InventoryService;
use super::json::Transcoder;
use super::operations::{Backups, OperationsService};
use super::placements::PlacementsService;
use super::plan::{Explainer, Planner};
use super::probe::Probe;
use super::summary::Summaries;
use super::watch::Watches;
use super::{MAX_REQUEST_BYTES, Sources};
use crate::metrics::{INSTRUMENTS, code_name, method_name};
use crate::peers::PeersService;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::{Method, Request, header::CONTENT_TYPE};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use berth_proto::v1::inventory_server::InventoryServer;
use berth_proto::v1::node_agent_server::{NodeAgent, NodeAgentServer};
use berth_proto::v1::operations_server::OperationsServer;
use berth_proto::v1::peers_server::PeersServer;
use berth_proto::v1::placements_server::PlacementsServer;
use berth_telemetry::KeyValue;
use berth_telemetry::metrics::controller::{CODE, METHOD};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;
use tower::ServiceExt as _;

pub use super::json::BrokenDescriptors;

/// Longest a call may take until its answer begins, if the caller does not say: longer than any commit waits, so that
/// callers hear the true reason first.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// Longest that a caller can ask for. A call that waits longer is a watch.
const MAX_CALL_DEADLINE: Duration = Duration::from_secs(600);

const WELCOME: &str = "\
This is a Berth controller: it decides which virtual machine gets which GPU, and has it carried out.

It speaks gRPC (with reflection), gRPC-Web, and JSON over HTTP, for example:

  curl -d '{}' http://HOST:PORT/berth.v1.Inventory/Summarize
  curl -d '{\"liveOnly\": true}' http://HOST:PORT/berth.v1.Placements/List
  curl -d '{\"request\": {\"requestId\": \"r1\", \"name\": \"p1\", \"vm\": \"vm1\", \"gpus\": 1}}' \\
       http://HOST:PORT/berth.v1.Placements/Create
";

/// Why the router cannot be built. Only a broken build makes these.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// For JSON.
    #[error(transparent)]
    Json(#[from] BrokenDescriptors),
    /// For reflection.
    #[error("reflection cannot be set up: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

#[derive(Clone)]
struct Edge {
    grpc: axum::Router,
    /// gRPC-Web.
    web: axum::Router,
    json: Transcoder,
    probe: Probe,
}

/// Joins all services into one router. Who calls is what the connection's task adds to each request.
///
/// # Errors
/// [`RouterError`] when the build is broken.
pub fn router<A: NodeAgent>(sources: Sources, agents: A) -> Result<axum::Router, RouterError> {
    let (summaries, watches) = (Summaries::default(), Watches::default());
    let gate = Gate { forwarder: sources.forwarder.clone(), replica: sources.replica.clone() };
    let probe = Probe { replica: sources.replica.clone(), board: sources.forwarder.board().clone() };
    let peers = PeersService::new(sources.replica.clone(), sources.forwarder.clone(), Arc::clone(&sources.seen));
    let health = HealthService { replica: sources.replica.clone(), watches: watches.clone() };
    let inventory =
        InventoryService { sources: sources.clone(), summaries: summaries.clone(), watches: watches.clone() };
    let placements = PlacementsService {
        sources: sources.clone(),
        watches,
        planner: Planner::default(),
        explainer: Explainer::default(),
    };
    let operations = OperationsService { sources, summaries, backups: Backups::default(), audits: Backups::default() };
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(berth_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let grpc = Routes::default()
        .add_service(InventoryServer::new(inventory).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(PlacementsServer::new(placements).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(OperationsServer::new(operations).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(NodeAgentServer::new(agents).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(PeersServer::new(peers))
        .add_service(HealthServer::new(health))
        // Common clients (grpcurl 1.8, grpcio) speak v1alpha only.
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .prepare()
        .into_axum_router()
        .layer(from_fn_with_state(gate, in_time));
    let web = grpc.clone().layer(tonic_web::GrpcWebLayer::new());
    let edge = Edge { json: Transcoder::new(grpc.clone())?, grpc, web, probe };
    Ok(axum::Router::new().fallback(dispatch).with_state(edge))
}

async fn dispatch(State(edge): State<Edge>, request: Request<Body>) -> Response {
    let kind = request.headers().get(CONTENT_TYPE).map(|value| value.as_bytes());
    if let Some(kind) = kind.filter(|kind| kind.starts_with(b"application/grpc")) {
        let router = if kind.starts_with(b"application/grpc-web") { edge.web } else { edge.grpc };
        return router.oneshot(request).await.unwrap_or_else(|never| match never {});
    }
    if request.uri().path() == "/" && (request.method() == Method::GET || request.method() == Method::HEAD) {
        return WELCOME.into_response();
    }
    if request.uri().path() == "/metrics" && request.method() == Method::GET && berth_telemetry::is_scraped() {
        return scrape().await;
    }
    if let Some(answer) = edge.probe.answer(request.method(), request.uri()) {
        return answer;
    }
    edge.json.call(request).await
}

/// All metrics, as Prometheus reads them.
async fn scrape() -> Response {
    // Away from the thread that decides: a large fleet takes milliseconds.
    match tokio::task::spawn_blocking(berth_telemetry::scrape).await {
        Ok(Some(page)) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], page).into_response(),
        Ok(None) | Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Ends a call whose answer does not begin in time. What it asked for may still happen, and the code says so.
async fn in_time(State(gate): State<Gate>, request: Request<Body>, next: Next) -> Response {
    let limit = asked_deadline(request.headers()).map_or(CALL_DEADLINE, |asked| asked.min(MAX_CALL_DEADLINE));
    let (method, begun) = (method_name(request.uri().path()), Instant::now());
    let response = match tokio::time::timeout(limit, forward::route(gate, request, next)).await {
        Ok(response) => response,
        Err(_) => Status::deadline_exceeded(format!(
            "no answer within {} ms; it is not known whether the call took effect",
            limit.as_millis()
        ))
        .into_http(),
    };
    let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
    let about = [KeyValue::new(METHOD, method), KeyValue::new(CODE, code_name(code))];
    INSTRUMENTS.api_duration.record(begun.elapsed().as_secs_f64(), &about);
    response
}
