//! A collector that remembers what it gets by OTLP over gRPC.

use anyhow::Context as _;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A span as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The service that made it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its trace, hexadecimal.
    pub trace: String,
    /// Its id, hexadecimal.
    pub id: String,
    /// The id of what it is part of; empty at the beginning of a trace.
    pub parent: String,
    /// Whether it says that what it tells of failed, and with which words.
    pub error: Option<String>,
    /// What else it says.
    pub attributes: BTreeMap<String, String>,
}

/// A line of a log as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The service that wrote it.
    pub service: String,
    /// What it says.
    pub body: String,
    /// Its level.
    pub severity: String,
    /// The trace it belongs to, hexadecimal; empty where it belongs to none.
    pub trace: String,
    /// The span it belongs to.
    pub span: String,
    /// What else it says.
    pub attributes: BTreeMap<String, String>,
}

/// All that came.
#[derive(Debug, Default)]
pub struct Received {
    /// Spans, in the order they came.
    pub spans: Vec<Span>,
    /// Lines, in the order they came.
    pub lines: Vec<Line>,
    /// Lines with an attribute that came twice, which the protocol forbids.
    pub doubled: Vec<String>,
    /// Names of metrics by service.
    pub metrics: BTreeMap<String, Vec<String>>,
}

/// A collector at work, until it is dropped.
#[derive(Debug)]
pub struct Collector {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Shared,
    runtime: Option<Runtime>,
}

#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Received>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts one.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start_at(address: SocketAddr) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(address)).context("the collector cannot listen")?;
        let address = listener.local_addr()?;
        let shared = Shared::default();
        let server = Server::builder()
            .add_service(TraceServiceServer::new(shared.clone()))
            .add_service(MetricsServiceServer::new(shared.clone()))
            .add_service(LogsServiceServer::new(shared.clone()));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(Self { address, shared, runtime: Some(runtime) })
    }

    /// As a setting names it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came so far.
    pub fn received(&self) -> MutexGuard<'_, Received> {
        self.shared.lock()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // As a kill would: connections break at once.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::BoolValue(yes)) => yes.to_string(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::DoubleValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    list.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

fn service(resource: Option<&Resource>) -> String {
    let all = resource.map(|resource| attributes(&resource.attributes)).unwrap_or_default();
    all.get("service.name").cloned().unwrap_or_default()
}

#[tonic::async_trait]
impl TraceService for Shared {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.lock();
        for group in request.into_inner().resource_spans {
            let service = service(group.resource.as_ref());
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                // 2 is STATUS_CODE_ERROR.
                let error = span.status.filter(|status| status.code == 2).map(|status| status.message);
                received.spans.push(Span {
                    service: service.clone(),
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    attributes: attributes(&span.attributes),
                    name: span.name,
                    error,
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Shared {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let mut received = self.lock();
        for group in request.into_inner().resource_metrics {
            let names = received.metrics.entry(service(group.resource.as_ref())).or_default();
            for metric in group.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                if !names.contains(&metric.name) {
                    names.push(metric.name);
                }
            }
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Shared {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let mut received = self.lock();
        for group in request.into_inner().resource_logs {
            let service = service(group.resource.as_ref());
            for line in group.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                let attributes = attributes(&line.attributes);
                if attributes.len() < line.attributes.len() {
                    received.doubled.push(format!("{}: {:?}", text(line.body.as_ref()), line.attributes));
                }
                received.lines.push(Line {
                    service: service.clone(),
                    body: text(line.body.as_ref()),
                    severity: line.severity_text,
                    trace: hex(&line.trace_id),
                    span: hex(&line.span_id),
                    attributes,
                });
            }
        }
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}
