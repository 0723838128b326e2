//! What the server says of its log: where it is, what it believes was archived, and what its slot keeps. `wal status` compares
//! that with the archive.

use std::sync::Arc;

use backup_core::SourceName;
use backup_core::engine::{Concern, EngineSetup, LogState};
use backup_core::error::Result;
use backup_core::host::Host;
use backup_core::position::Lsn;
use serde::Serialize;

use super::chain::Chain;
use super::names::WalFile;
use crate::config::{Settings, WalMode};
use crate::default_slot;
use crate::server::Server;
use crate::sql::literal;
use crate::wire::{Connection, Purpose};

/// What is being written, what waits for the archiver, and one on its way: no more than so many segments are usual.
const USUAL_SEGMENTS: u64 = 3;

/// What the server says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ServerView {
    /// Up to where its log is flushed.
    pub flushed: Option<Lsn>,
    /// The timeline that it writes; none of a standby, which may have to catch up.
    pub timeline: Option<u32>,
    /// The slot that the plan names, when the log is streamed.
    pub slot: Option<SlotView>,
    /// What the archiver did, when the log is pushed.
    pub archiver: Option<ArchiverView>,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotView {
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub exists: bool,
    /// Whether somebody reads it now.
    pub active: bool,
    /// From where it keeps the log: up to there everything was confirmed.
    pub restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
}

/// `pg_stat_archiver`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArchiverView {
    /// `archive_mode`.
    pub mode: String,
    /// The file that was archived last.
    pub last_archived: Option<String>,
    /// The file that failed last, when nothing succeeded since.
    pub failing: Option<String>,
    /// How often archiving failed, and when last, since the server's statistics were reset.
    pub failed_count: u64,
    /// See `failed_count`.
    pub last_failed: Option<String>,
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// Nothing is lost yet.
    Warning,
    /// The archive lacks something, or will never have it.
    Loss,
}

/// What does not agree with the archive, or will break it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Complaint {
    /// How bad it is.
    pub weight: Weight,
    /// A sentence.
    pub told: String,
    /// What to do.
    pub hint: &'static str,
}

fn complaint(weight: Weight, told: String, hint: &'static str) -> Complaint {
    Complaint { weight, told, hint }
}

impl ServerView {
    /// Asks the server of the plan.
    ///
    /// # Errors
    /// Those of connecting, and of a role that may not ask.
    pub async fn ask(setup: &EngineSetup<'_>) -> Result<Self> {
        let settings = Settings::parse(setup.config, setup.folder)?;
        Self::of(&settings, &setup.host, setup.name).await
    }

    /// As [`ask`](Self::ask), of a plan that is parsed.
    pub(crate) async fn of(settings: &Settings, host: &Arc<dyn Host>, source: &SourceName) -> Result<Self> {
        let server = Server::of(settings, Arc::clone(host));
        let database = settings.endpoint.database.clone().unwrap_or_else(|| "postgres".to_owned());
        let mut session = Connection::connect(&server, Purpose::Sql(&database)).await?;
        let flushed =
            "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end";
        let flushed = session.value(flushed).await?.and_then(|text| text.parse().ok());
        let timeline =
            "select case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_flush_lsn()), 8) end";
        let timeline = session.value(timeline).await?.and_then(|name| u32::from_str_radix(&name, 16).ok());
        let mut view = Self { flushed, timeline, ..Self::default() };
        match settings.wal {
            Some(WalMode::Stream) => {
                let name = settings.slot.clone().unwrap_or_else(|| default_slot(source));
                view.slot = Some(SlotView::ask(&mut session, name).await?);
            }
            Some(WalMode::Push) => view.archiver = Some(ArchiverView::ask(&mut session).await?),
            None => {}
        }
        session.close().await;
        Ok(view)
    }

    /// Bytes that the server has flushed and the archive does not have.
    #[must_use]
    pub fn lag(&self, chain: &Chain) -> Option<u64> {
        let end = chain.timelines().into_iter().filter_map(|timeline| chain.end(timeline)).max()?;
        Some(self.flushed?.0.saturating_sub(end.0))
    }

    /// What does not agree with the archive, or will break it.
    #[must_use]
    pub fn complaints(&self, chain: Option<&Chain>) -> Vec<Complaint> {
        let slot = self.slot.iter().flat_map(|slot| slot.complaints(chain));
        let archiver = self.archiver.iter().flat_map(|archiver| archiver.complaints(chain));
        let behind = chain.and_then(|chain| self.behind(chain));
        behind.into_iter().chain(slot).chain(archiver).collect()
    }

    /// Whatever is archived was on the server's disk before: a server that does not have it is another state of it.
    fn behind(&self, chain: &Chain) -> Option<Complaint> {
        let (timeline, flushed) = (self.timeline?, self.flushed?);
        let end = chain.end(timeline).filter(|end| flushed < *end)?;
        let told = format!(
            "the server has its log up to {flushed} of timeline {timeline}, and the archive goes to {end}: it is an earlier state of \
             the server that was archived, or a copy of one, and nothing that it does now is archived"
        );
        let hint = "give this server a source name of its own in the plan, and take a backup";
        Some(complaint(Weight::Loss, told, hint))
    }

    /// The same for whoever knows no PostgreSQL, with the distance when it is more than an archiver's usual one.
    pub(crate) fn log_state(&self, chain: Option<&Chain>) -> LogState {
        let behind_bytes = chain.and_then(|chain| self.lag(chain));
        let concern = |Complaint { weight, told, hint }| Concern {
            is_loss: weight == Weight::Loss,
            what: told,
            hint: hint.to_owned(),
        };
        let mut concerns: Vec<Concern> = self.complaints(chain).into_iter().map(concern).collect();
        let usual = chain.map_or(0, |chain| USUAL_SEGMENTS * chain.segment_size().bytes());
        if let Some(bytes) = behind_bytes.filter(|bytes| *bytes > usual) {
            let what = format!("the server has flushed {} MiB of log that the archive does not have", bytes >> 20);
            let hint = "is it archived more slowly than it is written? look at who archives, and at the repository";
            concerns.push(concern(complaint(Weight::Warning, what, hint)));
        }
        LogState { behind_bytes, concerns }
    }
}

impl SlotView {
    async fn ask(session: &mut Connection, name: String) -> Result<Self> {
        let sql = format!(
            "select active::text, restart_lsn::text, wal_status from pg_replication_slots where slot_name = {}",
            literal(&name)
        );
        let row = session.query(&sql).await?.into_iter().next().unwrap_or_default().into_iter().next();
        let exists = row.is_some();
        let mut cells = row.unwrap_or_default().into_iter();
        let mut next = || cells.next().flatten();
        let active = next().as_deref() == Some("true");
        Ok(Self { name, exists, active, restart: next().and_then(|text| text.parse().ok()), wal_status: next() })
    }

    fn complaints(&self, chain: Option<&Chain>) -> Vec<Complaint> {
        let name = &self.name;
        if !self.exists {
            let told = format!("the server has no replication slot `{name}`: it keeps nothing for the archive");
            return vec![complaint(Weight::Loss, told, "run `stackward wal receive`, which makes it")];
        }
        let mut found = Vec::new();
        let end = chain.and_then(|chain| chain.timelines().into_iter().filter_map(|each| chain.end(each)).max());
        match self.wal_status.as_deref() {
            Some("lost") => {
                let told = format!("the replication slot `{name}` has lost log that was not archived");
                let hint = "run `stackward wal receive`, which makes it anew and takes a full backup; raise \
                            `max_slot_wal_keep_size`, so that it does not happen again";
                found.push(complaint(Weight::Loss, told, hint));
            }
            Some("unreserved") => {
                let told = format!("the replication slot `{name}` is about to lose log that is not archived");
                let hint = "it is removed at one of the server's next checkpoints: raise `max_slot_wal_keep_size` now, \
                            and look at who reads the slot";
                found.push(complaint(Weight::Warning, told, hint));
            }
            _ => {}
        }
        if let (Some(restart), Some(end)) = (self.restart, end)
            && restart > end
        {
            let told =
                format!("the replication slot `{name}` keeps the log from {restart} on, and the archive ends at {end}");
            let hint = "somebody else reads this slot; name another in the plan, and take a new backup";
            found.push(complaint(Weight::Loss, told, hint));
        }
        if !self.active {
            let told = format!("nobody reads the replication slot `{name}`: the server's disk fills with log");
            found.push(complaint(Weight::Warning, told, "run `stackward wal receive`"));
        }
        found
    }
}

impl ArchiverView {
    async fn ask(session: &mut Connection) -> Result<Self> {
        let sql = "select current_setting('archive_mode'), last_archived_wal,
                          case when last_archived_time is null or last_failed_time > last_archived_time
                               then last_failed_wal end,
                          failed_count::text,
                          to_char(last_failed_time at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || 'Z'
                     from pg_stat_archiver";
        let mut row = session.row(sql).await?.into_iter();
        let mut next = || row.next().flatten();
        Ok(Self {
            mode: next().unwrap_or_default(),
            last_archived: next(),
            failing: next(),
            failed_count: next().and_then(|text| text.parse().ok()).unwrap_or_default(),
            last_failed: next(),
        })
    }

    fn complaints(&self, chain: Option<&Chain>) -> Vec<Complaint> {
        let mut told = Vec::new();
        if self.mode == "off" {
            let sentence = "the server does not archive its log: `archive_mode` is off".to_owned();
            told.push(complaint(Weight::Loss, sentence, "set `archive_mode = on` and restart the server"));
        }
        if let Some(failing) = &self.failing {
            let when = self.last_failed.as_deref().map(|when| format!(", last at {when}")).unwrap_or_default();
            let sentence =
                format!("the server cannot archive {failing}: it has failed {} times{when}", self.failed_count);
            let hint = "its log says why; the disk fills with log meanwhile";
            told.push(complaint(Weight::Warning, sentence, hint));
        }
        if let Some(last) = &self.last_archived
            && let Ok(WalFile::Segment(segment)) = last.parse()
            && !chain.is_some_and(|chain| chain.has(segment))
        {
            let sentence = format!("the server believes that {last} is archived, and the archive does not have it");
            let hint = "is `archive_command` another one's? does it push under this source's name?";
            told.push(complaint(Weight::Loss, sentence, hint));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::chain::tests::{MIB, chain};

    #[test]
    fn what_does_not_agree_is_told() {
        let archive = chain(&[(1, &[3, 4])], &[]);
        let slot = |exists, active, restart: u64, status: &str| SlotView {
            name: "s".to_owned(),
            exists,
            active,
            restart: Some(Lsn(restart)),
            wal_status: Some(status.to_owned()),
        };
        let said = |slot: SlotView| {
            let view = ServerView { slot: Some(slot), ..ServerView::default() };
            view.complaints(Some(&archive)).into_iter().map(|each| each.told).collect::<String>()
        };
        assert_eq!(said(slot(true, true, 5 * MIB, "reserved")), "");
        assert!(said(slot(false, false, 0, "")).contains("no replication slot"));
        assert!(said(slot(true, false, 5 * MIB, "lost")).contains("lost"));
        assert!(said(slot(true, true, 5 * MIB, "unreserved")).contains("about to lose"));
        assert!(said(slot(true, true, 5 * MIB + 1, "reserved")).contains("archive ends"));
        assert!(said(slot(true, false, 5 * MIB, "reserved")).contains("nobody reads"));
        let view = ServerView { flushed: Some(Lsn(6 * MIB)), ..ServerView::default() };
        assert_eq!(view.lag(&archive), Some(MIB));
        let at = |timeline, flushed| {
            let view = ServerView { timeline: Some(timeline), flushed: Some(Lsn(flushed)), ..ServerView::default() };
            view.complaints(Some(&archive)).len()
        };
        assert_eq!((at(1, 5 * MIB), at(1, 5 * MIB - 1), at(2, MIB)), (0, 1, 0));
        assert_eq!(view.log_state(Some(&archive)), LogState { behind_bytes: Some(MIB), concerns: Vec::new() });
        let far = ServerView { flushed: Some(Lsn(9 * MIB)), ..ServerView::default() };
        assert!(far.log_state(Some(&archive)).concerns[0].what.contains("flushed 4 MiB"));
    }
}
