//! Brings the index into memory, and mends it from the packs when an index object is damaged.
//!
//! Invariant: a damaged index object never hides a chunk for good: packs carry their own tables of contents.

use std::collections::BTreeSet;

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;

use super::layout::{self, ObjectHash};
use super::pack::{self, FOOTER_BYTES, HEADER_BYTES, PackInfo};
use super::{Repository, index};

/// Requests at the same time.
pub(super) const PARALLEL: usize = 8;

/// Which index objects were read.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    seen: BTreeSet<Path>,
    /// Index objects that could not be used, and why.
    pub(super) damaged: Vec<(Path, String)>,
}

impl Repository {
    /// Reads the index objects that appeared since the last call.
    pub(super) async fn refresh_index(&self) -> Result<()> {
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
                    packs.iter().for_each(|pack| index.add(pack));
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
        if damaged { self.index_unlisted_packs().await } else { Ok(()) }
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
        contents.iter().flatten().for_each(|pack| index.add(pack));
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
