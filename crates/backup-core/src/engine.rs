//! Engines: the contracts that a crate implements to teach Stackward one kind of system, and how it registers.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;

use crate::context::RunContext;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::log::SegmentLog;
use crate::manifest::{Fingerprint, Manifest, ServerRecord, SourceRecord};
use crate::names::{ArtifactName, SnapshotId, SourceName};
use crate::plan::Node;
use crate::position::Position;
use crate::reader::BackupReader;
use crate::writer::BackupWriter;

/// Saves one source.
///
/// An implementation MUST
/// - seal every artifact with evidence, or fail: returning `Ok` with an unsealed artifact is a failure all the same;
/// - stop soon after `cx` is cancelled, leaving no process, temporary file or changed setting behind;
/// - keep its memory independent of the size of the data;
/// - keep secrets out of errors, events, the summary and argument lists.
#[async_trait]
pub trait Source: Debug + Send + Sync {
    /// Looks whether a backup would work, and changes nothing: reachable, allowed, versions, size.
    ///
    /// # Errors
    /// The first thing that would make the backup fail, with the remedy.
    async fn preflight(&self, cx: &RunContext) -> Result<Preflight>;

    /// Saves everything into `out`.
    ///
    /// # Errors
    /// Whatever kept it from being whole. A partial success is an error.
    async fn backup(&self, cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary>;

    /// What the server says of how its log gets into `log`, and changes nothing. `None` when the plan wants no log of it, or
    /// the server cannot tell.
    ///
    /// # Errors
    /// When it could not be asked.
    async fn log_state(&self, cx: &RunContext, log: &SegmentLog) -> Result<Option<LogState>> {
        let (_, _) = (cx, log);
        Ok(None)
    }
}

/// What a server says of how its log is archived.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LogState {
    /// Bytes that the server has written and the archive lacks.
    pub behind_bytes: Option<u64>,
    /// What keeps log from the archive, or will.
    pub concerns: Vec<Concern>,
}

/// Something that keeps log from the archive, or will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Concern {
    /// Whether log is lost, or as good as lost, to the archive.
    pub is_loss: bool,
    /// A sentence.
    pub what: String,
    /// What to do.
    pub hint: String,
}

/// Puts one source back.
#[async_trait]
pub trait Restorer: Debug + Send + Sync {
    /// Decides what a restore would do, and changes nothing. Everything that can be known to fail, fails here.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists) for a target that is not empty, unless told to overwrite it;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for versions that do not fit.
    async fn plan_restore(&self, cx: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestorePlan>;

    /// Carries the plan out.
    ///
    /// # Errors
    /// The first failure; the report of a restore that went half-way is not a success.
    async fn restore(&self, cx: &RunContext, from: &BackupReader, plan: RestorePlan) -> Result<RestoreReport>;

    /// The files and folders of this machine that hold the source's data, as the plan says, or else what was saved:
    /// what a restore of another source around them leaves alone. Absolute; empty when they are not known.
    fn places(&self, saved: Option<&SourceRecord>) -> Vec<PathBuf> {
        let _ = saved;
        Vec::new()
    }

    /// Chooses the snapshot that a recovery to `moment` begins with, and looks whether the log reaches that moment.
    /// Engines that cannot recover to a moment leave it as it is.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) when the engine cannot; [`NotFound`](ErrorKind::NotFound) when the moment
    /// lies outside the window, with the window; [`Incomplete`](ErrorKind::Incomplete) when the log has a hole before it.
    async fn choose(
        &self,
        cx: &RunContext,
        candidates: &[Candidate],
        log: Option<&SegmentLog>,
        moment: &Moment,
    ) -> Result<SnapshotId> {
        let (_, _, _) = (cx, candidates, log);
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("`{}` cannot be recovered to {moment}: its engine keeps no log", cx.source()),
        )
        .hint("restore a snapshot as it is; `stackward list` shows them"))
    }
}

/// A snapshot that a recovery could begin with: the source is complete in it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The snapshot.
    pub id: SnapshotId,
    /// The source's part of it.
    pub record: SourceRecord,
}

/// The moment that a restore brings a source to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Moment {
    /// That of the snapshot itself.
    #[default]
    Snapshot,
    /// The end of the archived log.
    Latest,
    /// The last state before this time.
    Time(Timestamp),
    /// This position of the log, in the notation of the server: an LSN, an offset.
    Position(String),
    /// Just before this transaction took effect.
    Transaction(u64),
    /// A point that was given this name on the server.
    Name(String),
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot => f.write_str("the moment of the snapshot"),
            Self::Latest => f.write_str("the end of the archived log"),
            Self::Time(time) => write!(f, "the time {time}"),
            Self::Position(position) => write!(f, "the position {position}"),
            Self::Transaction(id) => write!(f, "the transaction {id}"),
            Self::Name(name) => write!(f, "the point named `{}`", name.escape_debug()),
        }
    }
}

/// Checks what was saved, as far as that is possible without restoring it.
#[async_trait]
pub trait Verifier: Debug + Send + Sync {
    /// Reads the artifacts and looks whether their structure is whole.
    ///
    /// # Errors
    /// Only when it could not check. Damage is a finding.
    async fn verify(&self, cx: &RunContext, from: &BackupReader) -> Result<VerifyReport>;
}

/// Proves a backup: restores it into a scratch place, asks it questions, and measures how long it took.
#[async_trait]
pub trait Driller: Debug + Send + Sync {
    /// Restores below `cx.scratch()`, asks, cleans up. Touches neither the live system nor the network.
    ///
    /// # Errors
    /// Only when the drill could not be run. Wrong answers are findings.
    async fn drill(&self, cx: &RunContext, from: &BackupReader) -> Result<DrillReport>;
}

/// Follows a continuous log.
#[async_trait]
pub trait Follower: Debug + Send + Sync {
    /// Archives what the server writes, from where `log` ends on, until `cx` is cancelled; then what was received so far
    /// is archived, too. The server is told that it may forget a part of its log only once that part is durable.
    ///
    /// A follower that cannot continue where the archive ends takes a new full snapshot through `snapshots`, and says so.
    ///
    /// # Errors
    /// Whatever keeps it from going on: a server that stays away, refuses, or is another one than the archive's. A hole is
    /// never passed over in silence.
    async fn follow(&self, cx: &RunContext, log: &SegmentLog, snapshots: &dyn Snapshots) -> Result<()>;
}

/// What a follower sees of the snapshots of its source, and how it takes one.
#[async_trait]
pub trait Snapshots: Debug + Send + Sync {
    /// Saves `source` into a snapshot of its own and commits it.
    ///
    /// # Errors
    /// As [`run`](crate::run::run).
    async fn take(&self, cx: &RunContext, source: Arc<dyn Source>) -> Result<Manifest>;

    /// The snapshots in which the source is complete, oldest first.
    ///
    /// # Errors
    /// When they cannot be listed. One that cannot be read is left out.
    async fn candidates(&self) -> Result<Vec<Candidate>>;
}

/// What a preflight learned.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Preflight {
    /// The server, in a few words: `PostgreSQL 15.18 on /run/postgresql`.
    pub description: String,
    /// The plain size to expect, in bytes.
    pub expected_bytes: Option<u64>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// What a source tells of itself for the manifest, besides its artifacts.
#[derive(Debug, Clone, Default)]
pub struct SourceSummary {
    /// See [`SourceRecord::mode`](crate::manifest::SourceRecord::mode).
    pub mode: Option<String>,
    /// The server that was saved.
    pub server: Option<ServerRecord>,
    /// Where in the server's log the artifacts are consistent.
    pub position: Option<Position>,
    /// Counts that a drill compares.
    pub fingerprint: Fingerprint,
    /// What a restore must know besides.
    pub details: BTreeMap<String, serde_json::Value>,
}

/// Where and how to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreTarget {
    /// Where to.
    pub place: Place,
    /// What to do with what stands there.
    pub existing: Existing,
    /// Only these items, in the engine's terms: paths, databases. Empty: everything.
    pub select: Vec<String>,
    /// Under this name instead of its own, for engines that can: a database.
    pub rename: Option<String>,
    /// The moment to recover to. Anything but [`Moment::Snapshot`] comes with a snapshot from [`Restorer::choose`].
    pub moment: Moment,
    /// Folders that were elsewhere on the server and shall go to another place now, for engines that have such: tablespaces.
    pub relocate: BTreeMap<PathBuf, PathBuf>,
    /// What happens to a server that was restored as files.
    pub afterwards: Afterwards,
    /// What becomes of what stands at the target and is not in the snapshot, for engines that merge.
    pub unknown: Unknown,
    /// What lies inside the target and belongs to others.
    pub neighbours: Vec<Neighbour>,
}

/// What becomes of what stands at the target and is not in the snapshot. Engines that replace what they restore as a
/// whole (a database, a data directory) ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unknown {
    /// It stays.
    #[default]
    Keep,
    /// It is removed, as told by `--delete`: never across a mount, never a neighbour's, never what the plan leaves out.
    Delete,
}

/// A place that belongs to somebody else: another source of the plan, the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The file or folder.
    pub path: PathBuf,
    /// Whose it is, for people: "the source `db`".
    pub owner: String,
    /// What a restore around it may do to it.
    pub claim: Claim,
}

/// What a restore around a neighbour's place may do to it. Removing is never allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Nothing: its owner brings it back, or it must not change.
    LeaveAlone,
    /// What the snapshot holds of it is written.
    Write,
}

/// What happens to a server that was restored as files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Afterwards {
    /// The operator starts it.
    #[default]
    Leave,
    /// It is started, and the restore ends when it can be used. Engines that restore no data directory of a server ignore it.
    Start,
}

impl Default for RestoreTarget {
    fn default() -> Self {
        Self {
            place: Place::Original,
            existing: Existing::Refuse,
            select: Vec::new(),
            rename: None,
            moment: Moment::Snapshot,
            relocate: BTreeMap::new(),
            afterwards: Afterwards::Leave,
            unknown: Unknown::Keep,
            neighbours: Vec::new(),
        }
    }
}

impl RestoreTarget {
    /// For engines that cannot tell what is the same already.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) when a comparison was asked for.
    pub fn refuse_comparison(&self, what: &str) -> Result<()> {
        if self.existing != Existing::Update {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, format!("`--delta` compares data directories, not {what}")).hint(
            "restore this source with `--force`; `--source NAME` with `--delta` is for those that can be compared",
        ))
    }
}

/// Where to restore to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Where it came from, as the plan says now.
    Original,
    /// Below this folder. Engines of servers write what they can as files, or refuse.
    Folder(PathBuf),
}

/// What to do with a target that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse before the first write.
    Refuse,
    /// Replace what the restore brings, as told by `--force`. What it does not bring is [`Unknown`].
    Replace,
    /// As `Replace`, but what is the same already stays, as told by `--delta`. Engines that cannot compare refuse:
    /// [`RestoreTarget::refuse_comparison`].
    Update,
}

impl Existing {
    /// Looks whether files may be restored into `folder`. One that is not there is made later.
    ///
    /// # Errors
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) for a folder that is not empty, unless what is there may be replaced.
    pub fn check_folder(self, folder: &Path) -> Result<()> {
        let mut entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::io("cannot look into the folder", folder, source)),
        };
        if self == Self::Refuse && entries.next().is_some() {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("the folder {} is not empty", folder.display()))
                .hint("choose an empty folder, or replace the files in it with `--force`"));
        }
        Ok(())
    }
}

/// What a restore would do.
#[derive(Debug, Clone)]
pub struct RestorePlan {
    /// The steps in readable form, for `--dry-run`.
    pub steps: Vec<String>,
    /// The plain bytes that will be read.
    pub bytes: u64,
    /// The target that it was made for.
    pub target: RestoreTarget,
    /// What the operator should know before saying yes.
    pub warnings: Vec<String>,
    /// What becomes of what stands there, where the engine looked at it entry by entry.
    pub changes: Option<Changes>,
}

/// What a restore would do to what stands at its target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Replaced by what the snapshot has: files that differ from it.
    pub overwritten: Listed,
    /// Those of the overwritten or removed that are newer than the snapshot.
    pub newer: Listed,
    /// Removed, because the snapshot does not have it.
    pub removed: Listed,
    /// Not in the snapshot, and stays.
    pub kept: Listed,
}

/// Paths, counted, and named up to a limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// How many there are.
    pub count: u64,
    /// The first [`Listed::MAX`] of them.
    pub paths: Vec<String>,
}

impl Listed {
    /// No more than this many are named.
    pub const MAX: usize = 100_000;

    /// Counts `path`, and names it while there is room.
    pub fn add(&mut self, path: impl FnOnce() -> String) {
        self.count += 1;
        if self.paths.len() < Self::MAX {
            self.paths.push(path());
        }
    }
}

/// What a restore did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RestoreReport {
    /// Where it went: paths, databases.
    pub restored: Vec<String>,
    /// Plain bytes written.
    pub bytes: u64,
    /// Items (files, rows, keys) written.
    pub items: u64,
    /// What could not be put back exactly (an owner, without root).
    pub warnings: Vec<String>,
    /// What was asked for and is not there, or not as it was saved, while the rest is; each with its reason. Empty: everything is
    /// there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<String>,
}

/// What a verification found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerifyReport {
    /// What was checked, in a few words each.
    pub checked: Vec<String>,
    /// What is wrong. Empty means whole.
    pub findings: Vec<Finding>,
}

/// Something wrong with an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The source.
    pub source: SourceName,
    /// The artifact.
    pub artifact: ArtifactName,
    /// What is wrong.
    pub problem: String,
}

/// What a drill measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DrillReport {
    /// How long the restore took, until the system could be asked.
    pub restore_time: Duration,
    /// How long the questions took.
    pub check_time: Duration,
    /// Plain bytes restored.
    pub bytes: u64,
    /// Items (files, rows, keys) that were compared.
    pub items: u64,
    /// What was counted in the restored system, when anything was.
    #[serde(skip_serializing_if = "Fingerprint::is_empty")]
    pub fingerprint: Fingerprint,
    /// The moment that was reached by replaying a log, when one was: what came later would be lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reached: Option<Timestamp>,
    /// What was asked, in a few words each.
    pub checked: Vec<String>,
    /// The wrong answers. Empty means proven.
    pub findings: Vec<String>,
}

/// One configured engine: everything that it can do for one source.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Saves.
    pub source: Arc<dyn Source>,
    /// Puts back.
    pub restorer: Arc<dyn Restorer>,
    /// Checks.
    pub verifier: Arc<dyn Verifier>,
    /// Proves.
    pub driller: Arc<dyn Driller>,
    /// Follows a log, when the engine can.
    pub follower: Option<Arc<dyn Follower>>,
}

/// What an engine receives when it is built. Building is pure: it runs nothing and connects to nothing.
#[derive(Debug, Clone)]
pub struct EngineSetup<'a> {
    /// The source's name.
    pub name: &'a SourceName,
    /// The engine's part of the plan; parse it with [`Node::parse`].
    pub config: &'a Node,
    /// The folder that relative paths of the plan start from.
    pub folder: &'a std::path::Path,
    /// Where the source's processes run.
    pub host: Arc<dyn Host>,
}

/// How an engine registers: a constant of this type in the list of the command line.
#[derive(Debug, Clone, Copy)]
pub struct EngineDescriptor {
    /// The key under a source's name in the plan: `postgres`.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// Parses the configuration and builds the engine.
    pub build: fn(&EngineSetup<'_>) -> Result<Engine>,
    /// The JSON Schema of the configuration.
    pub schema: fn() -> schemars::Schema,
    /// Looks on this machine for what could be backed up: fragments of a plan for `stackward init`.
    pub discover: fn() -> Vec<Discovered>,
}

/// Something on this machine that could be backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    /// A name for the source.
    pub name: String,
    /// Why it is proposed: `a PostgreSQL server listens on /run/postgresql`.
    pub because: String,
    /// What stands under the source's name in the plan, without indentation: the engine's name as the key, its
    /// settings below: `files: { paths: [/etc] }`.
    pub yaml: String,
}
