//! Subscriptions of restored databases: they name a slot on the publisher, which the original still uses.
//!
//! Invariant: a copy never touches that slot; not when it is dropped either.

use backup_core::error::Result;
use serde::Deserialize;

use super::details::DatabaseDetails;
use crate::psql::Psql;
use crate::sql::ident;
use crate::text::shown;

#[derive(Debug, Deserialize)]
struct Subscription {
    name: String,
    slot: Option<String>,
}

async fn list(session: &mut Psql) -> Result<Vec<Subscription>> {
    session
        .rows(
            "SELECT subname AS name, subslotname AS slot FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
             WHERE d.datname = current_database() ORDER BY 1",
        )
        .await
}

/// Disables the subscriptions of the session's database and lets go of their slots. Returns what was done.
pub(crate) async fn detach(session: &mut Psql, database: &str) -> Result<Vec<String>> {
    let mut told = Vec::new();
    for Subscription { name, slot } in list(session).await? {
        let alter = format!("ALTER SUBSCRIPTION {}", ident(&name));
        session.execute(&format!("{alter} DISABLE;\n{alter} SET (slot_name = NONE)")).await?;
        let slot = slot.map_or("its slot".to_owned(), |slot| format!("its slot `{}`", shown(&slot)));
        told.push(format!(
            "the subscription `{}` of `{}` is disabled and detached from {slot} on the publisher, which belongs to the original",
            shown(&name),
            shown(database)
        ));
    }
    Ok(told)
}

/// What an operator must know of the subscriptions of a database that came back under its own name.
pub(crate) async fn tell(session: &mut Psql, database: &str) -> Result<Vec<String>> {
    let tell = |Subscription { name, slot }| {
        let slot = slot.map_or("no slot".to_owned(), |slot: String| format!("the slot `{}`", shown(&slot)));
        format!(
            "the subscription `{}` of `{}` is disabled, and names {slot} on the publisher: when no other server uses that, \
             {} ENABLE",
            shown(&name),
            shown(database),
            shown(&format!("ALTER SUBSCRIPTION {}", ident(&name)))
        )
    };
    Ok(list(session).await?.into_iter().map(tell).collect())
}

/// Removes the subscriptions of the session's database, which is about to be dropped; the publisher is not told.
pub(crate) async fn remove(session: &mut Psql, database: &str) -> Result<()> {
    detach(session, database).await?;
    for Subscription { name, .. } in list(session).await? {
        session.execute(&format!("DROP SUBSCRIPTION {}", ident(&name))).await?;
    }
    Ok(())
}

/// What a plan says of the subscriptions of `details`.
pub(crate) fn plan(details: &DatabaseDetails, is_copy: bool) -> Vec<String> {
    let tell = |name: &String| {
        let (name, database) = (shown(name), shown(&details.name));
        if is_copy {
            format!(
                "the copy's subscription `{name}` (of `{database}`) will be disabled and detached from its slot on the \
                 publisher, which belongs to the original"
            )
        } else {
            format!(
                "the subscription `{name}` of `{database}` will come back disabled, and still name its slot on the publisher; \
                 enable it only when no other server uses that"
            )
        }
    };
    details.subscriptions.iter().map(tell).collect()
}
