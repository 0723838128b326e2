//! Saving a server: its RDB, scanned while it passes, and what is not in it.
//!
//! Invariant: the RDB is sealed only when the server marked its end *and* the scan found it whole.

use async_trait::async_trait;
use backup_core::engine::{Preflight, Source, SourceSummary};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::ChunkHint;
use backup_core::{ArtifactName, BackupWriter, RunContext};

use crate::Redis;
use crate::aof;
use crate::companions;
use crate::connection::Connection;
use crate::counts;
use crate::details::Details;
use crate::inspect::{Inspection, now_ms};
use crate::rdb::{Checksum, RdbSummary};
use crate::server::{Info, allowed, setting};
use crate::snapshot::Snapshot;

/// The artifact that every restore starts from.
pub(crate) const DUMP: &str = "dump.rdb";

#[async_trait]
impl Source for Redis {
    async fn preflight(&self, cx: &RunContext) -> Result<Preflight> {
        let look = async {
            let mut connection = self.server.connect(cx).await?;
            let info = self.info(cx, &mut connection).await?;
            info.refuse_sentinel()?;
            let product =
                info.product().map_or_else(|| "a server".to_owned(), |it| format!("{} {}", it.product, it.version));
            let mut warnings = warnings(&info);
            if let Err(error) = replication_allowed(&mut connection).await {
                warnings.push(format!(
                    "{}; BGSAVE will be used instead, which replaces the server's dump file",
                    error.message()
                ));
                allowed(&mut connection, &["BGSAVE"]).await?;
            } else if setting(&mut connection, "repl-diskless-sync").await?.as_deref() == Some("no") {
                warnings.push(
                    "`repl-diskless-sync` is `no`: the server writes each snapshot to its own dump file first"
                        .to_owned(),
                );
            }
            if self.settings.append_only_files {
                aof::locate(&mut connection, &*self.host, self.settings.data_dir.as_deref()).await?;
            }
            Ok(Preflight {
                description: format!("{product} on {}", self.server.describe()),
                expected_bytes: info.number("used_memory"),
                warnings,
            })
        };
        cx.unless_cancelled(look).await.map_err(|error: Error| error.during(format!("look at `{}`", cx.source())))
    }

    async fn backup(&self, cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        // Dropping the work closes its connections, which ends the server's child: nothing survives a cancellation.
        cx.unless_cancelled(self.save(cx, out)).await
    }
}

impl Redis {
    async fn save(&self, cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        let (connection, info) = self.introduce(cx).await?;
        let snapshot = Snapshot::begin(cx, &self.server, &*self.host, self.settings.data_dir.as_deref()).await?;
        self.save_snapshot(cx, out, connection, &info, snapshot).await
    }

    /// A connection, and what the server tells about itself; warns of what an operator should know.
    pub(crate) async fn introduce(&self, cx: &RunContext) -> Result<(Connection, Info)> {
        let mut connection = self.server.connect(cx).await?;
        let info = self.info(cx, &mut connection).await?;
        info.refuse_sentinel()?;
        for warning in warnings(&info) {
            cx.warn(warning);
        }
        Ok((connection, info))
    }

    /// Saves what comes from `snapshot`, and what is not in it.
    pub(crate) async fn save_snapshot(
        &self,
        cx: &RunContext,
        out: &BackupWriter,
        mut connection: Connection,
        info: &Info,
        mut snapshot: Snapshot,
    ) -> Result<SourceSummary> {
        let summary = store(out, &mut snapshot).await?;
        let (position, way, position_time) = (snapshot.position(), snapshot.way(), snapshot.position_time());
        // The server would keep what its clients write meanwhile, for the replica that we seem to be.
        drop(snapshot);
        if summary.checksum == Checksum::Off {
            cx.warn(
                "the server writes no checksums (`rdbchecksum no`): only the structure of its snapshot was checked",
            );
        }
        if summary.keys() == 0 {
            cx.warn("the server holds no keys");
        }
        companions::save(cx, out, &mut connection, info).await?;
        let told = if self.settings.append_only_files {
            aof::save(cx, out, &mut connection, &*self.host, self.settings.data_dir.as_deref()).await?
        } else {
            None
        };
        let (aof_from, aof_to) = told.map(|told| (told.from, told.to)).unzip();
        Ok(SourceSummary {
            mode: Some("rdb".to_owned()),
            server: info.product(),
            position,
            fingerprint: counts::fingerprint(&summary),
            details: Details { position_time, aof_from, aof_to, ..Details::new(info, &summary, way) }.to_map()?,
        })
    }

    /// What the server tells about itself. It may keep that to itself; the snapshot does not need it.
    async fn info(&self, cx: &RunContext, connection: &mut Connection) -> Result<Info> {
        match Info::ask(connection, None).await {
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
                cx.warn(format!("{}; version, role and modules are not known", error.message()));
                Ok(Info::default())
            }
            result => result,
        }
    }
}

/// Stores the RDB, and lets it be scanned on its way.
async fn store(out: &BackupWriter, snapshot: &mut Snapshot) -> Result<RdbSummary> {
    let mut artifact = out.artifact(ArtifactName::new(DUMP)?, ChunkHint::Stream).await?;
    let mut inspection = Inspection::begin(now_ms());
    while let Some(piece) = snapshot.next().await? {
        inspection.push(piece.clone()).await?;
        artifact.write(piece).await?;
    }
    let summary = inspection.finish().await?;
    artifact.seal(snapshot.evidence()).await?;
    Ok(summary)
}

async fn replication_allowed(connection: &mut Connection) -> Result<()> {
    allowed(connection, &["REPLCONF", "capa", "eof"]).await?;
    match allowed(connection, &["PSYNC", "?", "-1"]).await {
        Ok(()) => Ok(()),
        Err(_) => allowed(connection, &["SYNC"]).await,
    }
}

/// What an operator should know about the server.
fn warnings(info: &Info) -> Vec<String> {
    let mut warnings = Vec::new();
    if info.get("role") == Some("slave") {
        let link = if info.get("master_link_status") == Some("up") { "" } else { ", and its master is not reachable" };
        warnings.push(format!("this is a replica{link}: the backup is as old as what it received"));
    }
    if let Some(policy) = info.get("maxmemory_policy").filter(|policy| *policy != "noeviction")
        && info.number("maxmemory").is_some_and(|limit| limit > 0)
    {
        warnings.push(format!("the server drops keys when its memory is full (`maxmemory-policy {policy}`)"));
    }
    if !info.modules.is_empty() {
        let names: Vec<&str> = info.modules.keys().map(String::as_str).collect();
        warnings.push(format!("a restore needs the modules of this server: {}", names.join(", ")));
    }
    if info.is_on("cluster_enabled") {
        warnings.push("this is one node of a cluster: name each master as a source of its own".to_owned());
    }
    if info.get("rdb_last_bgsave_status") == Some("err") {
        warnings.push("the server's last save failed; its log has the reason".to_owned());
    }
    warnings
}
