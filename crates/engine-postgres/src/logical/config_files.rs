//! The server's configuration files: where the server says that they are, and everything that they include.
//!
//! Invariant: they are read as the server sees them when it lets us, and from this machine only over a unix socket.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use backup_core::ArtifactName;
use backup_core::error::Result;
use backup_core::evidence::Evidence;
use backup_core::sink::ChunkHint;
use bytes::Bytes;

use super::catalog::names;
use super::details::ConfigFile;
use super::dump::Job;
use crate::psql::Psql;
use crate::sql::literal;

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

/// Saves every configuration file that can be read; warns of the others.
pub(crate) async fn save(job: &Job, database: &str) -> Result<Vec<ConfigFile>> {
    let mut session = Psql::connect(&job.server, &job.tools, database).await?;
    let mut paths: BTreeSet<String> = names(&mut session, MAIN).await?.into_iter().collect();
    for (since, select) in INCLUDED {
        if job.facts.version().major() < since {
            continue;
        }
        match names(&mut session, select).await {
            Ok(found) => paths.extend(found),
            Err(_not_allowed) => session = Psql::connect(&job.server, &job.tools, database).await?,
        }
    }
    if paths.is_empty() {
        let user = &job.server.endpoint.user;
        job.cx.warn(format!(
            "the server's configuration files are not saved: `{user}` may not know where they are \
             (`GRANT pg_read_all_settings TO {user}`)"
        ));
    }
    let main = names(&mut session, "SELECT setting AS name FROM pg_settings WHERE name = 'config_file'").await?;
    let folder = main.first().and_then(|path| Path::new(path).parent()).unwrap_or(Path::new("/")).to_owned();
    let mut saved = Vec::new();
    for path in paths {
        let content = match read_by_server(&mut session, &path).await {
            Ok(content) => content,
            Err(refused) => {
                session = Psql::connect(&job.server, &job.tools, database).await?;
                let Some(content) = read_here(job, &path).await else {
                    job.cx.warn(format!("the configuration file {path} is not saved: {}", refused.chain()));
                    continue;
                };
                content
            }
        };
        let artifact = artifact_of(&folder, &path)?;
        let length = content.len() as u64;
        let mut writer = job.out.artifact(artifact.clone(), ChunkHint::Stream).await?;
        writer.write(Bytes::from(content)).await?;
        writer.seal(Evidence::ExactLength(length)).await?;
        saved.push(ConfigFile { artifact, path });
    }
    session.close().await?;
    Ok(saved)
}

/// The server reads the file for us; it needs a superuser, or `pg_read_server_files`.
async fn read_by_server(session: &mut Psql, path: &str) -> Result<Vec<u8>> {
    let content: String =
        session.value(&format!("encode(pg_read_binary_file({}, 0, {MAX_FILE_BYTES}), 'hex')", literal(path))).await?;
    hex::decode(content).map_err(|source| {
        backup_core::Error::new(backup_core::ErrorKind::Internal, "a file arrived garbled").caused_by(source)
    })
}

async fn read_here(job: &Job, path: &str) -> Option<Vec<u8>> {
    if !job.server.endpoint.is_socket() {
        return None;
    }
    job.server.host.read_file(Path::new(path), MAX_FILE_BYTES).await.ok()
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
