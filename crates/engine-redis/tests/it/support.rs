//! What the tests share: a server with something of everything, and an engine for it.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::engine::{
    Engine, EngineSetup, Existing, Place, Preflight, RestoreReport, RestoreTarget, Source, SourceSummary,
};
use backup_core::error::Result;
use backup_core::event::Recorder;
use backup_core::evidence::Evidence;
use backup_core::host::LocalHost;
use backup_core::manifest::{ArtifactRecord, Manifest, SourceRecord};
use backup_core::plan::{Node, OnFailure};
use backup_core::run::{RunOptions, Task, run};
use backup_core::sink::{ChunkHint, EntryReader, PieceReader, Sink, SnapshotReader};
use backup_core::{ArtifactName, BackupReader, BackupWriter, PlanName, RunContext, SourceName};
use backup_testkit::redis::selected_folder;
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

/// The same, over the server's port.
pub(crate) fn engine_by_port(server: &PrivateRedis, scheme: &str, more: &str) -> Engine {
    build(&format!("{{ url: '{scheme}://127.0.0.1:{}', {more} }}", server.port())).unwrap()
}

pub(crate) fn build(yaml: &str) -> Result<Engine> {
    // Drills run the server that is tested.
    let bin = selected_folder().filter(|_| !yaml.contains("bin:"));
    let yaml = match (bin, yaml.strip_suffix('}')) {
        (Some(folder), Some(open)) => {
            let open = open.trim_end().trim_end_matches(',');
            let comma = if open == "{" { "" } else { "," };
            format!("{open}{comma} bin: {} }}", folder.display())
        }
        _ => yaml.to_owned(),
    };
    let (name, config) = (source(), Node::from_yaml(&yaml)?);
    (REDIS.build)(&EngineSetup { name: &name, config: &config, folder: Path::new("/"), host: Arc::new(LocalHost) })
}

/// A command that stops a server, and one that starts it, as a service manager's would.
pub(crate) fn service(server: &PrivateRedis, start: Option<&Path>) -> String {
    let (socket, conf, program) = (server.socket(), server.configuration(), backup_testkit::redis::program());
    format!(
        "stop: [redis-cli, -s, {}, shutdown, nosave], start: [{}, {}, --daemonize, 'yes']",
        socket.display(),
        start.unwrap_or(&program).display(),
        conf.display()
    )
}

/// Whose server is tested, and what its program is called.
pub(crate) fn product() -> (&'static str, &'static str) {
    let program = backup_testkit::redis::program();
    let valkey = program.file_name().unwrap().to_str().unwrap().contains("valkey");
    if valkey { ("Valkey", "valkey-server") } else { ("Redis", "redis-server") }
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

/// A source that saves what it is given.
#[derive(Debug)]
struct Copied {
    artifacts: Vec<(ArtifactName, Vec<u8>)>,
    record: SourceRecord,
}

#[async_trait]
impl Source for Copied {
    async fn preflight(&self, _cx: &RunContext) -> Result<Preflight> {
        Ok(Preflight { description: String::new(), expected_bytes: None, warnings: Vec::new() })
    }

    async fn backup(&self, _cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        for (name, bytes) in &self.artifacts {
            let mut artifact = out.artifact(name.clone(), ChunkHint::Stream).await?;
            artifact.write(bytes.clone().into()).await?;
            artifact.seal(Evidence::ExactLength(bytes.len() as u64)).await?;
        }
        let record = self.record.clone();
        Ok(SourceSummary {
            mode: record.mode,
            server: record.server,
            position: record.position,
            fingerprint: record.fingerprint,
            details: record.details,
        })
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
    /// The same backup with the bytes of one artifact changed: saved so, not damaged.
    pub(crate) async fn with_bytes(&self, name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Self {
        let name = artifact(name);
        let mut change = Some(change);
        self.copied(|record, bytes| {
            let changed = if record.name == name { change.take().unwrap()(bytes) } else { bytes };
            Some((record.name.clone(), changed))
        })
        .await
    }

    /// The same backup, its set of append-only files as the single file of older servers: base, then what came after.
    pub(crate) async fn as_single_file(&self, single: &str) -> Self {
        let base = Arc::new(std::sync::Mutex::new(Vec::new()));
        self.copied(|record, bytes| match record.name.as_str() {
            name if name.ends_with(".manifest") => None,
            name if name.ends_with(".base.rdb") => {
                *base.lock().unwrap() = bytes;
                None
            }
            name if name.ends_with(".incr.aof") => {
                Some((artifact(single), [base.lock().unwrap().clone(), bytes].concat()))
            }
            _ => Some((record.name.clone(), bytes)),
        })
        .await
    }

    /// A backup of other artifacts, with the same record besides.
    async fn copied(
        &self,
        mut change: impl FnMut(&ArtifactRecord, Vec<u8>) -> Option<(ArtifactName, Vec<u8>)>,
    ) -> Self {
        let (reader, mut artifacts) = (self.reader().await, Vec::new());
        for record in &self.record().artifacts {
            let bytes = reader.read(&record.name, 1 << 24).await.unwrap();
            artifacts.extend(change(record, bytes));
        }
        let copy = Task {
            source: Arc::new(Copied { artifacts, record: self.record().clone() }),
            ..task(&build("{}").unwrap())
        };
        let (sink, recorder) = (MemorySink::default(), Arc::new(Recorder::default()));
        let manifest = run(vec![copy], &sink, &options()).await.unwrap();
        Self { sink, manifest, recorder }
    }

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
    fill(&server);
    server
}

/// Puts [`SAMPLE`] there; without functions, where the server has none.
pub(crate) fn fill(server: &PrivateRedis) {
    let functions = server.try_call(&["FUNCTION", "LIST"]).is_ok();
    let lines = SAMPLE.lines().filter(|line| functions || !line.starts_with("FUNCTION"));
    server.pipe(&lines.flat_map(|line| [line, "\n"]).collect::<String>());
}
