//! A stream that takes one buffer at a time, so that a short answer leaves in one piece.
//!
//! h2 copies a message into the buffer of its frame, where the next frames follow, if it has at most 1 KiB; but on a stream
//! that takes several buffers at once only up to 256 bytes. A longer one leaves on its own, and the trailers of the answer,
//! for which every gRPC client waits, in a second write after it: another system call here, another packet, another waking
//! of the client. A placement has some 300 bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream without vectored writes; otherwise what it wraps.
pub(super) struct Whole<S>(pub(super) S);

impl<S: AsyncRead + Unpin> AsyncRead for Whole<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

/// The defaults for vectored writes say that there are none.
impl<S: AsyncWrite + Unpin> AsyncWrite for Whole<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderMap, Request, Response};
    use bytes::Bytes;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::DuplexStream;

    /// Takes several buffers at once, as TCP does, and counts what it is given.
    struct Counting {
        stream: DuplexStream,
        writes: Arc<AtomicUsize>,
    }

    impl AsyncRead for Counting {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counting {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.writes.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.stream).poll_write(cx, bytes)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            parts: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.writes.fetch_add(1, Ordering::Relaxed);
            let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            Pin::new(&mut self.stream).poll_write(cx, &all)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    /// Writes that an answer of 300 bytes with trailers takes.
    async fn writes<S: AsyncRead + AsyncWrite + Unpin>(wrap: impl FnOnce(Counting) -> S) -> usize {
        let (near, far) = tokio::io::duplex(1 << 16);
        let count = Arc::new(AtomicUsize::new(0));
        let stream = wrap(Counting { stream: far, writes: Arc::clone(&count) });
        let client = async {
            let (mut requests, connection) = h2::client::handshake(near).await.unwrap();
            let asking = async move {
                let (answer, _) = requests.send_request(Request::new(()), true).unwrap();
                let mut body = answer.await.unwrap().into_body();
                assert_eq!(body.data().await.unwrap().unwrap().len(), 300);
                assert!(body.trailers().await.unwrap().is_some());
            };
            let (_ended, ()) = tokio::join!(connection, asking);
        };
        let server = async {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let (_, mut respond) = connection.accept().await.unwrap().unwrap();
            let before = count.load(Ordering::Relaxed);
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(&[b'x'; 300]), false).unwrap();
            body.send_trailers(HeaderMap::new()).unwrap();
            drop((body, respond));
            assert!(connection.accept().await.is_none(), "a second request");
            count.load(Ordering::Relaxed) - before
        };
        let (writes, ()) = tokio::join!(server, client);
        writes
    }

    #[tokio::test]
    async fn a_short_answer_leaves_in_one_write_less() {
        let (parted, whole) = (writes(|stream| stream).await, writes(Whole).await);
        assert_eq!(whole + 1, parted);
    }
}
