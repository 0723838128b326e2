//! The drill of a followed source: to the end of the window, because that is what would be restored.
//!
//! Invariant: what would be lost is measured from the moment that was really reached, not from the one that was archived.

use std::time::Instant;

use backup_core::engine::{DrillReport, Moment};
use backup_core::error::Result;
use backup_core::{BackupReader, RunContext};

use super::files::write_files;
use super::{Recovery, position, refuse_errors};
use crate::Redis;
use crate::scratch::{Folder, Program};
use crate::server::Info;
use crate::verify::is_damage;

impl Redis {
    /// Replays what follows the snapshot, when anything does.
    pub(crate) async fn drill_stream(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        program: &Program,
        drill: &mut DrillReport,
    ) -> Result<()> {
        if from.log().is_none() || position(from.record()).is_none() {
            return Ok(());
        }
        if let Err(error) = program.refuse_before_multi_part() {
            drill.checked.push(format!("the stream was not replayed: {}", error.message()));
            return Ok(());
        }
        match self.replay_to_end(cx, from, program, drill).await {
            Err(error) if is_damage(&error) => {
                drill.findings.push(format!("the archived stream does not replay: {}", error.chain()));
                Ok(())
            }
            result => result,
        }
    }

    async fn replay_to_end(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        program: &Program,
        drill: &mut DrillReport,
    ) -> Result<()> {
        let started = Instant::now();
        let recovery = Recovery::find(cx, from.record(), from.log(), &Moment::Latest).await?;
        if recovery.segments.is_empty() {
            return Ok(());
        }
        let scratch = Folder::make(cx.scratch())?;
        let (reached, assembled) = write_files(cx, from, &recovery, &scratch.append_only()).await?;
        let (_scratch, mut connection) = self.replayed(cx, program, scratch, assembled).await?;
        drill.restore_time = started.elapsed();
        let asked = Instant::now();
        refuse_errors(&mut connection).await?;
        let keys: u64 = Info::ask(&mut connection, Some("keyspace")).await?.keyspace().values().sum();
        drill.check_time += asked.elapsed();
        drill.bytes += reached.offset - recovery.base;
        drill.items = drill.items.max(keys);
        drill.reached = recovery.time;
        drill.checked.push(format!(
            "{} commands replayed without an error, {}: {keys} keys",
            reached.commands,
            recovery.describe(&reached)
        ));
        Ok(())
    }
}
