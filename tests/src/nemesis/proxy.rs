//! A TCP proxy that can be worse than a network: cuts connections, swallows what is sent, takes its time.
//!
//! Owns one address that others are told, and the connections through it. Must never change or reorder a byte: what comes
//! through at all comes through as it was.

use anyhow::Context as _;
use std::net::SocketAddr;
use std::sync::Arc;
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

/// Connections of one kind of client, which can be treated apart from others.
#[derive(Debug)]
pub struct Lane {
    behaviour: watch::Sender<Behaviour>,
}

impl Lane {
    fn new() -> Self {
        Self { behaviour: watch::Sender::new(Behaviour { mode: Mode::Open, cuts: 0 }) }
    }

    /// Behaves so from now on.
    pub fn set(&self, mode: Mode) {
        self.behaviour.send_modify(|behaviour| behaviour.mode = mode);
    }

    /// Breaks all connections there are; new ones are taken.
    pub fn cut(&self) {
        self.behaviour.send_modify(|behaviour| behaviour.cuts += 1);
    }
}

/// Tells by the port that a client connects from in which lane it belongs.
pub type Sort = Arc<dyn Fn(u16) -> usize + Send + Sync>;

/// A proxy; it ends when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    lanes: Arc<[Lane]>,
    // Kept for its Drop.
    _serving: JoinSet<()>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Listens on a free port of this machine and passes on to `target`, which need not be there yet.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(runtime: &Handle, target: SocketAddr) -> anyhow::Result<Self> {
        Self::with_lanes(runtime, target, 1, Arc::new(|_| 0))
    }

    /// The same with several kinds of clients.
    ///
    /// # Errors
    /// When no port is free.
    pub fn with_lanes(runtime: &Handle, target: SocketAddr, lanes: usize, sort: Sort) -> anyhow::Result<Self> {
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).context("no port is free")?;
        let address = listener.local_addr().context("a listener without an address")?;
        let lanes: Arc<[Lane]> = (0..lanes).map(|_| Lane::new()).collect();
        let mut serving = JoinSet::new();
        serving.spawn_on(serve(listener, target, Arc::clone(&lanes), sort), runtime);
        Ok(Self { address, lanes, _serving: serving })
    }

    /// What others are told.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// One kind of its clients.
    #[must_use]
    pub fn lane(&self, number: usize) -> Option<&Lane> {
        self.lanes.get(number)
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, lanes: Arc<[Lane]>, sort: Sort) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            taken = listener.accept() => {
                // What went wrong with one is over with it.
                let Ok((client, from)) = taken else { continue };
                let Some(lane) = lanes.get(sort(from.port())) else { continue };
                let behaves = lane.behaviour.subscribe();
                if connections.len() < CONNECTIONS && behaves.borrow().mode != Mode::Closed {
                    connections.spawn(connection(client, target, behaves));
                }
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// One connection, from beginning to end. How it ended shows at both of its ends.
async fn connection(client: TcpStream, target: SocketAddr, behaves: watch::Receiver<Behaviour>) {
    let cuts = behaves.borrow().cuts;
    let broken = |behaviour: &Behaviour| behaviour.cuts != cuts || behaviour.mode == Mode::Closed;
    let mut watching = behaves.clone();
    let pass = async {
        wait_open(&mut behaves.clone()).await?;
        let server = TcpStream::connect(target).await.ok()?;
        // Delays are for `Slow` to make.
        client.set_nodelay(true).ok()?;
        server.set_nodelay(true).ok()?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(pump(from_client, to_server, behaves.clone()), pump(from_server, to_client, behaves.clone()));
        Some(())
    };
    tokio::select! {
        _ended = pass => {}
        _broken = watching.wait_for(broken) => {}
    }
}

/// Passes bytes on in one direction until it ends there.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut behaves: watch::Receiver<Behaviour>,
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
    }
}

/// Waits until something may come through; `None` when that never will be again.
async fn wait_open(behaves: &mut watch::Receiver<Behaviour>) -> Option<()> {
    let mode = behaves.wait_for(|behaviour| behaviour.mode != Mode::Silent).await.ok()?.mode;
    if let Mode::Slow(delay) = mode {
        tokio::time::sleep(delay).await;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    /// A server that sends back what it gets, and a proxy before it.
    async fn echo() -> (Proxy, JoinSet<()>) {
        echo_by(1, Arc::new(|_| 0)).await
    }

    async fn echo_by(lanes: usize, sort: Sort) -> (Proxy, JoinSet<()>) {
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
        let start = move || Proxy::with_lanes(&runtime, target, lanes, sort);
        let proxy = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
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
    }

    #[tokio::test]
    async fn a_cut_breaks_what_there_is_and_a_closed_proxy_takes_nobody() {
        let (proxy, _server) = echo().await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        ask(&mut stream, b"before").await.unwrap();
        proxy.lanes[0].cut();
        assert!(ask(&mut stream, b"after").await.is_err());
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(ask(&mut stream, b"again").await.unwrap(), b"again");
        proxy.lanes[0].set(Mode::Closed);
        assert!(ask(&mut stream, b"closed").await.is_err());
        let refused = match TcpStream::connect(proxy.address).await {
            Ok(mut stream) => ask(&mut stream, b"closed").await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }

    #[tokio::test]
    async fn lanes_are_treated_apart() {
        let by_turns = AtomicUsize::new(0);
        let (proxy, _server) = echo_by(2, Arc::new(move |_| by_turns.fetch_add(1, Ordering::Relaxed))).await;
        let mut first = TcpStream::connect(proxy.address).await.unwrap();
        ask(&mut first, b"before").await.unwrap();
        let mut second = TcpStream::connect(proxy.address).await.unwrap();
        ask(&mut second, b"before").await.unwrap();
        proxy.lanes[1].cut();
        assert!(ask(&mut second, b"after").await.is_err());
        assert_eq!(ask(&mut first, b"after").await.unwrap(), b"after");
    }

    #[tokio::test]
    async fn silence_keeps_what_was_sent_until_it_is_over() {
        let (proxy, _server) = echo().await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        ask(&mut stream, b"before").await.unwrap();
        proxy.lanes[0].set(Mode::Silent);
        stream.write_all(b"lost?").await.unwrap();
        let mut answer = [0; 5];
        let heard = tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut answer)).await;
        assert!(heard.is_err(), "something came through");
        proxy.lanes[0].set(Mode::Slow(Duration::from_millis(50)));
        let begun = Instant::now();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"lost?");
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }
}
