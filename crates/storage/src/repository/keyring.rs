//! Key objects: each lies in two places, and the name of the second copy tells what the bytes of both are.
//!
//! Invariants: the copy is durable before the key, so a key that is there can be checked by who cannot open it; a run relies
//! only on keys that are there and whole; a copy for those who may not read any more is deleted when the key was replaced, and
//! never put back over a key that was wrapped again by who knows no copies.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;

use super::crypto::SessionId;
use super::layout::{self, ObjectHash, object_hash};
use super::store::{Store, Updated, Versioned};
use wrapped::Wrapped;

mod wrapped;

/// Keys that are read at the same time.
const PARALLEL: usize = 32;

/// Which key objects there are, and which second copies.
#[derive(Debug, Default)]
pub(super) struct Keyring {
    keys: BTreeSet<Path>,
    copies: BTreeMap<Path, Vec<ObjectHash>>,
}

/// What is known of a key without opening it.
#[derive(Debug)]
pub(super) enum Condition {
    /// It is what was written.
    Whole,
    /// It has no second copy to compare it with: it was made before there were such copies.
    Single(Bytes),
    /// It has nothing in common with its second copy, which is whole: an earlier version, which makes no copies, wrapped it
    /// again, for others maybe.
    Another(Bytes),
    /// It is missing, or not what was written; its second copy is whole.
    Mendable { problem: String, copy: Bytes },
    /// It is missing, or not what was written, and there is no whole copy of it.
    Lost { problem: String },
}

impl Keyring {
    /// Looks which there are.
    pub(super) async fn list(store: &Store) -> Result<Self> {
        let keys = store.list(layout::KEYS).await?.into_iter().map(|(path, _)| path).collect();
        let mut copies = BTreeMap::<Path, Vec<ObjectHash>>::new();
        for (path, _) in store.list(layout::KEY_COPIES).await? {
            if let Some((key, hash)) = layout::key_of_copy(&path) {
                copies.entry(key).or_default().push(hash);
            }
        }
        Ok(Self { keys, copies })
    }

    /// Whether there is a key of this name, or a copy of one.
    pub(super) fn knows(&self, key: &Path) -> bool {
        self.keys.contains(key) || self.copies.contains_key(key)
    }

    /// Whether there is no key of this name, whatever copies there are.
    pub(super) fn lacks(&self, key: &Path) -> bool {
        !self.keys.contains(key)
    }

    /// Whether there is no key at all.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The paths of all keys, also of those of which only the copy is left.
    pub(super) fn paths(&self) -> BTreeSet<&Path> {
        self.keys.iter().chain(self.copies.keys()).collect()
    }

    /// The paths of all second copies, and the hashes in their names.
    pub(super) fn copies(&self) -> impl Iterator<Item = (Path, ObjectHash)> {
        self.copies.iter().flat_map(|(key, hashes)| hashes.iter().map(|hash| (layout::key_copy(key, hash), *hash)))
    }

    fn hashes(&self, key: &Path) -> &[ObjectHash] {
        self.copies.get(key).map_or(&[], Vec::as_slice)
    }

    /// Reads a key and compares it with the names of its copies.
    pub(super) async fn inspect(&self, store: &Store, key: &Path) -> Result<Condition> {
        let found = match store.get(key).await {
            Ok(found) => Some(found),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let hashes = self.hashes(key);
        let form = found.as_deref().and_then(Wrapped::parse);
        let problem = match (&found, &form) {
            (Some(found), _) if hashes.contains(&object_hash(found)) => return Ok(Condition::Whole),
            (Some(_), None) => "it is not a wrapped key",
            (Some(found), Some(_)) if hashes.is_empty() => return Ok(Condition::Single(found.clone())),
            (Some(_), Some(_)) => "its bytes are not those that were written",
            (None, _) => "it is missing",
        };
        let problem = problem.to_owned();
        let copies = self.whole_copies(store, key).await?;
        let is_another = |form: &Wrapped<'_>| {
            copies.iter().filter_map(|copy| Wrapped::parse(copy)).all(|copy| form.is_another_than(&copy))
        };
        Ok(match (copies.first(), found.as_ref().filter(|_| form.as_ref().is_some_and(is_another))) {
            (Some(_), Some(found)) => Condition::Another(found.clone()),
            (Some(copy), None) => Condition::Mendable { problem, copy: copy.clone() },
            (None, _) => Condition::Lost { problem },
        })
    }

    /// The copies of a key that are what their names say.
    async fn whole_copies(&self, store: &Store, key: &Path) -> Result<Vec<Bytes>> {
        let mut whole = Vec::new();
        for hash in self.hashes(key) {
            match store.get(&layout::key_copy(key, hash)).await {
                Ok(copy) if object_hash(&copy) == *hash => whole.push(copy),
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(whole)
    }

    /// Makes a key whole, and its copy, as far as that can be done without opening it. Returns the problem of one that is
    /// lost.
    pub(super) async fn mend(&self, store: &Store, key: &Path) -> Result<Option<String>> {
        match self.inspect(store, key).await? {
            Condition::Whole => self.delete_replaced(store, key).await.map(|()| None),
            // Whoever the copy is for, the key may be for others. Only who can open it can tell whether it is whole.
            Condition::Another(_) => Ok(None),
            Condition::Single(found) => make_copy(store, key, found).await.map(|()| None),
            Condition::Mendable { copy, .. } => store.replace(key, copy).await.map(|()| None),
            Condition::Lost { problem } => Ok(Some(problem)),
        }
    }

    /// Mends every key, and those of `sessions`. Returns those of `sessions` that are lost.
    pub(super) async fn mend_all(
        &self,
        store: &Store,
        sessions: impl IntoIterator<Item = SessionId>,
    ) -> Result<BTreeSet<SessionId>> {
        let needed: BTreeMap<Path, SessionId> =
            sessions.into_iter().map(|session| (layout::session_keys(session), session)).collect();
        let all: BTreeSet<Path> = self.paths().into_iter().chain(needed.keys()).cloned().collect();
        let looked_at = stream::iter(all)
            .map(|path| async move { Ok::<_, Error>(self.mend(store, &path).await?.map(|_| path)) })
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<_>>();
        Ok(looked_at.await?.into_iter().flatten().filter_map(|lost| needed.get(&lost).copied()).collect())
    }

    /// Deletes what a change that died left: copies that are not of the key.
    async fn delete_replaced(&self, store: &Store, key: &Path) -> Result<()> {
        if self.hashes(key).len() < 2 {
            return Ok(());
        }
        // Somebody may replace it at this moment.
        let found = store.get(key).await?;
        if !self.hashes(key).contains(&object_hash(&found))
            || !store.exists(&layout::key_copy(key, &object_hash(&found))).await?
        {
            return Ok(());
        }
        self.delete_copies(store, key, &found).await
    }

    /// Whether a key is wrapped for so many, and has no copy but its own: what a change that died leaves has not.
    pub(super) fn is_settled(&self, key: &Path, wrapped: &[u8], recipients: usize) -> bool {
        Wrapped::parse(wrapped).is_some_and(|wrapped| wrapped.public_keys() == recipients)
            && self.hashes(key) == [object_hash(wrapped)]
    }

    /// Deletes the copies of a key that this ring knows, but for that of `kept`.
    pub(super) async fn delete_copies(&self, store: &Store, key: &Path, kept: &[u8]) -> Result<()> {
        let kept = object_hash(kept);
        for hash in self.hashes(key).iter().filter(|hash| **hash != kept) {
            delete_copy(store, key, hash).await?;
        }
        Ok(())
    }
}

/// Deletes one copy of a key.
pub(super) async fn delete_copy(store: &Store, key: &Path, hash: &ObjectHash) -> Result<()> {
    match store.delete(&layout::key_copy(key, hash)).await {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn make_copy(store: &Store, key: &Path, wrapped: Bytes) -> Result<()> {
    store.create_hashed(&layout::key_copy(key, &object_hash(&wrapped)), wrapped).await
}

/// Makes a new key object.
pub(super) async fn create(store: &Store, key: &Path, wrapped: Bytes) -> Result<()> {
    make_copy(store, key, wrapped.clone()).await?;
    store.create(key, wrapped).await
}

/// Replaces a key that was read as `from`; `None` when it was missing. Copies of what it was are left.
pub(super) async fn replace(store: &Store, key: &Path, from: Option<&Versioned>, wrapped: Bytes) -> Result<Updated> {
    make_copy(store, key, wrapped.clone()).await?;
    match from {
        Some(from) => store.update(key, from, wrapped).await,
        None => store.replace(key, wrapped).await.map(|()| Updated::Done),
    }
}

/// Reads a key with `open`: the object itself or, when that is missing or does not open, its second copy. That is for those
/// alone whom `config` names (`is_named`): a copy may be older than a change of recipients.
///
/// # Errors
/// What opening the object itself failed with, when no copy opens either. For who is named no key is wrong, but damaged.
pub(super) async fn open<T>(store: &Store, key: &Path, is_named: bool, open: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    let found = store.get(key).await;
    let first = match &found {
        Ok(found) => match open(found) {
            Ok(opened) => return Ok(opened),
            Err(error) if error.kind() == ErrorKind::WrongKey && is_named => {
                let message = "a wrapped key does not open with the private key of a recipient: it is damaged, or was not \
                               wrapped again when that recipient was added";
                Error::new(ErrorKind::Damaged, message).caused_by(error).with("object", key).hint(
                    "restore `keys/` from a copy of the repository, or run `stackward key add` again with a private key that opens it",
                )
            }
            // Which key object it is does not matter to who has the wrong key.
            Err(error) if error.kind() == ErrorKind::WrongKey => error,
            Err(error) => error.with("object", key),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Error::new(ErrorKind::Damaged, format!("the key object `{key}` is missing"))
        }
        Err(_) => return Err(found.err().unwrap_or_else(|| Error::new(ErrorKind::Internal, "a read did not end"))),
    };
    if !is_named {
        return Err(first);
    }
    let copies = Keyring::list(store).await?.whole_copies(store, key).await?;
    let mut others = copies.iter().filter(|copy| found.as_ref().is_ok_and(|found| found != *copy) || found.is_err());
    others.find_map(|copy| open(copy).ok()).ok_or(first)
}
