//! A base backup back onto a disk: into a folder (`data`, `tablespaces/<oid>`, `config/…`) or to where it was; with what a
//! recovery to a moment needs of the log; started, when that is wished.
//!
//! Invariant: before the first byte is written, the target was found free, every file of the server's manifest in the snapshot,
//! and the log whole up to the moment.

use std::path::{Path, PathBuf};

use backup_core::engine::{Afterwards, Existing, Place, RestorePlan, RestoreReport, RestoreTarget, VerifyReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{BackupReader, RunContext};

use super::backup::TREE;
use super::configure::{Configuring, configure, recovered};
use super::inventory::Inventory;
use super::layout::Layout;
use super::owner::{Owner, make_private};
use super::place::{Placing, finish, place, place_config};
use super::staging::Staging;
use super::{Physical, PhysicalDetails, standing, verify};
use crate::recovery::{Copy, Started, Supply, Way, ahead, hand_over, prepare, stage, start};
use crate::tools::{PgVersion, Tools};

/// The folder of the socket of a copy that is started, beside its data directory.
const SOCKET: &str = "run";
/// The folder of the configuration files of a copy, as they lay on the server.
const CONFIG: &str = "config";

/// A recovering server keeps about so much of the log that it has replayed (`max_wal_size`, as it is by default).
const KEPT_BYTES: u64 = 1 << 30;

/// Where a cluster goes, and what it is there.
#[derive(Debug)]
struct Destination<'a> {
    layout: Layout,
    owner: Option<Owner>,
    copy: Copy,
    /// The folder of the restore, when it has one.
    folder: Option<&'a Path>,
    /// The configuration on the server's machine, when it stands there still.
    config: Option<PathBuf>,
}

/// A cluster that is written.
#[derive(Debug)]
pub(crate) struct Written {
    staging: Option<Staging>,
    report: RestoreReport,
    layout: Layout,
    owner: Option<Owner>,
    copy: Copy,
    config: Option<PathBuf>,
    socket: PathBuf,
    about: String,
}

impl Physical {
    fn destination<'a>(&self, details: &PhysicalDetails, to: &'a RestoreTarget) -> Result<Destination<'a>> {
        let (layout, copy, folder) = match &to.place {
            Place::Folder(folder) => (Layout::below(folder, details), Copy::Beside, Some(folder.as_path())),
            Place::Original => (Layout::original(self.original(details)?, details), Copy::InPlace, None),
        };
        let layout = layout.relocate(&to.relocate, details)?;
        let named = self.settings.run_as.as_deref();
        let owner = Owner::find(named, &layout.data)?;
        let config = if copy == Copy::InPlace { elsewhere(details, &layout) } else { None };
        Ok(Destination { layout, owner, copy, folder, config })
    }

    /// The data directory of the plan, or that of the snapshot.
    fn original(&self, details: &PhysicalDetails) -> Result<PathBuf> {
        let told = details.data_directory.as_ref().map(PathBuf::from);
        let Some(data) = self.settings.data.clone().or(told) else {
            return Err(Error::new(ErrorKind::Plan, "it is not known where the data directory was")
                .hint("write `data: /path` into the plan, or restore into a folder with `--target`"));
        };
        let host = &self.server.host;
        host.local_path(&data).ok_or_else(|| {
            let message = format!("{} of {} cannot be written from here", data.display(), host.describe());
            Error::new(ErrorKind::Unsupported, message).hint("restore into a folder with `--target`, and move it there")
        })
    }

    /// What [`write`](Self::write) and [`complete`](Self::complete) would do. Everything that can be known to fail, fails here.
    pub(crate) async fn plan_put_back(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &PhysicalDetails,
        to: &RestoreTarget,
        way: Option<&Way>,
    ) -> Result<RestorePlan> {
        let place = self.destination(details, to)?;
        standing::check(&place.layout, to.existing)?;
        if place.copy == Copy::InPlace {
            self.refuse_running().await?;
        }
        let inventory = Inventory::take(cx, from).await?;
        let tree = from.record().artifacts.iter().find(|artifact| artifact.name.as_str() == TREE);
        let log = way.map_or(0, |way| room_for_log(way, supply(to.afterwards)));
        let bytes = tree.map_or(0, |artifact| artifact.bytes).saturating_add(log);
        if to.existing == Existing::Refuse {
            let Layout { data, tablespaces, .. } = &place.layout;
            let spaces = tablespaces.iter().map(|(oid, folder)| (folder.as_path(), inventory.bytes(Some(*oid))));
            let rest = inventory.bytes(None).saturating_add(log);
            standing::check_space(spaces.chain([(data.as_path(), rest)]))?;
        }
        if to.afterwards == Afterwards::Start {
            self.tools.server(PgVersion(details.version_number)).await?;
        }
        let mut plan = RestorePlan {
            steps: steps(&place, details, to),
            bytes,
            target: to.clone(),
            warnings: damage(details),
            changes: None,
        };
        plan.steps.extend(way.map(Way::describe));
        if to.afterwards == Afterwards::Start {
            plan.steps.push("start the server, and wait until it has recovered".to_owned());
        }
        if place.copy == Copy::Beside {
            let what = "the copy does not archive its log (`archive_mode = off` in its postgresql.auto.conf): take that out when it \
                        takes the server's place";
            plan.warnings.push(what.to_owned());
        }
        if details.standby && way.is_none() {
            plan.warnings.push("it was a standby, and will be one when it is started (standby.signal)".to_owned());
        }
        Ok(plan)
    }

    /// Whether the server of the plan answers, whose place would be taken.
    async fn refuse_running(&self) -> Result<()> {
        let Ok(tools) = self.tools.any().await else { return Ok(()) };
        let endpoint = &self.server.endpoint;
        let command = self.server.plain_command(tools.program("pg_isready")).arg("--quiet");
        let command = command.args(["-h", endpoint.host.as_str(), "-p"]).arg(endpoint.port.to_string());
        let mut process = self.server.host.spawn(command.null_stdout()).await?;
        // 0: it takes connections; 1: it is starting or stopping; 2: nobody answers.
        match process.status().await? {
            Some(0 | 1) => Err(Error::new(ErrorKind::Busy, format!("the server on {} runs", self.server.describe()))
                .hint("stop it first; or restore into a folder beside it with `--target`")),
            _ => Ok(()),
        }
    }

    /// Writes everything. It stands where it shall only after [`complete`](Self::complete), unless it is written over what
    /// stands there; dropping what is returned leaves nothing then.
    pub(crate) async fn write(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &PhysicalDetails,
        to: &RestoreTarget,
        way: Option<&Way>,
    ) -> Result<Written> {
        let Destination { layout, owner, copy, folder, config } = self.destination(details, to)?;
        let inventory = Inventory::take(cx, from).await?;
        standing::check(&layout, to.existing)?;
        let beside = folder.map(|folder| folder.join(CONFIG));
        let staging = if to.existing == Existing::Refuse && standing::can_be_staged(&layout) {
            // The data directory comes last: whoever sees it sees it whole.
            let last = layout.folders().rev().map(PathBuf::as_path);
            Some(Staging::new(beside.as_deref().into_iter().chain(last))?)
        } else {
            None
        };
        let now = staging.as_ref().map_or_else(|| layout.clone(), |staging| layout.staged(staging));
        standing::clear(&now, to.existing, &inventory)?;
        let placing = Placing { layout: &now, later: &layout, existing: to.existing, owner, inventory: &inventory };
        let placed = place(cx, from, &placing).await?;
        let mut report = RestoreReport { bytes: placed.bytes, items: placed.files, ..RestoreReport::default() };
        let supply = supply(to.afterwards);
        match (way, from.log(), supply) {
            (Some(way), Some(log), Supply::Staged) => report.bytes += stage(cx, log, way, &now.data, owner).await?,
            (Some(way), Some(log), Supply::HandedOver) => prepare(cx, log, way, &now.data, owner).await?,
            _ => {}
        }
        if let (Some(folder), Some(beside)) = (folder, &beside) {
            let beside = staging.as_ref().map_or_else(|| beside.clone(), |staging| staging.path(beside));
            report.items += place_config(cx, from, details, folder, &beside).await?;
        }
        let about = format!("{} from the snapshot {}", to.moment, from.manifest().id);
        let is_elsewhere = config.is_some();
        let how = Configuring { layout: &now, owner, copy, is_elsewhere, way, supply, about: &about };
        configure(cx, from, details, &how).await?;
        standing::ended(&now)?;
        finish(&now).await?;
        report.restored.extend(layout.folders().map(|path| path.display().to_string()));
        report.restored.extend(way.map(Way::describe));
        if placed.kept > 0 {
            report.restored.push(format!("{} files were the same already", placed.kept));
        }
        report.warnings.extend(damage(details));
        let socket = folder.unwrap_or(&layout.data).join(SOCKET);
        Ok(Written { staging, report, layout, owner, copy, config, socket, about })
    }

    /// Gives everything its place; checks, and starts, when that is wished.
    pub(crate) async fn complete(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &PhysicalDetails,
        written: Written,
        way: Option<&Way>,
        afterwards: Afterwards,
    ) -> Result<RestoreReport> {
        let Written { staging, mut report, layout, owner, copy, config, socket, about } = written;
        staging.map_or(Ok(()), Staging::finish)?;
        self.verify_backup(cx, details, &layout).await?;
        if afterwards == Afterwards::Leave {
            return Ok(report);
        }
        if copy == Copy::Beside {
            make_private(&socket, owner)?;
        }
        let started = Started { data: &layout.data, config, copy, socket: &socket };
        let start = self.start(cx, details, &started);
        let told = match (way, from.log()) {
            (Some(way), Some(log)) => {
                report.bytes += way.segments.len() as u64 * way.segment_bytes;
                hand_over(cx, log, way, (&layout.data, owner), start).await?
            }
            _ => start.await?,
        };
        report.restored.push(told);
        recovered(&layout.data, copy, &about, owner)?;
        Ok(report)
    }

    async fn start(&self, cx: &RunContext, details: &PhysicalDetails, how: &Started<'_>) -> Result<String> {
        let tools = self.tools.server(PgVersion(details.version_number)).await?;
        let owned = crate::server::Server::of_files(&self.server);
        let place = start(cx, &owned, &tools, how).await?;
        let socket = if how.copy == Copy::Beside {
            format!("; its socket is in {}", how.socket.display())
        } else {
            String::new()
        };
        Ok(format!("the server runs: {place}{socket}"))
    }

    /// Lets `pg_verifybackup` of the same version look at it, when there is one. The checksums were compared already, as the
    /// files were written.
    async fn verify_backup(&self, cx: &RunContext, details: &PhysicalDetails, layout: &Layout) -> Result<()> {
        let version = PgVersion(details.version_number);
        let Ok(tools) = self.tools.server(version).await else { return Ok(()) };
        if tools.version.major() != version.major() || !tools.has(&*self.server.host, "pg_verifybackup").await {
            return Ok(());
        }
        cx.step("checking the files with pg_verifybackup");
        self.run_verify_backup(cx, &tools, layout).await
    }

    async fn run_verify_backup(&self, cx: &RunContext, tools: &Tools, layout: &Layout) -> Result<()> {
        let command = self.server.plain_command(tools.program("pg_verifybackup")).args(["--skip-checksums", "--quiet"]);
        // What was put beside the server's own files.
        let ours = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "conf.d"];
        let command = ours.iter().fold(command, |command, name| command.arg(format!("--ignore={name}")));
        let mut process = self.server.host.spawn(command.arg(&layout.data).null_stdout()).await?;
        let status = cx.unless_cancelled(process.status()).await?;
        if status == Some(0) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Damaged, "pg_verifybackup does not find the restored files whole")
            .caused_by(process.stderr_tail().trim().to_owned()))
    }

    /// Checks the base backup of a snapshot; `None` when it has none.
    pub(crate) async fn verify(cx: &RunContext, from: &BackupReader) -> Result<Option<VerifyReport>> {
        let Some(details) = PhysicalDetails::of(from.record())? else { return Ok(None) };
        let mut report = VerifyReport::default();
        verify::verify(cx, from, &details, &mut report).await?;
        Ok(Some(report))
    }
}

/// Who is started by us gets the log from us.
fn supply(afterwards: Afterwards) -> Supply {
    match afterwards {
        Afterwards::Start => Supply::HandedOver,
        Afterwards::Leave => Supply::Staged,
    }
}

/// What the log needs on the disk of the data directory while it is replayed.
fn room_for_log(way: &Way, supply: Supply) -> u64 {
    let all = way.segments.len() as u64 * way.segment_bytes;
    match supply {
        Supply::Staged => all,
        Supply::HandedOver => all.min(KEPT_BYTES + ahead(way.segment_bytes) as u64 * way.segment_bytes),
    }
}

/// The main configuration file on the server's machine, when it is not in the data directory and stands there still.
fn elsewhere(details: &PhysicalDetails, layout: &Layout) -> Option<PathBuf> {
    let main = details.config_files.iter().find(|file| file.path.ends_with("/postgresql.conf"))?;
    let path = PathBuf::from(&main.path);
    (!path.starts_with(&layout.data) && path.is_file()).then_some(path)
}

fn steps(place: &Destination<'_>, details: &PhysicalDetails, to: &RestoreTarget) -> Vec<String> {
    let layout = &place.layout;
    let how = match to.existing {
        Existing::Refuse => "write",
        Existing::Replace => "remove what is there, and write",
        Existing::Update => "compare what is there, and write what differs of",
    };
    let mut steps = vec![format!("{how} the data directory {}", layout.data.display())];
    for space in &details.tablespaces {
        let to = layout.tablespaces.get(&space.oid).map(|path| path.display().to_string()).unwrap_or_default();
        steps.push(format!("{how} the tablespace that was in {} to {to}", space.location));
    }
    if let (Some(folder), false) = (place.folder, details.config_files.is_empty()) {
        steps.push(format!("write {} configuration files below {}", details.config_files.len(), folder.display()));
    }
    steps
}

fn damage(details: &PhysicalDetails) -> Vec<String> {
    if details.damaged_total == 0 {
        return Vec::new();
    }
    let first =
        details.damaged_pages.first().map_or_else(String::new, |page| format!(", one of them in {}", page.path));
    vec![format!("{} pages were damaged on the server already{first}", details.damaged_total)]
}
