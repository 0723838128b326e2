//! Loading running servers by commands: one, or every master of a cluster.
//!
//! Invariant: what a server holds is in a safety copy before anything of it is deleted, and comes back when the load fails.

use std::path::{Path, PathBuf};

use backup_core::RunContext;
use backup_core::engine::{Existing, RestoreReport, RestoreTarget};
use backup_core::error::{Error, ErrorKind, Result};

use super::load;
use super::selection::Selection;
use crate::Redis;
use crate::cluster::Map;
use crate::connection::Connection;
use crate::details::Details;
use crate::dumps::Spooled;
use crate::inspect::{Inspection, now_ms};
use crate::rdb::{Flavour, Functions, RdbSummary, Slots, Target};
use crate::server::{Info, Server, allowed, unknown_version};
use crate::snapshot::{Snapshot, Way};

impl Redis {
    /// The servers that are loaded by commands: one, or every master of a cluster.
    pub(super) async fn targets(&self, cx: &RunContext) -> Result<Vec<Running>> {
        let mut own = Running::look(cx, &self.server, None).await?;
        if !self.is_whole_cluster(&own.info) {
            return Ok(vec![own]);
        }
        let map = Map::ask(&mut own.connection, &self.server).await?;
        map.refuse_movement(cx).await?;
        if map.unserved() > 0 {
            let message =
                format!("nobody serves {} slots of the cluster: their keys would have no place", map.unserved());
            return Err(Error::new(ErrorKind::Unsupported, message)
                .hint("give every slot to a master (`redis-cli --cluster fix HOST:PORT`)"));
        }
        let mut targets = Vec::new();
        for master in map.0 {
            targets.push(Running::look(cx, &master.server, Some(master.slots)).await?);
        }
        Ok(targets)
    }

    /// Loads running servers by commands. What they hold is kept in safety copies meanwhile.
    pub(super) async fn load_running(
        &self,
        cx: &RunContext,
        spooled: &Spooled,
        to: &RestoreTarget,
        selection: &Selection,
        mut work: tempfile::TempDir,
    ) -> Result<RestoreReport> {
        let mut targets = cx.unless_cancelled(self.targets(cx)).await?;
        let kept = cx.unless_cancelled(async {
            let mut kept = Vec::new();
            for target in &mut targets {
                target.check(to, selection).await?;
            }
            for (number, target) in targets.iter_mut().enumerate() {
                let path = work.path().join(format!("before-{number}.rdb"));
                kept.push(self.keep_before(cx, target, selection, path).await?);
            }
            Ok(kept)
        });
        let kept = kept.await?;
        // Whatever becomes of us: the safety copies outlive us until the servers have their data.
        work.disable_cleanup(kept.iter().any(Option::is_some));
        let mut report = RestoreReport::default();
        let loading = async {
            for (target, kept) in targets.iter_mut().zip(&kept) {
                if kept.is_some() {
                    cx.step(format!("emptying {}", target.server.describe()));
                    selection.clear(&mut target.connection).await?;
                }
            }
            for target in &mut targets {
                cx.step(format!("loading {}", target.server.describe()));
                target.load(cx, spooled, selection, &mut report).await?;
            }
            Ok(())
        };
        let loaded = cx.unless_cancelled(loading).await;
        let result = match loaded {
            Ok(()) => Ok(report),
            Err(error) => {
                let places: Vec<Place> = targets.iter().zip(kept).map(|(target, kept)| target.place(kept)).collect();
                Err(undo_all(cx, error, &places, selection).await?)
            }
        };
        work.disable_cleanup(false);
        result
    }

    /// Saves what a server holds of what the restore replaces, when it holds any.
    async fn keep_before(
        &self,
        cx: &RunContext,
        target: &mut Running,
        selection: &Selection,
        path: PathBuf,
    ) -> Result<Option<PathBuf>> {
        if !target.holds(selection).await? {
            return Ok(None);
        }
        cx.step(format!("saving what {} holds now", target.server.describe()));
        let held = self.keep(cx, &target.server, &path).await?;
        if !held.modules.is_empty() {
            let message = "the server holds data of modules, which could not be put back by commands";
            return Err(Error::new(ErrorKind::Unsupported, message)
                .hint("save it as files and empty the server yourself, or name `stop` and `start` in the plan"));
        }
        Ok(Some(path))
    }

    /// Writes what the server holds to `path`, checked.
    pub(super) async fn keep(&self, cx: &RunContext, server: &Server, path: &Path) -> Result<RdbSummary> {
        self.take(cx, server, path, self.settings.way).await
    }

    /// Writes what `server` holds, asked for in this way, to `path`, checked.
    pub(crate) async fn take(&self, cx: &RunContext, server: &Server, path: &Path, way: Way) -> Result<RdbSummary> {
        use tokio::io::AsyncWriteExt;
        let failed = |source| Error::io("cannot write the safety copy", path, source);
        let mut snapshot = Snapshot::begin(cx, self, server, way).await?;
        let mut file =
            tokio::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).await.map_err(failed)?;
        let mut inspection = Inspection::begin(now_ms());
        while let Some(piece) = snapshot.next().await? {
            file.write_all(&piece).await.map_err(failed)?;
            inspection.push(piece).await?;
        }
        file.sync_all().await.map_err(failed)?;
        inspection.finish().await.map_err(|error| error.during("save what the server holds now"))
    }
}

/// A server, and what it held before.
struct Place {
    server: Server,
    product: Target,
    before: Option<PathBuf>,
}

/// Takes back what was loaded into all of them.
///
/// # Errors
/// The first that cannot be set back says so.
async fn undo_all(cx: &RunContext, mut error: Error, places: &[Place], selection: &Selection) -> Result<Error> {
    let mut failed = None;
    for place in places {
        match undo(cx, error, place, selection).await {
            Ok(undone) => error = undone,
            Err(worse) => {
                error = Error::new(worse.kind(), worse.message().to_owned());
                failed.get_or_insert(worse);
            }
        }
    }
    failed.map_or(Ok(error), Err)
}

/// After a load that failed with `error`: empties the target again, and puts back what it held. Not cancelled.
///
/// # Errors
/// `error`, with where the safety copy is, when it could not be put back.
async fn undo(cx: &RunContext, error: Error, place: &Place, selection: &Selection) -> Result<Error> {
    cx.step("taking back what was loaded");
    let cx = RunContext::new(cx.source().clone()).scratch_in(cx.scratch());
    let undone = async {
        let mut connection = place.server.connect(&cx).await?;
        selection.clear(&mut connection).await?;
        if let Some(path) = &place.before {
            load::load(&cx, &place.server, path, &selection.options(place.product), &mut connection).await?;
        }
        Ok(())
    };
    match (undone.await, &place.before) {
        (Ok(()), _) => Ok(error),
        (Err::<(), Error>(_), None) => {
            Err(error.hint("a part of the backup may be in the server: empty it before the next attempt"))
        }
        (Err(why), Some(path)) => Err(error.hint(format!(
            "what the server held could not be put back ({}): it is in {}, an RDB that the server loads when it starts",
            why.message(),
            path.display()
        ))),
    }
}

/// A running server that a backup shall be loaded into.
pub(super) struct Running {
    pub(super) server: Server,
    /// The slots that it serves, of a cluster.
    slots: Option<Slots>,
    pub(super) connection: Connection,
    pub(super) info: Info,
    pub(super) product: Target,
}

impl Running {
    pub(super) async fn look(cx: &RunContext, server: &Server, slots: Option<Slots>) -> Result<Self> {
        let mut connection = server.connect(cx).await?;
        let info = Info::ask(&mut connection, None).await?;
        info.refuse_sentinel()?;
        let product = info.product().ok_or_else(unknown_version)?;
        let flavour = if product.product == "Valkey" { Flavour::Valkey } else { Flavour::Redis };
        let product = Target::parse(flavour, &product.version)?;
        Ok(Self { server: server.clone(), slots, connection, info, product })
    }

    fn place(&self, before: Option<PathBuf>) -> Place {
        Place { server: self.server.clone(), product: self.product, before }
    }

    /// Everything that can be known to fail.
    pub(super) async fn check(&mut self, to: &RestoreTarget, selection: &Selection) -> Result<()> {
        if self.info.get("role") == Some("slave") {
            return Err(Error::new(ErrorKind::Unsupported, "the target is a replica, which takes no data")
                .hint("name its master in the plan, or make it one: REPLICAOF NO ONE"));
        }
        for command in selection.commands_to_clear() {
            allowed(&mut self.connection, command).await?;
        }
        if to.existing == Existing::Refuse && self.holds(selection).await? {
            let what = selection.describe();
            return Err(Error::new(ErrorKind::AlreadyExists, format!("the server holds {what} already"))
                .hint("restore to an empty server, or replace what it holds with `--force`"));
        }
        Ok(())
    }

    /// Whether the server holds anything that the restore would replace.
    pub(super) async fn holds(&mut self, selection: &Selection) -> Result<bool> {
        selection.is_held(&mut self.connection).await
    }

    /// Loads every RDB of the backup, as far as it belongs here.
    async fn load(
        &mut self,
        cx: &RunContext,
        spooled: &Spooled,
        selection: &Selection,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let mut options = selection.options(self.product);
        options.slots.clone_from(&self.slots);
        for (number, file) in spooled.files.iter().enumerate() {
            if number > 0 {
                // Every master of a cluster has the same libraries.
                if options.functions == Functions::Only {
                    break;
                }
                options.functions = Functions::Never;
            }
            let loaded = load::load(cx, &self.server, file, &options, &mut self.connection).await?;
            if loaded.keys() > 0 || spooled.files.len() == 1 {
                report.restored.extend(loaded.restored(&self.server.describe()));
            }
            report.items += loaded.keys();
            report.warnings.extend(loaded.warnings());
        }
        Ok(())
    }

    pub(super) fn warnings(&self, details: &Details) -> Vec<String> {
        let mut warnings = Vec::new();
        let limit = self.info.number("maxmemory").filter(|limit| *limit > 0);
        if let (Some(limit), Some(used)) = (limit, details.used_memory)
            && used > limit
        {
            warnings.push(format!("the data took {used} bytes of memory, and the target's `maxmemory` is {limit}"));
        }
        if self.info.is_on("cluster_enabled") && self.slots.is_none() {
            warnings
                .push("the target is a node of a cluster: it takes only keys of the slots that it serves".to_owned());
        }
        if self.info.get("connected_slaves").is_some_and(|count| count != "0") {
            warnings.push("the replicas of the target will follow what the restore does".to_owned());
        }
        warnings
    }

    pub(super) async fn steps(&mut self, selection: &Selection) -> Result<Vec<String>> {
        let mut steps = Vec::new();
        let (what, server) = (selection.describe(), self.server.describe());
        if self.holds(selection).await? {
            steps.push(format!("save what {server} holds now, to put it back should the restore fail"));
            steps.push(format!("delete {what} from {server}"));
        }
        let slots =
            self.slots.as_ref().map_or_else(String::new, |slots| format!(" of its slots ({slots}) into {server}"));
        steps.push(format!(
            "load {what}{slots} by commands, so that they are in its append-only file, too, if it has one"
        ));
        Ok(steps)
    }
}
