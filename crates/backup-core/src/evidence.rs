//! Evidence: why we believe that a stream or a tree is complete. EOF alone is never evidence.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Proof that a process ended by itself with status zero.
///
/// It cannot be made from nothing: hosts obtain one through [`CleanExit::confirm`] from a reported status,
/// and `None` (killed, or "the runtime does not know") is a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanExit {
    program: String,
}

impl CleanExit {
    /// Judges how `program` ended. `code` is its exit status, `None` when it was killed or its status is unknown.
    /// `stderr_tail` is quoted in the error.
    ///
    /// # Errors
    /// [`ErrorKind::Tool`] unless the status is zero.
    pub fn confirm(program: impl Into<String>, code: Option<i32>, stderr_tail: &str) -> Result<Self> {
        let program = program.into();
        if code == Some(0) {
            return Ok(Self { program });
        }
        let how = match code {
            Some(code) => format!("`{program}` ended with status {code}"),
            None => format!("`{program}` was killed, or its status is unknown"),
        };
        let error = Error::new(ErrorKind::Tool, how);
        let tail = stderr_tail.trim();
        Err(if tail.is_empty() { error } else { error.caused_by(tail.to_owned()) })
    }

    /// The program that ended.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }
}

/// Why an artifact is complete. Recorded in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evidence {
    /// The producing process ended with status zero, and the format's own trailer, if it has one, was seen.
    Exit {
        /// The proof.
        exit: CleanExit,
        /// The trailer that was seen at the end of the stream, for formats that have one.
        trailer: Option<&'static str>,
    },
    /// The protocol or the format marked its end, and the marker was seen.
    EndMarker(&'static str),
    /// The producer announced the length beforehand; the writer checks it.
    ExactLength(u64),
    /// A tree was listed to its end. The writer checks the count.
    Listing {
        /// The number of entries that the producer handed over.
        entries: u64,
    },
}

/// How evidence is written in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EvidenceRecord {
    /// See [`Evidence::Exit`].
    Exit {
        /// The program that ended with status zero.
        program: String,
        /// The trailer that was seen.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trailer: Option<String>,
    },
    /// See [`Evidence::EndMarker`].
    EndMarker {
        /// The marker that was seen.
        marker: String,
    },
    /// See [`Evidence::ExactLength`].
    ExactLength {
        /// The length that was announced, in bytes.
        bytes: u64,
    },
    /// See [`Evidence::Listing`].
    Listing {
        /// The number of entries.
        entries: u64,
    },
}

impl From<&Evidence> for EvidenceRecord {
    fn from(evidence: &Evidence) -> Self {
        match evidence {
            Evidence::Exit { exit, trailer } => {
                Self::Exit { program: exit.program.clone(), trailer: trailer.map(str::to_owned) }
            }
            Evidence::EndMarker(marker) => Self::EndMarker { marker: (*marker).to_owned() },
            Evidence::ExactLength(bytes) => Self::ExactLength { bytes: *bytes },
            Evidence::Listing { entries } => Self::Listing { entries: *entries },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_status_zero_is_clean() {
        assert!(CleanExit::confirm("true", Some(0), "").is_ok());
        for code in [Some(1), Some(-1), Some(141), None] {
            assert!(CleanExit::confirm("x", code, "").is_err(), "{code:?}");
        }
        let error = CleanExit::confirm("pg_dump", Some(1), "no such table\n").unwrap_err();
        assert_eq!(error.chain(), "`pg_dump` ended with status 1: no such table");
    }
}
