//! Filling materialized views apart from the data: what they compute is no data, and may fail for reasons of its own.
//!
//! Invariant: a view that cannot be filled is named, and spoils nothing else.

use backup_core::error::Result;
use backup_core::{BackupReader, RunContext};
use serde::Deserialize;

use super::archive::{ArchiveScan, View};
use super::details::DatabaseDetails;
use crate::psql::Psql;
use crate::server::Server;
use crate::sql::{ident, literal, readable};
use crate::text::shown;
use crate::tools::Tools;

/// What a dump without a setting of its database's is loaded with when it needs a search path: that of every new database,
/// without the schema of the role that happens to restore.
const USUAL_PATH: &str = "public";

/// Reads the table of contents of a dump. `None`: its format is not understood.
pub(crate) async fn contents(
    cx: &RunContext,
    from: &BackupReader,
    details: &DatabaseDetails,
) -> Result<Option<ArchiveScan>> {
    let mut artifact = from.stream(&details.artifact).await?;
    let mut scan = ArchiveScan::default();
    while !scan.has_contents()
        && let Some(data) = artifact.next().await?
    {
        cx.check_cancelled()?;
        scan.push(&data)?;
    }
    Ok(scan.is_understood().then_some(scan))
}

/// The search path that the sessions of the saved database had.
pub(crate) fn usual_path(details: &DatabaseDetails) -> &str {
    let of_all = details.settings.iter().filter(|setting| setting.role.is_none());
    of_all.filter_map(|setting| setting.setting.strip_prefix("search_path=")).next_back().unwrap_or(USUAL_PATH)
}

/// Fills `views` of the database `loading`, in the order of the dump. Returns a line for each that cannot be filled.
pub(crate) async fn fill(
    cx: &RunContext,
    server: &Server,
    tools: &Tools,
    (details, loading): (&DatabaseDetails, &str),
    views: &[View],
) -> Result<Vec<String>> {
    let mut lacking = Vec::new();
    for view in views {
        cx.check_cancelled()?;
        let (schema, name) = &view.name;
        cx.step(format!(
            "filling the materialized view {} of {}",
            shown(&readable(schema, name)),
            shown(&details.name)
        ));
        // As `pg_restore` would; then with the path that its author had.
        let mut result = fill_one(server, tools, (details, loading), view, None).await;
        if result.is_err() {
            let second = fill_one(server, tools, (details, loading), view, Some(usual_path(details))).await;
            result = result.or(second);
        }
        if let Err(error) = result {
            lacking.push(format!(
                "the materialized view {} of `{}` is empty, because it cannot be computed; the data is whole. Refresh it when \
                 the cause is gone: {}",
                shown(&readable(schema, name)),
                shown(&details.name),
                shown(&error.chain())
            ));
        }
    }
    Ok(lacking)
}

async fn fill_one(
    server: &Server,
    tools: &Tools,
    (details, loading): (&DatabaseDetails, &str),
    view: &View,
    path: Option<&str>,
) -> Result<()> {
    let mut session = Psql::connect(server, tools, loading).await?;
    let always = triggers(&mut session).await?;
    let (off, on): (String, String) = always.iter().map(Trigger::around).unzip();
    // The statement is in the encoding of the dump.
    let encoding = literal(&details.encoding);
    let path = path.map(|path| format!("SELECT set_config('search_path', {}, true);", literal(path)));
    let path = path.unwrap_or_default();
    let statement = &view.statement;
    session
        .execute(&format!("BEGIN; {off} {path} SET LOCAL client_encoding = {encoding}; {statement}; {on} COMMIT"))
        .await?;
    session.close().await
}

/// An event trigger that fires although event triggers are silenced.
#[derive(Debug, Deserialize)]
struct Trigger {
    name: String,
    enabled: String,
}

impl Trigger {
    /// What puts it to sleep, and what wakes it up.
    fn around(&self) -> (String, String) {
        let alter = format!("ALTER EVENT TRIGGER {}", ident(&self.name));
        let mode = if self.enabled == "A" { "ALWAYS" } else { "REPLICA" };
        (format!("{alter} DISABLE;"), format!("{alter} ENABLE {mode};"))
    }
}

async fn triggers(session: &mut Psql) -> Result<Vec<Trigger>> {
    session
        .rows(
            "SELECT evtname AS name, evtenabled::text AS enabled FROM pg_event_trigger WHERE evtenabled IN ('A', 'R')",
        )
        .await
}

/// Puts every event trigger of a database to sleep for good: for servers of ours.
pub(crate) async fn put_to_sleep(session: &mut Psql) -> Result<()> {
    for trigger in triggers(session).await? {
        session.execute(&trigger.around().0).await?;
    }
    Ok(())
}
