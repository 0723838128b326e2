//! Notes beside a log: short texts of those who archive (whose log it is, which gap is known), one object each, in a box under
//! the index key. Readers of segments never meet them: they lie apart, under `log-notes/`.
//!
//! Invariant: a note vouches for its source and its name, and is never replaced.

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{SegmentName, SourceName};
use serde::{Deserialize, Serialize};

use crate::repository::crypto::{BoxKind, Key, open_box, seal_box};

#[derive(Serialize, Deserialize)]
struct Note {
    source: SourceName,
    name: SegmentName,
    text: String,
}

pub(super) fn seal(index_key: &Key, source: &SourceName, name: &SegmentName, text: &str) -> Result<Vec<u8>> {
    let note = Note { source: source.clone(), name: name.clone(), text: text.to_owned() };
    let json = serde_json::to_vec(&note)
        .map_err(|error| Error::new(ErrorKind::Internal, "cannot write a note").caused_by(error))?;
    seal_box(index_key, BoxKind::Note, &json)
}

/// # Errors
/// [`ErrorKind::Damaged`] when it is not what was written, or another note.
pub(super) fn open(index_key: &Key, source: &SourceName, name: &SegmentName, sealed: &[u8]) -> Result<String> {
    let json = open_box(index_key, BoxKind::Note, sealed)?;
    let note: Note = serde_json::from_slice(&json)
        .map_err(|error| Error::new(ErrorKind::Damaged, "a note is not readable").caused_by(error))?;
    if note.source != *source || note.name != *name {
        return Err(Error::new(ErrorKind::Damaged, "a note is another one's"));
    }
    Ok(note.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::crypto::random_key;

    #[test]
    fn a_note_opens_under_its_own_name() {
        let key = random_key().unwrap();
        let (db, other) = (SourceName::new("db").unwrap(), SourceName::new("other").unwrap());
        let (name, wrong) = (SegmentName::new("owner").unwrap(), SegmentName::new("gap-1").unwrap());
        let sealed = seal(&key, &db, &name, "text").unwrap();
        assert_eq!(open(&key, &db, &name, &sealed).unwrap(), "text");
        assert!(open(&key, &other, &name, &sealed).is_err() && open(&key, &db, &wrong, &sealed).is_err());
        assert!(open(&random_key().unwrap(), &db, &name, &sealed).is_err());
    }
}
