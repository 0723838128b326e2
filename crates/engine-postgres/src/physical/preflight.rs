//! Whether a base backup would work: every privilege and every setting, each with what to change.
//!
//! Invariant: nothing is changed; what can be known to fail fails here.

use backup_core::engine::Preflight;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{ArtifactName, RunContext};

use super::Physical;
use super::facts::{INCREMENTS_SINCE, ServerFacts};
use crate::config::Increments;
use crate::wire::{Connection, Purpose};

/// A backup holds the log with one session and reads with another.
const SESSIONS: u64 = 2;

impl Physical {
    /// Looks whether [`save`](Self::save) would work.
    pub(crate) async fn look(&self, cx: &RunContext) -> Result<Preflight> {
        cx.unless_cancelled(self.look_at_server())
            .await
            .map_err(|error| error.during(format!("look at `{}`", cx.source())))
    }

    async fn look_at_server(&self) -> Result<Preflight> {
        let mut connection = Connection::connect(&self.server, Purpose::Replication).await?;
        let facts = ServerFacts::ask(&mut connection).await?;
        check_settings(&mut connection, &facts).await?;
        // Both sessions at the same time, as a backup has them: is there room?
        let second = Connection::connect(&self.server, Purpose::Replication).await?;
        let mut warnings = self.advice(&mut connection, &facts).await?;
        second.close().await;
        let mut expected_bytes = None;
        let database = self.server.endpoint.database.as_deref().unwrap_or("postgres");
        match Connection::connect(&self.server, Purpose::Sql(database)).await {
            Ok(mut session) => {
                expected_bytes = self.ask_in_sql(&mut session, &mut warnings).await;
                session.close().await;
            }
            Err(error) => warnings.push(format!(
                "configuration files outside the data directory will not be saved, because SQL cannot be asked: {}",
                error.chain()
            )),
        }
        let description = format!("PostgreSQL {} on {}", facts.version_text, self.server.describe());
        connection.close().await;
        Ok(Preflight { description, expected_bytes, warnings })
    }

    /// What works, and could be better.
    async fn advice(&self, connection: &mut Connection, facts: &ServerFacts) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        if !self.server.endpoint.is_socket() && !connection.is_encrypted() {
            warnings.push(
                "the connection is not encrypted: whoever listens on the network can read the whole cluster (write \
                 `sslmode=verify-full` in the plan's `url`)"
                    .to_owned(),
            );
        }
        if !facts.shape.checksums {
            warnings.push(
                "the server has no page checksums, so damaged pages go unnoticed (`pg_checksums --enable`, while it is \
                 stopped)"
                    .to_owned(),
            );
        }
        if connection.show("max_slot_wal_keep_size").await? == "-1" {
            warnings.push(
                "`max_slot_wal_keep_size` is -1: a slot that nobody reads fills the server's disk (`ALTER SYSTEM SET \
                 max_slot_wal_keep_size = '10GB'; SELECT pg_reload_conf();`)"
                    .to_owned(),
            );
        }
        if connection.show("archive_mode").await? == "off" {
            warnings.push(
                "`archive_mode` is off: unless `stackward wal receive` runs, only the moments of the snapshots can be \
                 restored"
                    .to_owned(),
            );
        }
        let could = facts.version.major() >= INCREMENTS_SINCE && self.settings.increments == Increments::Auto;
        if could && !facts.summarizes {
            warnings.push(
                "`summarize_wal` is off, so every backup reads everything (`ALTER SYSTEM SET summarize_wal = on; SELECT \
                 pg_reload_conf();`)"
                    .to_owned(),
            );
        }
        if connection.parameter("in_hot_standby") == Some("on") {
            warnings.push("the server is a standby; should it be promoted meanwhile, the backup fails".to_owned());
        }
        Ok(warnings)
    }

    /// What only SQL tells. Not being allowed to ask is no reason to fail.
    async fn ask_in_sql(&self, session: &mut Connection, warnings: &mut Vec<String>) -> Option<u64> {
        let user = &self.server.endpoint.user;
        let knows = "SELECT pg_has_role(current_user, 'pg_read_all_settings', 'MEMBER')";
        if matches!(session.value(knows).await, Ok(Some(answer)) if answer != "t") {
            warnings.push(format!(
                "`{user}` may not know where the configuration files are, so those outside the data directory are not \
                 saved (`GRANT pg_read_all_settings, pg_read_server_files TO {user};`)"
            ));
        }
        let size = "SELECT sum(pg_database_size(oid))::bigint FROM pg_database";
        session.value(size).await.ok().flatten().and_then(|text| text.parse().ok())
    }
}

/// Settings without which no backup works.
async fn check_settings(connection: &mut Connection, facts: &ServerFacts) -> Result<()> {
    let refuse = |message: String, change: &str| {
        let hint = format!("ALTER SYSTEM SET {change}; and restart the server");
        Error::new(ErrorKind::Unsupported, message).hint(hint)
    };
    let level = connection.show("wal_level").await?;
    if level == "minimal" {
        return Err(refuse("`wal_level` is minimal, which allows no base backup".into(), "wal_level = 'replica'"));
    }
    let senders = facts.settings.get("max_wal_senders").copied().unwrap_or_default();
    if senders < SESSIONS {
        let message = format!("`max_wal_senders` is {senders}, and a backup needs {SESSIONS}");
        return Err(refuse(message, "max_wal_senders = 10"));
    }
    if connection.show("max_replication_slots").await? == "0" {
        let message = "`max_replication_slots` is 0, and a backup holds its log by a slot".to_owned();
        return Err(refuse(message, "max_replication_slots = 10"));
    }
    Ok(())
}

/// Whether a stream of a snapshot is ours alone: nothing that is restored as a file of its own.
pub(crate) fn is_memo(name: &ArtifactName) -> bool {
    name.as_str() == super::backup::MANIFEST
}
