//! A whole engine in one file: it saves, restores, verifies and drills the notes that the program `notes` keeps.
//!
//! Invariant: a dump is sealed when its process ended with status zero *and* its last line is the trailer; a restore
//! hands nothing to the program before the last byte of the dump was read and found to be what was saved.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use backup_core::engine::{
    DrillReport, Driller, Engine, EngineDescriptor, EngineSetup, Existing, Finding, Place, Preflight, RestorePlan,
    RestoreReport, RestoreTarget, Restorer, Source, SourceSummary, Verifier, VerifyReport,
};
use backup_core::host::{BoxRead, Host, HostCommand};
use backup_core::manifest::Fingerprint;
use backup_core::sink::ChunkHint;
use backup_core::{ArtifactName, BackupReader, BackupWriter, Error, ErrorKind, Evidence, Result, RunContext};
use bytes::{Bytes, BytesMut};
use schemars::JsonSchema;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Registers the engine: a front end puts this into its list, and plans may say `notes: { folder: … }`.
pub const NOTES: EngineDescriptor = EngineDescriptor {
    name: "notes",
    summary: "the notes of the program `notes`",
    build,
    schema: || schemars::schema_for!(Config),
    discover: Vec::new,
};

/// The one artifact.
const DUMP: &str = "notes.dump";
/// What the program writes when it wrote everything.
const TRAILER: &str = "-- end of notes";
/// The size of the pieces that are read from the program: all the memory that a dump needs.
const PIECE_BYTES: usize = 64 * 1024;

/// The engine's part of the plan. Its doc comments become the JSON Schema.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The folder of the notes.
    folder: PathBuf,
    /// The program. By default `notes`, wherever it is installed.
    #[serde(default = "default_program")]
    program: PathBuf,
}

fn default_program() -> PathBuf {
    "notes".into()
}

#[derive(Debug)]
struct Notes {
    folder: PathBuf,
    program: PathBuf,
    host: Arc<dyn Host>,
}

/// Pure: it parses, and neither looks at the system nor starts anything.
fn build(setup: &EngineSetup<'_>) -> Result<Engine> {
    let Config { folder, program } = setup.config.parse()?;
    let notes = Arc::new(Notes { folder: setup.folder.join(folder), program, host: Arc::clone(&setup.host) });
    let (source, restorer, verifier) = (notes.clone(), notes.clone(), notes.clone());
    Ok(Engine { source, restorer, verifier, driller: notes, follower: None })
}

/// Watches a dump pass: counts its lines and keeps the last one. Its memory does not grow with the dump.
#[derive(Debug, Default)]
struct Scan {
    lines: u64,
    line: Vec<u8>,
    last: Vec<u8>,
}

impl Scan {
    fn push(&mut self, data: &[u8]) {
        for byte in data {
            if *byte == b'\n' {
                self.lines += 1;
                self.last = std::mem::take(&mut self.line);
            } else if self.line.len() <= TRAILER.len() {
                self.line.push(*byte);
            }
        }
    }

    /// The number of notes in a dump that is whole.
    fn finish(&self) -> Result<u64> {
        if self.last == TRAILER.as_bytes() && self.line.is_empty() {
            return Ok(self.lines - 1);
        }
        Err(Error::new(ErrorKind::Incomplete, format!("the dump is cut: its last line is not `{TRAILER}`")))
    }
}

impl Notes {
    fn command(&self, verb: &str, folder: &Path) -> HostCommand {
        HostCommand::new(&self.program).arg(verb).arg(folder)
    }

    async fn save(&self, cx: &RunContext, out: &BackupWriter) -> Result<u64> {
        cx.step("dumping the notes");
        let mut process = self.host.spawn(self.command("dump", &self.folder)).await?;
        let mut stdout = process.take_stdout().ok_or_else(|| Error::new(ErrorKind::Internal, "no output"))?;
        let mut artifact = out.artifact(ArtifactName::new(DUMP)?, ChunkHint::Stream).await?;
        let mut scan = Scan::default();
        loop {
            let piece = next_piece(&mut stdout).await?;
            if piece.is_empty() {
                break;
            }
            scan.push(&piece);
            artifact.write(piece).await?;
        }
        // The end of the stream proves nothing. These two do.
        let exit = process.finish().await.map_err(|error| {
            error.hint(format!("is `{}` the folder of the notes, and may we read it?", self.folder.display()))
        })?;
        let notes = scan.finish()?;
        if notes == 0 {
            let message = format!("there are no notes in {}", self.folder.display());
            return Err(Error::new(ErrorKind::NotFound, message).hint("is this the folder that the plan means?"));
        }
        artifact.seal(Evidence::Exit { exit, trailer: Some(TRAILER) }).await?;
        Ok(notes)
    }

    /// Reads the dump to its end, which checks its length and its SHA-256, and then loads it into the empty `folder`.
    async fn load(&self, cx: &RunContext, from: &BackupReader, folder: &Path) -> Result<u64> {
        let staged = stage(cx.scratch())?;
        let path = staged.path().join(DUMP);
        let failed = |source| Error::io("cannot keep the dump", &path, source);
        let mut file = tokio::fs::File::create_new(&path).await.map_err(failed)?;
        let bytes = from.stream(&ArtifactName::new(DUMP)?).await?.copy_to(cx, &mut file).await?;
        cx.check_cancelled()?;
        cx.step("loading the notes");
        let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
        let mut process = self.host.spawn(self.command("load", folder).piped_stdin().null_stdout()).await?;
        let mut stdin = process.take_stdin().ok_or_else(|| Error::new(ErrorKind::Internal, "no input"))?;
        let piped = tokio::io::copy(&mut file, &mut stdin).await;
        let closed = stdin.shutdown().await;
        drop(stdin);
        // When the program fails, its own words say more than our broken pipe.
        process.finish().await?;
        piped.and(closed).map_err(|source| Error::from_io("cannot hand over the dump", source))?;
        Ok(bytes)
    }

    async fn count(&self, folder: &Path) -> Result<u64> {
        let answer = self.host.spawn(self.command("count", folder)).await?.output(64).await?;
        answer
            .trim()
            .parse()
            .map_err(|_| Error::new(ErrorKind::Tool, format!("`notes count` says `{}`", answer.trim())))
    }

    fn target(&self, place: &Place) -> PathBuf {
        match place {
            Place::Original => self.folder.clone(),
            Place::Folder(folder) => folder.clone(),
        }
    }
}

/// The next piece of a stream, empty at its end. Pieces are filled: how a pipe cuts a dump must not make a difference.
async fn next_piece(from: &mut BoxRead) -> Result<Bytes> {
    let mut piece = BytesMut::with_capacity(PIECE_BYTES);
    while piece.len() < PIECE_BYTES {
        let count = from.read_buf(&mut piece).await;
        if count.map_err(|source| Error::from_io("cannot read what `notes` writes", source))? == 0 {
            break;
        }
    }
    Ok(piece.freeze())
}

/// A folder of our own below `parent`; it is removed when the value is dropped, whatever happens.
fn stage(parent: &Path) -> Result<TempDir> {
    let made = tempfile::Builder::new().prefix(".notes-").tempdir_in(parent);
    made.map_err(|source| Error::io("cannot make a temporary folder", parent, source))
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

fn fingerprint(notes: u64) -> Fingerprint {
    let mut fingerprint = Fingerprint::default();
    fingerprint.count("notes", "notes.txt", notes);
    fingerprint
}

#[async_trait]
impl Source for Notes {
    async fn preflight(&self, cx: &RunContext) -> Result<Preflight> {
        let notes = cx.unless_cancelled(self.count(&self.folder)).await?;
        let description = format!("{notes} notes in {}", self.folder.display());
        Ok(Preflight { description, expected_bytes: None, warnings: Vec::new() })
    }

    async fn backup(&self, cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        // Cancelled, the work is dropped, and the program with it.
        let notes = cx.unless_cancelled(self.save(cx, out)).await?;
        Ok(SourceSummary { mode: Some("dump".to_owned()), fingerprint: fingerprint(notes), ..Default::default() })
    }
}

#[async_trait]
impl Restorer for Notes {
    async fn plan_restore(&self, _: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestorePlan> {
        if !to.select.is_empty() || to.rename.is_some() {
            return Err(Error::new(ErrorKind::Usage, "notes are restored all together, under their own name")
                .hint("leave `--select` and `--rename` out"));
        }
        let target = self.target(&to.place);
        if !is_empty(&target) && to.existing == Existing::Refuse {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("{} is not empty", target.display()))
                .hint("`--force` replaces it; `--target DIR` restores elsewhere"));
        }
        let bytes = from.record().artifacts.iter().map(|artifact| artifact.bytes).sum();
        let steps = vec![format!("load the notes into {}", target.display())];
        Ok(RestorePlan { steps, bytes, target: to.clone(), warnings: Vec::new(), changes: None })
    }

    async fn restore(&self, cx: &RunContext, from: &BackupReader, plan: RestorePlan) -> Result<RestoreReport> {
        let target = self.target(&plan.target.place);
        let parent = target.parent().unwrap_or(Path::new("/"));
        let failed = |source| Error::io("cannot put the notes in their place", &target, source);
        std::fs::create_dir_all(parent).map_err(failed)?;
        // Loaded beside the target, then moved: whoever looks sees the old notes or the new ones.
        let staged = stage(parent)?;
        let (new, old) = (staged.path().join("new"), staged.path().join("old"));
        std::fs::create_dir(&new).map_err(failed)?;
        let bytes = cx.unless_cancelled(self.load(cx, from, &new)).await?;
        let items = cx.unless_cancelled(self.count(&new)).await?;
        if plan.target.existing == Existing::Replace && target.exists() {
            std::fs::rename(&target, &old).map_err(failed)?;
        }
        if let Err(source) = std::fs::rename(&new, &target) {
            let _nothing_was_there = std::fs::rename(&old, &target);
            return Err(failed(source));
        }
        Ok(RestoreReport { restored: vec![target.display().to_string()], bytes, items, ..RestoreReport::default() })
    }
}

#[async_trait]
impl Verifier for Notes {
    async fn verify(&self, cx: &RunContext, from: &BackupReader) -> Result<VerifyReport> {
        let artifact = ArtifactName::new(DUMP)?;
        let mut report = VerifyReport::default();
        let checked = match scan(cx, from, &artifact).await {
            Ok(scan) => scan.finish(),
            Err(error) => Err(error),
        };
        match checked {
            Ok(notes) => report.checked.push(format!("{notes} notes read to the trailer")),
            // Damage is what we look for; anything else kept us from looking.
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete) => {
                let (snapshot, source) = (from.manifest().id.clone(), from.source().clone());
                report.findings.push(Finding { snapshot, source, artifact, problem: error.chain() });
            }
            Err(error) => return Err(error),
        }
        Ok(report)
    }
}

async fn scan(cx: &RunContext, from: &BackupReader, artifact: &ArtifactName) -> Result<Scan> {
    let mut reader = from.stream(artifact).await?;
    let mut scan = Scan::default();
    while let Some(data) = cx.unless_cancelled(reader.next()).await? {
        scan.push(&data);
        cx.progress(Bytes::len(&data) as u64, 0);
    }
    Ok(scan)
}

#[async_trait]
impl Driller for Notes {
    async fn drill(&self, cx: &RunContext, from: &BackupReader) -> Result<DrillReport> {
        let begun = Instant::now();
        let scratch = stage(cx.scratch())?;
        let bytes = cx.unless_cancelled(self.load(cx, from, scratch.path())).await?;
        let restore_time = begun.elapsed();
        let items = cx.unless_cancelled(self.count(scratch.path())).await?;
        Ok(DrillReport {
            restore_time,
            check_time: begun.elapsed().saturating_sub(restore_time),
            bytes,
            items,
            checked: vec!["the program counts as many notes as were saved".to_owned()],
            findings: from.record().fingerprint.differences(&fingerprint(items)),
            ..DrillReport::default()
        })
    }
}
