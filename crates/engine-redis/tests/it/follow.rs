//! Following a server, and recovery to moments: real servers, equal digests.

mod following;
mod recovery;
