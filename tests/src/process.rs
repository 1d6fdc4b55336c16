//! The real binaries as processes: started on a free port, watched until they are ready, never left behind.

use anyhow::{Context as _, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a start may take: a debug build on a machine that does other work, too.
const START: Duration = Duration::from_secs(60);
/// How long a command may take that waits for a simulated host.
const RUN: Duration = Duration::from_secs(120);
/// Lines of output kept; what a fleet of a thousand nodes says at start fits.
const KEPT_LINES: usize = 20_000;

/// The repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// What `cargo test` tells a test of itself. Build scripts look at it (ring's does): a cargo that inherits it builds
/// everything above them again, and the next one without it once more.
const TOLD_BY_CARGO: [&str; 7] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_PKG_NAME",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
];

fn command(program: impl AsRef<OsStr>) -> Command {
    #[expect(clippy::disallowed_methods, reason = "these tests are about processes")]
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Another program than ours, for tests that need one.
pub fn other(program: impl AsRef<OsStr>) -> Command {
    command(program)
}

/// The `berth` binary, built from what is in the tree now: a test must never pass against yesterday's.
///
/// # Errors
/// When it does not build.
pub fn berth() -> anyhow::Result<PathBuf> {
    binary("berth")
}

/// Any of our binaries, built from what is in the tree now.
///
/// # Errors
/// When it does not build.
pub fn binary(name: &'static str) -> anyhow::Result<PathBuf> {
    static BUILT: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = built.get(name) {
        return Ok(path.clone());
    }
    // This very program is in target/PROFILE, or as a test in target/PROFILE/deps.
    let this = std::env::current_exe().context("cannot find out where this program is")?;
    let mut profile = this.parent().context("this program is in no directory")?;
    if profile.ends_with("deps") {
        profile = profile.parent().context("this test is in no target directory")?;
    }
    let mut cargo = command("cargo");
    cargo.current_dir(root()).args(["build", "--quiet", "--workspace", "--bin", name]);
    for name in TOLD_BY_CARGO {
        cargo.env_remove(name);
    }
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "{name} does not build:\n{}", String::from_utf8_lossy(&output.stderr));
    let path = profile.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    built.insert(name, path.clone());
    Ok(path)
}

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The command line, for messages.
    pub line: String,
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Ran {
    /// Fails unless it exited with this code.
    ///
    /// # Errors
    /// With everything it said.
    pub fn expect(self, code: i32) -> anyhow::Result<Self> {
        ensure!(
            self.code == Some(code),
            "{} exited with {:?}, not {code}\nstdout:\n{}\nstderr:\n{}",
            self.line,
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// Its standard output as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("{} printed no JSON: {}", self.line, self.stdout))
    }
}

/// Runs a command to its end, within a bound.
///
/// # Errors
/// When it cannot be started, or does not end in time.
pub fn run(command: Command) -> anyhow::Result<Ran> {
    run_within(RUN, command)
}

/// Runs a command to its end, within this bound.
///
/// # Errors
/// As [`run`].
pub fn run_within(limit: Duration, mut command: Command) -> anyhow::Result<Ran> {
    let line = shown(&command);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut process = Process::new(child.with_context(|| format!("cannot start {line}"))?, line.clone(), None);
    let Some(status) = process.ended_within(limit)? else {
        bail!("{line} did not end within {} s; it said:\n{}", limit.as_secs(), process.log());
    };
    process.read_to_end();
    let said = process.said.0.lock().unwrap_or_else(PoisonError::into_inner);
    let of = |stream| {
        let lines = said.lines.iter().filter(|(from, _)| *from == stream).map(|(_, text)| text.as_str());
        lines.collect::<Vec<_>>().join("\n")
    };
    Ok(Ran { line, code: status.code(), stdout: of(Stream::Out), stderr: of(Stream::Err) })
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().display().to_string();
    let args = command.get_args().map(|arg| arg.display().to_string());
    std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<(Stream, String)>,
    /// Streams that have ended.
    closed: usize,
    /// Where all of it is written, too.
    copy: Option<File>,
}

/// A running process whose output is read all the time, and that ends with its owner.
#[derive(Debug)]
pub struct Process {
    child: Child,
    line: String,
    said: Arc<(Mutex<Said>, Condvar)>,
}

impl Process {
    /// Starts a command.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let line = shown(&command);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Self::new(child.with_context(|| format!("cannot start {line}"))?, line, None))
    }

    /// Starts a command that may say more than is kept here: every line of it is appended to a file.
    ///
    /// # Errors
    /// When it cannot be started, or the file cannot be written.
    pub fn start_logged(mut command: Command, file: &Path) -> anyhow::Result<Self> {
        let line = shown(&command);
        let copy = File::options().create(true).append(true).open(file);
        let copy = copy.with_context(|| format!("cannot write {}", file.display()))?;
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Self::new(child.with_context(|| format!("cannot start {line}"))?, line, Some(copy)))
    }

    fn new(mut child: Child, line: String, copy: Option<File>) -> Self {
        let said = Arc::new((Mutex::new(Said { copy, ..Said::default() }), Condvar::new()));
        if let Some(out) = child.stdout.take() {
            listen(out, Stream::Out, said.clone());
        }
        if let Some(err) = child.stderr.take() {
            listen(err, Stream::Err, said.clone());
        }
        Self { child, line, said }
    }

    /// The system's number for it.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it said so far.
    #[must_use]
    pub fn log(&self) -> String {
        let said = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.lines.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Waits for a line that `find` makes something of.
    ///
    /// # Errors
    /// When it ends before, or takes longer than `limit`; with all it said.
    pub fn wait_for_line<T>(&mut self, limit: Duration, mut find: impl FnMut(&str) -> Option<T>) -> anyhow::Result<T> {
        let begun = Instant::now();
        let (lock, changed) = &*self.said;
        let mut said = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut looked_at = 0;
        loop {
            for (_, line) in &said.lines[looked_at..] {
                if let Some(found) = find(line) {
                    return Ok(found);
                }
            }
            looked_at = said.lines.len();
            let left = limit.saturating_sub(begun.elapsed());
            let ended = said.closed == 2;
            if left.is_zero() || ended {
                let log = said.lines.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n");
                let how = if ended { "ended" } else { "went on" };
                bail!("{} {how} without saying what was waited for; it said:\n{log}", self.line);
            }
            said = changed.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for its end; none when it goes on.
    ///
    /// # Errors
    /// When its state cannot be asked for.
    pub fn ended_within(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let mut status = None;
        wait_until(limit, || {
            status = self.child.try_wait().context("cannot ask for the state of a process")?;
            Ok(status.is_some())
        })?;
        Ok(status)
    }

    /// Ends it as a crash would: at once, without a word to it (`kill -9`).
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().context("cannot kill")?;
        self.child.wait().context("cannot wait")?;
        self.read_to_end();
        Ok(())
    }

    /// Asks it to end (SIGTERM), as a supervisor does.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn terminate(&self) -> anyhow::Result<()> {
        signal("-TERM", self.id())
    }

    /// Stops it in its tracks; it goes on when what this gives is dropped.
    ///
    /// # Errors
    /// When it does not stop, or has ended.
    pub fn pause(&self) -> anyhow::Result<Paused> {
        let id = self.id();
        signal("-STOP", id)?;
        let paused = Paused(id);
        let mut state = String::new();
        let settled = wait_until(START, || {
            let mut ps = other("ps");
            ps.args(["-o", "state=", "-p", &id.to_string()]);
            state = run_within(START, ps)?.stdout.trim().to_owned();
            // Stopped; or ended, and not asked for yet.
            Ok(state.is_empty() || state.starts_with(['T', 'Z']))
        })?;
        ensure!(settled && state.starts_with('T'), "{} does not stop; it is in state {state:?}", self.line);
        Ok(paused)
    }

    /// After its end: waits for the last of its output.
    fn read_to_end(&self) {
        let (lock, changed) = &*self.said;
        let said = lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Bounded, because a grandchild may hold the pipe open.
        let _ = changed.wait_timeout_while(said, Duration::from_secs(5), |said| said.closed < 2);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that is stopped in its tracks (SIGSTOP) until this is dropped (SIGCONT).
#[derive(Debug)]
pub struct Paused(u32);

impl Drop for Paused {
    fn drop(&mut self) {
        // A process that is gone needs no waking.
        drop(signal("-CONT", self.0));
    }
}

fn signal(what: &str, id: u32) -> anyhow::Result<()> {
    let mut kill = other("kill");
    kill.args([what, &id.to_string()]);
    run_within(START, kill)?.expect(0).map(|_| ())
}

fn listen(from: impl Read + Send + 'static, stream: Stream, said: Arc<(Mutex<Said>, Condvar)>) {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut buffer = Vec::new();
        let (lock, changed) = &*said;
        while matches!(from.read_until(b'\n', &mut buffer), Ok(read) if read > 0) {
            let text = String::from_utf8_lossy(&buffer).trim_end_matches(['\n', '\r']).to_owned();
            buffer.clear();
            let mut said = lock.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(copy) = &mut said.copy {
                // A full disk shows in other ways.
                drop(writeln!(copy, "{text}"));
            }
            if said.lines.len() < KEPT_LINES {
                said.lines.push((stream, text));
            }
            changed.notify_all();
        }
        lock.lock().unwrap_or_else(PoisonError::into_inner).closed += 1;
        changed.notify_all();
    });
}

/// Asks again and again until the answer is yes; false when `limit` passes before.
///
/// # Errors
/// The first that `done` gives.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<bool> {
    let begun = Instant::now();
    loop {
        if done()? {
            return Ok(true);
        }
        if begun.elapsed() > limit {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Below the ports that systems give to those who connect: what is let go for a restart is not taken by somebody's
/// connection meanwhile.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// Those that were given away in this process.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port on which nobody listened a moment ago, another one each time. It is found by knocking: whoever listened there to
/// try it out might, for the moment in which it forks another test's child, still do so when the port is used.
///
/// # Errors
/// When none is found.
pub fn free_port() -> anyhow::Result<u16> {
    let refuses = |port: u16| {
        let knock = std::net::TcpStream::connect(("127.0.0.1", port));
        knock.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tried = (0..100).map(|_| rand::random_range(PORTS));
    let free = tried.find(|port| !given.contains(port) && refuses(*port)).context("no port is free")?;
    given.insert(free);
    Ok(free)
}

/// A running `berth dev`.
#[derive(Debug)]
pub struct Dev {
    process: Process,
    /// Where it listens: `http://127.0.0.1:PORT`.
    pub endpoint: String,
}

impl Dev {
    /// Starts `berth dev` on a free port with these further arguments, and waits for its endpoint.
    ///
    /// # Errors
    /// When it ends or says no endpoint in time.
    pub fn start(args: &[&str]) -> anyhow::Result<Self> {
        Self::start_at("127.0.0.1:0", args)
    }

    /// Starts `berth dev` at this address.
    ///
    /// # Errors
    /// As [`Dev::start`].
    pub fn start_at(listen: &str, args: &[&str]) -> anyhow::Result<Self> {
        let mut berth = command(berth()?);
        berth.args(["dev", "--listen", listen]).args(args).env_remove("BERTH_ENDPOINT");
        let mut process = Process::start(berth)?;
        // Only what it says of itself: its log may name the leader that it takes over from.
        let endpoint = process.wait_for_line(START, |line| endpoint_in(line.strip_prefix("Berth is at ")?))?;
        Ok(Self { process, endpoint })
    }

    /// A `berth` command against it.
    ///
    /// # Errors
    /// When `berth` does not build.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut berth = command(berth()?);
        berth.args(args).env("BERTH_ENDPOINT", &self.endpoint);
        Ok(berth)
    }

    /// Runs a `berth` command against it.
    ///
    /// # Errors
    /// When it cannot be started, or does not end in time.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Ran> {
        run(self.command(args)?)
    }

    /// Waits until so many nodes are ready, and gives how long that took.
    ///
    /// # Errors
    /// When it takes longer than `limit`; with what it said.
    pub fn wait_ready(&self, nodes: u64, limit: Duration) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let mut last = String::new();
        let ready = wait_until(limit, || {
            let status = self.run(&["status", "-o", "json"])?;
            last.clone_from(&status.stdout);
            Ok(status.code == Some(0) && status.json()?["nodesReady"].as_u64().unwrap_or_default() >= nodes)
        })?;
        ensure!(ready, "{nodes} nodes are not ready after {limit:?}; status is {last}; it said:\n{}", self.log());
        Ok(begun.elapsed())
    }

    /// Everything it said so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits for it to end by itself; none when it goes on.
    ///
    /// # Errors
    /// When its state cannot be asked for.
    pub fn ended_within(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        self.process.ended_within(limit)
    }

    /// Ends it as a crash would.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn kill(self) -> anyhow::Result<()> {
        self.process.kill()
    }
}

fn endpoint_in(line: &str) -> Option<String> {
    let at = line.find("http://127.0.0.1:")?;
    let rest = &line[at..];
    let end = rest.char_indices().find(|(at, c)| *at > 7 && !c.is_ascii_digit() && !matches!(c, '.' | ':'));
    let endpoint = &rest[..end.map_or(rest.len(), |(at, _)| at)];
    Some(endpoint.trim_end_matches(['.', ':']).to_owned())
}

/// Says that a test cannot run here, in a way that `cargo xtask test` counts. The harness shows the output of tests that
/// end well to nobody, so this goes past it.
pub fn skip(test: &str, reason: &str) {
    use std::io::Write as _;
    // Nothing can be done when even stderr is gone.
    let _ = writeln!(std::io::stderr(), "\nskipped: {test}: {reason}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_found_in_what_is_said() {
        for line in [
            "listening on http://127.0.0.1:4711",
            "try: curl http://127.0.0.1:4711/berth.v1…",
            "http://127.0.0.1:4711.",
        ] {
            assert_eq!(endpoint_in(line).as_deref(), Some("http://127.0.0.1:4711"), "{line}");
        }
        assert_eq!(endpoint_in("listening on 127.0.0.1:1"), None);
    }
}
