//! Following a server: a full snapshot once, then the replication stream as segments, for as long as it takes.
//!
//! We are a replica that keeps everything. The server learns (`REPLCONF ACK`) only of what is durable in the log, and sends
//! on from there after a break (`PSYNC`). When it cannot, a new full snapshot is taken, and the break is told and recorded.
//! Invariant: a segment follows its predecessor byte by byte; nothing is stored after a hole without a new snapshot.

mod base;
mod intake;
mod keeper;
mod resume;
mod settings;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::engine::{Follower, Snapshots};
use backup_core::error::{Error, ErrorKind, Result, Retry};
use backup_core::position::Position;
use backup_core::{RunContext, SegmentLog, Timeline};
use bytes::Bytes;

use crate::Redis;
use crate::server::Info;
use crate::snapshot::handed::hand_over;
use crate::snapshot::{Attached, Replication};

use base::Base;
use intake::{Intake, Place};
use keeper::Keeper;
pub(crate) use settings::{FollowConfig, Limits};
use work::{Taking, Work};

/// In the details of a segment: the replication id that its own goes on from.
pub(crate) const CONTINUES: &str = "continues";
/// The first pause before we connect again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Whether an error is one that may pass by itself: the network, a restart, a full disk.
fn passing(error: &Error) -> bool {
    let kinds = [
        ErrorKind::Unreachable,
        ErrorKind::Incomplete,
        ErrorKind::Busy,
        ErrorKind::NoSpace,
        ErrorKind::Io,
        ErrorKind::Tool,
    ];
    error.retry() == Retry::Later || kinds.contains(&error.kind())
}

/// Follows one server.
#[derive(Debug)]
pub(crate) struct RedisFollower {
    pub(crate) redis: Arc<Redis>,
    pub(crate) limits: Limits,
}

#[async_trait]
impl Follower for RedisFollower {
    async fn follow(&self, cx: &RunContext, log: &SegmentLog, snapshots: &dyn Snapshots) -> Result<()> {
        let mut work = Work {
            cx,
            snapshots,
            keeper: Keeper::begin(cx, log),
            intake: None,
            held: VecDeque::new(),
            epoch: 0,
            durable: 0,
            because: None,
            received: false,
        };
        let ended = self.run(log, &mut work).await;
        let flushed = work.finish().await;
        ended.and(flushed)
    }
}

impl RedisFollower {
    /// Connects again and again. `Ok` once cancelled.
    async fn run(&self, log: &SegmentLog, work: &mut Work<'_>) -> Result<()> {
        let cx = work.cx;
        let mut pause = FIRST_PAUSE;
        let mut known = false;
        loop {
            work.received = false;
            let session = async {
                if !known {
                    let place = resume::find(cx, log, work.snapshots).await?;
                    work.durable = place.as_ref().map_or(0, |place| place.offset);
                    work.intake = place.map(|place| Intake::new(cx.scratch(), self.limits, place, 0));
                    known = true;
                }
                self.session(work).await
            };
            let Err(error) = session.await else { return Ok(()) };
            if cx.cancellation().is_cancelled() {
                return Ok(());
            }
            if !passing(&error) {
                return Err(error);
            }
            if work.received {
                pause = FIRST_PAUSE;
            }
            cx.warn(format!("{}; connecting again in {} s", error.chain(), pause.as_secs_f32()));
            cx.waits_for(error.chain());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cx.cancellation().cancelled() => return Ok(()),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One connection, to its end. `Ok` once cancelled.
    async fn session(&self, work: &mut Work<'_>) -> Result<()> {
        let cx = work.cx;
        let place = work.intake.as_ref().map(Intake::place);
        let after = place.map(|place| (place.timeline.as_str(), place.offset));
        let attaching = Replication::attach(cx, &self.redis, after);
        let (attached, info) = cx.unless_cancelled(attaching).await?;
        cx.waits_no_more();
        match attached {
            Attached::Continued { id, connection } => {
                work.go_on(id, &info).await?;
                work.receive(connection, Bytes::new(), None, self.limits).await
            }
            Attached::Everything(rdb) => self.begin(work, *rdb, &info).await,
        }
    }

    /// A full snapshot, and the stream after it.
    async fn begin(&self, work: &mut Work<'_>, mut rdb: Replication, info: &Info) -> Result<()> {
        let Some(Position::Replication { id, offset }) = rdb.position() else {
            return Err(Error::new(ErrorKind::Unsupported, "the server tells no replication offset"));
        };
        let because = work.leave(&id).await?;
        work.epoch += 1;
        work.durable = 0;
        let place = Place { timeline: Timeline::new(&id)?, offset, predecessor: None };
        let mut intake = Intake::new(work.cx.scratch(), self.limits, place, work.epoch);
        intake.describe(described(info));
        let (hand, handed) =
            hand_over(Position::Replication { id, offset }, rdb.told(), work.cx.scratch(), self.limits.spool);
        let base = Arc::new(Base::new(Arc::clone(&self.redis), handed, because));
        work.cx.step(format!("taking a full snapshot at offset {offset}"));
        let mut taking: Taking<'_> = work.snapshots.take(work.cx, base);
        tokio::select! {
            biased;
            taken = &mut taking => {
                let early = || Error::new(ErrorKind::Internal, "a snapshot ended before its data");
                return Err(taken.err().unwrap_or_else(early));
            }
            given = hand.give(work.cx, &mut rdb) => given?,
        }
        work.intake = Some(intake);
        let (connection, rest) = rdb.into_stream();
        work.receive(connection, rest, Some(taking), self.limits).await
    }
}

/// What segments say of their server.
fn described(info: &Info) -> BTreeMap<String, serde_json::Value> {
    let product = info.product().map(|product| format!("{} {}", product.product, product.version));
    let pairs = [("server", product), ("run_id", info.get("run_id").map(str::to_owned))];
    pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))).collect()
}
