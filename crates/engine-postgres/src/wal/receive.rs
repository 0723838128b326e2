//! The receiver: follows a server's write-ahead log through a replication slot into the archive.
//!
//! Invariant: the server is told that a position is flushed only when everything before it is durable in the archive, so the
//! slot keeps what a crash of ours, at any moment, would lose. A server that goes away is waited for.

mod begin;
mod depot;
mod gap;
mod join;
mod session;
mod slot;
mod stage;
mod timelines;

use std::time::Duration;

use async_trait::async_trait;
use backup_core::engine::{Follower, Snapshots, Source};
use backup_core::error::{Error, ErrorKind, Result, Retry};
use backup_core::{RunContext, SegmentLog};
use std::sync::Arc;

use super::chain::Chain;
use super::names::SegmentSize;
use crate::server::Server;
use crate::wire::{Connection, Purpose, SystemIdentity, server_error};
use begin::Begin;
use gap::Closing;
use join::Join;
use session::{Course, Session};
use slot::Slot;

/// The waits between attempts to reach a server, or a sink, that is away: this, doubled each time, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The SQLSTATE of a log that is not there any more.
const GONE: &str = "58P01";
/// The SQLSTATE of something that is not there.
const UNDEFINED: &str = "42704";
/// The SQLSTATE of something that is not in a state for what was asked.
const NOT_IN_STATE: &str = "55000";

/// How to receive.
#[derive(Debug, Clone)]
pub(crate) struct ReceiveOptions {
    /// The slot.
    pub(crate) slot: String,
    /// What is younger than this waits for its segment to be full; then it is archived as a piece.
    pub(crate) piece_age: Duration,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Receiver {
    server: Server,
    options: ReceiveOptions,
    /// What takes a full backup after a gap, when the plan has physical backups.
    base: Option<Arc<dyn Source>>,
}

impl Receiver {
    pub(crate) fn new(server: Server, options: ReceiveOptions, base: Option<Arc<dyn Source>>) -> Self {
        Self { server, options, base }
    }

    /// One session, from where the archive ends to whatever ends it. `Ok` means that it was cancelled, or that the server
    /// stopped in order.
    async fn session(
        &self,
        cx: &RunContext,
        log: &SegmentLog,
        snapshots: &dyn Snapshots,
        course: &mut Course,
    ) -> Result<()> {
        let mut connection = cx.unless_cancelled(Connection::connect(&self.server, Purpose::Replication)).await?;
        let identity = connection.identify_system().await?;
        let size = segment_size(&mut connection).await?;
        let chain = Chain::read(log).await?;
        if let Some(chain) = &chain {
            same_server(chain, &identity, size, &self.server)?;
            let join = Join { cx, server: &self.server, log, chain, identity: &identity };
            join.check(&mut connection).await?;
        }
        timelines::archive_histories(&mut connection, log, chain.as_ref(), identity.timeline).await?;
        let slot = Slot { server: &self.server, name: &self.options.slot };
        let restart = slot.hold(&mut connection, cx, chain.is_some()).await?;
        let begin = Begin::find(&mut connection, chain.as_ref(), &identity, restart, size).await?;
        if let Some(why) = begin.gap {
            course.gap = Some(why);
        } else if self.base.is_some() && !course.looked {
            let found = gap::open(chain.as_ref(), &identity, begin.segment.start(size), snapshots).await?;
            course.gap = course.gap.take().or(found);
        }
        course.looked = true;
        let closing = Closing::new(cx, snapshots, self.base.as_ref());
        let mut session = Session { receiver: self, cx, log, slot, identity, size, chain, course, closing };
        session.run(connection, begin.segment).await
    }
}

#[async_trait]
impl Follower for Receiver {
    async fn follow(&self, cx: &RunContext, log: &SegmentLog, snapshots: &dyn Snapshots) -> Result<()> {
        let doing = || format!("follow the log of `{}`", cx.source());
        let mut course = Course::default();
        let mut wait = RETRY.0;
        loop {
            course.received = 0;
            let ended = self.session(cx, log, snapshots, &mut course).await;
            if cx.check_cancelled().is_err() {
                // What was received is archived; an error on the way out would only repeat that it was told to stop. But
                // what could not be archived is told.
                return match ended {
                    Err(error) if course.is_unarchived => Err(error.during(doing())),
                    _ => Ok(()),
                };
            }
            let error = match ended {
                Ok(()) => Error::new(ErrorKind::Unreachable, "the server stopped; all that it sent is archived"),
                Err(error) if is_passing(&error) => error,
                Err(error) => return Err(error.during(doing())),
            };
            if course.received > 0 {
                wait = RETRY.0;
            }
            cx.warn(format!("{}; trying again in {} s", error.chain(), wait.as_secs()));
            cx.waits_for(error.chain());
            let pause = async {
                tokio::time::sleep(wait).await;
                Ok(())
            };
            if cx.unless_cancelled(pause).await.is_err() {
                return Ok(());
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }
}

/// Whether the cause may pass by itself: the server or the sink is away, restarts, or is full.
fn is_passing(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Unreachable | ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::Interrupted => true,
        // A session of ours that the server has not missed yet; but not another one's.
        ErrorKind::Busy => error.retry() == Retry::Later,
        // The server's sender takes no command any more: it stops.
        ErrorKind::Unsupported => server_error(error)
            .is_some_and(|server| server.code == NOT_IN_STATE && server.message.contains("in stopping mode")),
        _ => false,
    }
}

/// The length of the server's segments: `SHOW wal_segment_size` prints `16MB`.
async fn segment_size(connection: &mut Connection) -> Result<SegmentSize> {
    let shown = connection.show("wal_segment_size").await?;
    let bytes = match (shown.strip_suffix("MB"), shown.strip_suffix("GB")) {
        (Some(number), _) => number.parse::<u64>().ok().map(|number| number << 20),
        (_, Some(number)) => number.parse::<u64>().ok().map(|number| number << 30),
        _ => None,
    };
    SegmentSize::new(bytes.unwrap_or_default()).map_err(|error| error.with("wal_segment_size", shown))
}

fn same_server(chain: &Chain, identity: &SystemIdentity, size: SegmentSize, server: &Server) -> Result<()> {
    let mine = identity.system_identifier.to_string();
    if let Some(theirs) = chain.system()
        && theirs != mine
    {
        let message = format!(
            "the server at {} has the identifier {mine}, and the archive is that of the server {theirs}",
            server.describe()
        );
        return Err(Error::new(ErrorKind::AlreadyExists, message)
            .hint("it was set up anew, or another one listens there: give it a source name of its own"));
    }
    if chain.segment_size() != size {
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            "the server's segments have another length than the archive's",
        )
        .hint("give it a source name of its own"));
    }
    Ok(())
}

/// Whether the server does not know what it was asked about.
fn is_undefined(error: &Error) -> bool {
    server_error(error).is_some_and(|server| server.code == UNDEFINED)
}
