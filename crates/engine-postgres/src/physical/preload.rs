//! Which libraries a copy preloads: those of the server that are installed where the copy is made, and do not act by themselves.
//!
//! Invariant: a library of which nothing is known here is not preloaded: a server that does not find one does not start.

use std::path::{Path, PathBuf};

use super::{Physical, PhysicalDetails};
use crate::tools::{PgVersion, Tools};

/// Libraries that run jobs, send or fetch by themselves, to other servers, too. Those that nobody knows yet are held by
/// `max_worker_processes = 0`.
const ACTING: [&str; 14] = [
    "bdr",
    "pg_cron",
    "pg_dbms_job",
    "pg_failover_slots",
    "pg_net",
    "pg_partman_bgw",
    "pg_squeeze",
    "pg_task",
    "pgactive",
    "pgautofailover",
    "pglogical",
    "powa",
    "repmgr",
    "spock",
];
/// Every server has it where its libraries are.
const EVERYWHERE: &str = "dict_snowball.so";
const CONFIG_BYTES: usize = 4096;

/// Where the libraries of the server's version are here; `None` when that is not known.
#[derive(Debug, Clone, Default)]
pub(super) struct Libraries(Option<PathBuf>);

impl Physical {
    /// Looks where the libraries of the version of the base backup are.
    pub(super) async fn libraries(&self, details: &PhysicalDetails) -> Libraries {
        let version = PgVersion(details.version_number);
        let Ok(tools) = self.tools.server(version).await else { return Libraries(None) };
        if tools.version.major() != version.major() {
            return Libraries(None);
        }
        let mut folders: Vec<PathBuf> = self.told(&tools).await.into_iter().collect();
        let major = version.major();
        if let Some(above) = tools.program("postgres").parent().and_then(Path::parent) {
            folders.extend(["lib", "lib/postgresql", "lib64", "lib64/pgsql"].map(|folder| above.join(folder)));
            folders.push(above.join(format!("../lib/postgresql{major}")));
        }
        folders.extend(["/usr/lib64/pgsql".into(), format!("/usr/lib/postgresql{major}").into()]);
        let host = &self.server.host;
        let here = folders.iter().filter_map(|folder| host.local_path(folder));
        Libraries(here.into_iter().find(|folder| folder.join(EVERYWHERE).is_file()))
    }

    /// What `pg_config` says, which is not always installed.
    async fn told(&self, tools: &Tools) -> Option<PathBuf> {
        let command = self.server.plain_command(tools.program("pg_config")).arg("--pkglibdir");
        let told = self.server.host.spawn(command).await.ok()?.output(CONFIG_BYTES).await.ok()?;
        Some(PathBuf::from(told.trim()))
    }
}

impl Libraries {
    /// What of the setting `name` a copy keeps; what it does not is added to `told`.
    pub(super) fn keep(&self, name: &str, value: &str, told: &mut Vec<String>) -> String {
        let mut kept = Vec::new();
        for library in value.split(',').map(|part| part.trim().trim_matches('"')).filter(|part| !part.is_empty()) {
            let stem = library.strip_prefix("$libdir/").unwrap_or(library);
            let stem = stem.strip_suffix(".so").unwrap_or(stem);
            let why = match &self.0 {
                _ if ACTING.contains(&stem) => "which acts by itself",
                _ if stem.contains('/') => "which is not among the server's own",
                None => "of which is not known whether it is installed here",
                Some(folder) if !folder.join(format!("{stem}.so")).is_file() => "which is not installed here",
                Some(_) => {
                    kept.push(format!("\"{}\"", stem.replace('"', "")));
                    continue;
                }
            };
            told.push(format!("the library `{}` of `{name}`, {why}", library.escape_debug()));
        }
        kept.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_installed_and_keeps_still_is_preloaded() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["pg_cron.so", "auto_explain.so", "other.so"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let here = Libraries(Some(folder.path().to_owned()));
        let mut told = Vec::new();
        let value = "pg_cron, $libdir/auto_explain,\"other.so\", absent, /opt/x.so,";
        assert_eq!(here.keep("p", value, &mut told), "\"auto_explain\", \"other\"");
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(Libraries(None).keep("p", "auto_explain", &mut told), "");
        assert!(told[3].contains("not known"), "{told:?}");
    }
}
