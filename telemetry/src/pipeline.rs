//! From what a process records to whoever asks for it: an OTLP collector, Prometheus.
//!
//! Owns the exporters and the one thread they live on, so that encoding and sending never take time from a thread that
//! decides. A collector that is gone, slow or wrong costs counted losses, and at the end of the process a few seconds.

use crate::export::{Export, Service};
use crate::metrics::instruments;
use crate::metrics::process::{SIGNAL, TELEMETRY_LEFT_OUT};
use crate::pace::Pace;
use crate::process;
use crate::room::{BATCH, Counted, Door, ROOM, Room};
use crate::traces::Tracing;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{LogExporter, MetricExporter, SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{BatchConfigBuilder as LogBatches, BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder as SpanBatches, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanLimits,
};
use prometheus::{Encoder as _, Registry, TextEncoder};
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// How long one message to the collector may take. Whatever takes longer is lost, and counted.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);
/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Between two looks at what waits: traces of a moment ago are there when somebody looks for them.
const DELAY: Duration = Duration::from_secs(1);
/// How long the end of a process may wait for what is not exported yet: supervisors kill after ten seconds and more.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);
/// Most attributes of a span, and most bytes Berth puts into one: an error of a host is a few lines.
const MAX_ATTRIBUTES: u32 = 32;

static REGISTRY: OnceLock<Registry> = OnceLock::new();

/// All metrics as Prometheus reads them, if they are kept for it. Takes milliseconds in a large fleet: not for a thread
/// that decides.
pub fn scrape() -> Option<String> {
    let families = REGISTRY.get()?.gather();
    let mut text = Vec::new();
    // Writing into memory cannot fail; a metric without a value is left out by the encoder.
    TextEncoder::new().encode(&families, &mut text).ok()?;
    String::from_utf8(text).ok()
}

/// Whether metrics are kept for Prometheus.
pub fn is_scraped() -> bool {
    REGISTRY.get().is_some()
}

/// Why nothing can be exported. Only what is configured wrong makes these, never a collector.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CA file cannot be read.
    #[error("cannot read the CA of the collector (telemetry.ca), {path}")]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something about the endpoint or its TLS.
    #[error("the collector (telemetry.endpoint) cannot be used: {0}")]
    Endpoint(String),
    /// The system gives no thread.
    #[error("no thread for telemetry")]
    Thread(#[source] io::Error),
}

/// What exports.
#[derive(Debug, Default)]
pub(crate) struct Pipeline {
    traces: Option<SdkTracerProvider>,
    /// For the layer that takes log lines.
    pub(crate) logs: Option<SdkLoggerProvider>,
    metrics: Option<SdkMeterProvider>,
    /// Ends the exporters' thread when dropped.
    thread: Option<oneshot::Sender<()>>,
}

impl Pipeline {
    /// Begins to export.
    pub(crate) fn start(export: &Export, service: Service) -> Result<Self, Error> {
        if export.endpoint.is_none() && !export.prometheus {
            return Ok(Self::default());
        }
        let resource = resource(service);
        let mut metrics = SdkMeterProvider::builder().with_resource(resource.clone()).with_view(instruments::view);
        if export.prometheus {
            let registry = Registry::new();
            let reader = opentelemetry_prometheus::exporter()
                .with_registry(registry.clone())
                .scope_info_enabled(false)
                .build()
                .map_err(|error| Error::Endpoint(error.to_string()))?;
            metrics = metrics.with_reader(reader);
            let _first_stays = REGISTRY.set(registry);
        }
        let Some(endpoint) = &export.endpoint else {
            let metrics = metrics.build();
            global::set_meter_provider(metrics.clone());
            process::register();
            return Ok(Self { metrics: Some(metrics), ..Self::default() });
        };
        let (runtime, thread) = exporters_thread()?;
        let channel = {
            let _entered = runtime.enter();
            channel(endpoint, export)?
        };
        let _entered = runtime.enter();
        let build = |error: opentelemetry_otlp::ExporterBuildError| Error::Endpoint(error.to_string());
        let room = Room::of("metrics");
        let exporter = MetricExporter::builder().with_tonic().with_channel(channel.clone()).with_timeout(EXPORT_LIMIT);
        let exporter = Counted { inner: exporter.build().map_err(build)?, room: room.clone() };
        let metrics = metrics.with_reader(PeriodicReader::builder(exporter).with_interval(export.interval).build());
        let metrics = metrics.build();
        global::set_meter_provider(metrics.clone());
        process::register();
        room.begin();
        let (traces_pace, lines_pace) = (Pace::new(export.traces_per_second), Pace::new(export.lines_per_second));
        tell_left_out(&traces_pace, &lines_pace);

        let room = Room::of("traces");
        room.begin();
        let exporter = SpanExporter::builder().with_tonic().with_channel(channel.clone()).with_timeout(EXPORT_LIMIT);
        let exporter = Counted { inner: exporter.build().map_err(build)?, room: room.clone() };
        let batches = SpanBatches::default()
            .with_max_queue_size(ROOM + BATCH)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let limits = SpanLimits { max_attributes_per_span: MAX_ATTRIBUTES, ..SpanLimits::default() };
        let traces = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            // What is not to be kept never gets here.
            .with_sampler(Sampler::AlwaysOn)
            .with_span_limits(limits)
            .with_span_processor(Door { inner: processor, room, pace: traces_pace.clone() })
            .build();
        Tracing::install(traces.tracer("berth"), export, traces_pace);

        let room = Room::of("logs");
        room.begin();
        let exporter = LogExporter::builder().with_tonic().with_channel(channel).with_timeout(EXPORT_LIMIT);
        let exporter = Counted { inner: exporter.build().map_err(build)?, room: room.clone() };
        let batches = LogBatches::default()
            .with_max_queue_size(ROOM + BATCH)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let processor = BatchLogProcessor::builder(exporter).with_batch_config(batches).build();
        let logs = SdkLoggerProvider::builder()
            .with_resource(resource)
            .with_log_processor(Door { inner: processor, room, pace: lines_pace })
            .build();
        Ok(Self { traces: Some(traces), logs: Some(logs), metrics: Some(metrics), thread: Some(thread) })
    }

    /// Ends it: sends what waits, for as long as that may take.
    pub(crate) fn flush(self) {
        let Self { traces, logs, metrics, thread } = self;
        if thread.is_none() {
            return;
        }
        let (done, ended) = mpsc::sync_channel(1);
        // Its own thread: none of these calls keeps to a limit when a collector does not answer.
        let flushing = thread::Builder::new().name("berth-flush".to_owned()).spawn(move || {
            // What became of them is counted where it happens; there is nobody left to be told.
            let _spans = traces.map(|traces| traces.shutdown_with_timeout(FLUSH_LIMIT));
            let _lines = logs.map(|logs| logs.shutdown_with_timeout(FLUSH_LIMIT));
            let _figures = metrics.map(|metrics| metrics.shutdown_with_timeout(FLUSH_LIMIT));
            let _in_time = done.send(());
        });
        if flushing.is_ok() {
            let _or_not = ended.recv_timeout(FLUSH_LIMIT);
        }
        drop(thread);
    }
}

/// Has what the paces left out read whenever somebody asks for metrics.
fn tell_left_out(traces: &Pace, lines: &Pace) {
    let paces = [("traces", traces.clone()), ("logs", lines.clone())];
    instruments::observe(&TELEMETRY_LEFT_OUT, move |to| {
        for (signal, pace) in &paces {
            to.observe(instruments::number(pace.left_out()), &[KeyValue::new(SIGNAL, *signal)]);
        }
    });
}

fn resource(service: Service) -> Resource {
    let Service { name, version, instance, node } = service;
    let mut about = vec![KeyValue::new("service.version", version), KeyValue::new("service.instance.id", instance)];
    about.extend(node.map(|node| KeyValue::new("host.name", node)));
    Resource::builder_empty().with_service_name(name).with_attributes(about).build()
}

/// A thread with a runtime for the connections of the exporters, until the sender is dropped.
fn exporters_thread() -> Result<(tokio::runtime::Handle, oneshot::Sender<()>), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    thread::Builder::new()
        .name("berth-telemetry".to_owned())
        .spawn(move || {
            // Ends by the sender's being dropped, which counts as an error here.
            let _end = runtime.block_on(stopped);
            runtime.shutdown_background();
        })
        .map_err(Error::Thread)?;
    Ok((handle, stop))
}

/// The one connection to the collector, made when it is needed.
fn channel(endpoint: &str, export: &Export) -> Result<Channel, Error> {
    let wrong = |error: tonic::transport::Error| Error::Endpoint(crate::text(&error));
    let mut endpoint = Endpoint::from_shared(endpoint.to_owned())
        .map_err(wrong)?
        .connect_timeout(CONNECT_LIMIT)
        .timeout(EXPORT_LIMIT)
        .keep_alive_while_idle(false);
    if let Some(path) = &export.ca {
        let pem = std::fs::read(path).map_err(|source| Error::Ca { path: path.clone(), source })?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        endpoint = endpoint.tls_config(tls).map_err(wrong)?;
    }
    Ok(endpoint.connect_lazy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Kind, all};

    #[test]
    fn prometheus_finds_every_metric_under_its_name_and_of_its_kind() {
        let export = Export { prometheus: true, ..Export::default() };
        let service = Service { name: "test", version: "1", instance: "i".to_owned(), node: None };
        let pipeline = Pipeline::start(&export, service).unwrap();
        for metric in all().filter(|metric| !metric.name.starts_with("process.")) {
            match metric.kind {
                Kind::Counter => instruments::counter(metric).add(1, &[]),
                Kind::Histogram(_) => instruments::histogram(metric).record(0.5, &[]),
                Kind::Gauge => instruments::observe(metric, |to| to.observe(1.0, &[])),
            }
        }
        let page = scrape().unwrap();
        for metric in all() {
            let line = format!("# TYPE {} {}\n", metric.prometheus(), metric.kind.name());
            assert!(page.contains(&line), "no {line} in\n{page}");
        }
        pipeline.flush();
    }

    #[test]
    fn what_is_not_seen_any_more_is_not_told_any_more() {
        use std::sync::atomic::{AtomicBool, Ordering};
        static GONE: AtomicBool = AtomicBool::new(false);
        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build().unwrap();
        let provider = SdkMeterProvider::builder().with_reader(reader).with_view(instruments::view).build();
        use opentelemetry::metrics::MeterProvider as _;
        let _gauge = provider
            .meter("test")
            .f64_observable_gauge("seen")
            .with_callback(|to| {
                if !GONE.load(Ordering::Relaxed) {
                    to.observe(1.0, &[KeyValue::new("model", "A16")]);
                }
            })
            .build();
        let told = || registry.gather().iter().any(|family| family.name() == "seen" && !family.get_metric().is_empty());
        assert!(told());
        GONE.store(true, Ordering::Relaxed);
        assert!(!told(), "a follower would go on telling what it told as a leader");
    }
}
