//! What the plan says about following: `follow: true`, or a mapping that says how large and how old segments get.
//!
//! Invariant: a segment that these settings allow never has more marks than a log takes.

use std::fmt;
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::Span;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};

/// A segment is stored when it has so many bytes, unless the plan says otherwise.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// Smaller ones would be all header; larger ones take too much memory while they are stored.
const SEGMENT_BYTES_RANGE: std::ops::RangeInclusive<u64> = 64 * 1024..=256 * 1024 * 1024;
/// A segment is stored when its first byte is so old, unless the plan says otherwise. This is what may be lost.
const SEGMENT_AGE: Duration = Duration::from_secs(10);
const SEGMENT_AGE_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(10);
/// So many bytes may wait in the scratch folder, unless the plan says otherwise.
const SPOOL_BYTES: u64 = 2 * 1024 * 1024 * 1024;
const SPOOL_BYTES_LEAST: u64 = 1024 * 1024;

/// Whether, and how, the replication stream is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FollowConfig {
    /// Not at all.
    #[default]
    Off,
    /// As these fields say.
    On(FollowFields),
}

/// How large and how old segments of the replication stream get before they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FollowFields {
    /// Bytes after which a segment is stored: 65536 to 268435456, by default 16777216.
    segment_bytes: Option<u64>,
    /// The age after which a segment is stored, which is what may be lost: `1s` to `10m`, by default `10s`.
    segment_age: Option<Span>,
    /// How many bytes may wait in the scratch folder while the repository is slow or away: at least 1048576, by default
    /// 2147483648. Then the server must keep the rest.
    spool_bytes: Option<u64>,
}

/// When a segment is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) age: Duration,
    /// The bytes that may wait in the scratch folder.
    pub(crate) spool: u64,
}

impl FollowConfig {
    /// The limits, checked; `None` when the source is not followed.
    pub(crate) fn limits(self) -> Result<Option<Limits>> {
        let Self::On(fields) = self else { return Ok(None) };
        let bytes = fields.segment_bytes.unwrap_or(SEGMENT_BYTES);
        if !SEGMENT_BYTES_RANGE.contains(&bytes) {
            let message = format!("`follow.segment_bytes` is {bytes}");
            return Err(Error::new(ErrorKind::Plan, message).hint("write a number from 65536 to 268435456"));
        }
        let age = fields.segment_age.map_or(SEGMENT_AGE, |span| span.0);
        if !SEGMENT_AGE_RANGE.contains(&age) {
            let message = format!("`follow.segment_age` is {}", Span(age));
            return Err(Error::new(ErrorKind::Plan, message).hint("write a span from 1s to 10m"));
        }
        let spool = fields.spool_bytes.unwrap_or(SPOOL_BYTES);
        if spool < SPOOL_BYTES_LEAST {
            let message = format!("`follow.spool_bytes` is {spool}");
            return Err(Error::new(ErrorKind::Plan, message).hint("write a number of at least 1048576"));
        }
        Ok(Some(Limits { bytes, age, spool }))
    }
}

impl<'de> Deserialize<'de> for FollowConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = FollowConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or a mapping with `segment_bytes` and `segment_age`")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> std::result::Result<FollowConfig, E> {
                Ok(if on { FollowConfig::On(FollowFields::default()) } else { FollowConfig::Off })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<FollowConfig, A::Error> {
                FollowFields::deserialize(MapAccessDeserializer::new(map)).map(FollowConfig::On)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for FollowConfig {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Follow".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let fields = generator.subschema_for::<FollowFields>();
        schemars::json_schema!({ "anyOf": [{ "type": "boolean" }, fields] })
    }
}

#[cfg(test)]
mod tests {
    use backup_core::plan::Node;

    use super::*;

    #[derive(Deserialize)]
    struct Holder {
        follow: FollowConfig,
    }

    fn limits(yaml: &str) -> Result<Option<Limits>> {
        Node::from_yaml(yaml)?.parse::<Holder>()?.follow.limits()
    }

    #[test]
    fn a_word_or_a_mapping_says_how_to_follow() {
        let default = Limits { bytes: SEGMENT_BYTES, age: SEGMENT_AGE, spool: SPOOL_BYTES };
        let cases = [
            ("follow: false", None),
            ("follow: true", Some(default)),
            ("follow: {}", Some(default)),
            ("follow: { segment_age: 1m }", Some(Limits { age: Duration::from_mins(1), ..default })),
            ("follow: { segment_bytes: 65536 }", Some(Limits { bytes: 65536, ..default })),
        ];
        for (yaml, expected) in cases {
            assert_eq!(limits(yaml).unwrap(), expected, "{yaml}");
        }
        let faults = [
            ("follow: { segment_bytes: 1 }", "segment_bytes"),
            ("follow: { segment_age: 11m }", "segment_age"),
            ("follow: { segment_age: 0s }", "segment_age"),
            ("follow: { spool_bytes: 9 }", "spool_bytes"),
            ("follow: { segments: 1 }", "segments"),
            ("follow: often", "mapping"),
        ];
        for (yaml, word) in faults {
            let error = limits(yaml).unwrap_err();
            assert!(error.kind() == ErrorKind::Plan && error.chain().contains(word), "{yaml}: {error:?}");
        }
    }
}
