//! What the tests share: a server with something of everything, and an engine for it.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::engine::{Engine, EngineSetup, Existing, Place, RestoreReport, RestoreTarget};
use backup_core::error::Result;
use backup_core::event::Recorder;
use backup_core::host::LocalHost;
use backup_core::manifest::{ArtifactRecord, Manifest, SourceRecord};
use backup_core::plan::{Node, OnFailure};
use backup_core::run::{RunOptions, Task, run};
use backup_core::sink::{EntryReader, PieceReader, Sink, SnapshotReader};
use backup_core::{ArtifactName, BackupReader, PlanName, RunContext, SourceName};
use backup_testkit::{MemorySink, PrivateRedis};
use engine_redis::REDIS;

pub(crate) fn source() -> SourceName {
    SourceName::new("cache").unwrap()
}

pub(crate) fn artifact(name: &str) -> ArtifactName {
    ArtifactName::new(name).unwrap()
}

/// The field `password` of a configuration, and the file that it names.
pub(crate) fn password(password: &str) -> (String, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, password).unwrap();
    (format!("password: {{ file: {} }}", file.path().display()), file)
}

pub(crate) fn context() -> RunContext {
    RunContext::new(source())
}

/// The engine for a server; `more` are further fields of its configuration, in YAML's flow style.
pub(crate) fn engine(server: &PrivateRedis, more: &str) -> Engine {
    build(&format!("{{ socket: {}, {more} }}", server.socket().display())).unwrap()
}

pub(crate) fn build(yaml: &str) -> Result<Engine> {
    let (name, config) = (source(), Node::from_yaml(yaml)?);
    (REDIS.build)(&EngineSetup { name: &name, config: &config, folder: Path::new("/"), host: Arc::new(LocalHost) })
}

pub(crate) fn options() -> RunOptions {
    RunOptions::new(PlanName::new("plan").unwrap(), "here")
}

pub(crate) fn task(engine: &Engine) -> Task {
    let source_of_it = Arc::clone(&engine.source);
    Task { name: source(), engine: "redis".into(), source: source_of_it, on_failure: OnFailure::Continue }
}

/// A backup through the runner, as the command line makes it.
pub(crate) async fn back_up(engine: &Engine) -> Result<Saved> {
    let sink = MemorySink::default();
    let recorder = Arc::new(Recorder::default());
    let options = RunOptions { observer: Arc::clone(&recorder) as _, ..options() };
    let manifest = run(vec![task(engine)], &sink, &options).await?;
    Ok(Saved { sink, manifest, recorder })
}

/// The same, into a sink that holds more.
pub(crate) async fn back_up_into(engine: &Engine, sink: &dyn Sink) -> Result<Manifest> {
    run(vec![task(engine)], sink, &options()).await
}

#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) sink: MemorySink,
    pub(crate) manifest: Manifest,
    pub(crate) recorder: Arc<Recorder>,
}

impl Saved {
    pub(crate) async fn reader(&self) -> BackupReader {
        BackupReader::new(self.sink.open(&self.manifest.id).await.unwrap(), source()).unwrap()
    }

    pub(crate) fn record(&self) -> &SourceRecord {
        self.manifest.source(&source()).unwrap()
    }

    pub(crate) fn warnings(&self) -> String {
        self.record().warnings.join("\n")
    }

    pub(crate) fn dump(&self) -> &ArtifactRecord {
        self.record().artifact(&artifact("dump.rdb")).unwrap()
    }

    pub(crate) fn detail(&self, name: &str) -> &serde_json::Value {
        &self.record().details[name]
    }

    pub(crate) async fn text(&self, artifact: &str) -> String {
        let bytes = self.reader().await.read(&self::artifact(artifact), 1 << 24).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }
}

/// A snapshot whose manifest says something else than was saved.
#[derive(Debug)]
struct Lying {
    inner: Arc<dyn SnapshotReader>,
    manifest: Manifest,
}

#[async_trait]
impl SnapshotReader for Lying {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    async fn stream(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn PieceReader>> {
        self.inner.stream(source, artifact).await
    }

    async fn tree(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn EntryReader>> {
        self.inner.tree(source, artifact).await
    }
}

impl Saved {
    /// Reads the snapshot as if its source's record had been changed.
    pub(crate) async fn reader_with(&self, change: impl FnOnce(&mut SourceRecord)) -> BackupReader {
        let inner = self.sink.open(&self.manifest.id).await.unwrap();
        let mut manifest = self.manifest.clone();
        change(&mut manifest.sources[0]);
        BackupReader::new(Arc::new(Lying { inner, manifest }), source()).unwrap()
    }
}

/// Plans and restores, as the command line does.
pub(crate) async fn restore(engine: &Engine, saved: &Saved, target: &RestoreTarget) -> Result<RestoreReport> {
    let from = saved.reader().await;
    let plan = engine.restorer.plan_restore(&context(), &from, target).await?;
    engine.restorer.restore(&context(), &from, plan).await
}

pub(crate) fn replacing() -> RestoreTarget {
    RestoreTarget { existing: Existing::Replace, ..RestoreTarget::default() }
}

pub(crate) fn select(items: &[&str]) -> RestoreTarget {
    RestoreTarget { select: items.iter().map(|item| (*item).to_owned()).collect(), ..RestoreTarget::default() }
}

pub(crate) fn folder(path: &Path) -> RestoreTarget {
    RestoreTarget { place: Place::Folder(path.to_owned()), ..RestoreTarget::default() }
}

/// Something of every type, in several databases, with a library of functions. 100 years are far enough.
pub(crate) const SAMPLE: &str = r##"SELECT 0
SET plain value
SET "emoji 😀" "with \"quotes\" and \x00\xff bytes"
SET number 12345678901234567
SET later x EX 3153600000
RPUSH list a b c
SADD ints 1 2 3
SADD set a 😀 ""
ZADD scores -inf low +inf high -1.5 negative 0.1 tenth
HSET hash field value "f 2" ""
XADD stream 1-1 field value
XADD stream 2-1 field other
XGROUP CREATE stream group 0
XREADGROUP GROUP group consumer COUNT 1 STREAMS stream >
PFADD visitors a b c
FUNCTION LOAD "#!lua name=lib\nredis.register_function('f', function() return 1 end)"
SELECT 9
SET other database
RPUSH q 1 2 3
SELECT 15
SET last one
"##;

/// A server with [`SAMPLE`] and a few thousand keys.
pub(crate) fn sample(options: &[(&str, &str)]) -> PrivateRedis {
    let server = PrivateRedis::with_options(options);
    server.fill(3000, 40);
    server.pipe(SAMPLE);
    server
}
