//! Which server reads which RDB: each reads what its own release writes, and everything older of its family.
//!
//! From `RDB_VERSION` in rdb.h of redis/redis and valkey-io/valkey. Plain commands go everywhere.

/// Modules that are part of a server (Redis 8, Valkey 9): whoever reads its RDB has them.
pub(crate) const BUILT_IN: [&str; 2] = ["vectorset", "lua"];

/// Whether a server of this product and version reads the version `rdb` of `format` (`Redis` or `Valkey`).
pub(crate) fn reads(product: &str, version: &str, format: &str, rdb: u32) -> bool {
    let release = release(version);
    match (product, format) {
        ("Valkey", "Valkey") => release >= (9, 0) && rdb <= 80,
        // Valkey left the common line at 11, and refuses what Redis wrote after that.
        ("Valkey", _) => rdb <= 11,
        (_, "Valkey") => false,
        _ => rdb <= newest_of_redis(release),
    }
}

/// The version of the RDB that a server of this product and version writes.
pub(crate) fn written_by(product: &str, version: &str) -> u32 {
    let release = release(version);
    match product {
        "Valkey" if release >= (9, 0) => 80,
        "Valkey" => 11,
        _ => newest_of_redis(release),
    }
}

fn release(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn newest_of_redis(release: (u32, u32)) -> u32 {
    match release {
        (0..=3, _) => 7,
        (4, _) => 8,
        (5 | 6, _) => 9,
        (7, 0 | 1) => 10,
        (7, 2 | 3) => 11,
        (7, _) | (8, 0..=3) => 12,
        _ => 13,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_pairs() {
        let cases = [
            ("Redis", "7.0.15", "Redis", 10, true),
            ("Redis", "7.0.15", "Redis", 11, false),
            ("Redis", "7.0.15", "Redis", 12, false),
            ("Redis", "8.0.2", "Redis", 11, true),
            ("Redis", "8.0.2", "Valkey", 80, false),
            ("Redis", "6.2.14", "Redis", 10, false),
            ("Valkey", "8.1.1", "Redis", 12, false),
            ("Valkey", "8.1.1", "Redis", 10, true),
            ("Valkey", "8.1.1", "Valkey", 80, false),
            ("Valkey", "9.1.2", "Valkey", 80, true),
            ("Valkey", "9.1.2", "Redis", 12, false),
        ];
        for (product, version, format, rdb, expected) in cases {
            assert_eq!(reads(product, version, format, rdb), expected, "{product} {version}: {format} {rdb}");
        }
    }
}
