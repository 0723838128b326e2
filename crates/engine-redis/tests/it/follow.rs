//! Following a server, and recovery to moments: real servers, equal digests.

mod breaks;
mod faults;
mod recovery;
mod refusals;
mod support;
