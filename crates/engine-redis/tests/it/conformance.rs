//! The suite that every engine runs.

use std::path::PathBuf;

use async_trait::async_trait;
use backup_core::engine::Engine;
use backup_testkit::conformance::engine::Subject;
use backup_testkit::{PrivateRedis, engine_conformance};

use crate::support::{build, engine, sample};

const PASSWORD: &str = "hunter2-of-the-server";

struct Cache {
    server: PrivateRedis,
    scratch: tempfile::TempDir,
    secret: tempfile::NamedTempFile,
}

impl Cache {
    fn start() -> Self {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&secret, PASSWORD).unwrap();
        let server = sample(&[("requirepass", PASSWORD)]);
        Self { server, scratch: tempfile::tempdir().unwrap(), secret }
    }

    fn password(&self) -> String {
        format!("password: {{ file: {} }}", self.secret.path().display())
    }
}

#[async_trait]
impl Subject for Cache {
    fn engine(&self) -> Engine {
        engine(&self.server, &self.password())
    }

    fn engine_for_nothing(&self) -> Engine {
        build(&format!("{{ socket: /tmp/there-is-no-server, {} }}", self.password())).unwrap()
    }

    async fn state(&self) -> String {
        self.server.digest() + &self.server.call(&["FUNCTION", "LIST"])
    }

    async fn destroy(&self) {
        self.server.call(&["FLUSHALL"]);
        self.server.call(&["FUNCTION", "FLUSH"]);
    }

    fn scratch(&self) -> PathBuf {
        self.scratch.path().to_owned()
    }

    fn surroundings(&self) -> Vec<PathBuf> {
        vec![self.scratch.path().to_owned(), self.server.data_folder()]
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.to_owned()]
    }
}

engine_conformance!(cache, Cache::start());
