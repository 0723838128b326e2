//! The drill of a base backup: a scratch server on its files, recovered to the end of the log, asked about every table and page.
//!
//! Invariant: the scratch server reaches no other server, by the very configuration of a copy (`configure.rs`), so that what it
//! proves holds for copies that are started. Its files are gone afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use backup_core::engine::{DrillReport, Existing};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::Fingerprint;
use backup_core::{BackupReader, RunContext};

use super::configure::{Configuring, configure};
use super::inventory::Inventory;
use super::layout::Layout;
use super::owner::{Owner, write_private};
use super::place::{Placing, finish, place};
use super::spaces::refuse_old;
use super::{Physical, PhysicalDetails, standing};
use crate::logical::{Unlogged, amcheck, beginning, count_rows, list_tables, merge, spellings};
use crate::psql::Psql;
use crate::recovery::{Blanks, Copy, State, Supply, Way, hand_over, prepare};
use crate::scratch::{Scratch, Site};
use crate::text::shown;
use crate::tools::{PgVersion, Tools};

/// Who may connect. What follows is read, too: a line that stops a server stops this one.
const HBA: &str = "pg_hba.conf";
const LET_IN: &str = "local all all trust\n";
/// What makes a server quick, and cannot make one start that would not.
const QUICK: [&str; 5] = [
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "autovacuum=off",
    // What is wrong with a setting is said at this level.
    "log_min_messages=log",
];
const POLL: Duration = Duration::from_millis(50);
/// What a server keeps of its log unless told otherwise, and what a scratch server may keep until it makes a checkpoint.
const LEAST_WAL_MIB: u64 = 80;
const MOST_WAL_MIB: u64 = 4096;

impl Physical {
    /// Restores, recovers along `way`, and asks. What does not restore is a finding.
    pub(crate) async fn drill(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &PhysicalDetails,
        way: Option<&Way>,
    ) -> Result<DrillReport> {
        let tools = self.own_tools(details).await?;
        let user = &self.server.endpoint.user;
        let site = Site::prepare(cx, &self.server.host, user, self.server.run_as()).await?;
        let mut drill = DrillReport::default();
        let started = Instant::now();
        let data = site.folder.join("data");
        let owner = Owner::find(self.server.run_as(), &data)?;
        let placed =
            cx.unless_cancelled(self.place_in(cx, from, (details, tools.version), way, (&site.folder, owner))).await;
        let blanks;
        (drill.bytes, blanks) = match placed {
            Ok(placed) => placed,
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete) => {
                drill.findings.push(format!("the base backup does not restore: {}", error.chain()));
                return Ok(drill);
            }
            Err(error) => return Err(error),
        };
        cx.step("starting a scratch server; it replays the log");
        let mut scratch = site.launch(tools.clone(), data.clone(), &settings(details)).await?;
        let ready = cx.unless_cancelled(until_ready(&mut scratch, &data));
        let outcome = match (way, from.log()) {
            (Some(way), Some(log)) => hand_over(cx, log, way, (&data, owner, &blanks), ready).await,
            _ => ready.await,
        };
        drill.restore_time = started.elapsed();
        match outcome {
            Ok(()) => {}
            Err(error) if is_finding(&error) => {
                drill.findings.push(error.chain());
                return Ok(drill);
            }
            Err(error) => return Err(error),
        }
        drill.reached = way.map(|way| way.received.map_or(way.reached, |received| received.max(way.reached)));
        drill.checked.push(match way {
            Some(way) => format!("recovered: {}", way.describe()),
            None => "recovered to where the base backup ended; there is no log".to_owned(),
        });
        drill.checked.push(scratch.isolation.to_string());
        let asked = Instant::now();
        cx.unless_cancelled(self.ask(cx, &mut scratch, &tools, (details, &from.record().fingerprint), &mut drill))
            .await?;
        cx.unless_cancelled(page_checksums(cx, &mut scratch, &tools, details, &data, &mut drill)).await?;
        drill.check_time = asked.elapsed();
        Ok(drill)
    }

    /// The server's programs of the very version: its files are those of no other.
    async fn own_tools(&self, details: &PhysicalDetails) -> Result<Tools> {
        let version = PgVersion(details.version_number);
        let tools = self.tools.server(version).await?;
        if tools.version.major() == version.major() {
            return Ok(tools);
        }
        let major = version.major();
        let message = format!("a base backup of version {major} runs on that version only; there is {}", tools.version);
        Err(Error::new(ErrorKind::Unsupported, message).hint(format!(
            "install it on this machine: `apt-get install postgresql-{major}`; or name its folder: `bin: …`"
        )))
    }

    async fn place_in(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        (details, version): (&PhysicalDetails, PgVersion),
        way: Option<&Way>,
        (folder, owner): (&Path, Option<Owner>),
    ) -> Result<(u64, Blanks)> {
        let mut inventory = Inventory::take(cx, from).await?;
        let spaces = self.spaces(cx, from, details, &mut inventory, way).await?;
        let (layout, inventory) = (&Layout::below(folder, &spaces), &inventory);
        if spaces.needs_links(layout) {
            refuse_old(version)?;
        }
        let (blanks, of_archive) = spaces.blanks(layout);
        let (existing, blanks) = (Existing::Refuse, &*blanks);
        standing::clear(layout, existing, inventory)?;
        let placing = Placing { layout, later: layout, existing, owner, inventory, blanks };
        let placed = place(cx, from, &placing).await?;
        let mut bytes = placed.bytes;
        if let (Some(way), Some(log)) = (way, from.log()) {
            bytes += way.segments.len() as u64 * way.segment_bytes;
            prepare(cx, log, way, &layout.data, owner).await?;
        }
        let supply = Supply::HandedOver;
        let (copy, about, libraries) = (Copy::Beside, "a drill", &self.libraries(details).await);
        let how = Configuring { layout, owner, copy, is_elsewhere: false, way, supply, about, inventory, libraries };
        // What is not in force is told by a restore; a drill has nobody who would make its copy live.
        configure(cx, from, details, &how).await?;
        let hba = layout.data.join(HBA);
        let rules = std::fs::read(&hba).map_err(|source| Error::io("cannot read the file", &hba, source))?;
        write_private(&hba, &[LET_IN.as_bytes(), &rules].concat(), owner)?;
        standing::ended(layout)?;
        finish(layout).await?;
        Ok((bytes, of_archive))
    }

    async fn ask(
        &self,
        cx: &RunContext,
        scratch: &mut Scratch,
        tools: &Tools,
        (details, saved): (&PhysicalDetails, &Fingerprint),
        drill: &mut DrillReport,
    ) -> Result<()> {
        // Whoever made the backup is there; who may look at everything, everybody may ask.
        let mut session = Psql::connect(&scratch.server, tools, "template1").await?;
        let superuser: Option<String> = session.value("(SELECT rolname FROM pg_roles WHERE oid = 10)").await?;
        session.close().await?;
        scratch.server.endpoint.user = superuser.unwrap_or_default();
        scratch.server = scratch.server.knowing(tools.version, true);
        let mut session = Psql::connect(&scratch.server, tools, "template1").await?;
        scratch.server = scratch.server.spelling(spellings(&mut session).await?);
        let select = "SELECT datname AS name FROM pg_database WHERE datallowconn ORDER BY 1";
        let databases = crate::logical::names(&mut session, select).await?;
        session.close().await?;
        self.count(cx, scratch, tools, &databases, drill).await?;
        tell_of_other_counts(saved, drill);
        let system = "(SELECT system_identifier FROM pg_control_system())";
        let mut session = Psql::connect(&scratch.server, tools, "template1").await?;
        let system: Option<String> = session.value(&format!("{system}::text")).await?;
        let system = system.unwrap_or_default();
        session.close().await?;
        if system != details.system_identifier {
            drill.findings.push(format!("it is the cluster {system}, not {}", details.system_identifier));
        }
        amcheck(cx, &scratch.server, tools, self.settings.jobs, drill).await
    }

    /// Counts the rows of every table, and so reads each. Unlogged ones are empty after a recovery.
    async fn count(
        &self,
        cx: &RunContext,
        scratch: &Scratch,
        tools: &Tools,
        databases: &[String],
        drill: &mut DrillReport,
    ) -> Result<()> {
        let (mut tables, mut rows) = (0, 0);
        for database in databases {
            cx.step(format!("counting the rows of the database {}", shown(database)));
            let mut session = Psql::connect(&scratch.server, tools, database).await?;
            let listed = list_tables(&mut session, Unlogged::Skip).await?;
            let counted = count_rows(cx, &mut session, &listed).await?;
            session.close().await?;
            tables += listed.len();
            rows += counted.0.values().flat_map(|items| items.values()).sum::<u64>();
            merge(&mut drill.fingerprint, counted);
        }
        drill.items += rows;
        drill.checked.push(format!("{tables} tables in {} databases have {rows} rows", databases.len()));
        Ok(())
    }
}

/// The dumps of the same snapshot were counted at another moment: a difference is told, and no finding.
fn tell_of_other_counts(saved: &Fingerprint, drill: &mut DrillReport) {
    if saved.is_empty() {
        return;
    }
    let differ = saved.differences(&drill.fingerprint).len();
    drill.checked.push(format!("{differ} counts are not those of the dumps, which are of another moment"));
}

fn settings(details: &PhysicalDetails) -> Vec<String> {
    let mut settings: Vec<String> = QUICK.map(str::to_owned).to_vec();
    settings.extend(room(details.wal_segment_size));
    settings
}

/// A server does not start with less room than two segments of its log; its defaults are for small ones.
fn room(segment_bytes: u64) -> [String; 2] {
    let four = (segment_bytes >> 20).saturating_mul(4);
    [("min_wal_size", LEAST_WAL_MIB), ("max_wal_size", MOST_WAL_MIB)]
        .map(|(name, least)| format!("{name}={}MB", least.max(four)))
}

/// Waits until the recovery has ended.
///
/// # Errors
/// [`ErrorKind::Tool`] with what the server said last, when it did not reach its target.
async fn until_ready(scratch: &mut Scratch, data: &Path) -> Result<()> {
    loop {
        if let Some(why) = scratch.ended().await? {
            return Err(Error::new(ErrorKind::Tool, "the server does not recover").caused_by(why));
        }
        if State::of(data) == State::Ready {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether a recovery that failed so would fail an operator, too.
fn is_finding(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Tool | ErrorKind::Damaged | ErrorKind::Incomplete | ErrorKind::NotFound)
}

async fn page_checksums(
    cx: &RunContext,
    scratch: &mut Scratch,
    tools: &Tools,
    details: &PhysicalDetails,
    data: &Path,
    drill: &mut DrillReport,
) -> Result<()> {
    scratch.rest().await?;
    if !details.data_checksums {
        drill.checked.push("the cluster has no page checksums".to_owned());
        return Ok(());
    }
    cx.step("checking the checksum of every page");
    let command = scratch.server.plain_command(tools.program("pg_checksums")).arg("--check").arg("-D").arg(data);
    let mut process = scratch.server.host.spawn(command).await?;
    let _numbers = beginning(&mut process).await?;
    match process.status().await? {
        Some(0) => drill.checked.push("pg_checksums found every page whole".to_owned()),
        _ => drill.findings.push(format!("pg_checksums: {}", process.stderr_tail().trim())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_segments_of_every_size() {
        for (mib, least, most) in [(1, 80, 4096), (16, 80, 4096), (64, 256, 4096), (1024, 4096, 4096)] {
            assert_eq!(room(mib << 20), [format!("min_wal_size={least}MB"), format!("max_wal_size={most}MB")], "{mib}");
        }
    }
}
