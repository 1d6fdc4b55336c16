//! Puts a controller together and takes it apart again. The only module that knows all others.
//!
//! Every long-lived task belongs to one group; one that ends before it should ends the controller.

use crate::agents::{Intervals, NodeAgentService, Seen};
use crate::api::forward::Forwarder;
use crate::api::server::RouterError;
use crate::api::{self, Sources};
use crate::audit::{self, Audit};
use crate::checked::{self, Checked, Findings, SharedCheck};
use crate::config::{Config, Problem, StoreKind};
use crate::follower::Follower;
use crate::last_seen::LastSeen;
use crate::leader::{Ended, Leader, Options, QUEUE};
use crate::member::Member;
use crate::metrics::{self, Measured};
use crate::peers::{Heard, HeardOf, Way};
use crate::replica::Replica;
use crate::serve;
use crate::standing::{Board, Candidate, Standing};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use berth_model::{NodeName, Timestamp};
use berth_store::Store;
use berth_store::embedded::{Embedded, OpenError};
use berth_store::memory::Memory;
use berth_store_etcd::{ConnectError, Etcd};
use berth_telemetry::names;
use berth_tls::server::Acceptor;
use berth_tls::{client, files};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long an orderly stop may take: one commit, its answers, and every session's closing word. After that the process
/// ends as if it had been killed, which loses nothing.
const STOPPING: Duration = Duration::from_secs(15);

/// Why a controller does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting.
    #[error("configuration: {0}")]
    Config(Problem),
    /// A certificate or key.
    #[error("TLS: {0}")]
    Tls(#[from] files::Error),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// etcd cannot be used.
    #[error(transparent)]
    Etcd(#[from] ConnectError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// No leadership, or no world.
    #[error(transparent)]
    Lead(#[from] Ended),
    /// A task ended before the controller led.
    #[error("{0:#}")]
    Failed(anyhow::Error),
    /// The API cannot be put together.
    #[error(transparent)]
    Api(#[from] RouterError),
}

/// A controller that runs.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub local_addr: SocketAddr,
    /// Whether it leads, and else who does.
    pub board: Board,
    /// What it shows.
    pub replica: Replica,
    tasks: JoinSet<anyhow::Result<()>>,
    sessions: TaskTracker,
    stop: CancellationToken,
}

/// Starts a controller with the store of its configuration. One whose store is its own leads when this returns; one of
/// several may follow.
///
/// # Errors
/// [`StartError`]; nothing runs then.
pub async fn start(config: Config) -> Result<Running, StartError> {
    config.check().map_err(StartError::Config)?;
    let alone = config.store.is_exclusive();
    let store = open_store(&config).await?;
    let mut running = start_with(config, store).await?;
    if alone {
        let mut board = running.board.clone();
        let failed = tokio::select! {
            true = board.wait_to_lead() => None,
            failed = running.failed() => Some(failed),
        };
        if let Some(error) = failed {
            running.stop().await;
            return Err(error.downcast::<Ended>().map_or_else(StartError::Failed, StartError::Lead));
        }
    }
    Ok(running)
}

/// Starts a controller that may share its store with others: listens at once, shows what is stored, stands for leader.
///
/// # Errors
/// [`StartError`]; nothing runs then.
pub async fn start_with(config: Config, store: Arc<dyn Store>) -> Result<Running, StartError> {
    config.check().map_err(StartError::Config)?;
    if config.insecure && !config.listen.ip().is_loopback() {
        tracing::warn!({ names::ENDPOINT } = %config.listen, "connections are neither encrypted nor authenticated, as configured");
    }
    let tls = tls(&config).await?;
    // Before anything is decided: whoever cannot be reached should not lead.
    let listen = |source| StartError::Listen { address: config.listen, source };
    let listener = bind(config.listen).map_err(listen)?;
    let local_addr = listener.local_addr().map_err(listen)?;

    let store: Arc<dyn Store> = Arc::new(Measured::new(store));
    let stop = CancellationToken::new();
    let sessions = TaskTracker::new();
    let seen = Seen::default();
    let (leader, queue) = Leader::channel(QUEUE);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = config.advertise.clone().unwrap_or_else(|| format!("{scheme}://{local_addr}"));
    let me = Candidate { endpoint: endpoint.clone(), instance: uuid::Uuid::new_v4().to_string() };
    let (audit, findings) = (Audit::default(), Findings::default());
    let options = Options {
        limits: config.limits.clone(),
        commit_deadline: config.commit_deadline,
        candidate: me.to_string(),
        audit: audit.clone(),
        findings: findings.clone(),
    };
    let way = Way::new(config.tls.files().map_err(StartError::Config)?.map(|files| client::Files {
        // Controllers, agents and callers have one CA.
        ca: files.client_ca,
        own: Some(files.own),
        server_name: None,
    }));
    let (board, standing) = Board::new(Standing::default());
    let (replica, publisher) = Replica::empty();
    let told = Heard::default();
    let follower = Follower::new(Arc::clone(&store), publisher, standing, me, told.clone(), way.clone());
    let outbox = Arc::new(seen.clone());
    let member = Member { store: Arc::clone(&store), options, endpoint, queue, outbox, stop: stop.clone(), follower };
    let forwarder = Forwarder::new(board.clone(), way, tls.clone());

    let checked: SharedCheck = Arc::new(ArcSwap::from_pointee(Checked::default()));
    let agents = NodeAgentService::new(
        leader.clone(),
        replica.clone(),
        seen.clone(),
        Intervals { heartbeat: config.heartbeat, observe: config.observe },
        board.clone(),
        sessions.clone(),
        stop.clone(),
    );
    let sources = Sources {
        leader,
        replica: replica.clone(),
        seen: Arc::new(HeardOf { board: board.clone(), here: Arc::new(seen), told }),
        checked: Arc::clone(&checked),
        store: store.kind(),
        forwarder,
        records: Arc::clone(&store),
    };
    metrics::register(replica.clone(), board.clone(), Arc::clone(&sources.seen), Arc::clone(&checked), audit.clone());
    let router = api::server::router(sources, agents)?;

    let mut tasks = JoinSet::new();
    tasks.spawn(async move { member.run().await.context("the controller has no place among the others any more") });
    tasks.spawn(checked::check(replica.clone(), findings, checked, config.check_interval, stop.clone()));
    let (seals, stopping) = (Arc::clone(&store), stop.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = audit.run(seals.as_ref(), audit::KEEP) => {}
        }
        Ok(())
    });
    let serving = serve::run(listener, router, serve::Options::new(tls.clone()), stop.clone());
    tasks.spawn(async move {
        serving.await;
        Ok(())
    });
    if let Some(acceptor) = tls {
        let (stop, look) = (stop.clone(), config.tls.look);
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = acceptor.follow(look) => {}
            }
            Ok(())
        });
    }
    tracing::info!({ names::ENDPOINT } = %local_addr, store = store.kind(), "serving");
    Ok(Running { local_addr, board, replica, tasks, sessions, stop })
}

impl LastSeen for Seen {
    fn last_seen(&self, node: &NodeName) -> Option<Timestamp> {
        self.last(node)
    }
}

/// What takes TLS connections, where TLS is configured. Its files are read now: what is wrong with them is said before
/// anything else happens.
///
/// # Errors
/// [`StartError`], naming the setting or the file.
pub async fn tls(config: &Config) -> Result<Option<Arc<Acceptor>>, StartError> {
    let Some(files) = config.tls.files().map_err(StartError::Config)? else { return Ok(None) };
    let acceptor = Acceptor::open(files).await?;
    let certificate = acceptor.certificate();
    tracing::info!(subject = %certificate.who(), dns = ?certificate.dns, "connections are encrypted");
    Ok(Some(Arc::new(acceptor)))
}

/// Opens the store that is configured.
///
/// # Errors
/// [`StartError::Store`].
pub(crate) async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    match config.store {
        StoreKind::Memory => {
            tracing::warn!("the store is in memory: nothing survives this process");
            Ok(Arc::new(Memory::new()))
        }
        StoreKind::Etcd => Ok(Arc::new(Etcd::connect(config.etcd.clone()).await?)),
        StoreKind::Embedded => {
            let dir = config.data_dir.clone();
            // Recovery after a crash reads the whole file.
            let opened = tokio::task::spawn_blocking(move || Embedded::open(&dir)).await;
            match opened {
                Ok(store) => Ok(Arc::new(store?)),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    }
}

/// Connections not yet accepted. A fleet's agents come back all at once; what the system's default does not hold, it
/// resets.
const BACKLOG: u32 = 4_096;

/// Listens. Takes the address again at once after a restart.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // On Windows the same option would let another process share the address.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Running {
    /// Waits until something goes wrong that ends this controller. Give it up then.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(Ok(()))) => anyhow::anyhow!("a task of the controller ended by itself"),
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => anyhow::Error::new(error).context("a task of the controller crashed"),
            None => anyhow::anyhow!("the controller has stopped"),
        }
    }

    /// Stops: what is decided is committed and answered, agents are told to come back. Bounded; what is not done in time
    /// is cut off.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.sessions.close();
        let orderly = async {
            while let Some(ended) = self.tasks.join_next().await {
                match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        let error = format!("{error:#}");
                        tracing::warn!({ names::ERROR } = error, "a task failed while the controller stopped");
                    }
                    Err(error) => {
                        tracing::error!({ names::ERROR } = %error, "a task crashed while the controller stopped");
                    }
                }
            }
            self.sessions.wait().await;
        };
        if tokio::time::timeout(STOPPING, orderly).await.is_err() {
            tracing::warn!("not everything ended after {} s; the rest is cut off", STOPPING.as_secs());
        }
        self.tasks.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded(dir: &std::path::Path) -> Config {
        Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)), data_dir: dir.to_owned(), ..Config::default() }
    }

    #[tokio::test]
    async fn a_data_directory_serves_one_controller_at_a_time_and_can_be_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = start(embedded(dir.path())).await.unwrap();
        let text = start(embedded(dir.path())).await.unwrap_err().to_string();
        assert!(text.contains("in use by another process"), "{text}");
        first.stop().await;
        // The store is closed by the thread that wrote to it, a moment after the last handle is gone.
        let end = std::time::Instant::now() + Duration::from_secs(20);
        let second = loop {
            match start(embedded(dir.path())).await {
                Ok(running) => break running,
                Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
            }
        };
        second.stop().await;
    }

    #[tokio::test]
    async fn an_address_in_use_or_not_allowed_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let memory = Config { store: StoreKind::Memory, ..Config::default() };
        let error = start(Config { listen: address, ..memory.clone() }).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot listen on {address}"));
        let open = SocketAddr::from(([0, 0, 0, 0], 0));
        let error = start(Config { listen: open, ..memory }).await.unwrap_err();
        assert!(error.to_string().contains("insecure = true"), "{error}");
    }

    #[tokio::test]
    async fn a_task_that_ends_ends_the_controller() {
        let config =
            Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)), store: StoreKind::Memory, ..Config::default() };
        let mut running = start(config).await.unwrap();
        // As if one of them had ended by itself.
        running.tasks.spawn(async { Ok(()) });
        assert!(running.failed().await.to_string().contains("ended by itself"));
        running.tasks.spawn(async { Err(anyhow::anyhow!("no disk")) });
        assert_eq!(running.failed().await.to_string(), "no disk");
        running.stop().await;
    }
}
