//! What a copy of a database says of itself: faults, and what cannot be asked of it here.
//!
//! Invariant: a collation, function or tokenizer that only the application knows is no fault, and keeps nothing else from
//! being asked. Damage is an answer, not an error.

use std::collections::BTreeMap;
use std::path::Path;

use backup_core::RunContext;
use backup_core::error::Result;
use rusqlite::{Connection, ErrorCode};

use super::connection::explain;

/// `PRAGMA integrity_check` stops after this many faults.
const MAX_FAULTS: usize = 20;

/// What a database answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// The rows of each table.
    pub(crate) rows: BTreeMap<String, u64>,
    /// What is damaged, at most [`MAX_FAULTS`].
    pub(crate) faults: Vec<String>,
    /// Tables whose structure could not be looked at, each with the reason.
    pub(crate) unchecked: BTreeMap<String, String>,
    /// Tables that could not be counted, each with the reason.
    pub(crate) uncounted: BTreeMap<String, String>,
}

struct Table {
    name: String,
    is_virtual: bool,
}

/// Why a question had no answer.
enum Silence {
    /// The database is damaged there.
    Damage(String),
    /// It needs what only its application has.
    Foreign(String),
}

impl Health {
    /// Looks at the structure of `copy` and counts its rows.
    ///
    /// # Errors
    /// As [`explain`] when the copy cannot be read at all, and when cancelled; `shown` is the path that errors name.
    pub(crate) fn of(cx: &RunContext, copy: &Connection, shown: &Path) -> Result<Self> {
        let mut health = Self::default();
        let tables = match silence(list(copy), shown)? {
            Ok(tables) => tables,
            Err(Silence::Damage(why) | Silence::Foreign(why)) => {
                health.fault(why);
                return Ok(health);
            }
        };
        health.look(cx, copy, shown, &tables)?;
        health.count(cx, copy, shown, tables)?;
        Ok(health)
    }

    fn fault(&mut self, what: String) {
        if self.faults.len() < MAX_FAULTS && !self.faults.contains(&what) {
            self.faults.push(what);
        }
    }

    fn note(&mut self, lines: Vec<String>) {
        for line in lines {
            self.fault(line);
        }
    }

    fn look(&mut self, cx: &RunContext, copy: &Connection, shown: &Path, tables: &[Table]) -> Result<()> {
        cx.check_cancelled()?;
        match silence(check(copy, &MAX_FAULTS.to_string()), shown)? {
            Ok(lines) => {
                self.note(lines);
                return Ok(());
            }
            Err(Silence::Damage(why)) => self.fault(why),
            Err(Silence::Foreign(_)) => {}
        }
        // One thing that cannot be asked makes the question about the whole an error; so each table is asked by itself,
        // and what belongs to none (free pages) with the schema.
        for table in tables.iter().map(|table| table.name.as_str()).chain(["sqlite_schema"]) {
            cx.check_cancelled()?;
            match silence(check(copy, &quoted(table)), shown)? {
                Ok(lines) => self.note(lines),
                Err(Silence::Damage(why)) => self.fault(format!("{table}: {why}")),
                Err(Silence::Foreign(why)) => {
                    self.unchecked.insert(table.to_owned(), why);
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, cx: &RunContext, copy: &Connection, shown: &Path, tables: Vec<Table>) -> Result<()> {
        for Table { name, is_virtual } in tables {
            cx.check_cancelled()?;
            let mut counted = silence(count(copy, &quoted(&name)), shown)?;
            if !is_virtual && counted.is_err() {
                // SQLite counts the smallest index, whose collation may be the application's, or which may be damaged.
                counted = silence(count(copy, &format!("{} NOT INDEXED", quoted(&name))), shown)?;
            }
            match counted {
                Ok(rows) => {
                    self.rows.insert(name, rows);
                }
                Err(Silence::Damage(why)) => {
                    self.fault(format!("the rows of {name}: {why}"));
                    self.uncounted.insert(name, why);
                }
                Err(Silence::Foreign(why)) => {
                    self.uncounted.insert(name, why);
                }
            }
        }
        Ok(())
    }
}

fn list(copy: &Connection) -> rusqlite::Result<Vec<Table>> {
    let sql = "SELECT name, sql LIKE 'CREATE VIRTUAL%' FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    let mut statement = copy.prepare(sql)?;
    let table = |row: &rusqlite::Row<'_>| {
        Ok(Table { name: row.get(0)?, is_virtual: row.get::<_, Option<bool>>(1)? == Some(true) })
    };
    statement.query_map([], table)?.collect()
}

/// The lines of an integrity check, without that which says that all is well.
fn check(copy: &Connection, of: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = copy.prepare(&format!("PRAGMA integrity_check({of})"))?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
    lines.filter(|line| line.as_ref().map_or(true, |line| line != "ok")).collect()
}

fn count(copy: &Connection, table: &str) -> rusqlite::Result<u64> {
    let count = copy.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0))?;
    Ok(u64::try_from(count).unwrap_or_default())
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Tells damage and foreign parts from what keeps us from reading at all.
fn silence<T>(answer: rusqlite::Result<T>, shown: &Path) -> Result<Result<T, Silence>> {
    match answer {
        Ok(answer) => Ok(Ok(answer)),
        Err(error) => match code(&error) {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Ok(Err(Silence::Damage(error.to_string()))),
            // SQLITE_ERROR: "no such collation sequence", "no such function", "no such tokenizer", "no such module".
            Some(ErrorCode::Unknown) => Ok(Err(Silence::Foreign(reason(&error)))),
            _ => Err(explain(error, shown)),
        },
    }
}

fn code(error: &rusqlite::Error) -> Option<ErrorCode> {
    match error {
        rusqlite::Error::SqlInputError { error, .. } => Some(error.code),
        other => other.sqlite_error_code(),
    }
}

/// The message without the statement that it was about.
fn reason(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } | rusqlite::Error::SqliteFailure(_, Some(msg)) => msg.clone(),
        other => other.to_string(),
    }
}
