//! A client of the server's own protocol, for what its programs cannot do: physical replication, streamed to us.
//!
//! The protocol is that of the PostgreSQL manual, chapters "Frontend/Backend Protocol" and "Streaming Replication
//! Protocol". Invariant: a command has succeeded only when `ReadyForQuery` followed without an `ErrorResponse`; the end of
//! data proves nothing, because the server reports failures (damaged pages, say) after the last byte.
//!
//! How to use it: [`Connection::connect`] with a [`Purpose`]; [`Connection::query`] for SQL;
//! [`Connection::identify_system`], [`create_slot`](Connection::create_slot), … (`replication.rs`) for the short commands;
//! [`Connection::begin`], [`answer`](Connection::answer), [`copy_data`](Connection::copy_data) for a base backup;
//! [`WalStream::start`] for the log. Dropping any of them in its midst tells the server to cancel.

mod channel_binding;
mod connection;
mod copy;
mod fault;
mod frame;
mod login;
mod passfile;
mod replication;
mod service;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod wal_stream;

pub(crate) use connection::{Connection, Purpose};
pub(crate) use copy::Answer;
pub(crate) use fault::{ServerError, server_error};
pub(crate) use replication::{Slot, SlotKind, SystemIdentity, slot_name};
pub(crate) use service::service;
pub(crate) use wal_stream::{Received, Reply, Started, WalStream};

/// What is made of the bodies of messages, for [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzzing(pieces: &[bytes::Bytes]) -> Option<String> {
    let body = bytes::Bytes::from(pieces.concat());
    let row = connection::raw_row(body.clone()).ok();
    let error = ServerError::parse(&frame::Frame { tag: b'E', body }).ok();
    (row.is_some() || error.is_some()).then(|| format!("{row:?}{error:?}"))
}
