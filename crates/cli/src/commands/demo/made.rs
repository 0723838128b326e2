//! The stack that is made up: a file tree, an SQLite database, and PostgreSQL where its programs are installed.

use std::path::{Path, PathBuf};

use backup_core::{Error, Result};

use super::database::Database;
use super::server::Server;
use super::story::Story;
use super::{passable, tree};
use crate::output;

/// The parts of the stack that exist at the moment.
pub(super) struct Made {
    pub(super) folder: PathBuf,
    database: Option<Database>,
    server: Option<Server>,
}

/// The folder of the demo, removed when dropped.
pub(super) fn folder() -> Result<tempfile::TempDir> {
    let failed = |source| Error::io("cannot make a folder for the demo", std::env::temp_dir(), source);
    let folder = tempfile::Builder::new().prefix("stackward-demo-").tempdir().map_err(failed)?;
    passable(folder.path())?;
    Ok(folder)
}

impl Made {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), database: None, server: None }
    }

    /// The file tree.
    pub(super) fn uploads(&self) -> PathBuf {
        self.folder.join("stack/uploads")
    }

    /// The SQLite database.
    pub(super) fn app(&self) -> PathBuf {
        self.folder.join("stack/app.db")
    }

    /// The plan.
    pub(super) fn plan(&self) -> PathBuf {
        self.folder.join("stackward.yaml")
    }

    /// PostgreSQL, where it is installed.
    pub(super) fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// Makes everything, and starts to write to the databases.
    pub(super) async fn build(&mut self, story: &Story<'_>) -> Result<()> {
        let size = tree::make(&self.uploads())?;
        story.line(format!("{} ({})", output::counted(size.files, "file"), output::bytes(size.bytes)));
        self.database = Some(Database::make(&self.app())?);
        story.line("an SQLite database that somebody writes to all the time");
        match Server::make(&self.folder.join("postgres")).await? {
            Ok(mut server) => {
                server.fill().await?;
                story.line(format!("{}, filled by pgbench, which goes on writing", server.version()));
                self.server = Some(server);
            }
            Err(why) => story.line(format!("no PostgreSQL: {why}")),
        }
        Ok(())
    }

    /// The plan's text.
    pub(super) fn plan_text(&self, recipient: &str) -> String {
        let mut text = format!(
            "version: 1\nname: demo\nrepository:\n  url: {}\n  recipients: [{recipient}]\n  state: {}\n\
             promise: {{ rpo: 1h, rto: 30m }}\nsources:\n  uploads:\n    files:\n      paths: [{}]\n  \
             app:\n    sqlite:\n      path: {}\n",
            self.folder.join("repository").display(),
            self.folder.join("state").display(),
            self.uploads().display(),
            self.app().display(),
        );
        if let Some(server) = &self.server {
            text.push_str(&format!(
                "  main-db:\n    postgres:\n      socket: {}\n      bin: {}\n",
                server.socket().display(),
                server.bin().display()
            ));
        }
        text
    }

    /// Changes a little of the files; the databases change by themselves.
    pub(super) fn change(&self) -> Result<String> {
        let changed = tree::change(&self.uploads())?;
        let rows = self.database.as_ref().map_or(0, Database::rows);
        Ok(format!(
            "{} changed; the databases went on by themselves ({} in SQLite so far)",
            output::counted(changed, "file"),
            output::counted(rows, "row")
        ))
    }

    /// Stops writing.
    pub(super) async fn rest(&mut self) -> Result<()> {
        if let Some(database) = self.database.take() {
            database.rest()?;
        }
        if let Some(server) = &mut self.server {
            server.rest().await?;
        }
        Ok(())
    }

    /// Removes the files and the databases; PostgreSQL becomes a new, empty cluster. Returns what was done, as commands.
    pub(super) async fn destroy(&mut self) -> Result<Vec<String>> {
        let mut done = Vec::new();
        let uploads = self.uploads();
        let failed = |source| Error::io("cannot destroy the stack", &uploads, source);
        std::fs::remove_dir_all(&uploads).map_err(failed)?;
        done.push("rm -rf stack/uploads".to_owned());
        for suffix in ["", "-wal", "-shm"] {
            let file = self.folder.join(format!("stack/app.db{suffix}"));
            if file.exists() {
                std::fs::remove_file(file).map_err(failed)?;
            }
        }
        done.push("rm stack/app.db*".to_owned());
        if let Some(server) = &mut self.server {
            server.start_over().await?;
            done.push("rm -rf postgres/data && initdb -D postgres/data   # a new, empty server".to_owned());
        }
        Ok(done)
    }

    /// Stops everything that runs. Safe to call at any time.
    pub(super) async fn stop(&mut self) -> Result<()> {
        let database = self.database.take().map_or(Ok(()), Database::rest);
        if let Some(mut server) = self.server.take() {
            server.stop().await?;
        }
        database
    }
}
