//! The dialling end: a connector for tonic channels that reads its files anew for each connection.
//!
//! tonic's own TLS takes files' contents once, drops CAs that it cannot read, and reports no reason; hence this.

use crate::explain::{self, Side};
use crate::files::{self, Error, Pair};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const PORT: u16 = 443;

/// Where a client's files lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The CA whose certificate the server must show.
    pub ca: PathBuf,
    /// What the client shows of itself, if anything.
    pub own: Option<Pair>,
    /// The name that the server's certificate must bear, where that is not the endpoint's.
    pub server_name: Option<String>,
}

impl Files {
    /// Reads everything once, to find out early what is wrong.
    ///
    /// # Errors
    /// [`enum@Error`], naming the file.
    pub async fn check(&self) -> Result<(), Error> {
        self.config().await.map(drop)
    }

    async fn config(&self) -> Result<ClientConfig, Error> {
        let roots = files::roots(&self.ca, &files::read(&self.ca).await?)?;
        let builder = ClientConfig::builder_with_provider(crate::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Content { path: self.ca.clone(), why: error.to_string() })?
            .with_root_certificates(roots);
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let (cert, key) = (files::read(&own.cert).await?, files::read(&own.key).await?);
                let identity = own.identity(&cert, &key)?;
                builder.with_client_auth_cert(identity.chain, identity.key).map_err(|error| Error::Content {
                    path: own.cert.clone(),
                    why: format!("cannot be used: {error}"),
                })?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// Whether `text` can be the name of a server: a DNS name or an IP address.
pub fn is_server_name(text: &str) -> bool {
    ServerName::try_from(text).is_ok()
}

/// Dials an `https://` endpoint. Cheap to clone.
///
/// Give a channel [`transport`] as its address and the endpoint as its origin: tonic does not let a connector of its
/// users dial `https://`.
#[derive(Clone, Debug)]
pub struct Connector {
    files: Arc<Files>,
    failure: Arc<Mutex<Option<String>>>,
}

impl Connector {
    /// A connector with these files.
    pub fn new(files: Files) -> Self {
        Self { files: Arc::new(files), failure: Arc::default() }
    }

    /// Why the last connection did not come about, where that lies in TLS or its files: trying again changes nothing
    /// before somebody changes a file. With TLS 1.3, the server's refusal of a certificate comes after the client thinks
    /// that the connection stands; it is found here, too. Nothing that was sent has been read by the server then.
    pub fn failure(&self) -> Option<String> {
        slot(&self.failure).clone()
    }

    async fn dial(self, uri: Uri) -> io::Result<TokioIo<Stream>> {
        *slot(&self.failure) = None;
        let failed = |why: String| {
            *slot(&self.failure) = Some(why.clone());
            io::Error::other(why)
        };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let name = self.files.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| failed(format!("{name:?} is neither a DNS name nor an IP address")))?;
        let config = self.files.config().await.map_err(|error| failed(error.to_string()))?;
        let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(PORT))).await?;
        tcp.set_nodelay(true)?;
        match TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Ok(TokioIo::new(Stream { inner: stream, failure: Arc::clone(&self.failure), heard: false }))
            }
            Ok(_) => Err(failed("the server speaks TLS but not HTTP/2 on it".to_owned())),
            Err(error) => {
                let why = explain::handshake(&error, Side::Client);
                // A connection that broke may come about the next time.
                Err(if explain::cause(&error).is_some() || error.kind() == io::ErrorKind::UnexpectedEof {
                    failed(why)
                } else {
                    io::Error::new(error.kind(), why)
                })
            }
        }
    }
}

fn slot(failure: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    // Each change is a single one.
    failure.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The address that a channel must be given for an endpoint: the same place without `https`.
///
/// # Errors
/// When the endpoint has no host.
pub fn transport(endpoint: &Uri) -> Result<Uri, http::Error> {
    let host = endpoint.host().unwrap_or_default();
    let port = endpoint.port_u16().unwrap_or(PORT);
    Uri::builder().scheme("http").authority(format!("{host}:{port}")).path_and_query("/").build()
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().dial(uri))
    }
}

/// A connection whose refusal by the server is remembered, with a sentence in its place.
#[derive(Debug)]
pub struct Stream {
    inner: TlsStream<TcpStream>,
    failure: Arc<Mutex<Option<String>>>,
    /// Whether anything came from the server: then it has taken the connection.
    heard: bool,
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        match read {
            Poll::Ready(Err(error)) => {
                let Some(cause) = explain::cause(&error) else { return Poll::Ready(Err(error)) };
                let why = explain::sentence(cause, Side::Client);
                if !self.heard {
                    *slot(&self.failure) = Some(why.clone());
                }
                Poll::Ready(Err(io::Error::new(error.kind(), why)))
            }
            Poll::Ready(Ok(())) => {
                self.heard |= buf.filled().len() > before;
                Poll::Ready(Ok(()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
