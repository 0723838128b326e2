//! Asks a copy of a database whether it is whole, and counts its rows.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::engine::VerifyReport;
use backup_core::error::{Error, Result};
use backup_core::manifest::Fingerprint;
use backup_core::{BackupReader, RunContext};
use rusqlite::Connection;
use rusqlite::types::FromSql;
use tokio::io::AsyncWriteExt;

use super::backup::scratch;
use super::connection::{Interrupts, blocking, explain, open_copy};
use super::health::Health;
use super::record::{DatabaseRecord, databases};
use crate::verify::{finding, is_damage};

/// The value of a pragma that gives one.
pub(crate) fn pragma<T: FromSql>(connection: &Connection, name: &str) -> rusqlite::Result<T> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

/// What a copy answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// What was asked.
    pub(crate) checked: Vec<String>,
    /// The wrong answers.
    pub(crate) faults: Vec<String>,
    /// What is damaged as it was in the database when it was saved.
    pub(crate) inherited: Vec<String>,
    /// Rows that were counted.
    pub(crate) rows: u64,
}

/// Asks the copy at `path`. Damage is a fault, not an error.
pub(crate) fn examine(
    cx: &RunContext,
    interrupts: &Interrupts,
    path: &Path,
    record: &DatabaseRecord,
    saved: &Fingerprint,
) -> Result<Answers> {
    let mut answers = Answers::default();
    match ask(cx, interrupts, path, record, saved, &mut answers) {
        Err(error) if is_damage(&error) || error.kind() == backup_core::ErrorKind::Unsupported => {
            answers.faults.push(error.chain());
        }
        result => result?,
    }
    Ok(answers)
}

fn ask(
    cx: &RunContext,
    interrupts: &Interrupts,
    path: &Path,
    record: &DatabaseRecord,
    saved: &Fingerprint,
    answers: &mut Answers,
) -> Result<()> {
    let shown = &record.path;
    let broken = |source| explain(source, shown);
    let copy = open_copy(path, interrupts)?;
    cx.check_cancelled()?;
    let health = Health::of(cx, &copy, shown)?;
    let told = health.faults.into_iter().map(|line| format!("{}: {line}", shown.display()));
    if record.faults.is_empty() {
        answers.faults.extend(told);
    } else {
        answers.inherited.extend(told);
    }
    let without: Vec<String> =
        health.unchecked.iter().map(|(table, why)| format!(", without `{table}` ({why})")).collect();
    answers.checked.push(format!("integrity_check of {}{}", shown.display(), without.concat()));
    cx.check_cancelled()?;
    // SQLite does not enforce foreign keys unless asked to: violations come from the application, and are no damage,
    // nor are keys that refer to what cannot be referred to, which make the question an error.
    let violations = copy.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get::<_, i64>(0));
    cx.check_cancelled()?;
    let violations = violations.map_or_else(|why| why.to_string(), |count| format!("{count} violations"));
    answers.checked.push(format!("foreign_key_check of {}: {violations}", shown.display()));
    for (name, expected) in [("application_id", record.application_id), ("user_version", record.user_version)] {
        let value: i64 = pragma(&copy, name).map_err(broken)?;
        if value != expected {
            answers.faults.push(format!("{}: {name} is {value}, was {expected}", shown.display()));
        }
    }
    let (mut before, mut after) = (Fingerprint::default(), Fingerprint::default());
    if let Some(rows) = saved.0.get(&record.group()) {
        // What this build of SQLite does not know is not missing.
        for (table, count) in rows.iter().filter(|(table, _)| !health.uncounted.contains_key(*table)) {
            before.count(record.group(), table.clone(), *count);
        }
    }
    for (table, count) in health.rows {
        answers.rows += count;
        after.count(record.group(), table, count);
    }
    answers.faults.extend(before.differences(&after));
    answers.checked.push(format!("{} rows of {} counted", answers.rows, shown.display()));
    Ok(())
}

/// Writes a saved database to a new file at `path`.
///
/// # Errors
/// [`Damaged`](backup_core::ErrorKind::Damaged) when it is not what was saved; also when writing fails.
pub(crate) async fn fetch(cx: &RunContext, from: &BackupReader, record: &DatabaseRecord, path: &Path) -> Result<u64> {
    let reader = from.stream(&record.artifact).await?;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file =
        tokio::fs::File::from_std(file.map_err(|source| Error::io("cannot write the database", path, source))?);
    let bytes = reader.copy_to(cx, &mut file).await?;
    file.shutdown().await.map_err(|source| Error::io("cannot write the database", path, source))?;
    file.sync_all().await.map_err(|source| Error::io("cannot write the database", path, source))?;
    Ok(bytes)
}

/// Reads each database into scratch and asks it.
pub(crate) async fn verify(cx: &RunContext, from: &BackupReader) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    for record in databases(from)? {
        cx.step(format!("checking {}", record.path.display()));
        let folder = Arc::new(scratch(cx)?);
        let path: PathBuf = folder.path().join("copy.sqlite");
        match fetch(cx, from, &record, &path).await {
            Err(error) if is_damage(&error) => {
                report.findings.push(finding(from, &record.artifact, error.chain()));
                continue;
            }
            result => result?,
        };
        let (asked, saved, kept) = (record.clone(), from.record().fingerprint.clone(), Arc::clone(&folder));
        let answers = blocking(cx, move |cx, interrupts| {
            let _until_the_end = kept;
            examine(cx, interrupts, &path, &asked, &saved)
        })
        .await?;
        report.checked.extend(answers.checked);
        if !answers.inherited.is_empty() {
            let name = record.path.display();
            report.checked.push(format!("what was stored is whole; {name} was damaged when it was saved"));
        }
        report.findings.extend(answers.faults.into_iter().map(|fault| finding(from, &record.artifact, fault)));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use backup_core::{ArtifactName, SourceName};
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn a_fault_is_new_unless_the_backup_told_of_faults() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE t (a INT, b TEXT); CREATE INDEX i ON t (a); INSERT INTO t VALUES (1, 'one'), (2, 'two');
                 PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE INDEX i ON t (b)' WHERE name = 'i';",
            )
            .unwrap();
        drop(connection);
        let record = |faults: &[&str]| DatabaseRecord {
            artifact: ArtifactName::new("x.db").unwrap(),
            path: path.clone(),
            page_size: 4096,
            journal_mode: "delete".into(),
            encoding: "UTF-8".into(),
            application_id: 0,
            user_version: 0,
            mode: 0o600,
            uid: 0,
            gid: 0,
            user: None,
            group: None,
            faults: faults.iter().map(|&fault| fault.to_owned()).collect(),
        };
        let mut saved = Fingerprint::default();
        saved.count(record(&[]).group(), "t", 2);
        let cx = RunContext::new(SourceName::new("x").unwrap());
        let ask = |record| examine(&cx, &Interrupts::default(), &path, &record, &saved).unwrap();
        let found = ask(record(&[]));
        assert!(!found.faults.is_empty() && found.inherited.is_empty(), "the index does not fit its table: {found:?}");
        let found = ask(record(&["row 1 missing from index i"]));
        assert!(found.faults.is_empty() && !found.inherited.is_empty(), "{found:?}");
    }
}
