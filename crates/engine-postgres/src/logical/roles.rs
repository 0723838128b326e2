//! The roles and tablespaces of a cluster, created before its databases; the settings of roles, after them.
//!
//! Invariant: no statement of the script is quoted in an error: some hold password hashes.

use backup_core::ArtifactName;
use backup_core::error::{Error, ErrorKind, Result};
use tokio::io::AsyncWriteExt;

use super::catalog::connect_maintenance;
use super::dump::{GLOBALS, ends_globals};
use super::globals::{self, Globals, Names};
use super::load::Loader;
use crate::sql::literal;
use crate::text::shown;

/// More bytes than this are no globals script.
const MAX_GLOBALS_BYTES: u64 = 256 * 1024 * 1024;
/// Names that are converted by one statement.
const NAMES_AT_ONCE: usize = 1000;

/// What becomes of a script when a statement fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Faults {
    End,
    AreTold,
}

impl Loader<'_> {
    /// Runs the globals script but for what must wait, which it returns. It is read, and found undamaged and whole, before its
    /// first statement runs.
    pub(crate) async fn globals(&self) -> Result<Vec<u8>> {
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
    pub(crate) async fn run_script(&self, script: &[u8], faults: Faults) -> Result<Option<String>> {
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
}
