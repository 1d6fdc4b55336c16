//! Puts a controller together and takes it apart again. The only module that knows all others.
//!
//! Every long-lived task belongs to one group; one that ends before it should ends the controller.

use crate::agents::{Intervals, NodeAgentService, Seen};
use crate::api::operations::{Checked, SharedCheck};
use crate::api::server::RouterError;
use crate::api::{self, Sources};
use crate::config::{Config, Problem, StoreKind};
use crate::leader::{self, Ended, Leader, Options, QUEUE, Service};
use crate::replica::Replica;
use anyhow::Context as _;
use arc_swap::ArcSwap;
use axum::serve::ListenerExt as _;
use berth_core::invariants;
use berth_model::{NodeName, Timestamp};
use berth_store::Store;
use berth_store::embedded::{Embedded, OpenError};
use berth_store::memory::Memory;
use berth_telemetry::names;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
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
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
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
    /// The API cannot be put together.
    #[error(transparent)]
    Api(#[from] RouterError),
}

/// A controller that runs.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub local_addr: SocketAddr,
    tasks: JoinSet<anyhow::Result<()>>,
    sessions: TaskTracker,
    stop: CancellationToken,
}

/// Starts a controller: opens the store, wins the leadership, loads the world, then listens.
///
/// # Errors
/// [`StartError`]; nothing runs then.
pub async fn start(config: Config) -> Result<Running, StartError> {
    config.check().map_err(StartError::Config)?;
    if !config.listen.ip().is_loopback() {
        tracing::warn!({ names::ENDPOINT } = %config.listen, "connections are neither encrypted nor authenticated, as configured");
    }
    let store = open_store(&config).await?;
    // Before anything is decided: whoever cannot be reached should not lead.
    let listen = |source| StartError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    let local_addr = listener.local_addr().map_err(listen)?;

    let stop = CancellationToken::new();
    let sessions = TaskTracker::new();
    let seen = Seen::default();
    let (leader, queue) = Leader::channel(QUEUE);
    let options = Options {
        limits: config.limits.clone(),
        commit_deadline: config.commit_deadline,
        candidate: format!("{local_addr} {}", uuid::Uuid::new_v4()),
    };
    let outbox = Arc::new(seen.clone());
    let (replica, service) = Service::open(Arc::clone(&store), options, queue, outbox, stop.clone()).await?;

    let checked: SharedCheck = Arc::new(ArcSwap::from_pointee(Checked::default()));
    let agents = NodeAgentService::new(
        leader.clone(),
        replica.clone(),
        seen.clone(),
        Intervals { heartbeat: config.heartbeat, observe: config.observe },
        sessions.clone(),
        stop.clone(),
    );
    let sources = Sources {
        leader,
        replica: replica.clone(),
        seen: Arc::new(seen),
        checked: Arc::clone(&checked),
        store: store.kind(),
    };
    let router = api::server::router(sources, agents)?;

    let mut tasks = JoinSet::new();
    tasks.spawn(async move { service.run().await.context("the leader ended") });
    tasks.spawn(check(replica, checked, config.check_interval, stop.clone()));
    tasks.spawn(serve(listener, router, stop.clone()));
    tracing::info!({ names::ENDPOINT } = %local_addr, store = store.kind(), "serving");
    Ok(Running { local_addr, tasks, sessions, stop })
}

impl api::LastSeen for Seen {
    fn last_seen(&self, node: &NodeName) -> Option<Timestamp> {
        self.last(node)
    }
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    match config.store {
        StoreKind::Memory => {
            tracing::warn!("the store is in memory: nothing survives this process");
            Ok(Arc::new(Memory::new()))
        }
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

async fn serve(listener: TcpListener, router: axum::Router, stop: CancellationToken) -> anyhow::Result<()> {
    // Messages are small and answers are waited for.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!({ names::ERROR } = %error, "a connection stays slow");
        }
    });
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await.context("the server ended")
}

/// Recomputes, now and then, all that is kept up to date step by step. What differs is a fault of Berth.
async fn check(replica: Replica, result: SharedCheck, every: Duration, stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(every) => {}
        }
        let snapshot = replica.now();
        let violations = tokio::task::spawn_blocking(move || invariants::check(&snapshot.world)).await?;
        for violation in &violations {
            tracing::error!(%violation, "an invariant is broken");
        }
        result.store(Arc::new(Checked { violations, at: Some(leader::now()) }));
    }
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
                    Ok(Err(error)) => tracing::warn!("while stopping: {error:#}"),
                    Err(error) => tracing::error!("while stopping: {error:#}"),
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
