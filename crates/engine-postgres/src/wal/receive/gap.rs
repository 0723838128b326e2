//! A gap in the archived log, and what closes it: a full backup whose log is archived from before its start to its end.
//!
//! Invariant: the log is received from before the backup begins, and goes on while it is taken; the gap is called closed when
//! both are in the archive. Whether one is open is read from the archive, so a receiver that was killed finds it again.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backup_core::RunContext;
use backup_core::engine::{Snapshots, Source};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::Manifest;
use backup_core::position::Lsn;
use tokio::time::Instant;

use crate::physical::PhysicalDetails;
use crate::wal::chain::Chain;
use crate::wire::SystemIdentity;

/// The waits between attempts to take the backup.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(10));

/// Whether recoveries need a new full backup: there are some, and none leads to the end of the archive, from which the log
/// goes on at `begin`.
pub(super) async fn open(
    chain: Option<&Chain>,
    identity: &SystemIdentity,
    begin: Lsn,
    snapshots: &dyn Snapshots,
) -> Result<Option<String>> {
    let mut newest = None;
    for candidate in snapshots.candidates().await? {
        // A damaged record is no base to recover from; others may be.
        let Ok(Some(base)) = PhysicalDetails::of(&candidate.record) else { continue };
        if base.system_identifier != identity.system_identifier.to_string() {
            continue;
        }
        if leads_on(chain, &base, identity.timeline, begin) {
            return Ok(None);
        }
        newest = Some(candidate.id);
    }
    Ok(newest.map(|id| format!("no full backup leads to the end of the archived log, the newest is {id}")))
}

/// Whether log from `begin` on continues what replay from `base` reaches.
fn leads_on(chain: Option<&Chain>, base: &PhysicalDetails, timeline: u32, begin: Lsn) -> bool {
    if base.start_lsn >= begin && base.timeline <= timeline {
        return true;
    }
    let Some(chain) = chain else { return false };
    let newest = chain.timelines().into_iter().rfind(|each| *each <= timeline);
    let Some((newest, end)) = newest.and_then(|each| Some((each, chain.end(each)?))) else { return false };
    matches!(chain.reach(base.timeline, base.start_lsn, newest), Ok(Some(reach)) if reach >= end)
}

/// A backup on its way into the sink.
type Taking<'a> = Pin<Box<dyn Future<Output = Result<Manifest>> + Send + 'a>>;

/// Takes the full backup that closes a gap, again and again until there is one.
pub(super) struct Closing<'a> {
    cx: &'a RunContext,
    snapshots: &'a dyn Snapshots,
    base: Option<&'a Arc<dyn Source>>,
    state: State<'a>,
    pause: Duration,
    /// From where the log is received.
    from: Lsn,
}

enum State<'a> {
    /// There is no gap, or nothing that could close it.
    Idle,
    Taking(Taking<'a>),
    /// It failed; it is tried again then.
    Waiting(Instant),
    /// It is there; the gap is closed when the log is archived up to its end.
    Taken(String, Lsn),
}

impl<'a> Closing<'a> {
    pub(super) fn new(cx: &'a RunContext, snapshots: &'a dyn Snapshots, base: Option<&'a Arc<dyn Source>>) -> Self {
        Self { cx, snapshots, base, state: State::Idle, pause: RETRY.0, from: Lsn(0) }
    }

    /// The chain is broken, and the log is received from `from` on. Says so, and takes what makes the archive useful again.
    pub(super) fn begin(&mut self, why: &str, from: Lsn) {
        if !matches!(self.state, State::Idle) {
            return;
        }
        self.cx.warn(format!("the archived log has a gap: {why}"));
        self.from = from;
        if self.base.is_none() {
            self.cx.warn("moments after the gap can be reached only from a physical backup taken after it");
        }
        self.take();
    }

    fn take(&mut self) {
        let Some(source) = self.base else { return };
        self.cx.step("taking a full backup, because of the gap");
        self.state = State::Taking(self.snapshots.take(self.cx, Arc::clone(source)));
    }

    /// The next backup that was taken, or why not. Never, when none is wanted. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Manifest> {
        loop {
            match &mut self.state {
                State::Taking(taking) => return taking.await,
                State::Waiting(until) => {
                    tokio::time::sleep_until(*until).await;
                    self.take();
                }
                State::Idle | State::Taken(..) => return std::future::pending().await,
            }
        }
    }

    /// What [`next`](Self::next) returned.
    ///
    /// # Errors
    /// When the repository is not the one that was opened: then the log has no place there, either.
    pub(super) fn taken(&mut self, cx: &RunContext, taken: Result<Manifest>) -> Result<()> {
        match taken.and_then(|manifest| self.closes(&manifest)) {
            Ok(taken) => self.state = taken,
            Err(error) if matches!(error.kind(), ErrorKind::NoRepository | ErrorKind::WrongKey) => return Err(error),
            Err(error) => {
                let (pause, why) = (self.pause, error.chain());
                cx.warn(format!("the gap stays open: {why}; a full backup is tried again in {} s", pause.as_secs()));
                self.state = State::Waiting(Instant::now() + pause);
                self.pause = (pause * 2).min(RETRY.1);
            }
        }
        Ok(())
    }

    fn closes(&self, manifest: &Manifest) -> Result<State<'a>> {
        let record = manifest.source(self.cx.source());
        let base = record.map(PhysicalDetails::of).transpose()?.flatten();
        match base {
            Some(base) if base.start_lsn >= self.from => Ok(State::Taken(manifest.id.to_string(), base.stop_lsn)),
            _ => Err(Error::new(ErrorKind::Incomplete, format!("the backup {} does not begin after it", manifest.id))),
        }
    }

    /// Whether the gap is closed now that everything up to `durable` is archived; says so when it is.
    pub(super) fn is_closed(&mut self, durable: Lsn) -> bool {
        let State::Taken(id, stop) = &self.state else { return false };
        if durable < *stop {
            return false;
        }
        self.cx.warn(format!(
            "the gap is closed: the full backup {id} was taken after it, and the log is archived from there on"
        ));
        self.state = State::Idle;
        true
    }

    /// Lets a backup that was told to stop clean up. One that was not is dropped.
    pub(super) async fn end(&mut self, cx: &RunContext) {
        if let State::Taking(taking) = &mut self.state
            && cx.check_cancelled().is_err()
        {
            // It was told to stop; what it says of that is known.
            let _stopped = taking.await;
        }
        self.state = State::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::chain::tests::{MIB, chain};

    fn base(timeline: u32, start: u64, stop: u64) -> PhysicalDetails {
        let details = serde_json::json!({
            "version_number": 150_018, "system_identifier": "1", "timeline": timeline, "start_lsn": Lsn(start).to_string(),
            "stop_lsn": Lsn(stop).to_string(), "started": "2026-11-20T00:00:00Z", "stopped": "2026-11-20T00:00:00Z",
            "wal_segment_size": MIB, "block_size": 8192, "data_checksums": true,
        });
        serde_json::from_value(details).unwrap()
    }

    #[test]
    fn a_backup_leads_on_when_no_hole_lies_between_it_and_what_is_received_next() {
        let whole = chain(&[(1, &[3, 4, 5])], &[]);
        assert!(leads_on(Some(&whole), &base(1, 4 * MIB + 7, 4 * MIB + 99), 1, Lsn(6 * MIB)));
        let hole = chain(&[(1, &[3, 4, 8])], &[]);
        assert!(!leads_on(Some(&hole), &base(1, 4 * MIB, 5 * MIB), 1, Lsn(9 * MIB)), "the hole is after it");
        assert!(!leads_on(Some(&hole), &base(1, 6 * MIB, 7 * MIB), 1, Lsn(9 * MIB)), "taken before the log went on");
        assert!(leads_on(Some(&hole), &base(1, 8 * MIB + 5, 8 * MIB + 9), 1, Lsn(9 * MIB)));
        assert!(leads_on(Some(&hole), &base(1, 9 * MIB + 5, 9 * MIB + 9), 1, Lsn(9 * MIB)), "it is still to come");
        assert!(!leads_on(None, &base(1, 2 * MIB, 3 * MIB), 1, Lsn(5 * MIB)), "before the log's beginning");
        // A promotion: the old timeline up to where it was left, then the new one.
        let promoted = chain(&[(1, &[3, 4]), (2, &[5, 6])], &[(2, &[(1, 5 * MIB + 100)])]);
        assert!(leads_on(Some(&promoted), &base(1, 4 * MIB, 4 * MIB + 9), 2, Lsn(7 * MIB)));
        let apart = chain(&[(1, &[3, 4]), (2, &[9])], &[(2, &[(1, 5 * MIB + 100)])]);
        assert!(!leads_on(Some(&apart), &base(1, 4 * MIB, 4 * MIB + 9), 2, Lsn(10 * MIB)));
    }
}
