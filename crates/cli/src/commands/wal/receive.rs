//! `stackward wal receive`: archives a server's log as it is written, until it is told to stop.

use std::sync::Arc;

use backup_core::run::RunOptions;
use backup_core::snapshots::SourceSnapshots;
use backup_core::{Error, ErrorKind, Event, Result, SegmentLog, SourceName};
use serde_json::json;

use super::{logs_of, server};
use crate::exit::Exit;
use crate::session::Session;
use crate::stack::{Access, Stack};

pub(super) async fn run(session: &Session<'_>, source: Option<&SourceName>) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let part = server(&stack, source)?;
    let follower = part.engine.follower.as_ref().ok_or_else(|| {
        Error::new(ErrorKind::Plan, format!("the plan does not say that the log of `{}` is streamed", part.name()))
            .hint("write `wal: stream` into its settings")
    })?;
    let sink = stack.open(session, Access::Write).await?;
    let log = SegmentLog::new(logs_of(sink.as_ref())?, part.name().clone());
    let mut options = RunOptions::new(stack.plan.name.clone(), session.world.host.clone());
    options.observer = session.output.observer();
    let snapshots = SourceSnapshots::new(sink, options, part.name().clone(), part.config.engine.clone());
    let cx = session.context(part.name());
    cx.report(&Event::Started { source: part.name().clone(), work: "receive", expected_bytes: None });
    let ended = Arc::clone(follower).follow(&cx, &log, &snapshots).await;
    cx.report(&Event::Finished { source: part.name().clone(), failure: ended.as_ref().err().map(Error::chain) });
    ended?;
    session.output.summary(format!("{}: stopped; what was received is archived", part.name()));
    session.output.result("wal receive", Exit::Done, &json!({ "source": part.name() }));
    Ok(Exit::Done)
}
