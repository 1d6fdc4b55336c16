//! The person at the terminal, for the tasks of `berth-controller` that show first and ask before they write.
//!
//! Must never take silence for a yes.

use std::io::{self, BufRead, Write};

/// Where to speak and where to listen.
pub struct Console<'a> {
    out: &'a mut (dyn Write + Send),
    input: &'a mut (dyn BufRead + Send),
}

impl<'a> Console<'a> {
    /// Speaks to `out` and listens to `input`.
    pub fn new(out: &'a mut (dyn Write + Send), input: &'a mut (dyn BufRead + Send)) -> Self {
        Self { out, input }
    }

    /// Says something, a line or several.
    ///
    /// # Errors
    /// When nobody can read it.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// Asks, and takes only `y` and `yes` for a yes; the end of the input is a no.
    ///
    /// # Errors
    /// When nobody can be asked.
    pub fn confirm(&mut self, question: &str) -> io::Result<bool> {
        write!(self.out, "{question} [y/N] ")?;
        self.out.flush()?;
        let mut answer = String::new();
        let heard = self.input.read_line(&mut answer)?;
        if heard == 0 {
            writeln!(self.out)?;
        }
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }
}

/// Things in a row: `a, b, c`.
pub(crate) fn list(items: impl IntoIterator<Item = impl ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
