//! Checks a repository and says what damage hurts: the object, and the snapshots and artifacts that need it.
//!
//! Needs no private key: listings and content lists are readable by the machine that wrote them, and every object's
//! bytes are compared with the hash in its name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use backup_core::error::{ErrorKind, Result};
use backup_core::manifest::{ArtifactKind, ArtifactRecord, Manifest, SourceRecord};
use backup_core::sink::{CheckDepth, CheckReport, Damage, Hurt};
use backup_core::{RunContext, SnapshotId};
use futures::{StreamExt, stream};
use object_store::path::Path;

use super::content::{ChunkId, ContentList, Extent};
use super::layout::{self, ObjectHash};
use super::load::PARALLEL;
use super::read::{ExtentWalker, ListingReader};
use super::{Repository, index};

/// So many damaged files of a tree are named.
const NAMED_FILES: usize = 20;

pub(super) async fn check(
    repository: &Repository,
    cx: &RunContext,
    depth: CheckDepth,
    of: &[SnapshotId],
) -> Result<CheckReport> {
    repository.refresh_index().await?;
    let mut checker =
        Checker { repository, cx, report: CheckReport::default(), bad: HashMap::new(), hurts: BTreeMap::new() };
    checker.check_objects(depth).await?;
    for id in of {
        cx.check_cancelled()?;
        checker.check_snapshot(id).await?;
    }
    Ok(checker.finish(of))
}

struct Checker<'a> {
    repository: &'a Repository,
    cx: &'a RunContext,
    report: CheckReport,
    /// Packs that cannot be trusted, and why.
    bad: HashMap<ObjectHash, String>,
    /// What each damaged object hurts. Objects that are not packs are named by their path.
    hurts: BTreeMap<String, (String, BTreeSet<Hurt>)>,
}

impl Checker<'_> {
    /// Compares what lies in the store with what the index says, and at depth `Data` with the objects' names.
    async fn check_objects(&mut self, depth: CheckDepth) -> Result<()> {
        for (path, why) in &self.repository.loaded.lock().await.damaged {
            self.hurts.insert(
                path.to_string(),
                (format!("{why}; its packs were indexed anew from their own tables"), BTreeSet::new()),
            );
        }
        let listed = self.repository.store.list(layout::PACKS).await?;
        let present: HashMap<ObjectHash, u64> =
            listed.iter().filter_map(|(path, size)| Some((layout::hash_in(path)?, *size))).collect();
        for pack in index::read(&self.repository.index).packs() {
            match present.get(&pack.hash) {
                None => drop(self.bad.insert(pack.hash, "it is missing".to_owned())),
                Some(size) if *size != pack.size => {
                    drop(self.bad.insert(pack.hash, format!("it has {size} bytes where {} were written", pack.size)));
                }
                Some(_) => {}
            }
        }
        self.report.objects += present.len() as u64;
        let unknown = present.keys().filter(|hash| !index::read(&self.repository.index).knows_pack(hash)).count();
        if unknown > 0 {
            self.report.notes.push(format!(
                "{unknown} packs belong to no finished run: left by one that died, or one that is running"
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
                Some(hash) if path.as_ref().starts_with(layout::PACKS) => drop(self.bad.entry(hash).or_insert(problem)),
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
                self.hurt(
                    path,
                    error.chain(),
                    Hurt { snapshot: id.clone(), source: None, artifact: None, files: Vec::new() },
                );
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let manifest = match self.repository.open_manifest(&object).await {
            Ok(manifest) => manifest,
            Err(error) if error.kind() == ErrorKind::Damaged => {
                self.hurt(
                    path,
                    error.chain(),
                    Hurt { snapshot: id.clone(), source: None, artifact: None, files: Vec::new() },
                );
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.check_session_key(&object, id).await?;
        for source in &manifest.sources {
            for artifact in &source.artifacts {
                self.cx.check_cancelled()?;
                self.check_artifact(&manifest, source, artifact).await?;
            }
        }
        Ok(())
    }

    /// Without the session's key object, contents that this run stored are lost for good.
    async fn check_session_key(&mut self, object: &super::SnapshotObject, id: &SnapshotId) -> Result<()> {
        if !self.repository.is_encrypted() {
            return Ok(());
        }
        let path = layout::session_keys(object.summary.session()?);
        let problem = match self.repository.store.get(&path).await {
            Ok(wrapped) if wrapped.starts_with(b"age-encryption.org/v1\n") => {
                if !self.repository.sessions.can_read() {
                    return Ok(());
                }
                match crate::keys::unwrap(&self.repository.unlocked, &wrapped) {
                    Ok(_) => return Ok(()),
                    Err(error) => error.chain(),
                }
            }
            Ok(_) => "it is not a wrapped key".to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => "it is missing".to_owned(),
            Err(error) => return Err(error),
        };
        self.hurt(
            path.to_string(),
            problem,
            Hurt { snapshot: id.clone(), source: None, artifact: None, files: Vec::new() },
        );
        Ok(())
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
        if extent.chunk == ChunkId::HOLE {
            return false;
        }
        let located = {
            let index = index::read(&self.repository.index);
            index.get(&extent.chunk).map(|location| index.pack(location.pack).hash)
        };
        let (object, problem) = match located {
            None => (layout::INDEX.to_owned(), "no index object lists a chunk that is needed".to_owned()),
            Some(hash) => match self.bad.get(&hash) {
                None => return false,
                Some(problem) => (layout::pack(&hash).to_string(), problem.clone()),
            },
        };
        self.hurt(object, problem, hurt.clone());
        true
    }

    fn hurt(&mut self, object: String, problem: String, hurt: Hurt) {
        self.hurts.entry(object).or_insert_with(|| (problem, BTreeSet::new())).1.insert(hurt);
    }

    fn finish(mut self, of: &[SnapshotId]) -> CheckReport {
        for (hash, problem) in std::mem::take(&mut self.bad) {
            let object = layout::pack(&hash).to_string();
            self.hurts.entry(object).or_insert_with(|| (problem, BTreeSet::new()));
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
