//! Events for a journal that the system keeps, such as the event log of Windows: what a person should find there, as a text.
//!
//! Owns which events those are and how they read. Must never know what the journal is, nor fail because of it.

use std::io;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::registry::LookupSpan;

/// A journal. Whether it takes an entry is nobody's concern: there is nowhere else to say that it did not.
pub trait Journal: Send + Sync + 'static {
    /// Writes one entry: a few lines of text at most, without a time or a level of its own.
    fn write(&self, level: Level, text: &str);
}

/// What is kept of one text. Windows takes 31,839 characters.
const LONGEST_BYTES: usize = 16 * 1024;

/// Whether an event belongs there: an INFO means that a state changed, if it is Berth who says it.
fn belongs(event: &Metadata<'_>) -> bool {
    match *event.level() {
        Level::ERROR | Level::WARN => true,
        Level::INFO => event.is_span() || event.target().starts_with("berth"),
        Level::DEBUG | Level::TRACE => event.is_span(),
    }
}

/// Turns events into entries of a journal.
pub(crate) struct Pages(Box<dyn Journal>);

impl Pages {
    pub(crate) fn new(journal: Box<dyn Journal>) -> Self {
        Self(journal)
    }

    /// The layer that does. Spans pass, because what stands in them is part of the text.
    pub(crate) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(self) -> impl Layer<S> + Send + Sync {
        let form = tracing_subscriber::fmt::layer().with_writer(self).with_ansi(false).without_time().with_level(false);
        form.with_target(false).with_filter(filter_fn(belongs))
    }
}

impl<'a> MakeWriter<'a> for Pages {
    type Writer = Page<'a>;

    fn make_writer(&'a self) -> Page<'a> {
        Page { journal: self.0.as_ref(), level: Level::INFO, text: Vec::new() }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Page<'a> {
        Page { journal: self.0.as_ref(), level: *event.level(), text: Vec::new() }
    }
}

/// One event's text, which is written when it is whole.
pub(crate) struct Page<'a> {
    journal: &'a dyn Journal,
    level: Level,
    text: Vec<u8>,
}

impl io::Write for Page<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = LONGEST_BYTES.saturating_sub(self.text.len());
        self.text.extend(bytes.iter().take(room));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Page<'_> {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        // A NUL would end the text where it is handed on.
        let text = text.trim_end().replace('\0', " ");
        if !text.is_empty() {
            self.journal.write(self.level, &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spans;
    use berth_model::placement::StepKind;
    use berth_model::{NodeName, PlacementName, PlacementUid};
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<(Level, String)>>>);

    impl Journal for Kept {
        fn write(&self, level: Level, text: &str) {
            self.0.lock().unwrap().push((level, text.to_owned()));
        }
    }

    fn entries(filter: &str, say: impl FnOnce()) -> Vec<(Level, String)> {
        let kept = Kept::default();
        let filter: EnvFilter = filter.parse().unwrap();
        let layer = Pages::new(Box::new(kept.clone())).layer();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(filter).with(layer), say);
        let entries = kept.0.lock().unwrap();
        entries.clone()
    }

    #[test]
    fn warnings_of_all_and_changes_told_by_berth_are_entries_with_what_they_are_about() {
        let entries = entries("debug", || {
            let node = NodeName::new("hv-01").unwrap();
            let name = PlacementName::new("render").unwrap();
            let uid = PlacementUid::new("8fce3318-aa0f-4de3-8664-278533573cd2").unwrap();
            let placement = spans::placement(&node, &name, &uid, None);
            let _in_step = spans::step(&placement, StepKind::Attach, 2, None).entered();
            tracing::info!(duration_ms = 3, "step ended");
            tracing::debug!("a detail");
            tracing::info!(target: "h2", "of no interest");
            tracing::warn!(target: "h2", "of interest");
            tracing::error!("a person must look");
        });
        let levels: Vec<_> = entries.iter().map(|(level, _)| *level).collect();
        assert_eq!(levels, [Level::INFO, Level::WARN, Level::ERROR], "{entries:?}");
        let text = &entries[0].1;
        for part in ["step ended", "duration_ms=3", "hv-01", "render", "Attach", "attempt=2"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(entries.iter().all(|(_, text)| !text.contains('\u{1b}') && !text.ends_with('\n')), "{entries:?}");
    }

    #[test]
    fn the_filter_of_the_log_holds_for_the_journal() {
        assert_eq!(entries("off", || tracing::error!("unheard")), []);
        assert_eq!(entries("warn", || tracing::info!("unheard")), []);
    }

    #[test]
    fn no_text_is_too_long_or_cut_short_by_what_is_in_it() {
        let entries = entries("info", || {
            tracing::warn!("a\0b");
            tracing::warn!("{}", "long ".repeat(100_000));
        });
        assert!(entries[0].1.contains("a b") || entries[0].1.contains("a\\0b"), "{:?}", entries[0]);
        assert!(entries[1].1.len() <= LONGEST_BYTES + 3, "{}", entries[1].1.len());
    }
}
