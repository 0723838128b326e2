//! Putting a backup back as files, with the server stopped: the fast way, for servers that may be stopped.
//!
//! Invariant: the file goes where the server really looks (`appendonly` decides), and what stood there is put back when the
//! server does not start on it.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backup_core::RunContext;
use backup_core::engine::{Existing, RestoreReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::{Host, HostCommand};

use super::Running;
use super::folder::{AofForm, make_folder, write_new};
use crate::Redis;
use crate::config::Service;
use crate::details::Details;
use crate::rdb::RdbSummary;
use crate::server::{POLL, setting, unknown_version};
use crate::versions::reads;

/// A server that is not gone, or not there, by then will not be.
const SERVICE_LIMIT: Duration = Duration::from_mins(2);
/// What the old files are called meanwhile.
const ASIDE: &str = "before-stackward-restore";

/// Where a server looks for its data when it starts, and how to restart it.
pub(crate) struct Files {
    service: Service,
    folder: PathBuf,
    dump: PathBuf,
    /// The folder of the append-only files, and the name of the set, when the server keeps them.
    append_only: Option<(PathBuf, String)>,
    holds_data: bool,
}

impl Redis {
    /// Looks where the files go, and whether the server can read them. Changes nothing.
    pub(crate) async fn files(&self, cx: &RunContext, details: &Details) -> Result<Files> {
        let service =
            self.settings.service.clone().ok_or_else(|| Error::new(ErrorKind::Internal, "no `stop` and `start`"))?;
        let mut target = Running::look(self, cx).await?;
        let Details { rdb_version, rdb_format, .. } = details;
        let running = target.info.product().ok_or_else(unknown_version)?;
        if !reads(&running.product, &running.version, rdb_format, *rdb_version) {
            let message = format!("{} cannot read RDB version {rdb_version} of {rdb_format}", target.product);
            return Err(Error::new(ErrorKind::Unsupported, message).hint(
                "leave `stop` and `start` out of the plan: then the running server is loaded by commands, which it understands",
            ));
        }
        let connection = &mut target.connection;
        let told = async |connection: &mut _, name: &str| -> Result<String> {
            setting(connection, name).await?.ok_or_else(|| {
                Error::new(ErrorKind::PermissionDenied, format!("the server does not tell its setting `{name}`"))
                    .hint("allow +config|get to the plan's user")
            })
        };
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
        let append_only = if told(connection, "appendonly").await? == "yes" {
            let below = setting(connection, "appenddirname").await?.ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, "this server keeps its append-only file in the form before 7.0")
                    .hint("leave `stop` and `start` out of the plan: then the running server is loaded by commands")
            })?;
            Some((folder.join(below), told(connection, "appendfilename").await?))
        } else {
            None
        };
        let holds_data = target.holds(&super::Selection::default()).await?;
        Ok(Files { service, folder, dump, append_only, holds_data })
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
        steps.push(match &self.append_only {
            Some((folder, _)) => {
                format!("write the backup as the base of the append-only files in {}", folder.display())
            }
            None => format!("write {}", self.dump.display()),
        });
        steps.push(format!("start the server: {}", self.service.start.join(" ")));
        steps
    }

    /// Stops, replaces, starts, and looks. Cancelling is possible until the server is stopped.
    pub(crate) async fn put(
        &self,
        redis: &Redis,
        cx: &RunContext,
        rdb: &Path,
        summary: &RdbSummary,
    ) -> Result<RestoreReport> {
        // Copied to the right file system while the server still runs.
        let staged = tempfile::Builder::new().prefix(".stackward-").tempdir_in(&self.folder);
        let staged =
            staged.map_err(|source| Error::io("cannot write into the server's folder", &self.folder, source))?;
        let (file, before) = (staged.path().join("rdb"), staged.path().join("before"));
        cx.unless_cancelled(async {
            let failed = |source| Error::io("cannot write into the server's folder", &file, source);
            tokio::fs::copy(rdb, &file).await.map_err(failed)?;
            // Without append-only files, its newest data may be in its memory alone.
            if self.holds_data && self.append_only.is_none() {
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
            self.replace(&mut swap, &file, &before)?;
            cx.step("starting the server");
            run(&*redis.host, &self.service.start).await?;
            wait(cx, redis, Wanted::There).await?;
            self.count(redis, cx, summary).await
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

    /// Moves what the server would load aside, and puts the backup in its place. `swap` says how far it came.
    fn replace(&self, swap: &mut Swap, file: &Path, before: &Path) -> Result<()> {
        let folder = self.append_only.as_ref().map(|(folder, _)| folder);
        for path in [Some(&self.dump), folder].into_iter().flatten().filter(|path| path.exists()) {
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
        match &self.append_only {
            None => {
                swap.placed = Some(self.dump.clone());
                rename(file, &self.dump)?;
                self.give(&self.dump)
            }
            Some((folder, name)) => {
                swap.placed = Some(folder.clone());
                let form = AofForm::named(name);
                let (base, manifest) = (folder.join(&form.base), folder.join(&form.manifest));
                make_folder(folder)?;
                rename(file, &base)?;
                write_new(&manifest, form.text.as_bytes())?;
                [folder, &base, &manifest].into_iter().try_for_each(|path| self.give(path))
            }
        }
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
        let keyspace = Running::look(redis, cx).await?.info.keyspace();
        let mut report = RestoreReport::default();
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
