//! Asks a copy of a database whether it is whole, and counts its rows.

use std::collections::BTreeMap;
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
use super::record::{DatabaseRecord, databases};
use crate::verify::{finding, is_damage};

/// `PRAGMA integrity_check` stops after this many faults.
const MAX_FAULTS: u32 = 20;

/// The value of a pragma that gives one.
pub(crate) fn pragma<T: FromSql>(connection: &Connection, name: &str) -> rusqlite::Result<T> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

/// The rows of each table, and the tables that could not be counted because their module is unknown.
///
/// # Errors
/// As [`explain`]; `shown` is the path that errors name.
pub(crate) fn count_rows(
    cx: &RunContext,
    copy: &Connection,
    shown: &Path,
) -> Result<(BTreeMap<String, u64>, Vec<String>)> {
    let broken = |source| explain(source, shown);
    let sql = "SELECT name, sql LIKE 'CREATE VIRTUAL%' FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    let mut statement = copy.prepare(sql).map_err(broken)?;
    let listed = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, Option<bool>>(1)?.unwrap_or(false))));
    let tables: Vec<(String, bool)> = listed.map_err(broken)?.collect::<rusqlite::Result<_>>().map_err(broken)?;
    let (mut rows, mut uncounted) = (BTreeMap::new(), Vec::new());
    for (table, is_virtual) in tables {
        cx.check_cancelled()?;
        let sql = format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\""));
        match copy.query_row(&sql, [], |row| row.get::<_, i64>(0)) {
            Ok(count) => {
                rows.insert(table, u64::try_from(count).unwrap_or_default());
            }
            Err(source) if source.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) => {
                return Err(broken(source));
            }
            Err(_) if is_virtual => uncounted.push(table),
            Err(source) => return Err(broken(source)),
        }
    }
    Ok((rows, uncounted))
}

/// What a copy answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// What was asked.
    pub(crate) checked: Vec<String>,
    /// The wrong answers.
    pub(crate) faults: Vec<String>,
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
            answers.faults.push(error.chain())
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
    let mut statement = copy.prepare(&format!("PRAGMA integrity_check({MAX_FAULTS})")).map_err(broken)?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0)).map_err(broken)?;
    let lines: Vec<String> = lines.collect::<rusqlite::Result<_>>().map_err(broken)?;
    answers
        .faults
        .extend(lines.into_iter().filter(|line| line != "ok").map(|line| format!("{}: {line}", shown.display())));
    answers.checked.push(format!("integrity_check of {}", shown.display()));
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
    let (rows, _) = count_rows(cx, &copy, shown)?;
    let (mut before, mut after) = (Fingerprint::default(), Fingerprint::default());
    before.0.extend(saved.0.get_key_value(&record.group()).map(|(group, rows)| (group.clone(), rows.clone())));
    for (table, count) in rows {
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
        report.findings.extend(answers.faults.into_iter().map(|fault| finding(from, &record.artifact, fault)));
    }
    Ok(report)
}
