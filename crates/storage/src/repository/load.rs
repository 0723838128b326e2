//! Brings the index into memory, and mends it from the packs when an index object is damaged.
//!
//! Invariant: a damaged index object never hides a chunk for good: packs carry their own tables of contents.

use std::collections::BTreeSet;
use std::fmt;

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use tokio::sync::{Mutex, OnceCell};

use super::crypto::Key;
use super::index::{self, SharedIndex};
use super::layout::{self, ObjectHash};
use super::pack::{self, FOOTER_BYTES, HEADER_BYTES, PackInfo};
use super::store::Store;

/// Requests at the same time.
pub(super) const PARALLEL: usize = 8;

/// Which index objects were read.
#[derive(Debug, Default)]
struct Loaded {
    seen: BTreeSet<Path>,
    /// Index objects that could not be used, and why.
    damaged: Vec<(Path, String)>,
}

/// Fills the index of an open repository.
pub(super) struct IndexLoader {
    store: Store,
    index: SharedIndex,
    index_key: Key,
    loaded: Mutex<Loaded>,
    mended: OnceCell<()>,
}

impl IndexLoader {
    pub(super) fn new(store: Store, index: SharedIndex, index_key: Key) -> Self {
        Self { store, index, index_key, loaded: Mutex::default(), mended: OnceCell::new() }
    }

    /// Index objects that could not be used, and why.
    pub(super) async fn damaged(&self) -> Vec<(Path, String)> {
        self.loaded.lock().await.damaged.clone()
    }

    /// Looks, once, for chunks that no index object lists: an index object may have been lost without a trace.
    pub(super) async fn mend(&self) -> Result<()> {
        self.mended.get_or_try_init(|| self.index_unlisted_packs()).await.copied()
    }

    /// Reads the index objects that appeared since the last call.
    pub(super) async fn refresh(&self) -> Result<()> {
        let mut loaded = self.loaded.lock().await;
        let listed = self.store.list(layout::INDEX).await?;
        let fresh: Vec<Path> =
            listed.into_iter().map(|(path, _)| path).filter(|path| !loaded.seen.contains(path)).collect();
        let mut objects = stream::iter(fresh)
            .map(|path| async move {
                let object = self.store.get(&path).await;
                (path, object)
            })
            .buffer_unordered(PARALLEL);
        let mut damaged = false;
        while let Some((path, object)) = objects.next().await {
            match object.and_then(|object| index::decode(&self.index_key, &object)) {
                Ok(packs) => {
                    let mut index = index::write(&self.index);
                    for pack in &packs {
                        index.add(pack);
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                    damaged = true;
                    loaded.damaged.push((path.clone(), error.chain()));
                }
                Err(error) => return Err(error.during("load the index")),
            }
            loaded.seen.insert(path);
        }
        drop(objects);
        drop(loaded);
        if damaged { self.mend().await } else { Ok(()) }
    }

    /// Forgets packs that were lost, so that the run that begins stores their content again: this is how damage heals.
    pub(super) async fn forget_lost_packs(&self) -> Result<()> {
        let listed = self.store.list(layout::PACKS).await?;
        let present = listed.iter().filter_map(|(path, size)| Some((layout::hash_in(path)?, *size))).collect();
        index::write(&self.index).forget_missing(&present);
        Ok(())
    }

    /// Reads the tables of contents of packs that no readable index object lists.
    async fn index_unlisted_packs(&self) -> Result<()> {
        let packs = self.store.list(layout::PACKS).await?;
        let unlisted = packs.into_iter().filter_map(|(path, size)| {
            let hash = layout::hash_in(&path)?;
            (!index::read(&self.index).knows_pack(&hash)).then_some((path, hash, size))
        });
        let unlisted: Vec<_> = unlisted.collect();
        let contents = stream::iter(unlisted)
            .map(|(path, hash, size)| async move {
                match self.read_pack_contents(&path, hash, size).await {
                    // A pack that is damaged as well: `check` reports it.
                    Err(error) if error.kind() == ErrorKind::Damaged => Ok(None),
                    other => other.map(Some),
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<Option<PackInfo>>>()
            .await?;
        let mut index = index::write(&self.index);
        for pack in contents.iter().flatten() {
            index.add(pack);
        }
        Ok(())
    }

    async fn read_pack_contents(&self, path: &Path, hash: ObjectHash, size: u64) -> Result<PackInfo> {
        if size < (HEADER_BYTES + FOOTER_BYTES) as u64 {
            return Err(Error::new(ErrorKind::Damaged, "a pack is too short"));
        }
        let header = self.store.get_range(path, 0..HEADER_BYTES as u64).await?;
        let (session, class) = pack::read_header(&header)?;
        let end = size - FOOTER_BYTES as u64;
        let length = pack::read_footer(&self.store.get_range(path, end..size).await?, size)?;
        let sealed: Bytes = self.store.get_range(path, end - length..end).await?;
        let frames = end - length - HEADER_BYTES as u64;
        let entries = pack::read_contents(&self.index_key, &sealed, frames)?;
        Ok(PackInfo { hash, size, session, class, entries })
    }
}

impl fmt::Debug for IndexLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IndexLoader")
    }
}
