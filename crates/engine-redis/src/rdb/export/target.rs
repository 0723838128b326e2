//! What the receiving server understands.
//!
//! Invariant: a command or an argument is written only for a server that has it.

use backup_core::{Error, ErrorKind, Result};

use crate::rdb::Flavour;

/// The receiving server: whose it is, and its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    flavour: Flavour,
    version: (u32, u32),
}

/// What not every server has, and since when (the `since` of each command's reference page).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feature {
    /// `UNLINK`.
    Unlink,
    /// Streams.
    Streams,
    /// `SET … PXAT`.
    SetExpiry,
    /// `XGROUP CREATECONSUMER`.
    CreateConsumer,
    /// Libraries of functions.
    Functions,
    /// `XSETID … ENTRIESADDED … MAXDELETEDID`, `XGROUP CREATE … ENTRIESREAD`; and pending entries whose message is
    /// deleted can no longer be claimed.
    StreamOffsets,
    /// `HPEXPIREAT`.
    FieldExpiry,
}

impl Target {
    /// A Redis of this version.
    #[must_use]
    pub const fn redis(major: u32, minor: u32) -> Self {
        Self { flavour: Flavour::Redis, version: (major, minor) }
    }

    /// A Valkey of this version (`valkey_version` of `INFO`; its `redis_version` is always 7.2.4).
    #[must_use]
    pub const fn valkey(major: u32, minor: u32) -> Self {
        Self { flavour: Flavour::Valkey, version: (major, minor) }
    }

    /// Reads a version as a server tells it: `7.0.15`.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) when it does not begin with two numbers.
    pub fn parse(flavour: Flavour, version: &str) -> Result<Self> {
        let mut numbers = version.split('.').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Self { flavour, version: (major, minor) }),
            _ => Err(Error::new(ErrorKind::Usage, format!("`{version}` is not the version of a server"))
                .hint("give it as the server tells it, for example 7.0.15")),
        }
    }

    /// Reads a name as an operator gives it: `redis-6.2`, `valkey-8.1`.
    ///
    /// # Errors
    /// [`Usage`](ErrorKind::Usage) for anything else.
    pub fn named(name: &str) -> Result<Self> {
        match name.split_once('-') {
            Some(("redis", version)) => Self::parse(Flavour::Redis, version),
            Some(("valkey", version)) => Self::parse(Flavour::Valkey, version),
            _ => Err(Error::new(ErrorKind::Usage, format!("`{name}` is not a server and its version"))
                .hint("write it like redis-6.2 or valkey-8.1")),
        }
    }

    /// Whose server it is.
    pub const fn flavour(self) -> Flavour {
        self.flavour
    }

    pub(super) fn has(self, feature: Feature) -> bool {
        let since = match (feature, self.flavour) {
            (Feature::FieldExpiry, Flavour::Redis) => (7, 4),
            (Feature::FieldExpiry, Flavour::Valkey) => (9, 0),
            // The first Valkey is 7.2: it has everything else.
            (_, Flavour::Valkey) => (0, 0),
            (Feature::Unlink, _) => (4, 0),
            (Feature::Streams, _) => (5, 0),
            (Feature::SetExpiry | Feature::CreateConsumer, _) => (6, 2),
            (Feature::Functions | Feature::StreamOffsets, _) => (7, 0),
        };
        self.version >= since
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}.{}", self.flavour, self.version.0, self.version.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_by_server() {
        let cases = [
            ("Redis", "3.2.12", vec![]),
            ("Redis", "6.0.16", vec![Feature::Unlink, Feature::Streams]),
            ("Redis", "7.0.15", vec![Feature::SetExpiry, Feature::Functions, Feature::StreamOffsets]),
            ("Redis", "7.4.0", vec![Feature::FieldExpiry]),
            ("Valkey", "8.1.1", vec![Feature::Functions, Feature::Unlink]),
            ("Valkey", "9.0.0", vec![Feature::FieldExpiry]),
        ];
        for (name, version, has) in cases {
            let flavour = if name == "Redis" { Flavour::Redis } else { Flavour::Valkey };
            let target = Target::parse(flavour, version).unwrap();
            for feature in has {
                assert!(target.has(feature), "{target} has {feature:?}");
            }
        }
        assert!(!Target::redis(7, 2).has(Feature::FieldExpiry));
        assert!(!Target::valkey(8, 1).has(Feature::FieldExpiry));
        assert!(!Target::redis(3, 2).has(Feature::Unlink));
        assert!(!Target::redis(6, 2).has(Feature::Functions));
        assert_eq!(Target::parse(Flavour::Redis, "seven").unwrap_err().kind(), ErrorKind::Usage);
    }
}
