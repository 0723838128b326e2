//! Messages on a byte stream: one byte of type, a length, a body.
//!
//! Invariant: a message is handed on only when it is whole, and no message is longer than its limit, so that memory is
//! bounded whatever the other side sends. Reading is cancel safe: what was read stays for the next call.

use std::fmt;
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What carries the bytes: a socket, with TLS or without.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Transport for T {}

/// Before we know whom we talk to, nothing longer is read (`libpq` has the same limit).
pub(crate) const LOGIN_LIMIT: usize = 30_000;
/// The longest message afterwards: rows of catalogues; a piece of a backup has 32 KiB, one of the log 128 KiB.
pub(crate) const MESSAGE_LIMIT: usize = 64 * 1024 * 1024;
/// The room that is made for reading: several pieces of a backup at a time.
const READ_BYTES: usize = 256 * 1024;
/// What is written waits for a flush up to this size.
const WRITE_BYTES: usize = 256 * 1024;
/// A server that does not take our bytes for so long is gone.
const WRITE_LIMIT: Duration = Duration::from_mins(5);
const HEADER_BYTES: usize = 5;

/// A message of the server.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    pub(crate) body: Bytes,
}

/// A stream of messages.
pub(crate) struct Framed {
    io: Box<dyn Transport>,
    inbox: BytesMut,
    outbox: BytesMut,
    limit: usize,
}

impl Framed {
    pub(crate) fn new(io: Box<dyn Transport>) -> Self {
        Self { io, inbox: BytesMut::new(), outbox: BytesMut::new(), limit: LOGIN_LIMIT }
    }

    /// Allows messages of full length: the login succeeded.
    pub(crate) fn trust(&mut self) {
        self.limit = MESSAGE_LIMIT;
    }

    /// The next message. Cancel safe.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when the connection ended, whether between messages or within one.
    pub(crate) async fn read(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            let room = self.missing().max(READ_BYTES);
            self.inbox.reserve(room);
            match self.io.read_buf(&mut self.inbox).await {
                Ok(0) => return Err(ended()),
                Ok(_) => {}
                Err(source) => return Err(ended().caused_by(source)),
            }
        }
    }

    /// The next message, when it was read already.
    pub(crate) fn buffered(&mut self) -> Result<Option<Frame>> {
        let Some(length) = self.length()? else { return Ok(None) };
        if self.inbox.len() < length + 1 {
            return Ok(None);
        }
        let mut body = self.inbox.split_to(length + 1).freeze();
        let tag = body.get_u8();
        body.advance(4);
        Ok(Some(Frame { tag, body }))
    }

    /// The length that the next message says that it has, its length field included.
    fn length(&self) -> Result<Option<usize>> {
        let Some(header) = self.inbox.get(..HEADER_BYTES) else { return Ok(None) };
        let length = i32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        match usize::try_from(length) {
            Ok(length) if (4..=self.limit).contains(&length) => Ok(Some(length)),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                format!("what listens there does not speak PostgreSQL's protocol (a message of {length} bytes)"),
            )
            .hint("is this the server's address and port?")),
        }
    }

    /// How many bytes of the message that began are not there yet.
    fn missing(&self) -> usize {
        match self.length() {
            Ok(Some(length)) => (length + 1).saturating_sub(self.inbox.len()),
            _ => 0,
        }
    }

    /// The buffer for messages to the server; they go with the next [`flush`](Self::flush).
    pub(crate) fn outbox(&mut self) -> &mut BytesMut {
        &mut self.outbox
    }

    /// Whether so much waits that it should be sent.
    pub(crate) fn is_full(&self) -> bool {
        self.outbox.len() >= WRITE_BYTES
    }

    /// Sends what waits. Not cancel safe: part of a message may have been sent.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        let send = async {
            self.io.write_all(&self.outbox).await?;
            self.io.flush().await
        };
        match tokio::time::timeout(WRITE_LIMIT, send).await {
            Ok(Ok(())) => {
                self.outbox.clear();
                Ok(())
            }
            Ok(Err(source)) => Err(ended().caused_by(source)),
            Err(source) => Err(ended().caused_by(source)),
        }
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Unreachable, "the server closed the connection")
        .hint("did the server stop, or did somebody end the session? its log says why")
        .retry_later()
}

impl fmt::Debug for Framed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Framed").field("inbox", &self.inbox.len()).finish_non_exhaustive()
    }
}

/// Takes fields off a message's body. A body that is too short is an error, never a panic.
#[derive(Debug, Clone)]
pub(crate) struct Body(pub(crate) Bytes);

impl Body {
    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.0.try_get_u8().map_err(|_| garbled())
    }

    pub(crate) fn i16(&mut self) -> Result<i16> {
        self.0.try_get_i16().map_err(|_| garbled())
    }

    pub(crate) fn i32(&mut self) -> Result<i32> {
        self.0.try_get_i32().map_err(|_| garbled())
    }

    pub(crate) fn i64(&mut self) -> Result<i64> {
        self.0.try_get_i64().map_err(|_| garbled())
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.0.try_get_u64().map_err(|_| garbled())
    }

    /// Text up to a zero byte.
    pub(crate) fn text(&mut self) -> Result<String> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(garbled)?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<Bytes> {
        if count > self.0.len() { Err(garbled()) } else { Ok(self.0.split_to(count)) }
    }
}

/// A message that is not of the form that the manual describes.
pub(crate) fn garbled() -> Error {
    Error::new(ErrorKind::Unsupported, "the server sent a message that was not understood")
}

/// A message of a type that does not belong here.
pub(crate) fn unexpected(frame: &Frame, awaited: &str) -> Error {
    let tag = char::from(frame.tag).escape_default().to_string();
    Error::new(
        ErrorKind::Unsupported,
        format!("the server sent a message of type `{tag}` where {awaited} was expected"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_handed_on_whole_however_they_arrive() {
        let (ours, mut theirs) = tokio::io::duplex(7);
        let mut framed = Framed::new(Box::new(ours));
        let sent: Vec<u8> = [b"Z\0\0\0\x05I".as_slice(), b"C\0\0\0\x0bSELECT\0"].concat();
        let writer = tokio::spawn(async move {
            theirs.write_all(&sent).await.unwrap();
            theirs
        });
        let first = framed.read().await.unwrap();
        assert_eq!((first.tag, first.body.as_ref()), (b'Z', b"I".as_slice()));
        let second = framed.read().await.unwrap();
        assert_eq!((second.tag, second.body.as_ref()), (b'C', b"SELECT\0".as_slice()));
        drop(writer.await.unwrap());
        assert_eq!(framed.read().await.unwrap_err().kind(), ErrorKind::Unreachable);
    }

    #[tokio::test]
    async fn a_length_that_cannot_be_is_refused_before_anything_is_kept() {
        for header in [b"H\x7f\xff\xff\xff", b"H\0\0\0\x03", b"H\xff\xff\xff\xff", b"HTTP/"] {
            let (ours, mut theirs) = tokio::io::duplex(64);
            theirs.write_all(header).await.unwrap();
            let error = Framed::new(Box::new(ours)).read().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        }
    }

    #[test]
    fn a_short_body_is_an_error() {
        assert!(Body(Bytes::from_static(b"\0")).i16().is_err());
        assert!(Body(Bytes::from_static(b"abc")).text().is_err());
        assert!(Body(Bytes::from_static(b"abc")).bytes(4).is_err());
        assert_eq!(Body(Bytes::from_static(b"abc\0d")).text().unwrap(), "abc");
    }
}
