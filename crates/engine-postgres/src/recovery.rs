//! Recovery to a moment: which snapshot and which way through the log lead there, and what the server is told.
//!
//! Invariant: a server that recovers is always told where to stop, and everything up to there was read and checked before
//! the first byte was written; a server without a target would come up early when something is missing, and say nothing.

mod branches;
mod choose;
mod conf;
mod hand_over;
mod observe;
mod spaces;
mod stage;
mod start;
mod way;

pub(crate) use choose::{choose, out_of_reach};
pub(crate) use conf::{
    APART, Apart, Copy, SOCKETS, STAGE, Supply, apart, neutral, settings, without_apart, without_settings,
};
pub(crate) use hand_over::{ahead, broke_off, hand_over, prepare};
pub(crate) use spaces::{Blanks, LogSpaces, Outcome};
pub(crate) use stage::stage;
pub(crate) use start::{LOG, Started, State, is_running, start};
pub(crate) use way::{Branch, Search, Way, find};
