//! Which part of a backup, and of a server, a restore is about: everything, some databases, keys that match a pattern,
//! functions, access rules.

use std::collections::BTreeSet;

use backup_core::error::{Error, ErrorKind, Result};

use crate::connection::{Connection, Reply};
use crate::counts::libraries;
use crate::inspect::now_ms;
use crate::rdb::{ExportOptions, Functions, Glob, Target};
use crate::server::Info;

/// The most elements in one command: large enough to be fast, small enough not to hold the server up.
const CHUNK: usize = 512;
const SCAN_STEP: &str = "1000";

/// Part of a backup, or all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) what: What,
    databases: Option<BTreeSet<u32>>,
    pattern: Option<String>,
}

/// What is restored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum What {
    /// Keys, and with all of them the functions.
    #[default]
    Data,
    /// Libraries of functions.
    Functions,
    /// Access rules.
    Acl,
    /// The append-only files as they were, instead of the RDB.
    AppendOnlyFiles,
    /// A file of commands for any server, or for one of this version.
    Commands(Option<Target>),
}

impl What {
    fn parse(word: &str) -> Result<Option<Self>> {
        Ok(Some(match word {
            "functions" => Self::Functions,
            "acl" => Self::Acl,
            "aof" => Self::AppendOnlyFiles,
            "commands" => Self::Commands(None),
            _ => match word.strip_prefix("commands=") {
                Some(server) => Self::Commands(Some(Target::named(server)?)),
                None => return Ok(None),
            },
        }))
    }
}

impl Selection {
    /// `db3` is a database, `functions`, `acl`, `aof`, `commands` and `commands=redis-6.2` are what they say; anything else
    /// is a pattern, as `KEYS` takes it.
    pub(crate) fn parse(select: &[String]) -> Result<Self> {
        let mut selection = Self::default();
        for item in select {
            let database = item.strip_prefix("db").and_then(|number| number.parse().ok());
            if let Some(database) = database {
                selection.databases.get_or_insert_default().insert(database);
            } else if let Some(what) = What::parse(item)? {
                if selection.what != What::Data {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        format!("`{item}` cannot be selected with something else"),
                    )
                    .hint("restore once for each"));
                }
                selection.what = what;
            } else if selection.pattern.replace(item.clone()).is_some() {
                return Err(Error::new(ErrorKind::Usage, "more than one pattern is selected")
                    .hint("restore once for each, or write one pattern: `user:[12]*`"));
            }
        }
        let narrowed = selection.databases.is_some() || selection.pattern.is_some();
        if narrowed && !matches!(selection.what, What::Data | What::Commands(_)) {
            return Err(Error::new(
                ErrorKind::Usage,
                "databases and patterns choose among keys, and no keys are selected",
            )
            .hint("restore once for each; a key of such a name is selected by a pattern: `[a]cl`"));
        }
        Ok(selection)
    }

    pub(crate) fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn describe(&self) -> String {
        match self.what {
            What::Functions => return "functions".to_owned(),
            What::Acl => return "access rules".to_owned(),
            What::Data | What::AppendOnlyFiles | What::Commands(_) => {}
        }
        let databases = self.databases.as_ref().map_or(String::new(), |databases| {
            let names: Vec<String> = databases.iter().map(|database| format!("db{database}")).collect();
            format!(" of {}", names.join(", "))
        });
        let keys = self.pattern.as_ref().map_or_else(|| "keys".to_owned(), |pattern| format!("keys like `{pattern}`"));
        let whole = self.databases.is_none() && self.pattern.is_none();
        format!("{keys}{databases}{}", if whole { " and functions" } else { "" })
    }

    pub(crate) fn options(&self, target: Target) -> ExportOptions {
        ExportOptions {
            databases: self.databases.clone(),
            pattern: self.pattern.as_ref().map(Glob::new),
            slots: None,
            functions: if self.what == What::Functions { Functions::Only } else { Functions::WithTheWhole },
            now_ms: now_ms(),
            target,
            chunk: CHUNK,
            replace: false,
        }
    }

    /// What [`Selection::clear`] needs to be allowed.
    pub(crate) fn commands_to_clear(&self) -> &'static [&'static [&'static str]] {
        if self.what == What::Functions {
            return &[&["FUNCTION", "FLUSH"]];
        }
        match (&self.pattern, &self.databases) {
            (Some(_), _) => &[&["SCAN", "0"]],
            (None, Some(_)) => &[&["FLUSHDB"]],
            (None, None) => &[&["FLUSHALL"]],
        }
    }

    /// Whether the server holds anything of it.
    pub(crate) async fn is_held(&self, connection: &mut Connection) -> Result<bool> {
        if self.what == What::Functions {
            return Ok(libraries(connection).await? > 0);
        }
        for database in self.present(connection).await? {
            let Some(pattern) = &self.pattern else { return Ok(true) };
            let mut found = Listing::of(database);
            while let Some(keys) = found.next(connection, pattern).await? {
                if !keys.is_empty() {
                    return Ok(true);
                }
            }
        }
        Ok(self.is_everything() && libraries(connection).await? > 0)
    }

    /// Deletes it from the server.
    pub(crate) async fn clear(&self, connection: &mut Connection) -> Result<()> {
        if self.what == What::Functions {
            return flush(connection, &["FUNCTION", "FLUSH"]).await;
        }
        if self.is_everything() {
            flush(connection, &["FLUSHALL"]).await?;
            // Servers before 7.0 know no functions.
            connection.ask(&["FUNCTION", "FLUSH", "SYNC"]).await?;
            return Ok(());
        }
        for database in self.present(connection).await? {
            let Some(pattern) = &self.pattern else {
                connection.call(&["SELECT", &database.to_string()]).await?;
                flush(connection, &["FLUSHDB"]).await?;
                continue;
            };
            let mut found = Listing::of(database);
            while let Some(keys) = found.next(connection, pattern).await? {
                for key in keys {
                    connection.writer.send(&[b"UNLINK".as_slice(), &key]).await?;
                    connection.reader.next().await?;
                }
            }
        }
        Ok(())
    }

    /// The selected databases that hold any key.
    async fn present(&self, connection: &mut Connection) -> Result<Vec<u32>> {
        let keyspace = Info::ask(connection, Some("keyspace")).await?.keyspace();
        let selected = |database: &u32| self.databases.as_ref().is_none_or(|databases| databases.contains(database));
        Ok(keyspace.into_keys().filter(selected).collect())
    }
}

/// Empties something, and returns when its memory is free: some servers do that in the background by themselves, and would
/// drop what is loaded meanwhile for want of room. Servers before 6.2 know no other way than to wait.
async fn flush(connection: &mut Connection, command: &[&str]) -> Result<()> {
    match connection.ask(&[command, &["SYNC"]].concat()).await? {
        Reply::Error(_) => connection.call(command).await.map(drop),
        _ => Ok(()),
    }
}

/// Keys of one database that match, a step at a time.
struct Listing {
    database: u32,
    cursor: Option<String>,
}

impl Listing {
    fn of(database: u32) -> Self {
        Self { database, cursor: Some("0".to_owned()) }
    }

    async fn next(&mut self, connection: &mut Connection, pattern: &str) -> Result<Option<Vec<Vec<u8>>>> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
        connection.call(&["SELECT", &self.database.to_string()]).await?;
        let reply = connection.call(&["SCAN", &cursor, "MATCH", pattern, "COUNT", SCAN_STEP]).await?;
        let next = reply.items().first().and_then(Reply::text);
        self.cursor = next.filter(|cursor| cursor != "0");
        let bytes = |key: &Reply| if let Reply::Bulk(bytes) = key { Some(bytes.clone()) } else { None };
        Ok(Some(reply.items().get(1).map_or(&[][..], Reply::items).iter().filter_map(bytes).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_are_databases_or_a_pattern() {
        let parse = |items: &[&str]| Selection::parse(&items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>());
        assert!(parse(&[]).unwrap().is_everything());
        assert_eq!(parse(&["db3", "db0"]).unwrap().describe(), "keys of db0, db3");
        assert_eq!(parse(&["user:*", "db1"]).unwrap().describe(), "keys like `user:*` of db1");
        assert_eq!(parse(&["dbx"]).unwrap().describe(), "keys like `dbx`");
        assert_eq!(parse(&["functions"]).unwrap().what, What::Functions);
        assert_eq!(parse(&["commands=redis-6.2", "db1"]).unwrap().what, What::Commands(Some(Target::redis(6, 2))));
        assert_eq!(parse(&["commands=valkey-8.1"]).unwrap().what, What::Commands(Some(Target::valkey(8, 1))));
        assert_eq!(parse(&["[a]cl"]).unwrap().what, What::Data);
        for wrong in [&["a", "b"][..], &["acl", "aof"], &["acl", "db1"], &["commands=oracle-9"], &["commands=redis"]] {
            assert_eq!(parse(wrong).unwrap_err().kind(), ErrorKind::Usage, "{wrong:?}");
        }
    }
}
