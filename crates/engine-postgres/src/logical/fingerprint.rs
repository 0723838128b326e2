//! Counting rows: the same questions to the saved server and to a restored one.
//!
//! Invariant: counted inside the transaction whose snapshot is dumped, the counts are exactly those of the dump.

use backup_core::RunContext;
use backup_core::error::Result;
use backup_core::manifest::Fingerprint;
use serde::Deserialize;

use super::details::{objects_group, tables_group, views_group};
use crate::psql::Psql;
use crate::sql::{literal, qualified, readable};

/// Tables per statement: bounds the statement, and lets a cancelled run stop.
const BATCH: usize = 100;

/// The planner puts functions of indexes in line, and what they call is looked for as it is in any session of the database; the
/// catalogue's own names come first all the same.
const WITH_OWN_PATH: &str = "SELECT set_config('search_path', 'pg_catalog, ' || coalesce((SELECT nullif(substr(setting, 13), '') \
    FROM pg_db_role_setting s, unnest(s.setconfig) AS setting WHERE s.setrole = 0 AND setting LIKE 'search\\_path=%' \
    AND s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())), '\"$user\", public'), false)";

/// Which tables can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unlogged {
    Count,
    /// A standby has no unlogged data.
    Skip,
}

/// A table whose rows `pg_dump` saves: not a partitioned parent, not a member of an extension, not temporary.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CountedTable {
    schema: String,
    name: String,
    materialized: bool,
}

impl CountedTable {
    fn relation(&self) -> String {
        let only = if self.materialized { "" } else { "ONLY " };
        format!("{only}{}", qualified(&self.schema, &self.name))
    }
}

/// Lists the tables of the session's database.
pub(crate) async fn list(session: &mut Psql, unlogged: Unlogged) -> Result<Vec<CountedTable>> {
    let persistence = if unlogged == Unlogged::Skip { "('p')" } else { "('p', 'u')" };
    session
        .rows(&format!(
            "SELECT n.nspname AS schema, c.relname AS name, c.relkind = 'm' AS materialized FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'm') AND c.relispopulated \
             AND c.relpersistence IN {persistence} AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
             AND n.nspname !~ '^pg_(toast|temp_)' AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.deptype = 'e' \
             AND d.classid = 'pg_class'::regclass AND d.objid = c.oid) ORDER BY 1, 2"
        ))
        .await
}

/// Keeps the tables from being dropped or emptied behind the snapshot until the transaction ends, as `pg_dump` does.
pub(crate) async fn lock(session: &mut Psql, tables: &[CountedTable]) -> Result<()> {
    let tables: Vec<&CountedTable> = tables.iter().filter(|table| !table.materialized).collect();
    for batch in tables.chunks(BATCH) {
        let relations: Vec<String> = batch.iter().map(|table| table.relation()).collect();
        session.execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", relations.join(", "))).await?;
    }
    Ok(())
}

/// Counts the rows of `tables`, and the large objects.
pub(crate) async fn count(cx: &RunContext, session: &mut Psql, tables: &[CountedTable]) -> Result<Fingerprint> {
    let database = session.database().to_owned();
    let mut fingerprint = Fingerprint::default();
    session.execute(WITH_OWN_PATH).await?;
    for batch in tables.chunks(BATCH) {
        cx.check_cancelled()?;
        let parts: Vec<String> = batch
            .iter()
            .map(|table| {
                let key = literal(&readable(&table.schema, &table.name));
                format!(
                    "SELECT {key} AS name, {} AS materialized, count(*) AS rows FROM {}",
                    table.materialized,
                    table.relation()
                )
            })
            .collect();
        for counted in session.rows::<Counted>(&parts.join(" UNION ALL ")).await? {
            let group = if counted.materialized { views_group(&database) } else { tables_group(&database) };
            fingerprint.count(group, counted.name, counted.rows);
        }
    }
    session.execute("SET search_path = pg_catalog").await?;
    let large: u64 = session.value("SELECT count(*) FROM pg_largeobject_metadata").await?;
    fingerprint.count(objects_group(&database), "large objects", large);
    Ok(fingerprint)
}

#[derive(Deserialize)]
struct Counted {
    name: String,
    materialized: bool,
    rows: u64,
}

/// Adds the groups of `other` to `fingerprint`.
pub(crate) fn merge(fingerprint: &mut Fingerprint, other: Fingerprint) {
    for (group, items) in other.0 {
        fingerprint.0.entry(group).or_default().extend(items);
    }
}
