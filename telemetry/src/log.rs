//! Logging to stderr: one line an event, for people or as JSON; to a collector, where there is one; and where nobody reads
//! stderr, to a journal of the system's.
//!
//! stdout stays free for what a program was asked to print. The guard is where exporters that buffer flush.

use crate::export::{Export, Service};
use crate::journal::{Journal, Pages};
use crate::names;
use crate::pipeline::{self, Pipeline};
use opentelemetry_appender_tracing::layer::{OpenTelemetryTracingBridge, TracingSpanAttributes};
use std::fmt;
use std::io::{self, Write as _};
use std::str::FromStr;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layered, SubscriberExt as _};
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::Human, Self::Json];

    /// Stable name, as in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text names no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("log format {0:?} is not one of: human, json")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;
    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        Self::ALL.into_iter().find(|f| f.name() == text).ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}

/// What to log and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How a line looks.
    pub format: Format,
    /// What is logged: directives as `tracing_subscriber::EnvFilter` reads them, such as `info,berth_node_agent=debug`.
    pub filter: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { format: Format::default(), filter: "info".to_owned() }
    }
}

impl Options {
    /// Checks the filter without starting anything.
    ///
    /// # Errors
    /// [`InitError::Filter`].
    pub fn check(&self) -> Result<(), InitError> {
        self.env_filter().map(|_| ())
    }

    fn env_filter(&self) -> Result<EnvFilter, InitError> {
        EnvFilter::builder()
            .parse(&self.filter)
            .map_err(|source| InitError::Filter { filter: self.filter.clone(), why: source.to_string() })
    }
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter cannot be read.
    #[error("log filter {filter:?} is not a list of directives like info,berth_node_agent=debug: {why}")]
    Filter {
        /// The filter given.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something else already logs in this process.
    #[error("logging was already started in this process")]
    Twice,
    /// What is configured for export cannot be.
    #[error(transparent)]
    Export(#[from] pipeline::Error),
}

/// Flushes what is buffered when it is dropped: keep it until the process ends.
#[derive(Debug)]
#[must_use = "dropping it ends logging in order; keep it until the process ends"]
pub struct Guard {
    exports: Pipeline,
}

impl Drop for Guard {
    fn drop(&mut self) {
        std::mem::take(&mut self.exports).flush();
        // Nobody is left to be told if stderr cannot be written.
        let _unwritable = io::stderr().flush();
    }
}

/// Starts logging for the whole process, and nothing else.
///
/// # Errors
/// [`InitError`] when the filter is bad or logging was started before.
pub fn init(options: &Options) -> Result<Guard, InitError> {
    begin(options, Pipeline::default(), None)
}

/// Starts logging and exporting for the whole process.
///
/// # Errors
/// [`InitError`] when something is configured wrong or logging was started before; never because of a collector that is
/// not there.
pub fn start(options: &Options, export: &Export, service: Service) -> Result<Guard, InitError> {
    options.check()?;
    begin(options, Pipeline::start(export, service)?, None)
}

/// The same, to this journal, too: whatever the filter lets through of warnings, errors, and what Berth itself says at
/// level info.
///
/// # Errors
/// As [`start`].
pub fn start_with(
    options: &Options,
    export: &Export,
    service: Service,
    journal: Box<dyn Journal>,
) -> Result<Guard, InitError> {
    options.check()?;
    begin(options, Pipeline::start(export, service)?, Some(journal))
}

fn begin(options: &Options, exports: Pipeline, journal: Option<Box<dyn Journal>>) -> Result<Guard, InitError> {
    let filter = options.env_filter()?;
    let subscriber = subscriber(options.format, filter, io::stderr, io::IsTerminal::is_terminal(&io::stderr()));
    let subscriber = subscriber.with(journal.map(|journal| Pages::new(journal).layer()));
    let ours = exports.logs.as_ref().map(|logs| {
        let about = TracingSpanAttributes::allowlist(ABOUT);
        let bridge = OpenTelemetryTracingBridge::builder(logs).with_tracing_span_attributes(about).build();
        bridge.with_filter(filter_fn(|about| !is_the_exporters(about.target())))
    });
    tracing::subscriber::set_global_default(subscriber.with(ours)).map_err(|_| InitError::Twice)?;
    Ok(Guard { exports })
}

/// What a line that is exported takes from the spans it is said in: whom it is about. The step is not among it, because
/// lines about steps name it themselves, and an attribute must not come twice.
const ABOUT: [&str; 6] = [names::METHOD, names::NODE, names::PLACEMENT, names::UID, names::ATTEMPT, names::TRACE_ID];

/// Whether a line is from below the exporter: exporting it would make the next one.
fn is_the_exporters(target: &str) -> bool {
    [
        "h2",
        "hyper",
        "hyper_util",
        "tonic",
        "tower",
        "opentelemetry",
        "opentelemetry_sdk",
        "opentelemetry_otlp",
        "rustls",
    ]
    .iter()
    .any(|crate_name| target.strip_prefix(crate_name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
        || target.starts_with("opentelemetry-")
}

fn subscriber<W>(format: Format, filter: EnvFilter, writer: W, colour: bool) -> Logging
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let base = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        Format::Human => base.with_ansi(colour).boxed(),
        Format::Json => base.with_ansi(false).json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines)
}

type Logging = Layered<Box<dyn Layer<Filtered> + Send + Sync>, Filtered>;
type Filtered = Layered<EnvFilter, Registry>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spans;
    use berth_model::placement::StepKind;
    use berth_model::{NodeName, PlacementName, PlacementUid};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn write(format: Format, filter: &str) -> String {
        let page = Page::default();
        let writer = page.clone();
        let options = Options { format, filter: filter.to_owned() };
        let subscriber = subscriber(format, options.env_filter().unwrap(), move || writer.clone(), false);
        tracing::subscriber::with_default(subscriber, || {
            let node = NodeName::new("hv-01").unwrap();
            let name = PlacementName::new("render").unwrap();
            let uid = PlacementUid::new("8fce3318-aa0f-4de3-8664-278533573cd2").unwrap();
            let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
            let placement = spans::placement(&node, &name, &uid, Some(&trace));
            let _in_step = spans::step(&placement, StepKind::Attach, 2, None).entered();
            tracing::info!("attached");
            tracing::debug!("a detail");
        });
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_about_a_step_carries_the_trace_of_its_call() {
        let text = write(Format::Json, "info");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "attached");
        let spans = line["spans"].as_array().unwrap();
        assert_eq!(spans[0]["trace_id"], "0af7651916cd43dd8448eb211c80319c", "{text}");
        assert_eq!(spans[1]["step"], "Attach", "{text}");
        assert!(write(Format::Human, "info").contains("0af7651916cd43dd8448eb211c80319c"));
    }

    #[test]
    fn the_filter_decides_what_is_written() {
        assert!(!write(Format::Human, "info").contains("a detail"));
        assert!(write(Format::Human, "debug").contains("a detail"));
        assert_eq!(write(Format::Human, "off"), "");
    }

    #[test]
    fn a_bad_filter_is_refused_and_shown() {
        let options = Options { filter: "berth=loud".to_owned(), ..Options::default() };
        let text = options.check().unwrap_err().to_string();
        assert!(text.starts_with(r#"log filter "berth=loud" is not a list of directives"#), "{text}");
    }

    #[test]
    fn formats_round_trip_and_the_rest_is_refused() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
        }
        for bad in ["", "JSON", "text"] {
            assert!(bad.parse::<Format>().is_err(), "{bad:?} was accepted");
        }
    }
}
