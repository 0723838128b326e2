//! A private connection, read and written like the one that it runs over.
//!
//! Invariant: an end that the peer did not announce is an error (`UnexpectedEof`), so nobody can cut a stream unseen.

use std::fmt;
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection after its handshake. Flush after writing: small writes are gathered into records.
pub struct TlsStream<S>(tokio_rustls::client::TlsStream<S>);

impl<S> TlsStream<S> {
    pub(super) fn new(stream: tokio_rustls::client::TlsStream<S>) -> Self {
        Self(stream)
    }

    /// The server's own certificate in DER form: what a channel binding is computed from (RFC 5929).
    #[must_use]
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        self.0.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|certificate| &**certificate)
    }

    /// The version and the cipher that were agreed on, for people: `TLSv1_3 TLS13_AES_256_GCM_SHA384`.
    #[must_use]
    pub fn describe(&self) -> String {
        let connection = self.0.get_ref().1;
        let version = connection.protocol_version().map_or_else(String::new, |version| format!("{version:?} "));
        let suite =
            connection.negotiated_cipher_suite().map_or_else(String::new, |suite| format!("{:?}", suite.suite()));
        version + &suite
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsStream").field(&self.describe()).finish()
    }
}
