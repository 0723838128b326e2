//! What a stretch of the log does to tablespaces, and the bytes of it that must not reach a server as they are.
//!
//! Invariant: the folder of another server is never in a log that a server replays: where a tablespace does not go to the very
//! folder that its record names, the record is edited in each segment before the server can see it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;

use crate::wal::{Edit, Record, SegmentSize, SpaceRecord, WalSegment};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogSpaces {
    /// With the positions of their records, in order.
    changes: Vec<(Lsn, SpaceRecord)>,
    /// The segments that were read, in order.
    pub(crate) read: Vec<WalSegment>,
    /// Records that begin before `from`, or at `reach` or later, are not replayed.
    from: Lsn,
    pub(crate) reach: Lsn,
}

impl Default for LogSpaces {
    fn default() -> Self {
        Self { changes: Vec::new(), read: Vec::new(), from: Lsn(0), reach: Lsn(u64::MAX) }
    }
}

/// A tablespace that is made on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MadeSpace {
    /// Of its record.
    pub(crate) at: Lsn,
    /// Its folder on the server.
    pub(crate) location: PathBuf,
}

/// What becomes of the tablespaces when a server has replayed the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Those that are made, also those that are dropped again.
    pub(crate) made: BTreeMap<u32, MadeSpace>,
    pub(crate) dropped: BTreeSet<u32>,
}

impl LogSpaces {
    /// A stretch before whose position `from` nothing is replayed.
    pub(crate) fn since(from: Lsn) -> Self {
        Self { from, ..Self::default() }
    }

    /// The stretch, of which it is known now what was read and what is replayed.
    pub(crate) fn over(self, read: Vec<WalSegment>, (from, reach): (Lsn, Lsn)) -> Self {
        Self { read, from, reach, ..self }
    }

    pub(crate) fn note(&mut self, record: &Record) {
        self.changes.extend(record.space.clone().map(|space| (record.start, space)));
    }

    /// Whether this segment was read, or that of another timeline which goes on from it.
    pub(crate) fn has_read(&self, segment: WalSegment) -> bool {
        self.read.iter().any(|read| (read.log, read.segment) == (segment.log, segment.segment))
    }

    fn is_replayed(&self, record: Lsn) -> bool {
        (self.from..self.reach).contains(&record)
    }

    /// Adds to `outcome` what comes of this stretch.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when a record cannot be understood: nobody can tell where its replay would write.
    pub(crate) fn play(&self, outcome: &mut Outcome) -> Result<()> {
        for (at, change) in self.changes.iter().filter(|(at, _)| self.is_replayed(*at)) {
            match change {
                SpaceRecord::Made { oid, location, .. } => {
                    if outcome.dropped.contains(oid) {
                        return Err(unknown(*at, "makes a tablespace with the number of one that was dropped"));
                    }
                    let made = MadeSpace { at: *at, location: location.clone() };
                    outcome.made.entry(*oid).or_insert(made);
                }
                SpaceRecord::Dropped { oid } => {
                    outcome.dropped.insert(*oid);
                }
                SpaceRecord::Unknown => return Err(unknown(*at, "does to a tablespace what is not known")),
            }
        }
        Ok(())
    }

    /// The edits without which a replay would go to folders of the server that wrote the log. `stays` says whether a
    /// tablespace goes to the folder that its record names. Records behind what is replayed are edited, too: whoever lets a
    /// server go on from there by hand shall not be led astray either.
    pub(crate) fn blanks(&self, size: SegmentSize, stays: impl Fn(u32, &Path) -> bool) -> Blanks {
        let mut blanks: BTreeMap<WalSegment, Vec<Edit>> = BTreeMap::new();
        for (at, change) in &self.changes {
            let SpaceRecord::Made { oid, location, edits } = change else { continue };
            if self.is_replayed(*at) && stays(*oid, location) {
                continue;
            }
            for edit in edits {
                let holds = |segment: &&WalSegment| segment.start(size) <= edit.at && edit.at < segment.end(size);
                // A record is known when all of its segments were read.
                if let Some(segment) = self.read.iter().find(holds) {
                    blanks.entry(*segment).or_default().push(edit.clone());
                }
            }
        }
        Blanks { size, edits: Arc::new(blanks) }
    }
}

/// Edits of segments, which are made before a server can see them.
#[derive(Debug, Clone)]
pub(crate) struct Blanks {
    size: SegmentSize,
    edits: Arc<BTreeMap<WalSegment, Vec<Edit>>>,
}

impl Blanks {
    /// The segments that are edited.
    pub(crate) fn segments(&self) -> impl Iterator<Item = WalSegment> {
        self.edits.keys().copied()
    }

    /// Edits the segment in the file at `path`, if there is anything to edit. Nobody else may see the file yet.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when it is not the segment that was read; those of reading and writing.
    pub(crate) fn apply(&self, segment: WalSegment, path: &Path) -> Result<()> {
        let Some(edits) = self.edits.get(&segment) else { return Ok(()) };
        let failed = |source| Error::io("cannot edit the segment of the log", path, source);
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        let start = segment.start(self.size);
        for Edit { at, old, new } in edits {
            let offset = at.0 - start.0;
            let mut there = vec![0; old.len()];
            file.read_exact_at(&mut there, offset).map_err(failed)?;
            if there != *old {
                let message =
                    format!("the segment {segment} of the log is not the one that was read: at {at} it differs");
                return Err(Error::new(ErrorKind::Damaged, message).hint("run the restore again"));
            }
            file.write_all_at(new, offset).map_err(failed)?;
        }
        Ok(())
    }
}

fn unknown(at: Lsn, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the record at {at} of the log {what}"))
        .hint("its replay could write to a folder of the server; recover to a moment before it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::End;

    fn stretch(changes: &[(u64, SpaceRecord)]) -> LogSpaces {
        let mut spaces = LogSpaces::since(Lsn(0x10_0000));
        for (at, change) in changes {
            let (space, pages) = (Some(change.clone()), Vec::new());
            spaces.note(&Record { start: Lsn(*at), end: Lsn(*at + 64), what: End::Nothing, space, pages });
        }
        spaces.reach = Lsn(0x30_0000);
        spaces
    }

    fn made(oid: u32, at: u64) -> (u64, SpaceRecord) {
        let edits = vec![Edit { at: Lsn(at + 20), old: vec![1], new: vec![2] }];
        (at, SpaceRecord::Made { oid, location: "/srv/a".into(), edits })
    }

    #[test]
    fn what_is_not_replayed_does_not_count_and_what_is_not_known_is_refused() {
        let dropped = |oid, at| (at, SpaceRecord::Dropped { oid });
        let play = |changes: &[(u64, SpaceRecord)]| {
            let mut outcome = Outcome::default();
            stretch(changes).play(&mut outcome).map(|()| outcome)
        };
        let outcome =
            play(&[made(1, 0x0F_FF00), made(2, 0x10_0000), dropped(2, 0x20_0000), made(3, 0x30_0000)]).unwrap();
        assert_eq!((outcome.made.into_keys().collect(), outcome.dropped), (vec![2], [2].into()));
        let again = [dropped(2, 0x20_0000), made(2, 0x20_0040)];
        for refused in [&again[..], &[(0x20_0000, SpaceRecord::Unknown)]] {
            let error = play(refused).unwrap_err();
            assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("0/2000"), "{error:?}");
        }
        assert_eq!(play(&[(0x30_0000, SpaceRecord::Unknown)]).unwrap(), Outcome::default());
    }

    #[test]
    fn an_edit_is_made_in_its_segment_and_only_when_that_is_the_one_that_was_read() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let [one, two] = [1, 2].map(|number| WalSegment::numbered(1, number, size));
        let mut spaces = stretch(&[made(1, 0x10_0100), made(2, 0x20_0200), made(3, 0x20_0300), made(4, 0x30_0000)]);
        spaces.read = vec![one, two, WalSegment::numbered(1, 3, size)];
        let blanks = spaces.blanks(size, |oid, _| oid >= 3);
        assert_eq!(blanks.segments().count(), 3, "what lies behind the moment is edited, wherever it goes");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        blanks.apply(WalSegment::numbered(2, 2, size), &path).unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 1), "another timeline's");
        blanks.apply(two, &path).unwrap();
        let edited: Vec<usize> = std::fs::read(&path)
            .unwrap()
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == 2)
            .map(|(at, _)| at)
            .collect();
        assert_eq!(edited, [0x214], "the third goes to where it was");
        let error = blanks.apply(two, &path).unwrap_err();
        assert!(error.kind() == ErrorKind::Damaged && error.to_string().contains(&two.to_string()), "{error:?}");
    }
}
