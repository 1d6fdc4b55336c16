//! A TCP proxy that can be worse than a network: cuts connections, swallows what is sent, takes its time.
//!
//! Owns one address that others are told, and the connections through it. Must never change or reorder a byte: what comes
//! through at all comes through as it was.

use anyhow::Context as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes passed on at once.
const CHUNK: usize = 16 << 10;
/// Connections through one proxy: every agent, caller and controller has a few.
const CONNECTIONS: usize = 512;

/// How a proxy behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As if it were not there.
    Open,
    /// Connections are closed at once.
    Closed,
    /// Nothing comes through, and nobody is told: bytes wait, as in a network that drops packets.
    Silent,
    /// Whatever is sent takes so much longer.
    Slow(Duration),
}

#[derive(Clone, Copy, Debug)]
struct Behaviour {
    mode: Mode,
    /// Counts up when all connections are to break.
    cuts: u64,
}

/// A proxy; it ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    behaviour: watch::Sender<Behaviour>,
    passed: Arc<AtomicU64>,
    // Kept for its Drop.
    _serving: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port of this machine and passes on to `target`, which need not be there yet.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(runtime: &Handle, target: SocketAddr) -> anyhow::Result<Self> {
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).context("no port is free")?;
        let address = listener.local_addr().context("a listener without an address")?;
        let (behaviour, behaves) = watch::channel(Behaviour { mode: Mode::Open, cuts: 0 });
        let passed = Arc::new(AtomicU64::new(0));
        let mut serving = JoinSet::new();
        serving.spawn_on(serve(listener, target, behaves, Arc::clone(&passed)), runtime);
        Ok(Self { address, behaviour, passed, _serving: serving })
    }

    /// What others are told.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Behaves so from now on.
    pub fn set(&self, mode: Mode) {
        self.behaviour.send_modify(|behaviour| behaviour.mode = mode);
    }

    /// Breaks all connections there are; new ones are taken.
    pub fn cut(&self) {
        self.behaviour.send_modify(|behaviour| behaviour.cuts += 1);
    }

    /// How many bytes came through.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, behaves: watch::Receiver<Behaviour>, passed: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            taken = listener.accept() => {
                // What went wrong with one is over with it.
                let Ok((client, _)) = taken else { continue };
                if connections.len() < CONNECTIONS && behaves.borrow().mode != Mode::Closed {
                    connections.spawn(connection(client, target, behaves.clone(), Arc::clone(&passed)));
                }
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// One connection, from beginning to end. How it ended shows at both of its ends.
async fn connection(
    client: TcpStream,
    target: SocketAddr,
    mut behaves: watch::Receiver<Behaviour>,
    passed: Arc<AtomicU64>,
) {
    let cuts = behaves.borrow().cuts;
    let broken = |behaviour: &Behaviour| behaviour.cuts != cuts || behaviour.mode == Mode::Closed;
    let pass = async {
        let mut waiting = behaves.clone();
        wait_open(&mut waiting).await?;
        let server = TcpStream::connect(target).await.ok()?;
        // Delays are for `Slow` to make.
        client.set_nodelay(true).ok()?;
        server.set_nodelay(true).ok()?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let (up, down) = (behaves.clone(), behaves.clone());
        tokio::join!(pump(from_client, to_server, up, &passed), pump(from_server, to_client, down, &passed));
        Some(())
    };
    let mut watching = behaves.clone();
    tokio::select! {
        _ended = pass => {}
        _broken = watching.wait_for(broken) => {}
    }
    // Both ends are closed by now; unused here, so that a cut never waits for it.
    behaves.mark_unchanged();
}

/// Passes bytes on in one direction until it ends there.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut behaves: watch::Receiver<Behaviour>,
    passed: &AtomicU64,
) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).await.unwrap_or(0);
        if wait_open(&mut behaves).await.is_none() {
            return;
        }
        if read == 0 {
            // The other direction may go on.
            drop(to.shutdown().await);
            return;
        }
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
        passed.fetch_add(read as u64, Ordering::Relaxed);
    }
}

/// Waits until something may come through; `None` when that never will be again.
async fn wait_open(behaves: &mut watch::Receiver<Behaviour>) -> Option<()> {
    let slow = match behaves.wait_for(|behaviour| behaviour.mode != Mode::Silent).await.ok()?.mode {
        Mode::Slow(delay) => Some(delay),
        Mode::Open | Mode::Closed | Mode::Silent => None,
    };
    if let Some(delay) = slow {
        tokio::time::sleep(delay).await;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// A server that sends back what it gets, and a proxy before it.
    async fn echo() -> (Proxy, JoinSet<()>) {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = server.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut echoing = JoinSet::new();
            while let Ok((mut stream, _)) = server.accept().await {
                echoing.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    drop(tokio::io::copy(&mut read, &mut write).await);
                });
            }
        });
        let runtime = Handle::current();
        let proxy = tokio::task::spawn_blocking(move || Proxy::start(&runtime, target)).await.unwrap().unwrap();
        (proxy, tasks)
    }

    async fn ask(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(text).await?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn what_comes_through_is_as_it_was() {
        let (proxy, _server) = echo().await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let long: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let (mut read, mut write) = stream.split();
        let mut answer = vec![0; long.len()];
        let (wrote, read) = tokio::join!(write.write_all(&long), read.read_exact(&mut answer));
        wrote.and(read).unwrap();
        assert!(answer == long);
        assert_eq!(proxy.passed(), 2 * long.len() as u64);
    }

    #[tokio::test]
    async fn a_cut_breaks_what_there_is_and_a_closed_proxy_takes_nobody() {
        let (proxy, _server) = echo().await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        ask(&mut stream, b"before").await.unwrap();
        proxy.cut();
        assert!(ask(&mut stream, b"after").await.is_err());
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(ask(&mut stream, b"again").await.unwrap(), b"again");
        proxy.set(Mode::Closed);
        assert!(ask(&mut stream, b"closed").await.is_err());
        let refused = match TcpStream::connect(proxy.address).await {
            Ok(mut stream) => ask(&mut stream, b"closed").await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }

    #[tokio::test]
    async fn silence_keeps_what_was_sent_until_it_is_over() {
        let (proxy, _server) = echo().await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        ask(&mut stream, b"before").await.unwrap();
        proxy.set(Mode::Silent);
        stream.write_all(b"lost?").await.unwrap();
        let mut answer = [0; 5];
        let heard = tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut answer)).await;
        assert!(heard.is_err(), "something came through");
        proxy.set(Mode::Slow(Duration::from_millis(50)));
        let begun = Instant::now();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"lost?");
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }
}
