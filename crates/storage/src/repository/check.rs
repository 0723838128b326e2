//! Checks a repository and says what damage hurts: the object, and the snapshots and artifacts that need it.
//!
//! Needs no private key: listings and content lists are readable by the machine that wrote them, and every object's
//! bytes are compared with the hash in its name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use backup_core::error::{ErrorKind, Result};
use backup_core::manifest::{ArtifactKind, ArtifactRecord, Manifest, SourceRecord};
use backup_core::sink::{CheckDepth, CheckReport, Damage, Hurt, Sink};
use backup_core::{RunContext, SnapshotId};
use futures::{StreamExt, stream};
use object_store::path::Path;

use super::content::{ChunkId, ContentList, Extent};
use super::crypto::SessionId;
use super::keyring::{Condition, Keyring};
use super::layout::{self, ObjectHash};
use super::load::PARALLEL;
use super::read::{ExtentWalker, ListingReader};
use super::{Repository, index};

mod page_maps;

/// So many damaged files of a tree are named.
const NAMED_FILES: usize = 20;

pub(super) async fn check(
    repository: &Repository,
    cx: &RunContext,
    depth: CheckDepth,
    of: &[SnapshotId],
) -> Result<CheckReport> {
    repository.loader.refresh().await?;
    repository.loader.mend().await?;
    let keyring = Keyring::list(&repository.store).await?;
    let mut checker = Checker {
        repository,
        cx,
        report: CheckReport::default(),
        keyring,
        unlisted: BTreeSet::new(),
        bad: HashMap::new(),
        lost_keys: BTreeMap::new(),
        hurts: BTreeMap::new(),
    };
    checker.check_objects(depth).await?;
    for id in of {
        cx.check_cancelled()?;
        checker.check_snapshot(id).await?;
    }
    // A damaged snapshot is not in any list, so nobody can ask for it: it is reported all the same.
    for unreadable in repository.unreadable().await? {
        let path = layout::snapshot(&unreadable.id).to_string();
        let hurt = Hurt::whole(unreadable.id);
        checker.hurt(path, unreadable.problem, hurt);
    }
    Ok(checker.finish(of))
}

/// An object and what is wrong with it.
#[derive(Debug, Clone)]
struct Blame {
    object: String,
    problem: String,
}

struct Checker<'a> {
    repository: &'a Repository,
    cx: &'a RunContext,
    report: CheckReport,
    keyring: Keyring,
    /// Packs that no index object lists.
    unlisted: BTreeSet<ObjectHash>,
    /// Packs that cannot be used: the object that is to blame, and why.
    bad: HashMap<ObjectHash, Blame>,
    /// Keys of which no copy can be used.
    lost_keys: BTreeMap<String, Blame>,
    /// What each damaged object hurts. Objects that are not packs are named by their path.
    hurts: BTreeMap<String, (String, BTreeSet<Hurt>)>,
}

impl Checker<'_> {
    /// Compares what lies in the store with what the index says, and at depth `Data` with the objects' names.
    async fn check_objects(&mut self, depth: CheckDepth) -> Result<()> {
        for (path, why) in &self.repository.loader.damaged().await {
            self.hurts.insert(
                path.to_string(),
                (format!("{why}; its packs were indexed anew from their own tables"), BTreeSet::new()),
            );
        }
        self.check_keys().await?;
        let listed = self.repository.store.list(layout::PACKS).await?;
        let present: HashMap<ObjectHash, u64> =
            listed.iter().filter_map(|(path, size)| Some((layout::hash_in(path)?, *size))).collect();
        self.unlisted = self.repository.loader.unlisted().await;
        self.check_session_keys();
        for pack in index::read(&self.repository.index).packs() {
            let problem = match present.get(&pack.hash) {
                None => "it is missing".to_owned(),
                Some(size) if *size != pack.size => format!("it has {size} bytes where {} were written", pack.size),
                Some(_) => continue,
            };
            self.bad.insert(pack.hash, Blame { object: layout::pack(&pack.hash).to_string(), problem });
        }
        self.report.objects += present.len() as u64;
        let unlisted = self.unlisted.len();
        if unlisted > 0 {
            self.report.notes.push(format!(
                "{unlisted} packs are in no index object: a run died, or is running, or an index object was lost; their own \
                 tables of contents serve, and the next backup lists them"
            ));
        }
        if depth == CheckDepth::Data {
            self.read_objects(listed).await?;
            let indexes = self.repository.store.list(layout::INDEX).await?;
            self.read_objects(indexes).await?;
        }
        Ok(())
    }

    /// Reads objects that are named by their hash, and compares.
    async fn read_objects(&mut self, objects: Vec<(Path, u64)>) -> Result<()> {
        let store = &self.repository.store;
        let mut reads = stream::iter(objects)
            .map(|(path, size)| async move {
                let read =
                    store.get(&path).await.map(|bytes| layout::hash_in(&path) == Some(layout::object_hash(&bytes)));
                (path, size, read)
            })
            .buffer_unordered(PARALLEL / 2);
        while let Some((path, size, read)) = reads.next().await {
            self.cx.check_cancelled()?;
            self.cx.progress(size, 1);
            self.report.bytes += size;
            let problem = match read {
                Ok(true) => continue,
                Ok(false) => "its bytes are not those that were written".to_owned(),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Damaged | ErrorKind::Io) => {
                    error.chain()
                }
                Err(error) => return Err(error),
            };
            match layout::hash_in(&path) {
                Some(hash) if path.as_ref().starts_with(layout::PACKS) => {
                    self.bad.entry(hash).or_insert(Blame { object: path.to_string(), problem });
                }
                _ => drop(self.hurts.entry(path.to_string()).or_insert((problem, BTreeSet::new()))),
            }
        }
        Ok(())
    }

    async fn check_snapshot(&mut self, id: &SnapshotId) -> Result<()> {
        self.report.objects += 1;
        let path = layout::snapshot(id).to_string();
        let object = match self.repository.snapshot_object(id).await {
            Ok(object) => object,
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                self.hurt(path, error.chain(), Hurt::whole(id.clone()));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Some(blame) = self.lost_session(object.summary.session()?) {
            let hurt = Hurt::whole(id.clone());
            self.hurt(blame.object, blame.problem, hurt);
            return Ok(());
        }
        let manifest = match self.repository.open_manifest(&object).await {
            Ok(manifest) => manifest,
            Err(error) if error.kind() == ErrorKind::Damaged => {
                self.hurt(path, error.chain(), Hurt::whole(id.clone()));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for source in &manifest.sources {
            for artifact in &source.artifacts {
                self.cx.check_cancelled()?;
                self.check_artifact(&manifest, source, artifact).await?;
                self.check_page_map(&manifest, source, artifact).await?;
            }
        }
        Ok(())
    }

    /// Without a session's key object, the contents that its run stored are lost for good, whoever refers to them.
    fn check_session_keys(&mut self) {
        let packs: Vec<_> = index::read(&self.repository.index).packs().to_vec();
        for pack in packs {
            if let Some(blame) = self.lost_session(pack.session) {
                self.bad.insert(pack.hash, blame);
            }
        }
    }

    /// Why nothing can be opened that a session sealed.
    fn lost_session(&self, session: SessionId) -> Option<Blame> {
        if !self.repository.is_encrypted() {
            return None;
        }
        let path = layout::session_keys(session);
        let unknown = || Blame { object: path.to_string(), problem: "it is missing".to_owned() };
        self.lost_keys.get(path.as_ref()).cloned().or_else(|| (!self.keyring.knows(&path)).then(unknown))
    }

    /// Looks at every wrapped key and its second copy. One of the two serves; without both, what is sealed is lost.
    async fn check_keys(&mut self) -> Result<()> {
        if !self.repository.is_encrypted() {
            return Ok(());
        }
        let mut expected: BTreeSet<Path> = self.keyring.paths().into_iter().cloned().collect();
        expected.insert(layout::repository_keys(&self.repository.id));
        let mut single = 0;
        for path in expected {
            self.cx.check_cancelled()?;
            let (problem, is_lost) = match self.keyring.inspect(&self.repository.store, &path).await? {
                Condition::Whole => (self.does_not_open(&path).await?, true),
                Condition::Single(_) => {
                    single += 1;
                    (self.does_not_open(&path).await?, true)
                }
                Condition::Another(_) => {
                    let problem = self.does_not_open(&path).await?;
                    if problem.is_none() {
                        self.report.notes.push(format!(
                            "the key object `{path}` was wrapped again by an earlier version, or is damaged (a private key tells \
                             which); its earlier copy is kept; `stackward key add` for any recipient, repeated, makes both one"
                        ));
                    }
                    let serves = |problem| {
                        format!(
                            "{problem}; its second copy is whole, and serves; `stackward key add` for any recipient, repeated, mends it"
                        )
                    };
                    (problem.map(serves), false)
                }
                // Then somebody removed them, and no backup goes on.
                Condition::Mendable { problem, .. } if self.keyring.is_empty() => (
                    Some(format!(
                        "{problem}, as all of `keys/` is; its second copy is whole: restore `keys/` from `key-copies/` by hand"
                    )),
                    false,
                ),
                // The copy is written first, before anything is sealed: a run that died in between left this.
                Condition::Mendable { .. } if self.keyring.lacks(&path) && self.is_of_no_use(&path) => {
                    self.report.notes.push(format!(
                        "the key object `{path}` is missing, and nothing was sealed with it: a run died as it began"
                    ));
                    continue;
                }
                Condition::Mendable { problem, .. } => {
                    (Some(format!("{problem}; its second copy is whole, and the next backup puts it back")), false)
                }
                Condition::Lost { problem } => (Some(problem), true),
            };
            let Some(problem) = problem else { continue };
            self.hurts.entry(path.to_string()).or_insert_with(|| (problem.clone(), BTreeSet::new()));
            if is_lost {
                self.lost_keys.insert(path.to_string(), Blame { object: path.to_string(), problem });
            }
        }
        let copies: Vec<_> = self.keyring.copies().collect();
        for (path, hash) in copies {
            self.cx.check_cancelled()?;
            let copy = self.repository.store.get(&path).await?;
            if layout::object_hash(&copy) != hash {
                self.hurts.insert(
                    path.to_string(),
                    ("its bytes are not those that were written".to_owned(), BTreeSet::new()),
                );
            }
        }
        if single > 0 {
            self.report.notes.push(format!("{single} keys have no second copy; the next backup makes it"));
        }
        Ok(())
    }

    /// Whether it is the key of a session that sealed no pack.
    fn is_of_no_use(&self, path: &Path) -> bool {
        let index = index::read(&self.repository.index);
        layout::is_session_keys(path) && !index.packs().iter().any(|pack| layout::session_keys(pack.session) == *path)
    }

    /// Why a private key at hand does not open a wrapped key.
    async fn does_not_open(&self, path: &Path) -> Result<Option<String>> {
        let is_passphrase = *path == layout::passphrase_identity(&self.repository.id);
        if !self.repository.sessions.can_read() || is_passphrase {
            return Ok(None);
        }
        let wrapped = self.repository.store.get(path).await?;
        Ok(crate::keys::unwrap(&self.repository.unlocked, &wrapped).err().map(|error| error.chain()))
    }

    async fn check_artifact(
        &mut self,
        manifest: &Manifest,
        source: &SourceRecord,
        artifact: &ArtifactRecord,
    ) -> Result<()> {
        let hurt = |files: Vec<String>| Hurt {
            snapshot: manifest.id.clone(),
            source: Some(source.name.clone()),
            artifact: Some(artifact.name.clone()),
            files,
        };
        let content = ContentList::from_record(&artifact.content)?;
        let checked = match artifact.kind {
            ArtifactKind::Stream => self.check_content(content, &hurt(Vec::new())).await.map(drop),
            ArtifactKind::Tree => self.check_tree(content, hurt).await,
        };
        match checked {
            Err(error) if error.kind() == ErrorKind::Damaged => {
                self.hurt(layout::snapshot(&manifest.id).to_string(), error.chain(), hurt(Vec::new()));
                Ok(())
            }
            other => other,
        }
    }

    async fn check_tree(&mut self, content: ContentList, hurt: impl Fn(Vec<String>) -> Hurt) -> Result<()> {
        // The listing itself first: when its chunks are damaged, all files are.
        if self.check_content(content.clone(), &hurt(Vec::new())).await? {
            return Ok(());
        }
        let mut listing = ListingReader::new(&self.repository.chunks, content);
        while let Some((entry, content)) = listing.next().await? {
            self.cx.check_cancelled()?;
            self.check_content(content, &hurt(vec![entry.path.to_string()])).await?;
        }
        Ok(())
    }

    /// Looks up every chunk of a content list; returns whether one was missing or in a bad pack.
    async fn check_content(&mut self, content: ContentList, hurt: &Hurt) -> Result<bool> {
        let mut damaged = false;
        if content.depth > 0 {
            for extent in &content.extents {
                damaged |= self.check_extent(extent, hurt);
            }
            if damaged {
                return Ok(true);
            }
        }
        let mut walker = ExtentWalker::new(&Arc::clone(&self.repository.chunks), content);
        while let Some(extent) = walker.next().await? {
            damaged |= self.check_extent(&extent, hurt);
        }
        Ok(damaged)
    }

    fn check_extent(&mut self, extent: &Extent, hurt: &Hurt) -> bool {
        let Some(Blame { object, problem }) = self.blame(extent) else { return false };
        self.hurt(object, problem, hurt.clone());
        true
    }

    /// The object because of which an extent cannot be read.
    fn blame(&self, extent: &Extent) -> Option<Blame> {
        if extent.chunk == ChunkId::HOLE {
            return None;
        }
        let index = index::read(&self.repository.index);
        let mut places = index.places(&extent.chunk).map(|place| self.bad.get(&index.pack(place.pack).hash));
        let Some(first) = places.next() else {
            let problem = "no index object lists a chunk that is needed".to_owned();
            return Some(Blame { object: layout::INDEX.to_owned(), problem });
        };
        // A chunk that is whole in another pack hurts nobody.
        first.filter(|_| places.all(|blame| blame.is_some())).cloned()
    }

    fn hurt(&mut self, object: String, problem: String, hurt: Hurt) {
        self.hurts.entry(object).or_insert_with(|| (problem, BTreeSet::new())).1.insert(hurt);
    }

    fn finish(mut self, of: &[SnapshotId]) -> CheckReport {
        for (pack, blame) in std::mem::take(&mut self.bad) {
            // A copy that was taken during a run may have packs whose keys came later: what nobody needs is not lost.
            if self.unlisted.contains(&pack) && !blame.object.starts_with(layout::PACKS) {
                continue;
            }
            self.hurts.entry(blame.object).or_insert_with(|| (blame.problem, BTreeSet::new()));
        }
        for (object, (problem, hurts)) in self.hurts {
            self.report.damage.push(Damage { object, problem, hurts: merge(hurts) });
        }
        if of.is_empty() {
            self.report.notes.push("no snapshot was looked at".to_owned());
        }
        self.report
    }
}

/// Gathers the damaged files of one artifact into one line.
fn merge(hurts: BTreeSet<Hurt>) -> Vec<Hurt> {
    let mut merged: Vec<Hurt> = Vec::new();
    for hurt in hurts {
        match merged.last_mut() {
            Some(last)
                if (&last.snapshot, &last.source, &last.artifact) == (&hurt.snapshot, &hurt.source, &hurt.artifact) =>
            {
                if last.files.len() < NAMED_FILES {
                    last.files.extend(hurt.files);
                }
            }
            _ => merged.push(hurt),
        }
    }
    merged
}
