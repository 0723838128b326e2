//! The suite that every engine runs. Joined to `main.rs` (`mod conformance;`) once `backup-testkit` has the suite.

use std::path::PathBuf;

use async_trait::async_trait;
use backup_core::engine::Engine;
use backup_testkit::conformance::engine::Subject;
use backup_testkit::{PrivatePostgres, engine_conformance};

use crate::support::{engine, open_folder};

const PASSWORD: &str = "hunter2-of-the-server";

struct Cluster {
    server: PrivatePostgres,
    scratch: tempfile::TempDir,
    secret: tempfile::NamedTempFile,
}

impl Cluster {
    fn start() -> Self {
        let server = PrivatePostgres::start();
        server.sql("postgres", &format!("ALTER ROLE postgres PASSWORD '{PASSWORD}'; CREATE DATABASE app"));
        server.sql("app", "CREATE TABLE t AS SELECT n, md5(n::text) AS hash FROM generate_series(1, 1000) n");
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&secret, PASSWORD).unwrap();
        Self { server, scratch: open_folder(), secret }
    }

    fn configured(&self, more: &str) -> Engine {
        engine(&self.server, &format!("password: {{ file: {} }}, {more}", self.secret.path().display()))
    }
}

#[async_trait]
impl Subject for Cluster {
    fn engine(&self) -> Engine {
        self.configured("")
    }

    fn engine_for_nothing(&self) -> Engine {
        self.configured("exclude: [app, postgres]")
    }

    async fn state(&self) -> String {
        format!("{:?} {:?}", self.server.dump("app"), crate::support::databases(&self.server))
    }

    async fn destroy(&self) {
        self.server.sql("postgres", "DROP DATABASE IF EXISTS app");
    }

    fn scratch(&self) -> PathBuf {
        self.scratch.path().to_owned()
    }

    fn surroundings(&self) -> Vec<PathBuf> {
        vec![self.scratch.path().to_owned(), self.server.data_folder().join("base")]
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.to_owned(), "SCRAM-SHA-256".to_owned()]
    }
}

engine_conformance!(cluster, Cluster::start());
