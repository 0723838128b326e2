//! Checks page maps: damage to one costs the next run storing pages again, and hurts no artifact.

use std::sync::Arc;

use backup_core::error::{ErrorKind, Result};
use backup_core::manifest::{ArtifactRecord, Content, Manifest, SourceRecord};

use super::Checker;
use crate::repository::content::ContentList;
use crate::repository::page_map::Hashes;
use crate::repository::read::{ExtentWalker, MapReader};

impl Checker<'_> {
    /// Looks at the page map of an artifact, when it has one. What is wrong with it is a note.
    pub(super) async fn check_page_map(
        &mut self,
        manifest: &Manifest,
        source: &SourceRecord,
        artifact: &ArtifactRecord,
    ) -> Result<()> {
        let Some(map) = &artifact.page_map else { return Ok(()) };
        self.report.objects += 1;
        let problem = match self.is_map_whole(map).await {
            Ok(true) => return Ok(()),
            Ok(false) => "some of it is missing or damaged".to_owned(),
            Err(error) if error.kind() == ErrorKind::Damaged => error.chain(),
            Err(error) => return Err(error),
        };
        self.report.notes.push(format!(
            "the page map of `{}` of `{}` in {} cannot be used: {problem}; nothing is lost, the next run stores more",
            artifact.name, source.name, manifest.id
        ));
        Ok(())
    }

    async fn is_map_whole(&self, map: &Content) -> Result<bool> {
        let content = ContentList::from_record(map)?;
        if !self.is_whole(content.clone()).await? {
            return Ok(false);
        }
        let (_, mut maps) = MapReader::open(&self.repository.chunks, content).await?;
        while let Some((_, map)) = maps.next().await? {
            self.cx.check_cancelled()?;
            if let Hashes::Listed(hashes) = map.hashes
                && !self.is_whole(hashes).await?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether every chunk of a content is there, in a pack that is whole.
    async fn is_whole(&self, content: ContentList) -> Result<bool> {
        if content.depth > 0 && content.extents.iter().any(|extent| self.blame(extent).is_some()) {
            return Ok(false);
        }
        let mut walker = ExtentWalker::new(&Arc::clone(&self.repository.chunks), content);
        while let Some(extent) = walker.next().await? {
            if self.blame(&extent).is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
