//! Whoever keeps a dump waiting for a table is named.
//!
//! Invariant: looking changes nothing, and that it cannot be looked at is no reason to fail.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backup_core::error::Result;
use serde::Deserialize;

use super::dump::Job;
use crate::psql::Psql;
use crate::server::APPLICATION;
use crate::text::shown;

/// How long a dump may wait before it is looked at, and between two looks.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether a dump has every lock that it will ever need.
#[derive(Debug, Default)]
pub(crate) struct Locked(AtomicBool);

impl Locked {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Does `work`, a dump of `database`; until it is `locked`, warns of each session that it waits for.
pub(crate) async fn telling_who_blocks<T>(
    job: &Job,
    database: &str,
    locked: &Locked,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        never = watch(job, database, locked) => match never {},
    }
}

#[derive(Deserialize)]
struct Blocker {
    pid: i64,
    application: Option<String>,
    state: Option<String>,
    since: Option<String>,
    relation: Option<String>,
}

async fn watch(job: &Job, database: &str, locked: &Locked) -> Infallible {
    let mut session = None;
    let mut told = BTreeSet::new();
    loop {
        tokio::time::sleep(PATIENCE).await;
        if locked.is_set() {
            std::future::pending::<()>().await;
        }
        let mut asked = match session.take() {
            Some(session) => session,
            None => match Psql::connect(&job.server, &job.tools, database).await {
                Ok(session) => session,
                Err(_) => continue,
            },
        };
        let Ok(blockers) = asked.rows::<Blocker>(&who()).await else { continue };
        session = Some(asked);
        for blocker in blockers {
            if told.insert((blocker.pid, blocker.relation.clone())) {
                job.cx.warn(blocker.tell(database));
            }
        }
    }
}

/// Sessions of ours in this database that wait for a lock, and who holds it. Of other roles' sessions only members of
/// `pg_read_all_stats` learn more than the number.
fn who() -> String {
    format!(
        "SELECT DISTINCT h.pid::int8 AS pid, nullif(a.application_name, '') AS application, a.state, \
         to_char(a.query_start, 'YYYY-MM-DD HH24:MI:SS TZ') AS since, (SELECT format('%I.%I', n.nspname, c.relname) \
         FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE l.pid = w.pid AND NOT l.granted LIMIT 1) AS relation FROM pg_stat_activity w \
         CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS h (pid) LEFT JOIN pg_stat_activity a ON a.pid = h.pid \
         WHERE w.datname = current_database() AND w.application_name = '{APPLICATION}' \
         AND w.wait_event_type = 'Lock' AND w.pid <> pg_backend_pid()"
    )
}

impl Blocker {
    fn tell(&self, database: &str) -> String {
        let relation = self.relation.as_deref().map_or("a lock".to_owned(), shown);
        let mut text = format!("the dump of `{}` waits for {relation}, which ", shown(database));
        if self.pid == 0 {
            text.push_str("a prepared transaction holds");
            return text;
        }
        text.push_str(&format!("the session with pid {} holds", self.pid));
        let application = self.application.as_deref().map(shown);
        let since = self.since.as_deref().map(|since| format!("its query began {since}"));
        let more: Vec<String> = [application, self.state.clone(), since].into_iter().flatten().collect();
        if !more.is_empty() {
            text.push_str(&format!(" ({})", more.join(", ")));
        }
        text
    }
}
