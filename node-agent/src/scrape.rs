//! Metrics for a Prometheus on the same machine: one page over HTTP, on loopback only.
//!
//! Must never listen where another machine can reach it: hosts open no port.

use berth_telemetry::names;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

/// Scrapes at one time: one Prometheus, one person who looks, and as many again.
const AT_ONCE: usize = 4;
/// How long one may take, whoever asks.
const LIMIT: Duration = Duration::from_secs(10);
/// Largest head of a request: Prometheus sends some hundred bytes.
const HEAD: usize = 8 * 1024;
/// Pause when the system gives no connection.
const NO_ACCEPT: Duration = Duration::from_secs(1);

/// Serves for as long as it is polled. Where it cannot listen, it says so and does nothing: an agent has work to do.
pub(crate) async fn serve(address: SocketAddr) {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!({ names::ENDPOINT } = %address, { names::ERROR } = %error, "there are no metrics for Prometheus: the address cannot be listened on");
            return std::future::pending().await;
        }
    };
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut scrapes = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Beyond them connections are closed: Prometheus comes again.
                    if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                        scrapes.spawn(async move {
                            // Whoever is gone needs no answer.
                            let _gone = timeout(LIMIT, answer(stream)).await;
                            drop(place);
                        });
                    }
                }
                Err(_) => sleep(NO_ACCEPT).await,
            },
            Some(_ended) = scrapes.join_next() => {}
        }
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        match stream.read(&mut part).await? {
            0 => return Ok(()),
            read => head.extend_from_slice(part.get(..read).unwrap_or_default()),
        }
        if head.len() > HEAD {
            return Ok(());
        }
    }
    let (status, kind, body) = if head.starts_with(b"GET /metrics ") {
        let page = spawn_blocking(berth_telemetry::scrape).await.ok().flatten().unwrap_or_default();
        ("200 OK", "text/plain; version=0.0.4", page)
    } else {
        ("404 Not Found", "text/plain", "metrics are at /metrics\n".to_owned())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
