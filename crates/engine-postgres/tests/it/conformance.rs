//! The suite that every engine runs, for each of the two modes.

use std::path::PathBuf;

use async_trait::async_trait;
use backup_core::engine::{Engine, Place, RestoreTarget};
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

/// The same server, saved physically and restored into a folder.
struct Files {
    cluster: Cluster,
    target: tempfile::TempDir,
}

impl Files {
    fn start() -> Self {
        Self { cluster: Cluster::start(), target: open_folder() }
    }

    fn folder(&self) -> PathBuf {
        self.target.path().join("restored")
    }
}

#[async_trait]
impl Subject for Files {
    fn engine(&self) -> Engine {
        self.cluster.configured("modes: [physical]")
    }

    fn engine_for_nothing(&self) -> Engine {
        crate::support::build("{ modes: [physical], socket: /no/such/folder, run_as: root }").unwrap()
    }

    /// The live server's, until there is a restored one.
    async fn state(&self) -> String {
        let data = self.folder().join("data");
        if data.exists() {
            let copy = self.cluster.server.on_data(&data);
            return format!("{:?} {:?}", copy.dump("app"), crate::support::databases(&copy));
        }
        self.cluster.state().await
    }

    async fn destroy(&self) {
        std::fs::remove_dir_all(self.folder()).unwrap_or_default();
    }

    fn target(&self) -> RestoreTarget {
        RestoreTarget { place: Place::Folder(self.folder()), ..RestoreTarget::default() }
    }

    fn scratch(&self) -> PathBuf {
        self.cluster.scratch()
    }

    fn surroundings(&self) -> Vec<PathBuf> {
        vec![self.target.path().to_owned(), self.scratch()]
    }

    fn secrets(&self) -> Vec<String> {
        self.cluster.secrets()
    }
}

engine_conformance!(@tests files, Files::start(), late_failure_is_not_committed, truncation_is_refused,
    cancellation_leaves_nothing_behind, empty_run_is_refused, verify_finds_one_flipped_bit, secrets_appear_nowhere);
