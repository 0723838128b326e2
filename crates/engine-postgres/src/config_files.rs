//! The server's configuration files: where the server says that they are, and everything that they include.
//!
//! Invariant: they are read as the server sees them when it lets us, and from this machine only over a unix socket.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::evidence::Evidence;
use backup_core::sink::ChunkHint;
use backup_core::{ArtifactName, BackupWriter, RunContext};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::logical::names;
use crate::psql::Psql;
use crate::server::Server;
use crate::sql::literal;
use crate::tools::Tools;
use crate::wire::Connection;

/// A configuration file that is longer than this is none.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Where the main files are, and the one that `ALTER SYSTEM` writes.
const MAIN: &str = "SELECT setting AS name FROM pg_settings WHERE name IN ('config_file', 'hba_file', 'ident_file') \
    AND setting <> '' UNION SELECT setting || '/postgresql.auto.conf' FROM pg_settings WHERE name = 'data_directory'";
/// What they include. Each is asked for on its own: not every version has it, not every role may ask.
const INCLUDED: [(u32, &str); 3] = [
    (10, "SELECT DISTINCT sourcefile AS name FROM pg_file_settings"),
    (16, "SELECT DISTINCT file_name AS name FROM pg_hba_file_rules"),
    (16, "SELECT DISTINCT file_name AS name FROM pg_ident_file_mappings"),
];

/// A saved configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConfigFile {
    pub(crate) artifact: ArtifactName,
    /// Where it was on the server.
    pub(crate) path: String,
}

/// Somebody who asks the server. An error does not end the conversation.
#[async_trait]
pub(crate) trait Asker: Send {
    /// The only column (`name`) of a `SELECT`.
    async fn names(&mut self, select: &str) -> Result<Vec<String>>;
    /// The only value of a `SELECT`, when there is one.
    async fn value(&mut self, expression: &str) -> Result<Option<String>>;
}

/// Asks through `psql`, which ends with the first error.
#[derive(Debug)]
pub(crate) struct PsqlAsker<'a> {
    server: &'a Server,
    tools: &'a Tools,
    database: &'a str,
    session: Psql,
}

impl<'a> PsqlAsker<'a> {
    pub(crate) async fn new(server: &'a Server, tools: &'a Tools, database: &'a str) -> Result<Self> {
        Ok(Self { server, tools, database, session: Psql::connect(server, tools, database).await? })
    }

    pub(crate) async fn close(self) -> Result<()> {
        self.session.close().await
    }

    async fn recover<T>(&mut self, error: Error) -> Result<T> {
        self.session = Psql::connect(self.server, self.tools, self.database).await?;
        Err(error)
    }
}

#[async_trait]
impl Asker for PsqlAsker<'_> {
    async fn names(&mut self, select: &str) -> Result<Vec<String>> {
        match names(&mut self.session, select).await {
            Ok(names) => Ok(names),
            Err(error) => self.recover(error).await,
        }
    }

    async fn value(&mut self, expression: &str) -> Result<Option<String>> {
        match self.session.value(expression).await {
            Ok(value) => Ok(value),
            Err(error) => self.recover(error).await,
        }
    }
}

#[async_trait]
impl Asker for Connection {
    async fn names(&mut self, select: &str) -> Result<Vec<String>> {
        let rows = self.query(select).await?.into_iter().next().unwrap_or_default();
        Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
    }

    async fn value(&mut self, expression: &str) -> Result<Option<String>> {
        Self::value(self, &format!("SELECT {expression}")).await
    }
}

/// Saves every configuration file that can be read; warns of the others. `major` is the server's version.
pub(crate) async fn save(
    cx: &RunContext,
    out: &BackupWriter,
    server: &Server,
    asker: &mut dyn Asker,
    major: u32,
) -> Result<Vec<ConfigFile>> {
    let mut paths: BTreeSet<String> = asker.names(MAIN).await?.into_iter().collect();
    for (since, select) in INCLUDED {
        if major >= since {
            // Not every role may ask.
            paths.extend(asker.names(select).await.unwrap_or_default());
        }
    }
    if paths.is_empty() {
        let user = &server.endpoint.user;
        cx.warn(format!(
            "the server's configuration files are not saved: `{user}` may not know where they are \
             (`GRANT pg_read_all_settings TO {user}`)"
        ));
    }
    let main = asker.names("SELECT setting AS name FROM pg_settings WHERE name = 'config_file'").await?;
    let folder = main.first().and_then(|path| Path::new(path).parent()).unwrap_or(Path::new("/")).to_owned();
    let mut saved = Vec::new();
    for path in paths {
        let content = match read_by_server(asker, &path).await {
            Ok(content) => content,
            Err(refused) => {
                let Some(content) = read_here(server, &path).await else {
                    cx.warn(format!("the configuration file {path} is not saved: {}", refused.chain()));
                    continue;
                };
                content
            }
        };
        let artifact = artifact_of(&folder, &path)?;
        let length = content.len() as u64;
        let mut writer = out.artifact(artifact.clone(), ChunkHint::Stream).await?;
        writer.write(Bytes::from(content)).await?;
        writer.seal(Evidence::ExactLength(length)).await?;
        saved.push(ConfigFile { artifact, path });
    }
    Ok(saved)
}

/// The server reads the file for us; it needs a superuser, or `pg_read_server_files`.
async fn read_by_server(asker: &mut dyn Asker, path: &str) -> Result<Vec<u8>> {
    // One byte more than allowed, so that a longer file is noticed instead of cut.
    let read = format!("encode(pg_read_binary_file({}, 0, {}), 'hex')", literal(path), MAX_FILE_BYTES + 1);
    let content = asker.value(&read).await?.unwrap_or_default();
    let content = hex::decode(content)
        .map_err(|source| Error::new(ErrorKind::Internal, "a file arrived garbled").caused_by(source))?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::new(ErrorKind::Unsupported, format!("it is longer than {MAX_FILE_BYTES} bytes")));
    }
    Ok(content)
}

async fn read_here(server: &Server, path: &str) -> Option<Vec<u8>> {
    if !server.endpoint.is_socket() {
        return None;
    }
    server.host.read_file(Path::new(path), MAX_FILE_BYTES).await.ok()
}

/// `config/` and the path from the main file's folder; files from elsewhere keep their whole path below `config/root`.
fn artifact_of(folder: &Path, path: &str) -> Result<ArtifactName> {
    let (start, rest) = match Path::new(path).strip_prefix(folder) {
        Ok(inside) => ("config", inside),
        Err(_) => ("config/root", Path::new(path)),
    };
    let mut name = start.to_owned();
    for component in rest.components() {
        if let Component::Normal(part) = component {
            name.push('/');
            name.push_str(&ArtifactName::escape(&part.to_string_lossy()));
        }
    }
    ArtifactName::new(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_keep_the_layout() {
        let folder = Path::new("/etc/postgresql/15/main");
        let cases = [
            ("/etc/postgresql/15/main/postgresql.conf", "config/postgresql.conf"),
            ("/etc/postgresql/15/main/conf.d/10 x.conf", "config/conf.d/10%20x.conf"),
            ("/var/lib/postgresql/postgresql.auto.conf", "config/root/var/lib/postgresql/postgresql.auto.conf"),
        ];
        for (path, name) in cases {
            assert_eq!(artifact_of(folder, path).unwrap().as_str(), name);
        }
    }
}
