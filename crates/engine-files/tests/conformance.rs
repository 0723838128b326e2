//! Both engines against the suite that every engine passes.

mod support;

use std::path::PathBuf;

use async_trait::async_trait;
use backup_core::engine::Engine;
use backup_testkit::conformance::engine::Subject;
use backup_testkit::engine_conformance;
use support::{describe, files};
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
