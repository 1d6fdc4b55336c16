//! The one PowerShell of a host: started when it is needed, asked one thing at a time, ended when it is late, has ended or
//! says what makes no sense; the next question starts another.
//!
//! Owns the process and nothing else: it knows no step and no device. What an answer that was lost would have said is
//! unknown; whoever asked looks again. Must never send anything but the name of an operation and its arguments.

#[cfg(windows)]
mod leash;

use super::answer::{self, Failure, Hello, MAX_LINE_BYTES, Malformed};
use super::script;
use crate::driver::DriverError;
use crate::guarded::{self, Unguarded};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

/// How long a start may take until the script says hello: loading modules on a busy host takes tens of seconds.
pub(crate) const START: Duration = Duration::from_secs(90);
/// How long a process that was told to end may take. It is killed, so only the system's own work is waited for.
pub(crate) const END: Duration = Duration::from_secs(10);
/// How much of what it complains about is kept, for the error that follows.
const SAID_BYTES: usize = 2048;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// The script's file cannot be written where nobody else can change it.
    #[error("the host script is not safe: {0}")]
    Script(Unguarded),
    /// It may or may not be written.
    #[error("the host script was not written: {0}")]
    Writer(String),
    /// It does not start.
    #[error("cannot start PowerShell {program}: {why}")]
    Start { program: PathBuf, why: io::Error },
    /// It did not answer in time.
    #[error("PowerShell did not answer within {limit_ms} ms; it was ended")]
    Late { limit_ms: u64 },
    /// It ended instead of answering.
    #[error("PowerShell ended without an answer{}", after(.said))]
    Ended { said: String },
    /// It said something else.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The host cannot be worked on.
    #[error("this host lacks {0}: install the Hyper-V role with its PowerShell module")]
    Lacks(String),
    /// The script is not this program's.
    #[error("the host script speaks protocol {0}, this agent {ours}", ours = script::PROTOCOL)]
    Protocol(u64),
}

fn after(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!("; it said: {said}") }
}

impl From<Lost> for DriverError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Late { limit_ms } => Self::TimedOut { limit_ms },
            Lost::Script(_)
            | Lost::Writer(_)
            | Lost::Start { .. }
            | Lost::Ended { .. }
            | Lost::Malformed(_)
            | Lost::Lacks(_)
            | Lost::Protocol(_) => Self::Failed(lost.to_string()),
        }
    }
}

/// A host's PowerShell.
#[derive(Debug)]
pub(super) struct PowerShell {
    program: PathBuf,
    dir: PathBuf,
    running: Mutex<Option<Running>>,
    /// Whose turn it is among steps. Looks do not queue here, so that one waits for the step under way and for no other:
    /// a host on which many steps are wanted is not lost from sight.
    turn: Mutex<()>,
    hello: Lock<Option<Hello>>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    said: Said,
    /// Reads what it complains about, so that it is never held up by that. Ends with it.
    _listening: JoinSet<()>,
    /// Ends it with this process, however that ends: it would go on with its step while another agent looks.
    #[cfg(windows)]
    _leash: leash::Leash,
    next_id: u64,
}

impl PowerShell {
    /// Starts nothing yet. The script's file will lie in `dir`.
    pub(super) fn new(program: PathBuf, dir: PathBuf) -> Self {
        Self { program, dir, running: Mutex::new(None), turn: Mutex::new(()), hello: Lock::new(None) }
    }

    /// What the script last said of itself and its host.
    pub(super) fn hello(&self) -> Option<Hello> {
        self.hello.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for one operation. The limit counts from when the process is free: one thing at a time.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        op: &'static str,
        args: &Value,
        limit: Duration,
    ) -> Result<Result<T, Failure>, Lost> {
        let looks = matches!(op, "observe" | "survey");
        let _turn = if looks { None } else { Some(self.turn.lock().await) };
        let mut slot = self.running.lock().await;
        // Taken out: whoever is cut off in the middle must not leave one behind whose next answer is to another
        // question. Dropping it ends it.
        let mut running = match slot.take().and_then(Running::alive) {
            Some(running) => running,
            None => self.start().await?,
        };
        match running.ask(op, args, limit).await {
            Ok(answer) => {
                *slot = Some(running);
                Ok(answer)
            }
            Err(lost) => {
                tracing::warn!(operation = op, error = %lost, "the answer of PowerShell was lost");
                running.end().await;
                Err(lost)
            }
        }
    }

    /// Starts it, for whoever must know that nothing was asked of one that does not start.
    pub(super) async fn ready(&self) -> Result<(), Lost> {
        let mut slot = self.running.lock().await;
        *slot = Some(self.start().await?);
        Ok(())
    }

    /// Ends it, with what it is at, and takes its file away: for one that was started for a single question.
    pub(super) async fn close(self) {
        if let Some(running) = self.running.into_inner() {
            running.end().await;
        }
        if let Err(error) = tokio::fs::remove_dir_all(&self.dir).await {
            tracing::debug!(%error, "the folder of a script stays");
        }
    }

    async fn start(&self) -> Result<Running, Lost> {
        let file = self.dir.join("host.ps1");
        write_script(&self.dir, &file).await?;
        let mut running =
            Running::start(&self.program, &file).map_err(|why| Lost::Start { program: self.program.clone(), why })?;
        match running.hello().await {
            Ok(hello) => {
                tracing::info!(
                    process = running.child.id(), powershell = %hello.powershell, edition = hello.edition,
                    computer = %hello.computer, culture = %hello.culture, modules = ?hello.modules,
                    absent = ?hello.absent, "PowerShell works on this host"
                );
                *self.hello.lock().unwrap_or_else(PoisonError::into_inner) = Some(hello);
                Ok(running)
            }
            Err(lost) => {
                running.end().await;
                Err(lost)
            }
        }
    }
}

/// Checked at each start, so that what runs is what this program holds, whatever became of the file.
async fn write_script(dir: &Path, file: &Path) -> Result<(), Lost> {
    let (dir, file) = (dir.to_owned(), file.to_owned());
    let written = spawn_blocking(move || {
        guarded::folder(&dir)?;
        guarded::file(&file, script::TEXT)
    });
    match written.await {
        Ok(written) => written.map_err(Lost::Script),
        Err(lost) => Err(Lost::Writer(lost.to_string())),
    }
}

impl Running {
    fn start(program: &Path, file: &Path) -> io::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "this is a host driver")]
        let mut command = Command::new(program);
        command.args(script::ARGUMENTS).arg(file);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // No window where somebody is logged in.
        #[cfg(windows)]
        command.creation_flags(0x0800_0000);
        let mut child = command.spawn()?;
        #[cfg(windows)]
        let leash = leash::Leash::on(&child)?;
        let piped = || io::Error::other("its streams are not there");
        let requests = child.stdin.take().ok_or_else(piped)?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(piped)?);
        let errors = child.stderr.take().ok_or_else(piped)?;
        let said = Said::default();
        let mut listening = JoinSet::new();
        listening.spawn(said.clone().listen(errors));
        Ok(Self {
            child,
            requests,
            answers,
            said,
            _listening: listening,
            #[cfg(windows)]
            _leash: leash,
            next_id: 1,
        })
    }

    /// Itself, unless it has ended meanwhile.
    fn alive(mut self) -> Option<Self> {
        matches!(self.child.try_wait(), Ok(None)).then_some(self)
    }

    async fn hello(&mut self) -> Result<Hello, Lost> {
        let hello: Hello = match self.ask("hello", &json!({}), START).await? {
            Ok(hello) => hello,
            Err(failure) => return Err(Lost::Lacks(failure.to_string())),
        };
        if hello.protocol != script::PROTOCOL {
            return Err(Lost::Protocol(hello.protocol));
        }
        if hello.missing.is_empty() { Ok(hello) } else { Err(Lost::Lacks(hello.missing.join(", "))) }
    }

    async fn ask<T: DeserializeOwned>(
        &mut self,
        op: &'static str,
        args: &Value,
        limit: Duration,
    ) -> Result<Result<T, Failure>, Lost> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = json!({ "id": id, "op": op, "args": args }).to_string();
        line.push('\n');
        let answer = match timeout(limit, self.exchange(line.as_bytes())).await {
            Ok(Ok(answer)) if answer.ends_with(b"\n") => answer,
            // The end of its output, or of its input, or more than an answer can be.
            Ok(Ok(_) | Err(_)) => return Err(Lost::Ended { said: self.said.text() }),
            Err(_) => return Err(Lost::Late { limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }),
        };
        Ok(answer::read(&answer, id)?)
    }

    async fn exchange(&mut self, line: &[u8]) -> io::Result<Vec<u8>> {
        self.requests.write_all(line).await?;
        self.requests.flush().await?;
        let mut answer = Vec::new();
        (&mut self.answers).take(MAX_LINE_BYTES).read_until(b'\n', &mut answer).await?;
        Ok(answer)
    }

    /// Ends it and waits until it has, so that no two of them work on one host.
    async fn end(mut self) {
        match timeout(END, self.child.kill()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "PowerShell cannot be ended"),
            Err(_) => tracing::warn!("PowerShell does not end although it was killed"),
        }
    }
}

/// The last that it complained about.
#[derive(Clone, Debug, Default)]
struct Said(Arc<Lock<Vec<u8>>>);

impl Said {
    async fn listen(self, mut errors: ChildStderr) {
        let mut part = [0; 1024];
        while let Ok(read @ 1..) = errors.read(&mut part).await {
            let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            said.extend_from_slice(part.get(..read).unwrap_or_default());
            let surplus = said.len().saturating_sub(SAID_BYTES);
            said.drain(..surplus);
        }
    }

    fn text(&self) -> String {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&said);
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
    }
}

#[cfg(test)]
mod tests;
