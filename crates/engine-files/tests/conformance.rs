//! Both engines against the suite that every engine passes.

mod support;

use std::path::PathBuf;

use async_trait::async_trait;
use backup_core::engine::Engine;
use backup_testkit::conformance::engine::Subject;
use backup_testkit::engine_conformance;
use support::{describe, engine, files};
use tempfile::TempDir;

struct Tree {
    home: TempDir,
}

impl Tree {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let at = |path: &str| home.path().join(path);
        std::fs::create_dir_all(at("live/data/sub/empty")).unwrap();
        std::fs::create_dir_all(at("live/other")).unwrap();
        std::fs::create_dir(at("scratch")).unwrap();
        std::fs::write(at("live/data/small"), "small").unwrap();
        std::fs::write(at("live/data/large"), vec![7u8; 3_000_000]).unwrap();
        std::fs::write(at("live/data/sub/x"), "x".repeat(100)).unwrap();
        std::fs::hard_link(at("live/data/small"), at("live/data/sub/small-too")).unwrap();
        std::os::unix::fs::symlink("../small", at("live/data/sub/link")).unwrap();
        std::fs::write(at("live/other/z"), "z").unwrap();
        Self { home }
    }

    fn engine_of(&self, path: &str) -> Engine {
        let live = self.home.path().join("live");
        files(&format!("paths: [{0}/{path}, {0}/other]", live.display()))
    }
}

#[async_trait]
impl Subject for Tree {
    fn engine(&self) -> Engine {
        self.engine_of("data")
    }

    fn engine_for_nothing(&self) -> Engine {
        self.engine_of("missing")
    }

    async fn state(&self) -> String {
        let live = self.home.path().join("live");
        describe(&live.join("data")) + &describe(&live.join("other"))
    }

    async fn destroy(&self) {
        for name in ["data", "other"] {
            let _absent = std::fs::remove_dir_all(self.home.path().join("live").join(name));
        }
    }

    fn scratch(&self) -> PathBuf {
        self.home.path().join("scratch")
    }

    fn surroundings(&self) -> Vec<PathBuf> {
        vec![self.home.path().to_owned(), self.home.path().join("live")]
    }
}

engine_conformance!(a_tree, Tree::new());

struct Database {
    home: TempDir,
}

impl Database {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("scratch")).unwrap();
        std::fs::create_dir(home.path().join("live")).unwrap();
        let database = Self { home };
        let connection = rusqlite::Connection::open(database.path()).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA application_id = 77; PRAGMA user_version = 3;
                 CREATE TABLE \"odd \"\" name\" (x); INSERT INTO \"odd \"\" name\" VALUES (1);
                 CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
                 INSERT INTO t SELECT i, randomblob(500) FROM n;",
            )
            .unwrap();
        database
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("live/app.sqlite")
    }
}

#[async_trait]
impl Subject for Database {
    fn engine(&self) -> Engine {
        engine(&engine_files::SQLITE, &format!("path: {}", self.path().display())).unwrap()
    }

    fn engine_for_nothing(&self) -> Engine {
        let empty = self.home.path().join("live/empty.sqlite");
        std::fs::write(&empty, "").unwrap();
        engine(&engine_files::SQLITE, &format!("path: {}", empty.display())).unwrap()
    }

    async fn state(&self) -> String {
        let connection = rusqlite::Connection::open(self.path()).unwrap();
        let mut statement = connection.prepare("SELECT id || ' ' || hex(body) FROM t ORDER BY id").unwrap();
        let rows: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        let pragmas = ["journal_mode", "application_id", "user_version", "page_size"].map(|name| {
            let value: rusqlite::types::Value = connection.pragma_query_value(None, name, |row| row.get(0)).unwrap();
            format!("{name} {value:?}")
        });
        pragmas.join("\n") + &rows.join("\n")
    }

    async fn destroy(&self) {
        for ending in ["", "-wal", "-shm"] {
            let _absent = std::fs::remove_file(format!("{}{ending}", self.path().display()));
        }
    }

    fn scratch(&self) -> PathBuf {
        self.home.path().join("scratch")
    }

    fn surroundings(&self) -> Vec<PathBuf> {
        vec![self.home.path().join("live")]
    }
}

engine_conformance!(a_database, Database::new());
