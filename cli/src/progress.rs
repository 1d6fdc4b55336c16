//! How long work goes, on stderr: a spinner on a terminal, plain lines elsewhere. Never on stdout.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Shows what is being waited for.
pub struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    said: String,
    silent: bool,
}

impl Progress {
    /// On stderr.
    pub fn stderr() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, began: Instant::now(), said: String::new(), silent: false }
    }

    /// Nowhere.
    pub fn silent() -> Self {
        Self { bar: None, began: Instant::now(), said: String::new(), silent: true }
    }

    /// Says what is happening, when it is something else than before.
    pub fn say(&mut self, text: impl Into<String>) {
        let text = text.into();
        if self.silent || text == self.said {
            return;
        }
        let line = format!("{:>6.1}s  {text}", self.began.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => {
                bar.println(&line);
                bar.set_message(text.clone());
            }
            // Nothing is left to say it to when stderr is closed.
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
        self.said = text;
    }

    /// Changes what the spinner says, without a line of its own.
    pub fn count(&mut self, text: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.into());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
