//! Berth's host script in a real PowerShell, over the fake modules of `tests/hyperv`.
//!
//! One process a host; the host itself is a file and outlives it. Everything that waits has a bound.

use crate::process::{other, root, skip};
use anyhow::{Context as _, bail, ensure};
use berth_node_agent::driver::hyperv::script;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The longest an answer may take: a start on a machine that does other work, too.
const PATIENCE: Duration = Duration::from_secs(120);

/// A fake host, and PowerShell running the script on it.
#[derive(Debug)]
pub struct Host {
    program: PathBuf,
    dir: TempDir,
    modules: PathBuf,
    running: Option<Running>,
    next_id: u64,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// None once the input was ended.
    requests: Option<ChildStdin>,
    answers: Receiver<Vec<u8>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The PowerShell there is, or none: that was said then.
#[must_use]
pub fn program(test: &str) -> Option<PathBuf> {
    let program = crate::config::pwsh();
    if program.is_none() {
        skip(test, "there is no PowerShell; name one in PWSH or put pwsh in the PATH");
    }
    program
}

/// Where the fake modules are.
#[must_use]
pub fn modules() -> PathBuf {
    root().join("tests").join("hyperv").join("modules")
}

impl Host {
    /// A host in this state. Its PowerShell starts with the first request.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn new(program: PathBuf, state: &Value) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("no temporary directory")?;
        std::fs::write(dir.path().join("host.ps1"), script::TEXT).context("cannot write the script")?;
        let host = Self { program, dir, modules: modules(), running: None, next_id: 1 };
        host.set(state)?;
        Ok(host)
    }

    /// The same with other modules.
    #[must_use]
    pub fn with_modules(mut self, modules: PathBuf) -> Self {
        self.modules = modules;
        self
    }

    /// A folder of its own.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("state.json")
    }

    fn calls_file(&self) -> PathBuf {
        self.dir.path().join("state.json.calls")
    }

    /// Makes the host be in this state, with no call made yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set(&self, state: &Value) -> anyhow::Result<()> {
        self.write_state(state)?;
        std::fs::write(self.calls_file(), "").context("cannot forget the calls")
    }

    /// The host's state.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn state(&self) -> anyhow::Result<Value> {
        let text = std::fs::read_to_string(self.file()).context("there is no state")?;
        serde_json::from_str(&text).context("the state is no JSON")
    }

    /// Changes the host behind everybody's back.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn change(&self, change: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
        let mut state = self.state()?;
        change(&mut state);
        self.write_state(&state)
    }

    /// At once: whatever runs on the host must never read half of it.
    fn write_state(&self, state: &Value) -> anyhow::Result<()> {
        let fresh = self.dir.path().join("fresh.json");
        std::fs::write(&fresh, state.to_string()).context("cannot write the state")?;
        std::fs::rename(fresh, self.file()).context("cannot write the state")
    }

    /// Commands that were called, with what they were given, in order.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn calls(&self) -> anyhow::Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.calls_file()).context("there are no calls")?;
        text.lines().map(|line| serde_json::from_str(line).context("a call is no JSON")).collect()
    }

    /// Names of the called commands that can change something.
    ///
    /// # Errors
    /// As [`Host::calls`].
    pub fn acts(&self) -> anyhow::Result<Vec<String>> {
        let names = self.calls()?.into_iter().filter_map(|call| call["command"].as_str().map(str::to_owned));
        let reading = |name: &String| name.starts_with("Get-") || name.starts_with("Import-");
        Ok(names.filter(|name| !reading(name)).collect())
    }

    /// A PowerShell with the fake modules, to run something else in.
    #[must_use]
    pub fn powershell(&self) -> Command {
        let mut command = other(&self.program);
        command.env("PSModulePath", &self.modules).env("BERTH_FAKE_HYPERV", self.file());
        command
    }

    fn running(&mut self) -> anyhow::Result<&mut Running> {
        if self.running.is_none() {
            let errors = std::fs::File::create(self.dir.path().join("stderr")).context("no file for stderr")?;
            let mut command = self.powershell();
            command.args(script::ARGUMENTS).arg(self.dir.path().join("host.ps1"));
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
            let mut child = command.spawn().context("cannot start PowerShell")?;
            let requests = child.stdin.take();
            let answers = child.stdout.take().context("it has no stdout")?;
            let (send, receive) = sync_channel(1024);
            std::thread::spawn(move || {
                let mut answers = BufReader::new(answers);
                let mut line = Vec::new();
                while matches!(answers.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                    if send.send(std::mem::take(&mut line)).is_err() {
                        return;
                    }
                }
            });
            self.running = Some(Running { child, requests, answers: receive });
        }
        self.running.as_mut().context("it does not run")
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When PowerShell does not run or listen.
    pub fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let requests = self.running()?.requests.as_mut().context("its input was ended")?;
        requests.write_all(bytes).context("it does not listen")?;
        requests.flush().context("it does not listen")
    }

    /// The next line that it puts out, as bytes with the line's end.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn line(&mut self) -> anyhow::Result<Vec<u8>> {
        let result = self.running()?.answers.recv_timeout(PATIENCE);
        match result {
            Ok(line) => Ok(line),
            Err(error) => {
                let why = if error == RecvTimeoutError::Timeout { "does not answer" } else { "ended" };
                let said = std::fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
                bail!("PowerShell {why}; calls: {:?}; it said: {said}", self.calls()?)
            }
        }
    }

    /// Sends a request without waiting, and gives its id.
    ///
    /// # Errors
    /// When PowerShell does not run or listen.
    pub fn send(&mut self, op: &str, args: &Value) -> anyhow::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = json!({ "id": id, "op": op, "args": args }).to_string();
        line.push('\n');
        self.write(line.as_bytes())?;
        Ok(id)
    }

    /// Sends a request and waits for its answer, which is one line of ASCII with nothing around it.
    ///
    /// # Errors
    /// When there is none, or it is something else.
    pub fn call(&mut self, op: &str, args: &Value) -> anyhow::Result<Value> {
        let id = self.send(op, args)?;
        self.answer(op, id)
    }

    /// The answer to a request that was sent.
    ///
    /// # Errors
    /// As [`Host::call`].
    pub fn answer(&mut self, op: &str, id: u64) -> anyhow::Result<Value> {
        let line = self.line()?;
        ensure!(line.is_ascii() && line.ends_with(b"}\n"), "{op}: {}", String::from_utf8_lossy(&line));
        let answer: Value = serde_json::from_slice(&line).context("the answer is no JSON")?;
        ensure!(answer["id"] == json!(id), "{op}: the answer is for another request: {answer}");
        ensure!(answer["ok"].is_boolean(), "{op}: {answer}");
        Ok(answer)
    }

    /// The result of an operation that must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn ok(&mut self, op: &str, args: &Value) -> anyhow::Result<Value> {
        let mut answer = self.call(op, args)?;
        ensure!(answer["ok"] == json!(true), "{op} {args}: {}", answer["error"]);
        Ok(answer["result"].take())
    }

    /// The error of an operation that must fail.
    ///
    /// # Errors
    /// When it does not.
    pub fn err(&mut self, op: &str, args: &Value) -> anyhow::Result<Value> {
        let mut answer = self.call(op, args)?;
        ensure!(answer["ok"] == json!(false), "{op} {args} succeeded: {}", answer["result"]);
        Ok(answer["error"].take())
    }

    /// Waits until a command says that it hangs.
    ///
    /// # Errors
    /// When none does in time.
    pub fn wait_hanging(&mut self, command: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            // The last line may be half written.
            let calls = std::fs::read_to_string(self.calls_file()).unwrap_or_default();
            if calls.contains(&format!(r#"{{"hangs":"{command}"}}"#)) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{command} does not hang; calls: {calls}");
            ensure!(self.running()?.child.try_wait()?.is_none(), "PowerShell ended; calls: {calls}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends PowerShell as a crash would. The next request starts another one.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Ends the input and waits for PowerShell to end by itself; its exit code.
    ///
    /// # Errors
    /// When it does not end.
    pub fn finish(&mut self) -> anyhow::Result<Option<i32>> {
        let mut running = self.running.take().context("it does not run")?;
        running.requests = None;
        let begun = Instant::now();
        loop {
            if let Some(status) = running.child.try_wait().context("cannot ask for its state")? {
                return Ok(status.code());
            }
            ensure!(begun.elapsed() < PATIENCE, "PowerShell does not end with its input");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
