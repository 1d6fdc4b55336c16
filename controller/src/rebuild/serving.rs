//! The port that agents dial, while they are listened to.

use crate::app::{self, StartError};
use crate::config::Config;
use crate::serve;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long sessions may take to end; what is not done then is cut off, and loses nothing.
const STOPPING: Duration = Duration::from_secs(5);

/// A port that is served.
pub(super) struct Serving {
    pub(super) local_addr: SocketAddr,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Serving {
    /// Listens where a controller would, and as it would.
    pub(super) async fn start(config: &Config, router: axum::Router) -> Result<Self, StartError> {
        config.check().map_err(StartError::Config)?;
        let tls = app::tls(config).await?;
        let listen = |source| StartError::Listen { address: config.listen, source };
        let listener = app::bind(config.listen).map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve::run(listener, router, serve::Options::new(tls), stop.clone()));
        Ok(Self { local_addr, tasks, stop })
    }

    /// Stops, within bounds.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let in_time = tokio::time::timeout(STOPPING, ended).await.is_ok();
        tracing::debug!(in_time, "stopped listening");
        self.tasks.shutdown().await;
    }
}
