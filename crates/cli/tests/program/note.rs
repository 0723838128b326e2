//! The smallest whole engine: saves one text file as a stream, and a small tree made up beside it.
//!
//! Settings make it fail where the tests of the command line need a failure.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::engine::{
    Discovered, DrillReport, Driller, Engine, EngineDescriptor, EngineSetup, Existing, Finding, Place, Preflight,
    RestorePlan, RestoreReport, RestoreTarget, Restorer, Source, SourceSummary, Verifier, VerifyReport,
};
use backup_core::manifest::{Fingerprint, ServerRecord};
use backup_core::sink::ChunkHint;
use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreeEntry, TreePath};
use backup_core::{ArtifactName, BackupReader, BackupWriter, Error, ErrorKind, Evidence, Result, RunContext};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;

pub(crate) const NOTE: EngineDescriptor = EngineDescriptor {
    name: "note",
    summary: "one text file",
    build,
    schema: || schemars::schema_for!(Config),
    discover: || {
        vec![Discovered {
            name: "Motto".to_owned(),
            because: "a motto lies in /etc/motto".to_owned(),
            yaml: "note:\n  path: /etc/motto".to_owned(),
        }]
    },
};

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The file.
    path: PathBuf,
    /// What goes wrong.
    #[serde(default)]
    fault: Option<Fault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Fault {
    /// The backup waits until it is cancelled.
    Hang,
    /// The backup panics.
    Panic,
    /// The drill finds something wrong.
    Drill,
    /// The verification finds something wrong.
    Verify,
    /// Neither verification nor drill get anywhere.
    Sick,
}

#[derive(Debug)]
struct Note {
    path: PathBuf,
    fault: Option<Fault>,
}

fn build(setup: &EngineSetup<'_>) -> Result<Engine> {
    let Config { path, fault } = setup.config.parse()?;
    let note = Arc::new(Note { path: setup.folder.join(path), fault });
    let (source, restorer, verifier, driller) = (note.clone(), note.clone(), note.clone(), note);
    Ok(Engine { source, restorer, verifier, driller, follower: None })
}

fn name(text: &str) -> ArtifactName {
    ArtifactName::new(text).unwrap()
}

fn entry(path: &str, kind: EntryKind) -> TreeEntry {
    TreeEntry {
        path: TreePath::new(path).unwrap(),
        kind,
        mode: 0o755,
        uid: 1000,
        gid: 1000,
        user: Some("ada".to_owned()),
        group: None,
        modified: FileTime { seconds: 1_795_157_751, nanos: 5 },
        xattrs: Vec::new(),
        identity: FileIdentity::default(),
    }
}

impl Note {
    fn ask(&self) -> Result<()> {
        match self.fault {
            Some(Fault::Sick) => {
                Err(Error::new(ErrorKind::Unsupported, "nobody here can read shorthand").hint("ask whoever wrote it"))
            }
            _ => Ok(()),
        }
    }

    fn read(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.path).map_err(|source| {
            Error::io("cannot read the note", &self.path, source).hint("write it, or take the source out of the plan")
        })
    }

    fn target(&self, to: &RestoreTarget) -> PathBuf {
        match &to.place {
            Place::Original => self.path.clone(),
            Place::Folder(folder) => folder.join("note.txt"),
        }
    }
}

/// A tree with one entry of each kind that `ls` and `cat` treat differently.
async fn write_tree(out: &BackupWriter) -> Result<()> {
    let mut tree = out.tree(name("files")).await?;
    let path = |text: &str| TreePath::new(text).unwrap();
    tree.entry(entry("", EntryKind::Directory)).await?;
    tree.entry(entry("dir", EntryKind::Directory)).await?;
    let mut file = tree.file(path("dir/sparse"), ChunkHint::Stream).await?;
    file.write(Bytes::from_static(b"head")).await?;
    file.hole(4).await?;
    file.finish(entry("dir/sparse", EntryKind::File { size: 8 })).await?;
    tree.entry(entry("link", EntryKind::Symlink { target: b"dir/sparse".to_vec() })).await?;
    tree.entry(entry("same", EntryKind::Hardlink { target: path("dir/sparse") })).await?;
    tree.seal(Evidence::Listing { entries: 5 }).await?;
    Ok(())
}

#[async_trait]
impl Source for Note {
    async fn preflight(&self, _: &RunContext) -> Result<Preflight> {
        let text = self.read()?;
        let warnings = if text.len() < 7 { vec!["the note is short".to_owned()] } else { Vec::new() };
        Ok(Preflight { description: "a note".to_owned(), expected_bytes: Some(text.len() as u64), warnings })
    }

    async fn backup(&self, cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        match self.fault {
            Some(Fault::Hang) => cx.unless_cancelled(std::future::pending::<Result<()>>()).await?,
            Some(Fault::Panic) => panic!("the note engine lost its head"),
            _ => {}
        }
        let text = self.read()?;
        if text.len() < 7 {
            cx.warn("the note is short");
        }
        cx.step("copying");
        let lines = String::from_utf8_lossy(&text).lines().count() as u64;
        let mut artifact = out.artifact(name("note.txt"), ChunkHint::Stream).await?;
        let length = text.len() as u64;
        artifact.write(Bytes::from(text)).await?;
        artifact.seal(Evidence::ExactLength(length)).await?;
        write_tree(out).await?;
        let mut fingerprint = Fingerprint::default();
        fingerprint.count("lines", "note.txt", lines);
        let server = ServerRecord {
            product: "Notebook".to_owned(),
            version: "1.0".to_owned(),
            image: Some("notebook:1".to_owned()),
            digest: None,
        };
        Ok(SourceSummary { mode: Some("plain".to_owned()), server: Some(server), fingerprint, ..Default::default() })
    }
}

#[async_trait]
impl Restorer for Note {
    async fn plan_restore(&self, _: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestorePlan> {
        let target = self.target(to);
        if target.exists() && to.existing == Existing::Refuse {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("{} exists", target.display()))
                .hint("`--force` replaces it; `--target DIR` restores elsewhere"));
        }
        let bytes = from.record().artifacts.iter().map(|artifact| artifact.bytes).sum();
        let warnings = if target.exists() { vec!["the note that is there is lost".to_owned()] } else { Vec::new() };
        Ok(RestorePlan {
            steps: vec![format!("write {}", target.display())],
            bytes,
            target: to.clone(),
            warnings,
            changes: None,
        })
    }

    async fn restore(&self, _: &RunContext, from: &BackupReader, plan: RestorePlan) -> Result<RestoreReport> {
        let target = self.target(&plan.target);
        let text = from.read(&name("note.txt"), 1 << 20).await?;
        let failed = |source| Error::io("cannot write the note", &target, source);
        std::fs::create_dir_all(target.parent().unwrap()).map_err(failed)?;
        std::fs::write(&target, &text).map_err(failed)?;
        let restored = vec![target.display().to_string()];
        Ok(RestoreReport { restored, bytes: text.len() as u64, items: 1, ..RestoreReport::default() })
    }
}

#[async_trait]
impl Verifier for Note {
    async fn verify(&self, _: &RunContext, from: &BackupReader) -> Result<VerifyReport> {
        self.ask()?;
        let text = from.read(&name("note.txt"), 1 << 20).await?;
        let mut findings = Vec::new();
        if self.fault == Some(Fault::Verify) || !text.ends_with(b"\n") {
            findings.push(Finding {
                snapshot: from.manifest().id.clone(),
                source: from.source().clone(),
                artifact: name("note.txt"),
                problem: "the note has no end".to_owned(),
            });
        }
        Ok(VerifyReport { checked: vec!["the note was read to its end".to_owned()], findings })
    }
}

#[async_trait]
impl Driller for Note {
    async fn drill(&self, cx: &RunContext, from: &BackupReader) -> Result<DrillReport> {
        self.ask()?;
        let text = from.read(&name("note.txt"), 1 << 20).await?;
        let copy = cx.scratch().join("note.txt");
        std::fs::write(&copy, &text).map_err(|source| Error::io("cannot write the note", &copy, source))?;
        let mut restored = Fingerprint::default();
        let lines = std::fs::read_to_string(&copy).unwrap_or_default().lines().count() as u64;
        restored.count("lines", "note.txt", if self.fault == Some(Fault::Drill) { lines + 1 } else { lines });
        Ok(DrillReport {
            restore_time: Duration::from_millis(20),
            check_time: Duration::from_millis(10),
            bytes: text.len() as u64,
            items: lines,
            checked: vec!["every line was counted".to_owned()],
            findings: from.record().fingerprint.differences(&restored),
            ..DrillReport::default()
        })
    }
}
