//! Child processes: started here alone, and never left behind.

use anyhow::{Context as _, bail};
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// What the cargo that runs this program tells it of itself. Build scripts look at it (ring's does): a cargo that inherits
/// it builds everything above them again, and the next one without it once more.
const TOLD_BY_CARGO: [&str; 7] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_PKG_NAME",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
];

/// A program to run in the repository's root.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    #[expect(clippy::disallowed_methods, reason = "running other programs is what a task runner is for")]
    let mut command = Command::new(program);
    command.current_dir(crate::root()).stdin(Stdio::null());
    for name in TOLD_BY_CARGO {
        command.env_remove(name);
    }
    command
}

/// Whether a program (with these arguments) can be run at all.
pub(crate) fn works(program: &str, args: &[&str]) -> bool {
    command(program)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a program, passing on each line of its output as it comes and showing it to `line`, too.
pub(crate) fn stream(mut command: Command, mut line: impl FnMut(&str)) -> anyhow::Result<ExitStatus> {
    let name = command.get_program().display().to_string();
    let mut child = Running(
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?,
    );
    let (out, err) = (child.0.stdout.take(), child.0.stderr.take());
    // A few lines: the readers may run ahead of the terminal by no more.
    let (send, receive) = sync_channel::<(bool, String)>(64);
    std::thread::scope(|scope| {
        let to = send.clone();
        scope.spawn(move || lines(out, |text| to.send((true, text)).is_ok()));
        scope.spawn(move || lines(err, |text| send.send((false, text)).is_ok()));
        for (is_out, text) in receive {
            line(&text);
            if is_out {
                println!("{text}");
            } else {
                eprintln!("{text}");
            }
        }
    });
    child.0.wait().with_context(|| format!("cannot wait for {name}"))
}

/// Reads lines until the end; bytes that are no text are shown as such rather than lost.
fn lines(from: Option<impl Read>, mut each: impl FnMut(String) -> bool) {
    let Some(from) = from else { return };
    let mut from = BufReader::new(from);
    let mut buffer = Vec::new();
    while matches!(from.read_until(b'\n', &mut buffer), Ok(read) if read > 0) {
        let text = String::from_utf8_lossy(&buffer).trim_end_matches(['\n', '\r']).to_owned();
        buffer.clear();
        if !each(text) {
            return;
        }
    }
}

/// A child that ends with its owner.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.0.try_wait().context("cannot ask for the state of a child process")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks `done` again and again until it says yes, fails, or the limit has passed.
pub(crate) fn wait_until(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !done()? {
        if begun.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
