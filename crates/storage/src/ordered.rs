//! Keeps the entries of a tree in the order of their paths while the contents of its files end in any order.
//!
//! Invariant: an item leaves only when everything before it has left; a file that was dropped unfinished is an error.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreePath;
use tokio::sync::Notify;

/// So many entries may wait behind a file that is still being read.
const MAX_WAITING: usize = 4096;

/// Entries that wait for their turn.
#[derive(Debug)]
pub(crate) struct Ordered<T> {
    waiting: VecDeque<Waiting<T>>,
}

#[derive(Debug)]
enum Waiting<T> {
    Ready(T),
    File(TreePath, Arc<Shared<T>>),
}

#[derive(Debug)]
enum Slot<T> {
    Pending,
    Filled(T),
    Abandoned,
    Dropped,
}

#[derive(Debug)]
struct Shared<T> {
    slot: Mutex<Slot<T>>,
    filled: Notify,
}

/// The reserved place of a file. Dropped unfilled, it fails its tree.
#[derive(Debug)]
pub(crate) struct Place<T>(Option<Arc<Shared<T>>>);

impl<T> Ordered<T> {
    pub(crate) fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    /// Adds an item that is complete.
    pub(crate) fn push(&mut self, item: T) {
        self.waiting.push_back(Waiting::Ready(item));
    }

    /// Adds a file whose item comes later.
    pub(crate) fn reserve(&mut self, path: TreePath) -> Place<T> {
        let shared = Arc::new(Shared { slot: Mutex::new(Slot::Pending), filled: Notify::new() });
        self.waiting.push_back(Waiting::File(path, Arc::clone(&shared)));
        Place(Some(shared))
    }

    /// The next item whose turn it is; `None` when the first one is not complete yet, or nothing waits.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when the first one was dropped.
    pub(crate) fn next_ready(&mut self) -> Result<Option<T>> {
        while let Some(front) = self.waiting.pop_front() {
            let (path, shared) = match front {
                Waiting::Ready(item) => return Ok(Some(item)),
                Waiting::File(path, shared) => (path, shared),
            };
            match shared.take() {
                Slot::Filled(item) => return Ok(Some(item)),
                Slot::Abandoned => {}
                Slot::Dropped => {
                    let message = format!("the file `{path}` was not read to its end");
                    return Err(Error::new(ErrorKind::Incomplete, message));
                }
                Slot::Pending => {
                    self.waiting.push_front(Waiting::File(path, shared));
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    /// Whether so many wait that no more may be added before [`Ordered::first_filled`].
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }

    /// Waits until the first one is complete, abandoned or dropped.
    pub(crate) async fn first_filled(&self) {
        if let Some(Waiting::File(_, shared)) = self.waiting.front() {
            shared.filled.notified().await;
        }
    }

    /// Ends the order, once [`Ordered::next_ready`] gave everything.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when a file is still being written.
    pub(crate) fn finish(&self) -> Result<()> {
        match self.waiting.front() {
            Some(Waiting::File(path, _)) => {
                Err(Error::new(ErrorKind::Incomplete, format!("the file `{path}` was left unfinished")))
            }
            _ => Ok(()),
        }
    }
}

impl<T> Shared<T> {
    fn take(&self) -> Slot<T> {
        std::mem::replace(&mut *self.slot.lock().unwrap_or_else(PoisonError::into_inner), Slot::Pending)
    }
}

impl<T> Place<T> {
    /// The file is complete.
    pub(crate) fn fill(&mut self, item: T) {
        self.set(Slot::Filled(item));
    }

    /// The file is left out.
    pub(crate) fn abandon(&mut self) {
        self.set(Slot::Abandoned);
    }

    fn set(&mut self, slot: Slot<T>) {
        if let Some(shared) = self.0.take() {
            *shared.slot.lock().unwrap_or_else(PoisonError::into_inner) = slot;
            shared.filled.notify_one();
        }
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        self.set(Slot::Dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    #[test]
    fn items_leave_in_the_order_in_which_their_places_were_taken() {
        let mut order = Ordered::new();
        let mut a = order.reserve(path("a"));
        order.push("b");
        let mut c = order.reserve(path("c"));
        let mut d = order.reserve(path("d"));
        assert_eq!(order.next_ready().unwrap(), None);
        d.fill("d");
        c.abandon();
        assert_eq!(order.next_ready().unwrap(), None);
        assert_eq!(order.finish().unwrap_err().kind(), ErrorKind::Incomplete);
        a.fill("a");
        let all: Vec<&str> = std::iter::from_fn(|| order.next_ready().unwrap()).collect();
        assert_eq!(all, ["a", "b", "d"]);
        order.finish().unwrap();
    }

    #[test]
    fn a_dropped_place_is_an_error() {
        let mut order = Ordered::<u8>::new();
        drop(order.reserve(path("a")));
        assert_eq!(order.next_ready().unwrap_err().kind(), ErrorKind::Incomplete);
    }

    #[tokio::test]
    async fn a_full_window_opens_when_the_first_file_ends() {
        let mut order = Ordered::new();
        let mut first = order.reserve(path("a"));
        while !order.is_full() {
            order.push(0);
        }
        let fill = tokio::spawn(async move { first.fill(1) });
        order.first_filled().await;
        fill.await.unwrap();
        assert_eq!(order.next_ready().unwrap(), Some(1));
        assert!(!order.is_full());
    }
}
