//! The person at the terminal, for the tasks of `berth-controller` that show first and ask before they write.
//!
//! Must never take silence for a yes.

use std::io::{self, BufRead, Write};
use tokio::task::spawn_blocking;

/// Where to listen.
type Input = Box<dyn BufRead + Send>;

/// Where to speak and where to listen.
pub struct Console<'a> {
    out: &'a mut (dyn Write + Send),
    /// None while somebody is listened to.
    input: Option<Input>,
}

impl<'a> Console<'a> {
    /// Speaks to `out` and listens to `input`.
    pub fn new(out: &'a mut (dyn Write + Send), input: impl BufRead + Send + 'static) -> Self {
        Self { out, input: Some(Box::new(input)) }
    }

    /// Says something, a line or several.
    ///
    /// # Errors
    /// When nobody can read it.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// Asks, and takes only `y` and `yes` for a yes; the end of the input is a no. A person may take minutes: everything else
    /// goes on meanwhile, above all what keeps a leadership.
    ///
    /// # Errors
    /// When nobody can be asked.
    pub async fn confirm(&mut self, question: &str) -> io::Result<bool> {
        write!(self.out, "{question} [y/N] ")?;
        self.out.flush()?;
        // Whoever gave up waiting for an answer gets none later.
        let Some(mut input) = self.input.take() else { return Ok(false) };
        let reading = spawn_blocking(move || {
            let mut answer = String::new();
            let heard = input.read_line(&mut answer);
            (input, heard.map(|bytes| (bytes, answer)))
        });
        let (input, heard) = reading.await.map_err(io::Error::other)?;
        self.input = Some(input);
        let (bytes, answer) = heard?;
        if bytes == 0 {
            writeln!(self.out)?;
        }
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }
}

/// Things in a row: `a, b, c`.
pub(crate) fn list(items: impl IntoIterator<Item = impl ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Read};
    use std::sync::mpsc;
    use std::time::Duration;

    /// A person who answers when told to.
    struct Person(mpsc::Receiver<&'static str>);

    impl Read for Person {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let answer = self.0.recv().map_err(io::Error::other)?;
            into[..answer.len()].copy_from_slice(answer.as_bytes());
            Ok(answer.len())
        }
    }

    /// The controller has one thread, and a lease that is to be renewed every second.
    #[tokio::test(flavor = "current_thread")]
    async fn everything_else_goes_on_while_a_person_thinks() {
        let (say, person) = mpsc::sync_channel(2);
        let mut out = Vec::new();
        let mut console = Console::new(&mut out, BufReader::new(Person(person)));
        let others = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            say.send("y\n").unwrap();
            say.send("no\n").unwrap();
        };
        let (answer, ()) = tokio::join!(console.confirm("Restore it?"), others);
        assert!(answer.unwrap());
        assert!(!console.confirm("And this?").await.unwrap());
    }
}
