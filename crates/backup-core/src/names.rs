//! The identities: names and ids that are checked once, where they enter, and trusted afterwards.
//!
//! Invariant: a value of one of these types is safe as a path component (or, for [`ArtifactName`], as a relative path).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path, $pattern:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps.
            ///
            /// # Errors
            /// [`ErrorKind::Usage`] when the text is not of the form that the type documents.
            pub fn new(text: impl Into<String>) -> Result<Self> {
                let text = text.into();
                match $check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(why) => Err(Error::new(ErrorKind::Usage, format!("`{}` is not a valid {}: {why}", text.escape_debug(), $what))),
                }
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}

name_type!(
    /// The name of a source in a plan: up to 63 of `a-z`, `0-9`, `-`, `_`, `.`, starting with a letter or a digit.
    SourceName, "source name", check_plain, "^[a-z0-9][a-z0-9._-]{0,62}$"
);
name_type!(
    /// The name of a plan, of the same form as [`SourceName`].
    PlanName, "plan name", check_plain, "^[a-z0-9][a-z0-9._-]{0,62}$"
);
name_type!(
    /// The name of an artifact within its source: a relative path of components made of
    /// `A-Z a-z 0-9 . _ - % + @`, up to 512 bytes. Build one from foreign text with [`ArtifactName::escape`].
    ArtifactName, "artifact name", check_artifact, "^[A-Za-z0-9._%+@-]+(/[A-Za-z0-9._%+@-]+)*$"
);
name_type!(
    /// The id of a snapshot: `YYYYMMDD-HHMMSS-` in UTC and eight random characters, so that ids sort by time.
    SnapshotId, "snapshot id", check_snapshot, "^[0-9]{8}-[0-9]{6}-[0-9a-z]{8}$"
);

name_type!(
    /// The name of a timeline of a continuous log: one line of history of a server, on which positions only grow.
    /// PostgreSQL's timelines, Redis's replication ids. Of the same form as [`SegmentName`].
    Timeline, "timeline", check_segment, "^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
);
name_type!(
    /// The name of a segment within its timeline: 1 to 128 of `A-Z a-z 0-9 . _ -`, not starting with `.` or `-`.
    /// Names of one timeline sort in the order of the log.
    SegmentName, "segment name", check_segment, "^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
);

const MAX_PLAIN: usize = 63;
const MAX_SEGMENT: usize = 128;
const MAX_ARTIFACT: usize = 512;

fn check_plain(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > MAX_PLAIN {
        return Err("it must have 1 to 63 characters");
    }
    if !text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        return Err("it must start with a lowercase letter or a digit");
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if text.chars().all(allowed) { Ok(()) } else { Err("only a-z, 0-9, `-`, `_` and `.` are allowed") }
}

fn check_segment(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > MAX_SEGMENT {
        return Err("it must have 1 to 128 characters");
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return Err("only A-Z, a-z, 0-9, `.`, `_` and `-` are allowed");
    }
    if text.starts_with(['.', '-']) { Err("it must not start with `.` or `-`") } else { Ok(()) }
}

fn artifact_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-+@".contains(&byte)
}

fn check_artifact(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > MAX_ARTIFACT {
        return Err("it must have 1 to 512 characters");
    }
    for component in text.split('/') {
        if component.is_empty() || component == "." || component == ".." {
            return Err("it must be a relative path without empty, `.` or `..` components");
        }
        if !component.bytes().all(|byte| artifact_byte(byte) || byte == b'%') {
            return Err("a component holds a character that must be escaped");
        }
    }
    Ok(())
}

fn check_snapshot(text: &str) -> Result<(), &'static str> {
    const FORM: &str = "an id looks like 20261120-063551-7k3q9xwm";
    let mut parts = text.split('-');
    let (Some(date), Some(time), Some(random), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(FORM);
    };
    let digits = |part: &str, len: usize| part.len() == len && part.bytes().all(|b| b.is_ascii_digit());
    let letters = random.len() == 8 && random.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    if digits(date, 8) && digits(time, 6) && letters { Ok(()) } else { Err(FORM) }
}

impl ArtifactName {
    /// Turns foreign text (a database's name, say) into one path component, writing other bytes as `%XX`.
    /// Injective: two texts never share a name.
    #[must_use]
    pub fn escape(text: &str) -> String {
        let mut escaped = String::with_capacity(text.len());
        for (position, byte) in text.bytes().enumerate() {
            let leading_dot = position == 0 && byte == b'.';
            if artifact_byte(byte) && !leading_dot {
                escaped.push(char::from(byte));
            } else {
                escaped.push_str(&format!("%{byte:02X}"));
            }
        }
        escaped
    }
}

impl SnapshotId {
    /// The second in which its run began, as it is in the id: `YYYYMMDD-HHMMSS`, in UTC.
    #[must_use]
    pub fn second(&self) -> &str {
        &self.0[..15]
    }

    /// A new id for a run that starts at `now`: ids sort by their run's start, to the microsecond.
    #[must_use]
    pub fn generate(now: Timestamp) -> Self {
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        // 40 bits, five to a character: the microsecond in the upper half (a million fits), chance in the lower.
        let micros = u64::from(now.subsec_nanosecond().unsigned_abs()) / 1000;
        let suffix = micros << 20 | uuid::Uuid::new_v4().as_u64_pair().1 & 0xF_FFFF;
        let character = |position: u32| char::from(ALPHABET[(suffix >> (35 - 5 * position) & 31) as usize]);
        let suffix: String = (0..8).map(character).collect();
        Self(format!("{}-{suffix}", now.strftime("%Y%m%d-%H%M%S")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_names_are_plain() {
        for good in ["a", "main-db", "0_x.y"] {
            assert!(SourceName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a/b", "..", "a b", "é", &"x".repeat(64)] {
            assert!(SourceName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_segments_are_single_safe_components() {
        for good in ["000000010000000000000003", "00000002.history", "00000000000000012345", "A_b-c.partial"] {
            assert!(SegmentName::new(good).is_ok() && Timeline::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".x", "-x", "a/b", "a b", "a\0", "é", &"x".repeat(129)] {
            assert!(SegmentName::new(bad).is_err() && Timeline::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn artifact_names_cannot_leave_their_folder() {
        for bad in ["", "/a", "a/", "a//b", "../a", "a/..", "a/./b", "a\0", "a\\b", "ü"] {
            assert!(ArtifactName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn escaping_is_safe_and_injective() {
        let texts = ["app", "..", ".", "a/b", "a%2Fb", "ünïcode", "", " ", "A.b"];
        let names: std::collections::BTreeSet<_> = texts.iter().map(|text| ArtifactName::escape(text)).collect();
        assert_eq!(names.len(), texts.len());
        for text in texts.iter().filter(|text| !text.is_empty()) {
            ArtifactName::new(ArtifactName::escape(text)).expect("escaped text is a valid component");
        }
    }

    #[test]
    fn snapshot_ids_sort_by_time_and_parse_back() {
        let at = |time: &str| SnapshotId::generate(time.parse().unwrap());
        let early = at("2026-11-20T06:35:51Z");
        let later = ["2026-11-20T06:35:51.000001Z", "2026-11-20T06:35:51.999999Z", "2026-11-20T06:35:52Z"].map(at);
        assert!(early < later[0] && later.is_sorted(), "{early} {later:?}");
        assert!((0..4).any(|_| at("2026-11-20T06:35:51Z") != early), "two runs of one moment");
        assert_eq!(SnapshotId::new(early.as_str()).unwrap(), early);
        assert!(SnapshotId::new("../../etc").is_err());
    }

    #[test]
    fn a_name_read_from_json_is_checked() {
        assert!(serde_json::from_str::<ArtifactName>("\"../../etc/passwd\"").is_err());
    }
}
