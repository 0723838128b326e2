//! The way from `/` to the paths that are saved: which names to take in folders that are not saved themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use backup_core::tree::TreePath;

/// A folder on the way to a path, or the path itself.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// Everything from here on is saved.
    pub(crate) is_root: bool,
    /// Further paths below: they are saved even when a filter, or a file system's border, would leave them out.
    pub(crate) below: BTreeMap<Vec<u8>, Arc<Route>>,
}

impl Route {
    /// The route to all of `roots`. Paths that lie in one another are merged.
    pub(crate) fn to<'a>(roots: impl IntoIterator<Item = &'a TreePath>) -> Arc<Self> {
        let mut start = Self::default();
        for root in roots {
            let components: Vec<&[u8]> = root.components().collect();
            start.insert(&components);
        }
        Arc::new(start)
    }

    fn insert(&mut self, components: &[&[u8]]) {
        match components.split_first() {
            None => self.is_root = true,
            Some((first, rest)) => Arc::make_mut(self.below.entry(first.to_vec()).or_default()).insert(rest),
        }
    }
}
