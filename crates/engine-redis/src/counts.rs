//! Counts of keys: what a scan of an RDB found, and what a running server holds.
//!
//! Invariant: a difference that expiry explains is none; any other is told.

use std::collections::BTreeMap;

use backup_core::error::Result;
use backup_core::manifest::Fingerprint;

use crate::connection::{Connection, Reply};
use crate::rdb::{KeyType, RdbSummary};

/// The fingerprint's group and item for libraries of functions.
const FUNCTIONS: (&str, &str) = ("functions", "libraries");
/// The types that a server without modules has.
const TYPES: [KeyType; 6] =
    [KeyType::String, KeyType::List, KeyType::Set, KeyType::SortedSet, KeyType::Hash, KeyType::Stream];
/// How many keys a server looks at for each step of a listing.
const SCAN_STEP: &str = "10000";
/// How often a listing is repeated that counts more keys than there can be: a table that shrinks meanwhile answers
/// some keys twice, and has shrunk then.
const LISTINGS: usize = 3;

/// What the keys of a database are called in the fingerprint.
pub(crate) fn group(database: u32) -> String {
    format!("keys of db{database}")
}

/// What a scan found, as the manifest keeps it.
pub(crate) fn fingerprint(summary: &RdbSummary) -> Fingerprint {
    let mut fingerprint = Fingerprint::default();
    for (database, counts) in &summary.databases {
        for (kind, count) in &counts.keys {
            fingerprint.count(group(*database), kind.to_string(), *count);
        }
    }
    if summary.functions > 0 {
        fingerprint.count(FUNCTIONS.0, FUNCTIONS.1, summary.functions);
    }
    fingerprint
}

/// Counts what a server holds whose data stands still, to be compared with `saved`.
pub(crate) async fn of_server(connection: &mut Connection, saved: &RdbSummary) -> Result<Fingerprint> {
    let mut fingerprint = Fingerprint::default();
    let keyspace = crate::server::Info::ask(connection, Some("keyspace")).await?.keyspace();
    for database in keyspace.keys() {
        connection.call(&["SELECT", &database.to_string()]).await?;
        let saved = saved.databases.get(database).map(|counts| &counts.keys);
        let expected = |kind: KeyType| saved.and_then(|keys| keys.get(&kind)).copied().unwrap_or(0);
        let mut known = 0;
        for kind in TYPES {
            let count = listed(connection, Some(kind), expected(kind)).await?;
            known += count;
            if count > 0 {
                fingerprint.count(group(*database), kind.to_string(), count);
            }
        }
        // Types of modules have names of their own: whatever is none of the others.
        if expected(KeyType::Module) > 0 {
            let all = listed(connection, None, known + expected(KeyType::Module)).await?;
            fingerprint.count(group(*database), KeyType::Module.to_string(), all.saturating_sub(known));
        }
    }
    let functions = libraries(connection).await?;
    if functions > 0 {
        fingerprint.count(FUNCTIONS.0, FUNCTIONS.1, functions);
    }
    Ok(fingerprint)
}

/// Libraries of functions; none on a server that knows no functions.
pub(crate) async fn libraries(connection: &mut Connection) -> Result<u64> {
    match connection.ask(&["FUNCTION", "LIST"]).await? {
        Reply::Array(libraries) => Ok(libraries.len() as u64),
        _ => Ok(0),
    }
}

/// How many keys a listing names; listed again when they are more than `expected`.
async fn listed(connection: &mut Connection, kind: Option<KeyType>, expected: u64) -> Result<u64> {
    let mut count = keys_of_type(connection, kind).await?;
    for _ in 1..LISTINGS {
        if count <= expected {
            break;
        }
        count = keys_of_type(connection, kind).await?;
    }
    Ok(count)
}

async fn keys_of_type(connection: &mut Connection, kind: Option<KeyType>) -> Result<u64> {
    let (mut cursor, mut count) = ("0".to_owned(), 0);
    let kind = kind.map(|kind| kind.to_string());
    loop {
        let mut command = vec!["SCAN", &cursor, "COUNT", SCAN_STEP];
        command.extend(kind.iter().flat_map(|kind| ["TYPE", kind]));
        let reply = connection.call(&command).await?;
        count += reply.items().get(1).map_or(0, |keys| keys.items().len()) as u64;
        cursor = reply.items().first().and_then(Reply::text).unwrap_or_else(|| "0".to_owned());
        if cursor == "0" {
            return Ok(count);
        }
    }
}

/// How `restored` differs from `saved` beyond expiry. `expired` is how many keys of each database had expired before
/// the data was loaded and after it was counted: so many may be missing, and not fewer.
pub(crate) fn differences(saved: &RdbSummary, restored: &Fingerprint, expired: &Expired) -> Vec<String> {
    let wanted = fingerprint(saved);
    let mut lines = Vec::new();
    for line in wanted.differences(restored) {
        // Told by type; kept only when the database's total is not explained.
        let explained = saved.databases.keys().any(|database| {
            line.starts_with(&format!("{}: ", group(*database))) && expired.explains(*database, &wanted, restored)
        });
        if !explained {
            lines.push(line);
        }
    }
    lines
}

/// How many keys of each database had expired, before and after.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expired {
    before: BTreeMap<u32, u64>,
    after: BTreeMap<u32, u64>,
}

impl Expired {
    /// From two scans of one RDB, with the times before and after.
    pub(crate) fn between(before: &RdbSummary, after: &RdbSummary) -> Self {
        let expired =
            |summary: &RdbSummary| summary.databases.iter().map(|(id, counts)| (*id, counts.expired)).collect();
        Self { before: expired(before), after: expired(after) }
    }

    /// Adds another RDB of the same backup.
    pub(crate) fn add(&mut self, other: &Self) {
        for (ours, theirs) in [(&mut self.before, &other.before), (&mut self.after, &other.after)] {
            for (database, count) in theirs {
                *ours.entry(*database).or_default() += count;
            }
        }
    }

    fn explains(&self, database: u32, wanted: &Fingerprint, restored: &Fingerprint) -> bool {
        let none = BTreeMap::new();
        let (wanted, restored) =
            (wanted.0.get(&group(database)).unwrap_or(&none), restored.0.get(&group(database)).unwrap_or(&none));
        let surplus = restored.iter().any(|(kind, count)| wanted.get(kind).is_none_or(|saved| count > saved));
        let missing = wanted.values().sum::<u64>().saturating_sub(restored.values().sum());
        let bounds = |counts: &BTreeMap<u32, u64>| counts.get(&database).copied().unwrap_or(0);
        !surplus && (bounds(&self.before)..=bounds(&self.after)).contains(&missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdb::{Checksum, DatabaseCounts, Flavour};

    fn summary(strings: u64, lists: u64, expired: u64) -> RdbSummary {
        let keys = BTreeMap::from([(KeyType::String, strings), (KeyType::List, lists)]);
        RdbSummary {
            version: 10,
            magic: Flavour::Redis,
            aux: BTreeMap::default(),
            databases: BTreeMap::from([(0, DatabaseCounts { keys, expiring: 5, expired })]),
            functions: 1,
            modules: std::collections::BTreeSet::default(),
            checksum: Checksum::Verified,
            bytes: 100,
        }
    }

    #[test]
    fn only_expiry_explains_a_difference() {
        // Of 10 strings and 5 lists, 1 had expired before the load and 3 after the count.
        let expired = Expired::between(&summary(10, 5, 1), &summary(10, 5, 3));
        let cases = [
            ((10, 5, 1), 0, ""),
            ((9, 5, 1), 0, ""),
            ((8, 4, 1), 0, ""),
            ((7, 5, 1), 0, ""),
            ((6, 5, 1), 1, "four are missing"),
            ((11, 3, 1), 2, "one too many"),
            ((8, 5, 0), 1, "the library is missing"),
        ];
        for ((strings, lists, libraries), findings, why) in cases {
            let mut restored = Fingerprint::default();
            restored.count(group(0), "string", strings);
            restored.count(group(0), "list", lists);
            if libraries > 0 {
                restored.count(FUNCTIONS.0, FUNCTIONS.1, libraries);
            }
            let found = differences(&summary(10, 5, 1), &restored, &expired);
            assert_eq!(found.len(), findings, "{why}: {found:?}");
        }
    }
}
