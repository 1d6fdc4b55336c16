//! Listens for `powershell.exe` of `tests/windows`, and starts a real PowerShell for each that comes, in its place.
//!
//! Frames as that file describes them. A connection that ends before the exit code was sent was a process that was killed: its
//! PowerShell is killed, too. One whose input only ends goes on until it does by itself.

use super::unix;
use crate::pwsh::Host;
use anyhow::{Context as _, bail, ensure};
use berth_node_agent::driver::hyperv::script;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest frame that is taken in; the stand-in sends none as long.
const LONGEST: usize = 1 << 20;

/// A listener for one host.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    program: PathBuf,
    variables: Vec<(OsString, OsString)>,
    started: Mutex<Vec<Arc<Mutex<Child>>>>,
    wrong: Mutex<Vec<String>>,
    over: AtomicBool,
}

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    /// Listens, for PowerShell as the host has it.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(host: &Host) -> anyhow::Result<Self> {
        let command = host.powershell();
        let variables =
            command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("no port is free")?;
        let port = listener.local_addr().context("the listener has no address")?.port();
        let shared = Arc::new(Shared {
            program: command.get_program().into(),
            variables,
            started: Mutex::default(),
            wrong: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&of_thread);
                std::thread::spawn(move || {
                    if let Err(error) = stream.context("no connection").and_then(|stream| shared.serve(stream)) {
                        locked(&shared.wrong).push(format!("{error:#}"));
                    }
                });
            }
        });
        Ok(Self { port, shared })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many were started.
    #[must_use]
    pub fn started(&self) -> usize {
        locked(&self.shared.started).len()
    }

    /// How many of them still run.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn running(&self) -> anyhow::Result<usize> {
        let mut running = 0;
        for child in locked(&self.shared.started).iter() {
            running += usize::from(locked(child).try_wait().context("cannot ask for its state")?.is_none());
        }
        Ok(running)
    }

    /// Kills the PowerShell that was started last, as a crash would.
    ///
    /// # Errors
    /// When there was none.
    pub fn kill_last(&self) -> anyhow::Result<()> {
        let last = locked(&self.shared.started).last().cloned().context("no PowerShell was started")?;
        locked(&last).kill().context("cannot kill it")
    }

    /// Fails if a stand-in said what it must not.
    ///
    /// # Errors
    /// With what was wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        let wrong = locked(&self.shared.wrong);
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Wakes the listener.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        for child in locked(&self.shared.started).iter() {
            let mut child = locked(child);
            // Errors mean that it has ended already.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        let Some((b'A', arguments)) = receive(&mut stream)? else { bail!("a stand-in said nothing of its arguments") };
        let arguments = String::from_utf8(arguments).context("the arguments are no text")?;
        let arguments: Vec<&str> = arguments.lines().collect();
        let [options @ .., file] = arguments.as_slice() else { bail!("no arguments") };
        ensure!(*options == script::ARGUMENTS, "the agent started PowerShell with {arguments:?}");
        ensure!(file.starts_with("Z:\\"), "the agent named the script {file}");
        #[expect(clippy::disallowed_methods, reason = "these tests are about processes")]
        let mut command = Command::new(&self.program);
        command.args(options).arg(unix(file)).envs(self.variables.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start PowerShell")?;
        let mut input = child.stdin.take();
        let out = child.stdout.take().context("it has no stdout")?;
        let err = child.stderr.take().context("it has no stderr")?;
        let child = Arc::new(Mutex::new(child));
        locked(&self.started).push(Arc::clone(&child));
        let to = Arc::new(Mutex::new(stream.try_clone().context("cannot share the connection")?));
        let carry = [carry(out, b'O', &to), carry(err, b'R', &to)];
        let ending = Arc::clone(&child);
        let end = std::thread::spawn(move || {
            let code = loop {
                match locked(&ending).try_wait() {
                    Ok(Some(status)) => break status.code().unwrap_or(255),
                    Ok(None) => {}
                    Err(_) => break 255,
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            for thread in carry {
                drop(thread.join());
            }
            // A stand-in that was killed need not be told.
            drop(send(&to, b'X', code.to_string().as_bytes()));
        });
        while let Ok(Some((kind, bytes))) = receive(&mut stream) {
            match (kind, input.as_mut()) {
                // A PowerShell that does not listen is about to end.
                (b'I', Some(input)) => drop(input.write_all(&bytes).and_then(|()| input.flush())),
                (b'E', _) => input = None,
                (other, _) => bail!("a stand-in sent a frame of kind {other}"),
            }
        }
        // It is gone. It waits for the exit code, so that it was killed unless that was sent.
        drop(locked(&child).kill());
        drop(end.join());
        Ok(())
    }
}

/// Passes on what PowerShell puts out, until it ends.
fn carry(mut from: impl Read + Send + 'static, kind: u8, to: &Arc<Mutex<TcpStream>>) -> std::thread::JoinHandle<()> {
    let to = Arc::clone(to);
    std::thread::spawn(move || {
        let mut bytes = [0; 8192];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            if send(&to, kind, &bytes[..read]).is_err() {
                return;
            }
        }
    })
}

fn send(to: &Mutex<TcpStream>, kind: u8, bytes: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(std::io::Error::other)?.to_le_bytes();
    let mut frame = vec![kind];
    frame.extend_from_slice(&length);
    frame.extend_from_slice(bytes);
    locked(to).write_all(&frame)
}

/// The next frame; none at the end.
fn receive(from: &mut TcpStream) -> anyhow::Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 5];
    if from.read_exact(&mut head).is_err() {
        return Ok(None);
    }
    let [kind, length @ ..] = head;
    let length = usize::try_from(u32::from_le_bytes(length))?;
    ensure!(length <= LONGEST, "a stand-in sends a frame of {length} bytes");
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).context("a frame was cut short")?;
    Ok(Some((kind, bytes)))
}
