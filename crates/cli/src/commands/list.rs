//! `stackward list`: the snapshots, oldest first.

use backup_core::Result;
use backup_core::manifest::Outcome;
use backup_core::sink::{SnapshotFilter, SnapshotSummary};
use serde_json::json;

use crate::args::ListArgs;
use crate::exit::Exit;
use crate::output::{self, Align, Table};
use crate::session::Session;
use crate::stack::{Access, Stack};

pub(crate) async fn run(session: &Session<'_>, args: &ListArgs) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let sink = stack.open(session, Access::Read).await?;
    let plan = (!args.all_plans).then(|| stack.plan.name.clone());
    let mut snapshots = sink.snapshots(&SnapshotFilter { plan }).await?;
    snapshots.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
    let unreadable = sink.unreadable().await?;
    for snapshot in &unreadable {
        session.output.warn(format!("the snapshot {} cannot be listed: {}", snapshot.id, snapshot.problem));
    }
    session.output.result("list", Exit::Done, &json!({ "snapshots": snapshots, "unreadable": unreadable }));
    if snapshots.is_empty() {
        session.output.note(format!(
            "{} holds no snapshot of this plan; `stackward backup` makes one",
            output::the(&sink.describe())
        ));
        return Ok(Exit::Done);
    }
    for line in table(&snapshots, args.all_plans).lines() {
        session.output.line(line);
    }
    Ok(Exit::Done)
}

fn table(snapshots: &[SnapshotSummary], with_plans: bool) -> Table {
    let mut columns = vec![
        ("SNAPSHOT", Align::Left),
        ("STARTED", Align::Left),
        ("SIZE", Align::Right),
        ("STORED", Align::Right),
        ("OUTCOME", Align::Left),
        ("SOURCES", Align::Left),
    ];
    if with_plans {
        columns.insert(1, ("PLAN", Align::Left));
    }
    let mut table = Table::new(&columns);
    for snapshot in snapshots {
        let outcome = if snapshot.outcome == Outcome::Complete { "complete" } else { "partial" };
        let mut cells = vec![
            snapshot.id.to_string(),
            output::moment(snapshot.started),
            output::bytes(snapshot.bytes),
            output::bytes(snapshot.stored_bytes),
            outcome.to_owned(),
            sources(snapshot),
        ];
        if with_plans {
            cells.insert(1, snapshot.plan.to_string());
        }
        table.row(cells);
    }
    table
}

fn sources(snapshot: &SnapshotSummary) -> String {
    let whole = snapshot.sources.iter().map(ToString::to_string);
    let failed = snapshot.failed.iter().map(|source| format!("{source} (failed)"));
    whole.chain(failed).collect::<Vec<_>>().join(", ")
}
