//! The write-ahead log in the archive: names of files, what a segment says of itself, and whether the chain has holes.
//!
//! Sources: PostgreSQL's `access/xlog_internal.h` (names, page headers) and `access/transam/timeline.c` (histories), which
//! are the same in versions 13 to 18.

mod chain;
mod ends;
mod fetch;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod history;
mod images;
mod join;
mod names;
mod page;
mod push;
pub(crate) mod receive;
mod records;
mod server_view;
mod spaces;
mod walk;

pub use chain::{Chain, Hole, Span};
pub(crate) use ends::End;
pub use fetch::{fetch, fetch_whole};
pub use history::{History, Switch};
pub(crate) use images::{Fork, PageAddress};
pub use join::{beside, other_content, pieces_of, torn, verify};
pub use names::{SegmentSize, WalFile, WalSegment};
pub use page::{PAGE_HEADER_BYTES, PageHeader};
pub use push::{Pushed, describe, foreign};
pub(crate) use records::{Record, Walker};
pub use server_view::{ArchiverView, Complaint, ServerView, SlotView, Weight};
pub(crate) use spaces::{Edit, SpaceRecord};
pub(crate) use walk::{Observer, last_mark, walk};
