//! Putting a backup back as files, with the server stopped: the fast way, for servers that may be stopped.
//!
//! Invariant: the file goes where the server really looks (`appendonly` decides), and what stood there is put back when the
//! server does not start on it.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backup_core::engine::{Existing, RestoreReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::{Host, HostCommand};
use backup_core::{ArtifactName, BackupReader, RunContext};

use super::Running;
use super::folder::{AofForm, make_folder, write_new};
use super::selection::What;
use crate::Redis;
use crate::aof;
use crate::config::Service;
use crate::connection::Connection;
use crate::details::Details;
use crate::dumps::Spooled;
use crate::rdb::RdbSummary;
use crate::server::{POLL, setting, unknown_version};
use crate::versions::reads;

/// A server that is not gone, or not there, by then will not be.
const SERVICE_LIMIT: Duration = Duration::from_mins(2);
/// What a staged RDB is called.
const RDB: &str = "rdb";
/// What the old files are called meanwhile.
const ASIDE: &str = "before-stackward-restore";

/// Where a server looks for its data when it starts, how to restart it, and what it gets.
pub(crate) struct Files {
    service: Service,
    folder: PathBuf,
    dump: PathBuf,
    append_only: AppendOnly,
    brings: Brings,
    holds_data: bool,
}

/// The append-only files that a server loads instead of its dump file.
enum AppendOnly {
    /// It keeps none.
    Off,
    /// A folder of several, and the name that they begin with.
    Set { folder: PathBuf, name: String },
    /// The one file of servers before 7.0.
    Single(PathBuf),
}

/// What is put in their place.
enum Brings {
    /// The RDB, in the form that the server loads.
    Rdb,
    /// The append-only files that were saved, and their manifest.
    Saved(Vec<ArtifactName>, Option<String>),
}

impl Redis {
    /// Looks where the files go, and whether the server can read them. Changes nothing.
    pub(crate) async fn files(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &Details,
        what: What,
    ) -> Result<Files> {
        let service =
            self.settings.service.clone().ok_or_else(|| Error::new(ErrorKind::Internal, "no `stop` and `start`"))?;
        if details.shards.len() > 1 {
            return Err(Error::new(ErrorKind::Unsupported, "the RDBs of several masters do not fit into one server")
                .hint(
                    "leave `stop` and `start` out of the plan: then a cluster, or one server, is loaded by commands",
                ));
        }
        let mut target = Running::look(cx, &self.server, None).await?;
        let Details { rdb_version, rdb_format, .. } = details;
        let running = target.info.product().ok_or_else(unknown_version)?;
        if !reads(&running.product, &running.version, rdb_format, *rdb_version) {
            let message = format!("{} cannot read RDB version {rdb_version} of {rdb_format}", target.product);
            return Err(Error::new(ErrorKind::Unsupported, message).hint(
                "leave `stop` and `start` out of the plan: then the running server is loaded by commands, which it understands",
            ));
        }
        let connection = &mut target.connection;
        let folder = match &self.settings.data_dir {
            Some(folder) => folder.clone(),
            None => PathBuf::from(told(connection, "dir").await?),
        };
        let folder = self.host.local_path(&folder).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("{} is not visible from here", folder.display())).hint(
                "name the folder that this machine sees as `data_dir`, or leave `stop` and `start` out of the plan",
            )
        })?;
        let dump = folder.join(told(connection, "dbfilename").await?);
        let append_only = append_only(connection, &folder).await?;
        let brings = match what {
            What::AppendOnlyFiles => {
                let (files, manifest) = aof::set(from).await?;
                check_form(&append_only, manifest.is_some())?;
                Brings::Saved(files, manifest)
            }
            _ => Brings::Rdb,
        };
        let holds_data = target.holds(&super::Selection::default()).await?;
        Ok(Files { service, folder, dump, append_only, brings, holds_data })
    }
}

async fn told(connection: &mut Connection, name: &str) -> Result<String> {
    setting(connection, name).await?.ok_or_else(|| {
        Error::new(ErrorKind::PermissionDenied, format!("the server does not tell its setting `{name}`"))
            .hint("allow +config|get to the plan's user")
    })
}

async fn append_only(connection: &mut Connection, folder: &Path) -> Result<AppendOnly> {
    if told(connection, "appendonly").await? != "yes" {
        return Ok(AppendOnly::Off);
    }
    let name = told(connection, "appendfilename").await?;
    Ok(match setting(connection, "appenddirname").await? {
        Some(below) => AppendOnly::Set { folder: folder.join(below), name },
        None => AppendOnly::Single(folder.join(name)),
    })
}

/// Fails for saved append-only files that the server would not look at, or not understand.
fn check_form(append_only: &AppendOnly, several: bool) -> Result<()> {
    let unsupported = |message: &'static str| Error::new(ErrorKind::Unsupported, message);
    match append_only {
        AppendOnly::Off => Err(unsupported("the server keeps no append-only file, and would not look at one")
            .hint("set `appendonly yes` in its configuration, or restore the RDB: leave `--select aof` out")),
        AppendOnly::Single(_) if several => {
            Err(unsupported("the server is older than 7.0 and knows one append-only file; the backup has a set")
                .hint("restore the RDB: leave `--select aof` out"))
        }
        AppendOnly::Set { .. } | AppendOnly::Single(_) => Ok(()),
    }
}

impl Files {
    /// Refuses a server that holds data, unless told to replace it.
    pub(crate) fn check(&self, existing: Existing) -> Result<()> {
        if existing == Existing::Refuse && self.holds_data {
            return Err(Error::new(ErrorKind::AlreadyExists, "the server holds keys or functions already")
                .hint("restore to an empty server, or replace what it holds with `--force`"));
        }
        Ok(())
    }

    pub(crate) fn steps(&self) -> Vec<String> {
        let mut steps = vec![format!("stop the server: {}", self.service.stop.join(" "))];
        steps.push(format!("move what it would load aside, to names that end in `.{ASIDE}`"));
        steps.push(match (&self.append_only, &self.brings) {
            (AppendOnly::Off, _) => format!("write {}", self.dump.display()),
            (AppendOnly::Set { folder, .. }, Brings::Rdb) => {
                format!("write the backup as the base of the append-only files in {}", folder.display())
            }
            (AppendOnly::Set { folder, .. }, Brings::Saved(..)) => {
                format!("write the saved append-only files into {}", folder.display())
            }
            (AppendOnly::Single(file), _) => format!("write the append-only file {}", file.display()),
        });
        steps.push(format!("start the server: {}", self.service.start.join(" ")));
        steps
    }

    /// Stops, replaces, starts, and looks. Cancelling is possible until the server is stopped.
    pub(crate) async fn put(
        &self,
        redis: &Redis,
        cx: &RunContext,
        from: &BackupReader,
        spooled: &Spooled,
    ) -> Result<RestoreReport> {
        // Copied to the right file system while the server still runs.
        let staged = tempfile::Builder::new().prefix(".stackward-").tempdir_in(&self.folder);
        let staged =
            staged.map_err(|source| Error::io("cannot write into the server's folder", &self.folder, source))?;
        let before = staged.path().join("before");
        cx.unless_cancelled(async {
            self.stage(cx, from, spooled, staged.path()).await?;
            // Without append-only files, its newest data may be in its memory alone.
            if self.holds_data && matches!(self.append_only, AppendOnly::Off) {
                cx.step("saving what the server holds now");
                redis.keep(cx, &redis.server, &before).await?;
            }
            Ok(())
        })
        .await?;
        cx.step("stopping the server");
        run(&*redis.host, &self.service.stop).await?;
        // From here on the server is down: the work goes on to a running server, cancelled or not.
        let mut swap = Swap::default();
        let started = async {
            wait(cx, redis, Wanted::Gone).await?;
            self.replace(&mut swap, staged.path(), &before)?;
            cx.step("starting the server");
            run(&*redis.host, &self.service.start).await?;
            wait(cx, redis, Wanted::There).await?;
            self.count(redis, cx, &spooled.summary).await
        };
        match started.await {
            Ok(mut report) => {
                report.warnings.extend(swap.aside.iter().map(|(_, aside)| {
                    format!("what the server held is in {}: remove it when you do not need it", aside.display())
                }));
                Ok(report)
            }
            Err(error) => Err(self.back(redis, cx, &swap, error).await),
        }
    }

    /// Brings what will be moved into place onto the server's file system.
    async fn stage(&self, cx: &RunContext, from: &BackupReader, spooled: &Spooled, folder: &Path) -> Result<()> {
        let failed = |source| Error::io("cannot write into the server's folder", folder, source);
        let Brings::Saved(files, _) = &self.brings else {
            let rdb = spooled.files.first().ok_or_else(|| Error::new(ErrorKind::Internal, "no RDB was spooled"))?;
            return tokio::fs::copy(rdb, folder.join(RDB)).await.map(drop).map_err(failed);
        };
        for name in files {
            cx.step(format!("checking {name}"));
            aof::check_file(cx, from, name).await?;
            let mut options = tokio::fs::OpenOptions::new();
            let options = options.write(true).create_new(true).mode(0o640);
            let file = options.open(folder.join(aof::file_name(name))).await.map_err(failed)?;
            from.stream(name).await?.copy_to(cx, file).await?;
        }
        Ok(())
    }

    /// Moves what the server would load aside, and puts the backup in its place. `swap` says how far it came.
    fn replace(&self, swap: &mut Swap, staged: &Path, before: &Path) -> Result<()> {
        let other = match &self.append_only {
            AppendOnly::Off => None,
            AppendOnly::Set { folder, .. } => Some(folder),
            AppendOnly::Single(file) => Some(file),
        };
        for path in [Some(&self.dump), other].into_iter().flatten().filter(|path| path.exists()) {
            let aside = aside(path);
            remove(&aside)?;
            rename(path, &aside)?;
            swap.aside.push((path.clone(), aside));
        }
        if before.exists() {
            let aside = aside(&self.dump);
            self.give(before)?;
            rename(before, &aside)?;
            swap.aside.retain(|(path, _)| *path != self.dump);
            swap.aside.push((self.dump.clone(), aside));
        }
        let content = match &self.brings {
            Brings::Rdb => staged.join(RDB),
            // Of a single file; a set is moved file by file.
            Brings::Saved(files, _) => staged.join(files.first().map(aof::file_name).unwrap_or_default()),
        };
        let placed = match &self.append_only {
            AppendOnly::Off => &self.dump,
            AppendOnly::Single(file) => file,
            AppendOnly::Set { folder, name } => {
                swap.placed = Some(folder.clone());
                return self.place_set(staged, &content, folder, name);
            }
        };
        swap.placed = Some(placed.clone());
        rename(&content, placed)?;
        self.give(placed)
    }

    /// Makes the folder of a set of append-only files.
    fn place_set(&self, staged: &Path, content: &Path, folder: &Path, name: &str) -> Result<()> {
        make_folder(folder)?;
        let mut placed = vec![folder.to_owned()];
        let text = match &self.brings {
            Brings::Saved(files, Some(manifest)) => {
                for file in files.iter().map(aof::file_name) {
                    rename(&staged.join(&file), &folder.join(&file))?;
                    placed.push(folder.join(file));
                }
                aof::without_history(manifest)
            }
            brings => {
                let form = match brings {
                    Brings::Rdb => AofForm::named(name),
                    Brings::Saved(..) => AofForm::of_a_single_file(name),
                };
                rename(content, &folder.join(&form.base))?;
                placed.push(folder.join(&form.base));
                form.text
            }
        };
        let manifest = folder.join(format!("{name}{}", aof::MANIFEST_ENDING));
        write_new(&manifest, text.as_bytes())?;
        placed.push(manifest);
        placed.iter().try_for_each(|path| self.give(path))
    }

    /// Makes the owner of the server's folder the owner of `path`.
    fn give(&self, path: &Path) -> Result<()> {
        let failed = |source| Error::io("cannot give the file to the server's user", path, source);
        let owner = std::fs::metadata(&self.folder).map_err(failed)?;
        let now = std::fs::metadata(path).map_err(failed)?;
        if (owner.uid(), owner.gid()) == (now.uid(), now.gid()) {
            return Ok(());
        }
        chown(path, Some(owner.uid()), Some(owner.gid())).map_err(failed)
    }

    /// Whether the server holds what was saved; keys that expired meanwhile aside.
    async fn count(&self, redis: &Redis, cx: &RunContext, summary: &RdbSummary) -> Result<RestoreReport> {
        let keyspace = Running::look(cx, &redis.server, None).await?.info.keyspace();
        let mut report = RestoreReport::default();
        if let Brings::Saved(..) = self.brings {
            // Newer than the RDB whose keys were counted.
            for (database, held) in keyspace {
                report.restored.push(format!("{held} keys of db{database} on {}", redis.server.describe()));
                report.items += held;
            }
            return Ok(report);
        }
        for (database, counts) in &summary.databases {
            let held = keyspace.get(database).copied().unwrap_or(0);
            if held + counts.expiring < counts.total() {
                let message =
                    format!("db{database} holds {held} keys after the restart, {} were saved", counts.total());
                return Err(Error::new(ErrorKind::Incomplete, message));
            }
            report.restored.push(format!("{held} keys of db{database} on {}", redis.server.describe()));
            report.items += held;
        }
        Ok(report)
    }

    /// Puts back what stood there, and starts the server on it.
    async fn back(&self, redis: &Redis, cx: &RunContext, swap: &Swap, error: Error) -> Error {
        let undone = async {
            // It may run, or not.
            let _stopped = run(&*redis.host, &self.service.stop).await;
            wait(cx, redis, Wanted::Gone).await?;
            if let Some(placed) = &swap.placed {
                remove(placed)?;
            }
            for (path, aside) in &swap.aside {
                rename(aside, path)?;
            }
            run(&*redis.host, &self.service.start).await
        };
        match undone.await {
            Ok(()) => error.hint("the server runs again on what it held before"),
            Err(why) => error.hint(format!(
                "the server could not be set back ({}): its old data is in files that end in `.{ASIDE}`",
                why.chain()
            )),
        }
    }
}

/// What was moved where: so much is undone, and no more.
#[derive(Debug, Default)]
struct Swap {
    /// The name that the server knows, and where what stood there is now.
    aside: Vec<(PathBuf, PathBuf)>,
    /// Where the backup was put, or was about to be.
    placed: Option<PathBuf>,
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|source| Error::io("cannot rename", from, source).with("to", to.display()))
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ASIDE);
    PathBuf::from(name)
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("cannot remove old data", path, source))
        }
        _ => Ok(()),
    }
}

async fn run(host: &dyn Host, words: &[String]) -> Result<()> {
    let (program, arguments) = words.split_first().ok_or_else(|| Error::new(ErrorKind::Plan, "an empty command"))?;
    host.spawn(HostCommand::new(program).args(arguments).null_stdout()).await?.finish().await.map(|_| ())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Gone,
    There,
}

async fn wait(cx: &RunContext, redis: &Redis, wanted: Wanted) -> Result<()> {
    let started = Instant::now();
    loop {
        match (redis.server.try_connect().await, wanted) {
            (Ok(_), Wanted::There) => return Ok(()),
            (Err(error), Wanted::Gone) if error.kind() == ErrorKind::Unreachable => return Ok(()),
            // Loading takes as long as it takes.
            (Err(error), Wanted::There) if error.kind() == ErrorKind::Busy => {}
            (Err(error), Wanted::There) if started.elapsed() > SERVICE_LIMIT => return Err(error),
            (_, Wanted::Gone) if started.elapsed() > SERVICE_LIMIT => {
                return Err(Error::new(ErrorKind::Tool, "the server still answers after it was stopped")
                    .hint("look at `stop` in the plan: it must end the server, not restart it"));
            }
            _ => {}
        }
        cx.step("waiting for the server");
        tokio::time::sleep(POLL).await;
    }
}
