//! Brings the index into memory, and mends it from the packs where index objects are damaged or missing.
//!
//! Invariant: an index object that is damaged, or was lost without a trace, hides no chunk: packs carry their own tables of
//! contents, and the next run lists in its own index object what only they told.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use tokio::sync::Mutex;

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
    /// Packs that no index object lists: the index has them from their own tables.
    unlisted: BTreeSet<ObjectHash>,
    /// Packs that no index object lists and whose own tables cannot be read.
    unreadable: BTreeSet<ObjectHash>,
    /// Whether packs were looked for that no index object lists, since the index objects were read last.
    mended: bool,
}

/// Fills the index of an open repository.
pub(super) struct IndexLoader {
    store: Store,
    index: SharedIndex,
    index_key: Key,
    loaded: Mutex<Loaded>,
}

impl IndexLoader {
    pub(super) fn new(store: Store, index: SharedIndex, index_key: Key) -> Self {
        Self { store, index, index_key, loaded: Mutex::default() }
    }

    /// Index objects that could not be used, and why.
    pub(super) async fn damaged(&self) -> Vec<(Path, String)> {
        self.loaded.lock().await.damaged.clone()
    }

    /// Looks for packs that no index object lists, once after each time that index objects were read.
    pub(super) async fn mend(&self) -> Result<()> {
        let mut loaded = self.loaded.lock().await;
        if loaded.mended {
            return Ok(());
        }
        let packs = self.packs().await?;
        self.index_unlisted(&mut loaded, &packs).await
    }

    /// The packs that no index object lists, as far as was looked.
    pub(super) async fn unlisted(&self) -> BTreeSet<ObjectHash> {
        let loaded = self.loaded.lock().await;
        loaded.unlisted.union(&loaded.unreadable).copied().collect()
    }

    async fn packs(&self) -> Result<HashMap<ObjectHash, u64>> {
        let listed = self.store.list(layout::PACKS).await?;
        Ok(listed.iter().filter_map(|(path, size)| Some((layout::hash_in(path)?, *size))).collect())
    }

    /// Makes the index fit for a run that begins: what only the packs' own tables tell is in it, and packs that were lost
    /// are forgotten, so that the run stores their content again: this is how damage heals. Returns what no index object
    /// lists, for the run's own.
    pub(super) async fn prepare(&self) -> Result<Vec<PackInfo>> {
        self.refresh().await?;
        let mut loaded = self.loaded.lock().await;
        let packs = self.packs().await?;
        self.index_unlisted(&mut loaded, &packs).await?;
        index::write(&self.index).forget(|pack| packs.get(&pack.hash) != Some(&pack.size));
        let unlisted = loaded.unlisted.iter().filter_map(|hash| Some((*hash, *packs.get(hash)?))).collect();
        drop(loaded);
        Ok(self.read_tables(unlisted).await?.into_iter().filter_map(|(_, pack)| pack).collect())
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
        let mut listed = Vec::new();
        while let Some((path, object)) = objects.next().await {
            match object.and_then(|object| index::decode(&self.index_key, &object)) {
                Ok(packs) => {
                    let mut index = index::write(&self.index);
                    for pack in &packs {
                        index.add(pack);
                        listed.push(pack.hash);
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
        for hash in &listed {
            loaded.unlisted.remove(hash);
            loaded.unreadable.remove(hash);
        }
        loaded.mended = false;
        drop(loaded);
        if damaged { self.mend().await } else { Ok(()) }
    }

    /// Reads the tables of contents of those of `packs` that no readable index object lists.
    async fn index_unlisted(&self, loaded: &mut Loaded, packs: &HashMap<ObjectHash, u64>) -> Result<()> {
        let unknown =
            |hash: &ObjectHash| !index::read(&self.index).knows_pack(hash) && !loaded.unreadable.contains(hash);
        let unlisted = packs.iter().filter(|(hash, _)| unknown(hash)).map(|(hash, size)| (*hash, *size)).collect();
        for (hash, pack) in self.read_tables(unlisted).await? {
            match pack {
                Some(pack) => {
                    index::write(&self.index).add(&pack);
                    loaded.unlisted.insert(hash);
                }
                // A pack that is damaged as well: `check` reports it.
                None => drop(loaded.unreadable.insert(hash)),
            }
        }
        loaded.mended = true;
        Ok(())
    }

    /// The tables of packs of these sizes; `None` for one that cannot be read.
    async fn read_tables(&self, packs: Vec<(ObjectHash, u64)>) -> Result<Vec<(ObjectHash, Option<PackInfo>)>> {
        stream::iter(packs)
            .map(|(hash, size)| async move {
                match self.read_pack_contents(&layout::pack(&hash), hash, size).await {
                    Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => Ok((hash, None)),
                    other => other.map(|pack| (hash, Some(pack))),
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
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
