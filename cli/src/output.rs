//! Printing: tables for people, JSON and YAML for programs. Owns colour, ages and stdout; knows no call.

pub mod json;
pub mod table;

use crate::args::Format;
use crate::error::Error;
use berth_model::Timestamp;
use comfy_table::{Cell, Color, Table};
use std::io::Write;
use std::time::Duration;

/// How answers look.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Colour: only on a terminal.
    pub colour: bool,
    /// Reads the moment ages are counted to.
    pub clock: fn() -> Timestamp,
}

impl Style {
    /// The moment ages are counted to.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

/// The system's clock.
pub fn system_clock() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}

/// Where answers go.
pub struct Out<'a> {
    to: &'a mut (dyn Write + Send),
    /// What is to be known beside the answer.
    asides: Vec<String>,
    /// How they look.
    pub style: Style,
}

impl<'a> Out<'a> {
    /// Prints to `to`.
    pub fn new(to: &'a mut (dyn Write + Send), style: Style) -> Self {
        Self { to, asides: Vec::new(), style }
    }

    /// Notes what is to be known beside the answer; it goes to stderr, so that no script reads it as part of that.
    pub fn aside(&mut self, text: impl Into<String>) {
        self.asides.push(text.into());
    }

    /// What was noted.
    pub fn asides(&self) -> &[String] {
        &self.asides
    }

    /// Prints one line, or several.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn line(&mut self, text: impl std::fmt::Display) -> Result<(), Error> {
        writeln!(self.to, "{text}").and_then(|()| self.to.flush()).map_err(Error::Print)
    }

    /// Prints a table, or `empty` when it has no rows.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn table(&mut self, mut table: Table, empty: &str) -> Result<(), Error> {
        if table.row_count() == 0 {
            return self.line(empty);
        }
        let text = table::render(&mut table, self.style.colour);
        self.line(text)
    }

    /// Prints a message of the API as JSON or YAML. `name` is its name in `berth.v1`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn message(&mut self, format: Format, name: &str, message: &impl prost::Message) -> Result<(), Error> {
        let value = json::canonical(name, message)?;
        match format {
            Format::Yaml => {
                let text = serde_saphyr::to_string(&value).map_err(|e| Error::Encode(e.to_string()))?;
                self.line(text.trim_end())
            }
            Format::Json | Format::Table | Format::Wide => {
                let text = serde_json::to_string_pretty(&value).map_err(|e| Error::Encode(e.to_string()))?;
                self.line(text)
            }
        }
    }

    /// Prints a message in a stream of them: one line of JSON, or one YAML document.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn event(&mut self, format: Format, name: &str, message: &impl prost::Message) -> Result<(), Error> {
        match format {
            Format::Yaml => {
                self.line("---")?;
                self.message(format, name, message)
            }
            Format::Json | Format::Table | Format::Wide => {
                let value = json::canonical(name, message)?;
                let text = serde_json::to_string(&value).map_err(|e| Error::Encode(e.to_string()))?;
                self.line(text)
            }
        }
    }
}

/// A length of time as tables show it: one unit, two when it is short of ten of the larger.
pub fn age(length: Duration) -> String {
    let seconds = length.as_secs();
    let (minute, hour, day) = (60, 3600, 86_400);
    if seconds < 2 * minute {
        format!("{seconds}s")
    } else if seconds < 10 * minute {
        format!("{}m{}s", seconds / minute, seconds % minute)
    } else if seconds < 2 * hour {
        format!("{}m", seconds / minute)
    } else if seconds < 10 * hour {
        format!("{}h{}m", seconds / hour, seconds % hour / minute)
    } else if seconds < 2 * day {
        format!("{}h", seconds / hour)
    } else {
        format!("{}d", seconds / day)
    }
}

/// A size as tables show it; nothing for 0.
pub fn size(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { bytesize::ByteSize::b(bytes).display().iec().to_string() }
}

/// How many there are, in words: `1 GPU`, `2 GPUs`.
pub fn count<N: std::fmt::Display + PartialEq + From<u8>>(number: N, what: &str) -> String {
    let s = if number == N::from(1) { "" } else { "s" };
    format!("{number} {what}{s}")
}

/// Cores out of thousandths.
pub fn cores(milli: u64) -> String {
    if milli.is_multiple_of(1000) {
        (milli / 1000).to_string()
    } else {
        format!("{}.{}", milli / 1000, format!("{:03}", milli % 1000).trim_end_matches('0'))
    }
}

/// What a wire timestamp says; `None` when it is absent or before 1970.
pub fn moment(at: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    let at = at?;
    let seconds = u64::try_from(at.seconds).ok()?;
    let millis = u64::try_from(at.nanos).ok()? / 1_000_000;
    Some(Timestamp::from_millis(seconds.checked_mul(1000)?.checked_add(millis)?))
}

/// How long ago a wire timestamp is, as tables show it.
pub fn ago(at: Option<&prost_types::Timestamp>, style: Style) -> String {
    moment(at).map(|at| age(style.now().since(at))).unwrap_or_default()
}

/// A wire enum's name as people read it: `GPU_STATE_ATTACHED` becomes `Attached`.
pub fn short(name: &str, prefix: &str) -> String {
    let words = name.strip_prefix(prefix).unwrap_or(name).split('_').filter(|word| !word.is_empty());
    words
        .map(|word| {
            let (first, rest) = word.split_at(1);
            format!("{first}{}", rest.to_ascii_lowercase())
        })
        .collect()
}

/// A cell that says how good its content is.
pub fn judged(text: impl Into<String>, good: Good) -> Cell {
    let cell = Cell::new(text.into());
    match good {
        Good::Yes => cell.fg(Color::Green),
        Good::No => cell.fg(Color::Red),
        Good::Wait => cell.fg(Color::Yellow),
        Good::Plain => cell,
    }
}

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Good {
    /// As it should be.
    Yes,
    /// Not.
    No,
    /// On its way.
    Wait,
    /// Neither here nor there.
    Plain,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit_or_two() {
        for (seconds, text) in
            [(0, "0s"), (119, "119s"), (125, "2m5s"), (3599, "59m"), (7260, "2h1m"), (90_000, "25h"), (200_000, "2d")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn wire_names_are_shortened() {
        assert_eq!(short("GPU_STATE_ATTACHED", "GPU_STATE_"), "Attached");
        assert_eq!(short("GPU_HEALTH_NEEDS_HOST_REBOOT", "GPU_HEALTH_"), "NeedsHostReboot");
        assert_eq!(short("STEP_START_VM", "STEP_"), "StartVm");
    }

    #[test]
    fn one_is_told_as_one() {
        assert_eq!([count(1_u32, "GPU"), count(0_u32, "GPU"), count(2_u32, "GPU")], ["1 GPU", "0 GPUs", "2 GPUs"]);
    }

    #[test]
    fn cores_show_only_the_decimals_they_have() {
        assert_eq!([cores(64_000), cores(500), cores(1_250)], ["64", "0.5", "1.25"]);
    }

    #[test]
    fn a_moment_before_1970_is_none() {
        assert_eq!(moment(Some(&prost_types::Timestamp { seconds: -1, nanos: 0 })), None);
    }
}
