//! The tablespaces of a recovery: those that the base backup has, and those that the log makes and drops on the way; known before
//! the first byte is written.
//!
//! Invariant: no record of the log that a server will see leads to the folder of another server. What the archive has was walked
//! to find the way; what the base backup brings in `pg_wal` is walked here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use backup_core::sink::{FileContent, Piece};
use backup_core::{BackupReader, RunContext};

use super::inventory::Inventory;
use super::layout::Layout;
use super::{Physical, PhysicalDetails};
use crate::recovery::{Blanks, LogSpaces, Outcome, Way};
use crate::tools::PgVersion;
use crate::wal::{SegmentSize, WalSegment, Walker};

/// Holes of files are walked in pieces of this size.
const ZEROES: &[u8] = &[0; 64 * 1024];
/// Since these versions (2022-08-11), a record without a path makes a tablespace where its link leads to ("Support in-place
/// tablespaces", release notes of 14.5 and 13.8); servers from before stop at it.
const FOLLOWS_LINKS: [(u32, u32); 2] = [(13, 8), (14, 5)];

/// Where a tablespace comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    BaseBackup,
    /// The record of the log that makes it.
    Log(Lsn),
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) oid: u32,
    /// Its folder on the server.
    pub(super) location: PathBuf,
    pub(super) origin: Origin,
    /// Whether the log drops it before the recovery ends.
    pub(super) dropped: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Spaces {
    pub(super) list: Vec<Space>,
    size: SegmentSize,
    /// What the base backup brings of the log, and what the archive has.
    brought: Vec<LogSpaces>,
    archived: LogSpaces,
}

impl Spaces {
    /// Of what the base backup brings, and of the way behind it.
    fn new(details: &PhysicalDetails, way: Option<&Way>, brought: Vec<LogSpaces>) -> Result<Self> {
        let archived = way.map(|way| way.spaces.clone()).unwrap_or_default();
        let mut outcome = Outcome::default();
        brought.iter().chain([&archived]).try_for_each(|stretch| stretch.play(&mut outcome))?;
        let dropped = |oid: u32| outcome.dropped.contains(&oid);
        let saved = details.tablespaces.iter().map(|space| Space {
            oid: space.oid,
            location: PathBuf::from(&space.location),
            origin: Origin::BaseBackup,
            dropped: dropped(space.oid),
        });
        let mut list: Vec<Space> = saved.collect();
        for (oid, made) in outcome.made {
            if list.iter().all(|space| space.oid != oid) {
                let origin = Origin::Log(made.at);
                list.push(Space { oid, location: made.location, origin, dropped: outcome.dropped.contains(&oid) });
            }
        }
        Ok(Self { list, size: SegmentSize::new(details.wal_segment_size)?, brought, archived })
    }

    /// What must be edited in the segments that the base backup brings, and in those of the archive, when the cluster is laid
    /// out so.
    pub(super) fn blanks(&self, layout: &Layout) -> (Vec<Blanks>, Blanks) {
        let stays = |oid: u32, location: &Path| layout.tablespaces.get(&oid).is_some_and(|folder| folder == location);
        let brought = self.brought.iter().map(|stretch| stretch.blanks(self.size, stays)).collect();
        (brought, self.archived.blanks(self.size, stays))
    }

    /// Whether a server has to make a tablespace by its link only.
    pub(super) fn needs_links(&self, layout: &Layout) -> bool {
        let elsewhere = |space: &&Space| layout.tablespaces.get(&space.oid) != Some(&space.location);
        let made = |space: &&Space| matches!(space.origin, Origin::Log(_));
        self.list.iter().any(|space| made(&space) && elsewhere(&space))
    }

    /// What is done about those that the base backup does not have, for people.
    pub(super) fn steps(&self, layout: &Layout) -> impl Iterator<Item = String> {
        self.list.iter().filter_map(|space| {
            let Origin::Log(at) = space.origin else { return None };
            let was = space.location.display();
            Some(match layout.tablespaces.get(&space.oid) {
                Some(folder) => {
                    let to = folder.display();
                    format!("make the tablespace {} in {to}: the log makes it at {at}; on the server it was in {was}", space.oid)
                }
                None => format!("keep the tablespace {} inside of the data directory: the log makes it at {at}, in {was} on the server, and drops it again", space.oid),
            })
        })
    }
}

/// Looks whether a server of this version can make tablespaces where their links lead to.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when it would stop there.
pub(super) fn refuse_old(version: PgVersion) -> Result<()> {
    if follows_links(version) {
        return Ok(());
    }
    let message =
        format!("the log makes a tablespace, and PostgreSQL {version} can only make it in the folder of the server");
    Err(Error::new(ErrorKind::Unsupported, message).hint(format!(
        "install the newest release of PostgreSQL {} here; or recover to a moment before",
        version.major()
    )))
}

/// Whether a server of this version makes a tablespace where its link leads to, when the record has no path.
pub(super) fn follows_links(version: PgVersion) -> bool {
    let since = FOLLOWS_LINKS.iter().find(|(major, _)| *major == version.major());
    since.is_none_or(|(_, minor)| version.0 % 10_000 >= *minor)
}

impl Physical {
    /// All that a recovery along `way` has to do with.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when the log that the base backup brings is not whole; [`ErrorKind::Incomplete`] when what lies
    /// between it and the archive cannot be told; [`ErrorKind::Unsupported`] as [`LogSpaces::play`].
    pub(super) async fn spaces(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &PhysicalDetails,
        inventory: &mut Inventory,
        way: Option<&Way>,
    ) -> Result<Spaces> {
        let id = &from.manifest().id;
        let log = inventory.take_log();
        let mut brought = self.brought(id);
        if brought.is_none() {
            cx.step("checking the log that the base backup brings");
            let walked = walk(cx, details, log).await?;
            self.remember_brought(id, &walked);
            brought = Some(walked);
        }
        let Brought { mut stretches, breaks_off } = brought.unwrap_or_default();
        if let Some(way) = way {
            if let Some(segment) = breaks_off.filter(|segment| !way.spaces.has_read(*segment)) {
                let message =
                    format!("the log that the base backup brings breaks off in {segment}, which is not in the archive");
                return Err(Error::new(ErrorKind::Incomplete, message)
                    .hint("if the server still has it in pg_wal, archive it with `stackward wal push`"));
            }
            for stretch in &mut stretches {
                stretch.reach = way.spaces.reach;
            }
        }
        Spaces::new(details, way, stretches)
    }
}

/// What the base backup brings of the log.
#[derive(Debug, Clone, Default)]
pub(super) struct Brought {
    stretches: Vec<LogSpaces>,
    /// The last segment, when a record may go on behind it that makes a tablespace.
    breaks_off: Option<WalSegment>,
}

/// Walks through the segments that the tree has, timeline by timeline.
async fn walk(
    cx: &RunContext,
    details: &PhysicalDetails,
    log: BTreeMap<WalSegment, Box<dyn FileContent>>,
) -> Result<Brought> {
    let size = SegmentSize::new(details.wal_segment_size)?;
    let system = details.system_identifier.parse().unwrap_or_default();
    let mut brought = Brought::default();
    let mut going: Option<Walker> = None;
    for (segment, content) in log {
        let goes_on = brought
            .stretches
            .last()
            .and_then(|stretch| stretch.read.last())
            .is_some_and(|last| last.next(size) == segment);
        let mut walker = going.take().filter(|_| goes_on).unwrap_or_else(|| {
            brought.stretches.push(LogSpaces::since(details.start_lsn));
            Walker::new(segment.start(size), size, system)
        });
        let Some(stretch) = brought.stretches.last_mut() else { continue };
        stretch.read.push(segment);
        let mut pieces = content.open().await?;
        while let Some(piece) = cx.unless_cancelled(pieces.next()).await? {
            match piece {
                Piece::Data(data) => walker.push(&data, &mut |record| stretch.note(record)),
                Piece::Hole(mut left) => {
                    while left > 0 && walker.fault().is_none() {
                        let count = left.min(ZEROES.len() as u64);
                        walker.push(&ZEROES[..count as usize], &mut |record| stretch.note(record));
                        left -= count;
                    }
                }
            }
            // What a server did not write yet is no record, and nothing comes behind it.
            if walker.fault().is_some() {
                break;
            }
        }
        if let Some(fault) =
            walker.fault().filter(|fault| segment.timeline == details.timeline && fault.at < details.stop_lsn)
        {
            let message = format!(
                "the segment {segment}, which the base backup brings, is damaged: at {} {}",
                fault.at, fault.why
            );
            return Err(
                Error::new(ErrorKind::Damaged, message).hint("choose another snapshot, and run `stackward verify`")
            );
        }
        if segment.timeline == details.timeline {
            brought.breaks_off = walker.ends_within_space().then_some(segment);
        }
        going = Some(walker).filter(|walker| walker.fault().is_none());
    }
    Ok(brought)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(oid: u32, location: &str, origin: Origin, dropped: bool) -> Space {
        Space { oid, location: location.into(), origin, dropped }
    }

    fn spaces(list: Vec<Space>) -> Spaces {
        let (brought, archived) = (Vec::new(), LogSpaces::default());
        Spaces { list, size: SegmentSize::new(1 << 20).unwrap(), brought, archived }
    }

    #[test]
    fn one_that_is_dropped_makes_room_for_the_next_in_its_folder() {
        let log = Origin::Log(Lsn(0x30_0028));
        let (first, second) = (space(1, "/srv/a", Origin::BaseBackup, true), space(2, "/srv/a", log, true));
        let (third, other) = (space(3, "/srv/a", log, false), space(4, "/srv/b", Origin::BaseBackup, true));
        let all = spaces(vec![first, second, third, other]);
        let layout = Layout::original("/data".into(), &all).relocate(&BTreeMap::new(), &all).unwrap();
        let places: Vec<(u32, &Path)> = layout.tablespaces.iter().map(|(oid, place)| (*oid, place.as_path())).collect();
        assert_eq!(places, [(3, Path::new("/srv/a")), (4, Path::new("/srv/b"))]);
        assert_eq!((&layout.passing, &layout.made), (&[1, 2].into(), &[2, 3].into()));
        let map = String::from_utf8(layout.map()).unwrap();
        assert_eq!(map, "4 /srv/b\n1 ../pg_wal/stackward/passing/1\n", "what the base backup has");
        assert!(all.needs_links(&layout), "the second is made elsewhere");
        // Beside the server, all that the base backup has keeps a folder of its own.
        let layout = Layout::below(Path::new("/new"), &all);
        assert_eq!((layout.tablespaces.keys().copied().collect(), layout.passing), (vec![1, 3, 4], [2].into()));
        let told: Vec<String> = all.steps(&Layout::below(Path::new("/new"), &all)).collect();
        assert!(told[0].contains("in /srv/a") && told[0].contains("drops it again"), "{told:?}");
        assert!(told[1].contains("in /new/tablespaces/3: the log makes it at 0/300028"), "{told:?}");
        let in_place = spaces(vec![space(3, "/srv/a", log, false)]);
        assert!(!in_place.needs_links(&Layout::original("/data".into(), &in_place)), "its record says the very place");
    }

    #[test]
    fn servers_that_would_stop_at_a_record_without_a_path_are_refused() {
        for (version, follows) in
            [((13, 7), false), ((13, 8), true), ((14, 4), false), ((14, 5), true), ((15, 0), true), ((18, 1), true)]
        {
            let version = PgVersion::new(version.0, version.1);
            assert_eq!((follows_links(version), refuse_old(version).is_ok()), (follows, follows), "{version}");
        }
        let error = refuse_old(PgVersion::new(14, 4)).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("14.4"), "{error:?}");
    }
}
