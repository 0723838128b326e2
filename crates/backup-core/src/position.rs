//! Positions: where in a continuous log an artifact is consistent.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A point in a log, of the kind that the engine's server uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Position {
    /// A PostgreSQL write-ahead log position.
    Wal {
        /// The timeline.
        timeline: u32,
        /// The byte position, printed as PostgreSQL prints it.
        lsn: Lsn,
    },
    /// A MariaDB or MySQL binary log position.
    Binlog {
        /// The binary log file.
        file: String,
        /// The byte offset in it.
        offset: u64,
        /// The GTID position, in the server's own notation.
        gtid: Option<String>,
    },
    /// A Redis or Valkey replication offset.
    Replication {
        /// The replication id.
        id: String,
        /// The offset in bytes.
        offset: u64,
    },
}

/// A PostgreSQL log sequence number; `XXXXXXXX/XXXXXXXX` in hexadecimal, as in the manual's chapter on `pg_lsn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

impl TryFrom<String> for Lsn {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for Lsn {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let half = |part: &str| {
            let plain = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            if plain { u64::from_str_radix(part, 16).ok() } else { None }
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| format!("`{text}` is not a log position; one looks like 16/B374D848"))
    }
}

impl JsonSchema for Lsn {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Lsn".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9A-F]{1,8}/[0-9A-F]{1,8}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_prints_and_parses_as_postgresql_does() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn.0, 0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        for bad in ["", "/", "1", "1/", "1/G", "1/2/3", "123456789/0", "+1/2"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }
}
