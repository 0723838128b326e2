//! Loading databases: each under a name of its own making, put in place when all are loaded that can be.
//!
//! Invariant: until every database was loaded, or found not to load, nothing that stood there before has been touched; what
//! failed is dropped, and what stood in its place stays.

use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::HostCommand;
use backup_core::{ArtifactName, BackupReader, RunContext};
use tokio::io::AsyncWriteExt;

use super::archive::ArchiveScan;
use super::blueprint::{Blueprint, Item, LOADING_PREFIX, REPLACED_PREFIX, Standing};
use super::catalog::{Connected, alter_database, connect_maintenance};
use super::details::DatabaseDetails;
use super::dump::{GLOBALS, ends_globals};
use super::globals::{self, Globals, Names};
use super::{properties, subscriptions, views};
use crate::feed::feed;
use crate::handover::{give, let_in, test};
use crate::psql::Psql;
use crate::server::Server;
use crate::sql::{ident, literal};
use crate::text::shown;
use crate::tools::PgVersion;

/// Dumps below this size are streamed: writing them to a file first would take longer than several jobs save.
const PARALLEL_MIN_BYTES: u64 = 16 * 1024 * 1024;
/// More bytes than this are no globals script.
const MAX_GLOBALS_BYTES: u64 = 256 * 1024 * 1024;
/// Names that are converted by one statement.
const NAMES_AT_ONCE: usize = 1000;
/// Where small files go when the tools' user cannot enter the scratch folder.
const SHORT_FOLDER: &str = "/tmp";
/// How every dump since the minor releases of February 2018 empties the search path (CVE-2018-1058), and where at the latest.
const EMPTY_PATH: &[u8] = b"SELECT pg_catalog.set_config('search_path', '', false);";
const HEAD_BYTES: usize = 64 * 1024;

/// What loading needs.
#[derive(Debug)]
pub(crate) struct Loader<'a> {
    pub(crate) cx: &'a RunContext,
    pub(crate) server: &'a Server,
    pub(crate) connected: &'a Connected,
    pub(crate) from: &'a BackupReader,
    pub(crate) jobs: usize,
    pub(crate) blueprint: &'a Blueprint,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The databases that are in place.
    pub(crate) items: Vec<Item>,
    /// What is not there, or not as it was saved, and why.
    pub(crate) lacking: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

impl Loader<'_> {
    /// Restores what the blueprint says. A database that cannot be loaded is left out, and what stood in its place stays;
    /// when that is so for all of them, it fails.
    pub(crate) async fn run(&self) -> Result<Loaded> {
        let mut ready = Vec::new();
        let mut outcome = Loaded::default();
        let result = self.cx.unless_cancelled(self.load_all(&mut ready, &mut outcome)).await;
        let late = match result {
            Ok(late) => late,
            Err(error) => return Err(self.take_back(&ready, error).await),
        };
        let mut ready = ready.into_iter();
        while let Some((item, loading)) = ready.next() {
            match self.put_in_place(&item, &loading).await {
                Ok(warning) => {
                    outcome.warnings.extend(warning);
                    outcome.items.push(item);
                }
                Err(error) if is_of_one_database(&error) && self.blueprint.items.len() > 1 => {
                    let error = self.take_back(&[(item.clone(), loading)], error).await;
                    outcome.lacking.push(left_out(&item, &error));
                }
                Err(error) => {
                    let rest: Vec<(Item, String)> = [(item, loading)].into_iter().chain(ready).collect();
                    return Err(self.take_back(&rest, error).await);
                }
            }
        }
        // Settings come last: they are for those who work with the databases, not for us.
        if !late.is_empty() {
            let told = self.run_script(&late, Faults::AreTold).await?;
            outcome.lacking.extend(told.map(|told| format!("some settings of roles were refused: {told}")));
        }
        Ok(outcome)
    }

    /// Returns the part of the globals that must wait.
    async fn load_all(&self, ready: &mut Vec<(Item, String)>, outcome: &mut Loaded) -> Result<Vec<u8>> {
        let late = self.globals().await?;
        let mut first = None;
        for item in &self.blueprint.items {
            let unique = uuid::Uuid::new_v4().simple().to_string();
            let loading = format!("{LOADING_PREFIX}{}", &unique[..12]);
            self.cx.step(format!("loading the database {}", shown(&item.name)));
            // Noted before it is created: a cancelled creation may still happen on the server.
            ready.push((item.clone(), loading.clone()));
            match self.load(item, &loading, outcome).await {
                Ok(()) => {}
                Err(error) if is_of_one_database(&error) && self.blueprint.items.len() > 1 => {
                    ready.pop();
                    let error = self.take_back(&[(item.clone(), loading)], error).await;
                    let reason = left_out(item, &error);
                    self.cx.warn(reason.clone());
                    outcome.lacking.push(reason);
                    first.get_or_insert(error.with("database", shown(&item.details.name)));
                }
                Err(error) => return Err(error.with("database", shown(&item.details.name))),
            }
        }
        match first {
            Some(error) if ready.is_empty() => Err(error),
            _ => Ok(late),
        }
    }

    /// Runs the globals script but for what must wait, which it returns. It is read, and found undamaged and whole, before its
    /// first statement runs.
    async fn globals(&self) -> Result<Vec<u8>> {
        let Some(filter) = &self.blueprint.globals else { return Ok(Vec::new()) };
        self.cx.step("creating roles and tablespaces");
        let script = self.from.read(&ArtifactName::new(GLOBALS)?, MAX_GLOBALS_BYTES).await?;
        if !ends_globals(&script) {
            return Err(Error::new(ErrorKind::Damaged, format!("the artifact `{GLOBALS}` is cut")));
        }
        let names = self.names_in(&script).await?;
        let Globals { first, last } = filter.apply(&script, &names);
        self.run_script(&first, Faults::End).await.map_err(|error| error.during("restore roles"))?;
        Ok(last)
    }

    /// What the names in a script mean that is not UTF-8: until now, scripts came in the encoding of their cluster. The server
    /// knows all encodings.
    async fn names_in(&self, script: &[u8]) -> Result<Names> {
        #[derive(serde::Deserialize)]
        struct Converted {
            name: String,
        }
        let encoding = globals::encoding(script).unwrap_or_default();
        let mut names = Names::new();
        if matches!(encoding.as_str(), "" | "UTF8" | "SQL_ASCII") {
            return Ok(names);
        }
        let words: Vec<Vec<u8>> = globals::foreign_words(script).into_iter().collect();
        if words.is_empty() {
            return Ok(names);
        }
        let mut session = connect_maintenance(self.server, &self.connected.tools, None).await?;
        for batch in words.chunks(NAMES_AT_ONCE) {
            let list: Vec<String> = batch.iter().map(|word| format!("'\\x{}'", hex::encode(word))).collect();
            let select = format!(
                "SELECT convert_from(word, {}) AS name FROM unnest(ARRAY[{}]::bytea[]) WITH ORDINALITY AS w (word, at) \
                 ORDER BY at",
                literal(&encoding),
                list.join(", ")
            );
            let converted: Vec<Converted> = session.rows(&select).await?;
            names.extend(batch.iter().cloned().zip(converted.into_iter().map(|converted| converted.name)));
        }
        session.close().await?;
        Ok(names)
    }

    /// Feeds a script to `psql`. Returns what it complained of, when that is not the end.
    async fn run_script(&self, script: &[u8], faults: Faults) -> Result<Option<String>> {
        let stop = if faults == Faults::End { "ON_ERROR_STOP=1" } else { "ON_ERROR_STOP=0" };
        // Terse: a verbose error would quote the statement, with its password hash.
        let command = self
            .server
            .command(self.connected.tools.program("psql"))?
            .args(["--no-psqlrc", "--quiet", "--set", stop, "--set", "VERBOSITY=terse", "--output=/dev/null"])
            .arg("--dbname")
            .arg(self.server.conninfo(self.connected.session.database()))
            .piped_stdin()
            .null_stdout();
        let mut process = self.server.host.spawn(command).await?;
        if let Some(mut stdin) = process.take_stdin() {
            // When it stops reading, its status tells why.
            let _stopped = stdin.write_all(script).await;
            let _stopped = stdin.shutdown().await;
        }
        let code = process.status().await?;
        let told = process.stderr_tail();
        self.server.confirm("psql", code, &told)?;
        Ok(Some(shown(told.trim())).filter(|told| !told.is_empty()))
    }

    async fn load(&self, item: &Item, loading: &str, outcome: &mut Loaded) -> Result<()> {
        let details = &item.details;
        let tools = &self.connected.tools;
        let mut session = connect_maintenance(self.server, tools, None).await?;
        session.execute(&self.create_statement(details, loading)).await?;
        let contents = views::contents(self.cx, self.from, details).await?;
        let loaded = self.pg_restore(details, loading, contents.as_ref(), None).await;
        if let Err(error) = loaded {
            if !misses_a_name(&error) {
                return Err(error);
            }
            let warning = self.load_with_path(item, loading, contents.as_ref(), error).await?;
            outcome.warnings.push(warning);
        }
        let mut inside = Psql::connect(self.server, tools, loading).await?;
        let told = if item.is_copy {
            subscriptions::detach(&mut inside, &item.name).await?
        } else {
            subscriptions::tell(&mut inside, &item.name).await?
        };
        inside.close().await?;
        outcome.warnings.extend(told);
        if let Some(contents) = &contents {
            let views = contents.views();
            outcome.lacking.extend(views::fill(self.cx, self.server, tools, (details, loading), views).await?);
        }
        if let Err(error) = self.analyze(loading).await {
            if !is_of_one_database(&error) {
                return Err(error);
            }
            outcome.warnings.push(format!(
                "`{}` has no statistics, run ANALYZE there; it failed: {}",
                shown(&item.name),
                shown(&error.chain())
            ));
        }
        for statement in properties::statements(details, loading) {
            if let Err(error) = session.execute(&statement).await {
                if !is_of_one_database(&error) {
                    return Err(error);
                }
                let (statement, name) = (shown(&statement.replace(loading, &item.name)), shown(&item.name));
                outcome
                    .lacking
                    .push(format!("a property of `{name}` was refused: {statement}: {}", shown(&error.chain())));
                session = connect_maintenance(self.server, tools, None).await?;
            }
        }
        session.close().await
    }

    /// Loads once more, with the search path that the database's own sessions had: what a dump says without a schema (in the
    /// body of a function that an index, a generated column or a constraint calls) is not found without one.
    async fn load_with_path(
        &self,
        item: &Item,
        loading: &str,
        contents: Option<&ArchiveScan>,
        error: Error,
    ) -> Result<String> {
        self.drop_database(loading).await?;
        let mut session = connect_maintenance(self.server, &self.connected.tools, None).await?;
        session.execute(&self.create_statement(&item.details, loading)).await?;
        session.close().await?;
        let path = views::usual_path(&item.details);
        match self.pg_restore(&item.details, loading, contents, Some(path)).await {
            Ok(()) => Ok(format!(
                "something in `{}` calls functions that find their tables by the search path; it was loaded with `{}`: {}",
                shown(&item.name),
                shown(path),
                shown(&error.chain())
            )),
            // What it says without the path is the true reason.
            Err(second) if is_of_one_database(&second) => Err(error.hint(
                "something calls a function that depends on the search path: give the function its own, \
                 `ALTER FUNCTION … SET search_path = …`, before the next backup; `--target FOLDER` writes the dump as a file",
            )),
            Err(second) => Err(second),
        }
    }

    fn create_statement(&self, details: &DatabaseDetails, name: &str) -> String {
        let DatabaseDetails { owner, encoding, collate, ctype, .. } = details;
        let mut statement = format!(
            "CREATE DATABASE {} WITH TEMPLATE template0 OWNER {} ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            ident(name),
            ident(owner),
            literal(encoding),
            literal(collate),
            literal(ctype)
        );
        let provider = details.provider.as_deref().filter(|_| self.connected.facts.version() >= PgVersion::new(15, 0));
        if let (Some(provider), Some(locale)) = (provider, &details.locale) {
            match provider {
                "i" => statement.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {}", literal(locale))),
                "b" => statement.push_str(&format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {}", literal(locale))),
                _ => {}
            }
        } else if provider == Some("c") {
            statement.push_str(" LOCALE_PROVIDER libc");
        }
        if let Some(rules) = &details.icu_rules {
            statement.push_str(&format!(" ICU_RULES {}", literal(rules)));
        }
        let tablespace = &details.tablespace;
        if tablespace != "pg_default" && !self.blueprint.skipped_tablespaces.contains(tablespace) {
            statement.push_str(&format!(" TABLESPACE {}", ident(tablespace)));
        }
        statement
    }

    /// Loads a dump, without filling its materialized views where its `contents` are known; with `path` as search path.
    async fn pg_restore(
        &self,
        details: &DatabaseDetails,
        loading: &str,
        contents: Option<&ArchiveScan>,
        path: Option<&str>,
    ) -> Result<()> {
        let artifact = self.from.stream(&details.artifact).await?;
        let mut command = self
            .server
            .command_with(self.connected.tools.program("pg_restore"), path)?
            .args(["--exit-on-error", "--format=custom"])
            .arg("--dbname")
            .arg(self.server.conninfo(loading));
        if !self.blueprint.skipped_tablespaces.is_empty() {
            command = command.arg("--no-tablespaces");
        }
        let without_views = contents.filter(|contents| !contents.views().is_empty());
        let list = match without_views {
            Some(contents) => Some(self.hand_over(contents.list_without_views().as_bytes()).await?),
            None => None,
        };
        if let Some(list) = &list {
            command = command.arg("--use-list").arg(list.path());
        }
        let is_large = self.jobs > 1 && artifact.record().bytes >= PARALLEL_MIN_BYTES;
        if !is_large && path.is_none() {
            return feed(self.cx, self.server, command, artifact, |_| Ok(())).await.map(|_| ());
        }
        let spool = Spool::new(self.cx)?;
        spool.fill(self.cx, artifact).await?;
        if path.is_some() && !spool.free_path()? {
            let message = format!("the dump of `{}` sets its search path in an unknown way", shown(&details.name));
            return Err(Error::new(ErrorKind::Tool, message));
        }
        if !spool.give_to(self.cx, self.server).await? {
            let user = self.server.run_as().unwrap_or_default();
            let (folder, name) = (self.cx.scratch().display(), shown(&details.name));
            if path.is_some() {
                let message = format!("the user `{user}` cannot read the scratch folder {folder}");
                return Err(Error::new(ErrorKind::Tool, message));
            }
            self.cx.warn(format!(
                "the user `{user}` cannot read the scratch folder {folder}, so `{name}` is loaded by one job instead of {}",
                self.jobs
            ));
            drop(spool);
            let artifact = self.from.stream(&details.artifact).await?;
            return feed(self.cx, self.server, command, artifact, |_| Ok(())).await.map(|_| ());
        }
        let command = command.arg(format!("--jobs={}", self.jobs)).arg(spool.path());
        self.finish(command).await
    }

    /// A small file that the tools can read. Removed when dropped.
    async fn hand_over(&self, content: &[u8]) -> Result<Spool> {
        for folder in [self.cx.scratch(), Path::new(SHORT_FOLDER)] {
            let spool = Spool::below(folder)?;
            let path = spool.path();
            std::fs::write(&path, content)
                .map_err(|source| Error::io("cannot write the scratch file", &path, source))?;
            if spool.give_below(folder, self.server).await? {
                return Ok(spool);
            }
        }
        let user = self.server.run_as().unwrap_or_default();
        let message = format!("the user `{user}` can read neither the scratch folder nor {SHORT_FOLDER}");
        Err(Error::new(ErrorKind::PermissionDenied, message))
    }

    async fn analyze(&self, loading: &str) -> Result<()> {
        let command = self
            .server
            .command(self.connected.tools.program("vacuumdb"))?
            .args(["--analyze-only", "--quiet"])
            .arg(format!("--jobs={}", self.jobs))
            .arg("--dbname")
            .arg(self.server.conninfo(loading));
        self.finish(command).await
    }

    async fn finish(&self, command: HostCommand) -> Result<()> {
        let name = command.name();
        let mut process = self.server.host.spawn(command.null_stdout()).await?;
        let code = process.status().await?;
        self.server.confirm(&name, code, &process.stderr_tail()).map(|_| ())
    }

    /// Gives the loaded database its name. What stood there is renamed in the same transaction, and dropped afterwards.
    async fn put_in_place(&self, item: &Item, loading: &str) -> Result<Option<String>> {
        let mut session = connect_maintenance(self.server, &self.connected.tools, Some(&item.name)).await?;
        let rename = format!("{} RENAME TO {}", alter_database(loading), ident(&item.name));
        if item.standing == Standing::Nothing {
            session.execute(&rename).await?;
            session.close().await?;
            return Ok(None);
        }
        let replaced = format!("{REPLACED_PREFIX}{}", loading.trim_start_matches(LOADING_PREFIX));
        let old = alter_database(&item.name);
        let name = literal(&item.name);
        let swap = format!(
            "{old} ALLOW_CONNECTIONS false;\n\
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {name} AND pid <> pg_backend_pid();\n\
             BEGIN; {old} RENAME TO {}; {rename}; COMMIT",
            ident(&replaced)
        );
        if let Err(error) = session.execute(&swap).await {
            let mut session = connect_maintenance(self.server, &self.connected.tools, Some(&item.name)).await?;
            session.execute(&format!("{old} ALLOW_CONNECTIONS true")).await?;
            return Err(error.with("database", shown(&item.name)));
        }
        let drop_old = format!("{} IS_TEMPLATE false;\nDROP DATABASE {}", alter_database(&replaced), ident(&replaced));
        match session.execute(&drop_old).await {
            Ok(()) => session.close().await.map(|()| None),
            Err(error) => Ok(Some(format!(
                "the replaced database is left as `{replaced}`, because it cannot be dropped: {}",
                error.chain()
            ))),
        }
    }

    /// Drops what was loaded and not put in place. Not cancellable: a cancelled restore must clean up, too.
    async fn take_back(&self, loaded: &[(Item, String)], error: Error) -> Error {
        for (_, loading) in loaded {
            if let Err(left) = self.drop_database(loading).await {
                let left = left.chain();
                self.cx.warn(format!("the half-loaded database `{loading}` is left behind; drop it: {left}"));
            }
        }
        error
    }

    async fn drop_database(&self, name: &str) -> Result<()> {
        self.drop_subscriptions(name).await?;
        let mut session = connect_maintenance(self.server, &self.connected.tools, None).await?;
        // Sessions of killed tools may take a moment to notice; DROP DATABASE waits some seconds for them to end.
        let statement = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {};\nDROP DATABASE IF EXISTS {}",
            literal(name),
            ident(name)
        );
        session.execute(&statement).await?;
        session.close().await
    }

    /// A database with a subscription cannot be dropped.
    async fn drop_subscriptions(&self, name: &str) -> Result<()> {
        let mut session = connect_maintenance(self.server, &self.connected.tools, None).await?;
        let any = format!(
            "EXISTS (SELECT FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = {})",
            literal(name)
        );
        let any: bool = session.value(&any).await?;
        session.close().await?;
        if any {
            let mut inside = Psql::connect(self.server, &self.connected.tools, name).await?;
            subscriptions::remove(&mut inside, name).await?;
            inside.close().await?;
        }
        Ok(())
    }
}

/// Whether others can be loaded although this one cannot.
fn is_of_one_database(error: &Error) -> bool {
    use ErrorKind::{Interrupted, Io, NoSpace, Unreachable};
    !matches!(error.kind(), Interrupted | Io | NoSpace | Unreachable)
}

/// Whether a dump did not load because something in it was not found.
fn misses_a_name(error: &Error) -> bool {
    error.kind() == ErrorKind::Tool && error.chain().contains("does not exist")
}

fn left_out(item: &Item, error: &Error) -> String {
    let stays = if item.standing == Standing::Replaced { "; what stood there is untouched" } else { "" };
    format!("the database `{}` is not restored{stays}: {}", shown(&item.name), shown(&error.chain()))
}

/// What becomes of a script when a statement fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Faults {
    End,
    AreTold,
}

/// A dump in a file of the scratch folder, for a restore by several jobs. Removed when dropped.
#[derive(Debug)]
struct Spool {
    folder: tempfile::TempDir,
}

impl Spool {
    fn new(cx: &RunContext) -> Result<Self> {
        Self::below(cx.scratch())
    }

    fn below(scratch: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("stackward-dump-").tempdir_in(scratch);
        let folder = folder.map_err(|source| Error::io("cannot make a scratch folder", scratch, source))?;
        Ok(Self { folder })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("dump")
    }

    async fn fill(&self, cx: &RunContext, artifact: backup_core::reader::ArtifactReader) -> Result<()> {
        let path = self.path();
        let file = tokio::fs::File::create(&path).await;
        let file = file.map_err(|source| Error::io("cannot write the scratch file", &path, source))?;
        artifact.copy_to(cx, file).await.map(|_| ())
    }

    /// Lets the search path be that of the session: the statement that empties it becomes one of the same length. Whether it
    /// was found, which is near the beginning of every dump.
    fn free_path(&self) -> Result<bool> {
        use std::os::unix::fs::FileExt;
        let path = self.path();
        let failed = |source| Error::io("cannot change the scratch file", &path, source);
        let file = std::fs::File::options().read(true).write(true).open(&path).map_err(failed)?;
        let mut head =
            vec![0; HEAD_BYTES.min(usize::try_from(file.metadata().map_err(failed)?.len()).unwrap_or(HEAD_BYTES))];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        let Some(at) = head.windows(EMPTY_PATH.len()).position(|window| window == EMPTY_PATH) else { return Ok(false) };
        let mut other = b"RESET search_path;".to_vec();
        other.resize(EMPTY_PATH.len(), b' ');
        file.write_all_at(&other, at as u64).map_err(failed)?;
        Ok(true)
    }

    /// Lets the tools' user read the dump; whether it can.
    async fn give_to(&self, cx: &RunContext, server: &Server) -> Result<bool> {
        self.give_below(cx.scratch(), server).await
    }

    async fn give_below(&self, scratch: &Path, server: &Server) -> Result<bool> {
        let passable = let_in(server, scratch).await?;
        give(server, self.folder.path()).await?;
        give(server, &self.path()).await?;
        Ok(passable && test(server, "-r", &self.path()).await)
    }
}
