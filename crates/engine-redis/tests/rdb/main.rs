//! RDB files of real servers, and hand-made ones of the forms that no server at hand writes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod bytes;
mod damage;
mod encodings;
mod fill;
mod round_trip;
mod server;
