//! The listening end: takes connections with the newest certificate, and says who is at the other end.

use crate::certificate::Certificate;
use crate::explain::{self, Side};
use crate::files::{self, Error, Pair};
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub use tokio_rustls::server::TlsStream;

/// What is spoken on top, best first: gRPC needs the first, `curl` may have only the second.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// How long a refused client gets to read why, and how much of what it had sent already is thrown away meanwhile. A
/// connection that is closed with unread bytes is reset, and the reason is lost.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: usize = 64 << 10;
/// From this long before its end on, a certificate that nobody renewed is warned of: enough for one holiday.
const RENEW_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);

/// Where the server's files lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The server's own certificate and key.
    pub own: Pair,
    /// The CA whose certificates clients show.
    pub client_ca: PathBuf,
}

/// The files' bytes. Compared, not their times: a file system may not tell two writes within a second apart.
#[derive(PartialEq, Eq)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
}

impl Files {
    async fn read(&self) -> Result<Contents, Error> {
        Ok(Contents {
            cert: files::read(&self.own.cert).await?,
            key: files::read(&self.own.key).await?,
            client_ca: files::read(&self.client_ca).await?,
        })
    }

    fn build(&self, contents: Contents) -> Result<Serving, Error> {
        let identity = self.own.identity(&contents.cert, &contents.key)?;
        let roots = files::roots(&self.client_ca, &contents.client_ca)?;
        let bad = |path: &PathBuf, error: &dyn std::fmt::Display| Error::Content {
            path: path.clone(),
            why: format!("cannot be used: {error}"),
        };
        // A certificate is verified when one is shown; who must show one, the service decides.
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crate::provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| bad(&self.client_ca, &error))?;
        let mut config = ServerConfig::builder_with_provider(crate::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&self.own.cert, &error))?
            .with_client_cert_verifier(clients)
            .with_single_cert(identity.chain, identity.key)
            .map_err(|error| bad(&self.own.cert, &error))?;
        // A resumed session would carry a certificate past its end, and past a change of the CA.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Serving { config: Arc::new(config), certificate: identity.certificate, contents })
    }
}

/// What new connections get.
struct Serving {
    config: Arc<ServerConfig>,
    certificate: Certificate,
    /// What it was made of.
    contents: Contents,
}

/// Takes TLS connections.
pub struct Acceptor {
    files: Files,
    serving: ArcSwap<Serving>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without what it serves: a key is in there.
        f.debug_struct("Acceptor").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Why a connection was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

impl Acceptor {
    /// Reads the files.
    ///
    /// # Errors
    /// [`enum@Error`], naming the file that cannot be used.
    pub async fn open(files: Files) -> Result<Self, Error> {
        let contents = files.read().await?;
        let serving = files.build(contents)?;
        Ok(Self { files, serving: ArcSwap::from_pointee(serving) })
    }

    /// The certificate that new connections are shown.
    pub fn certificate(&self) -> Certificate {
        self.serving.load().certificate.clone()
    }

    /// Shakes hands. The certificate is the client's, verified; `None` if it showed none.
    ///
    /// Takes as long as the client takes: bound it.
    ///
    /// # Errors
    /// [`Refused`]; the client was told.
    pub async fn accept(&self, stream: TcpStream) -> Result<(TlsStream<TcpStream>, Option<Certificate>), Refused> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.serving.load().config));
        let stream = match acceptor.accept(stream).into_fallible().await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                let why = explain::handshake(&error, Side::Server);
                part(stream).await;
                return Err(Refused(why));
            }
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = shown.map(|der| Certificate::read(der)).transpose();
        match certificate {
            Ok(certificate) => Ok((stream, certificate)),
            // Verified, and yet not understood: nobody can say who that is.
            Err(error) => Err(Refused(format!("the client {error}"))),
        }
    }

    /// Looks at the files every `every` and takes over what has changed. What cannot be used is warned of once and left;
    /// what was good stays. Never ends.
    pub async fn follow(&self, every: Duration) {
        // Files are replaced one after the other: what does not fit together gets a second look before it is told.
        let mut doubtful = None;
        let mut told = None;
        let mut ending = false;
        loop {
            self.warn_of_end(&mut ending);
            tokio::time::sleep(every).await;
            let built = match self.files.read().await {
                Ok(contents) if contents == self.serving.load().contents => {
                    (doubtful, told) = (None, None);
                    continue;
                }
                Ok(contents) => self.files.build(contents),
                Err(error) => Err(error),
            };
            match built {
                Ok(serving) => {
                    tracing::info!(
                        subject = %serving.certificate.who(),
                        "the TLS files have changed; new connections use them"
                    );
                    self.serving.store(Arc::new(serving));
                    (doubtful, told, ending) = (None, None, false);
                }
                Err(error) => {
                    let why = error.to_string();
                    if doubtful.as_ref() == Some(&why) && told.as_ref() != Some(&why) {
                        tracing::warn!(error = %why, "the TLS files have changed and cannot be used; the ones before stay in use");
                        told = Some(why.clone());
                    }
                    doubtful = Some(why);
                }
            }
        }
    }

    fn warn_of_end(&self, told: &mut bool) {
        let certificate = self.certificate();
        let left = certificate.not_after.duration_since(SystemTime::now());
        // Nothing is left when it has ended.
        let left = left.unwrap_or_default();
        if left < RENEW_BEFORE && !*told {
            *told = true;
            let days = left.as_secs() / (24 * 3600);
            tracing::warn!(
                subject = %certificate.who(), days,
                "this controller's certificate has expired or will within these days; put a new one into its place"
            );
        }
    }
}

/// Lets a refused client read why.
async fn part(mut stream: TcpStream) {
    let farewell = async {
        // A client that is gone needs no farewell.
        if stream.shutdown().await.is_err() {
            return;
        }
        let (mut left, mut thrown_away) = (FAREWELL_BYTES, [0; 4096]);
        while left > 0 {
            match stream.read(&mut thrown_away).await {
                Ok(0) | Err(_) => return,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
    };
    let _late = timeout(FAREWELL, farewell).await;
}
