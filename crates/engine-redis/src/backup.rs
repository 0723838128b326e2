//! Saving a server: its RDB, scanned while it passes, and what is not in it.
//!
//! Invariant: the RDB is sealed only when the server marked its end *and* the scan found it whole.

use async_trait::async_trait;
use backup_core::engine::{Preflight, Source, SourceSummary};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Position;
use backup_core::sink::ChunkHint;
use backup_core::tls::Verification;
use backup_core::{ArtifactName, BackupWriter, RunContext};

use jiff::Timestamp;

use futures::{StreamExt, TryStreamExt, stream};

use crate::Redis;
use crate::aof;
use crate::cluster::Map;
use crate::companions;
use crate::config::Extent;
use crate::connection::{Connection, Reply};
use crate::counts;
use crate::details::{Details, Shard};
use crate::inspect::{Inspection, now_ms};
use crate::rdb::{Checksum, RdbSummary};
use crate::server::{Info, Server, allowed, setting};

use crate::snapshot::{Snapshot, Way, export_allowed, in_danger};
use crate::versions::BUILT_IN;

/// The folder of the RDBs of a cluster's masters.
const SHARDS: &str = "shards";
/// What Sentinels greet each other by.
const SENTINELS_CHANNEL: &str = "__sentinel__:hello";
/// What an export is.
const FUZZY: &str = "the snapshot will be fuzzy: read key by key (SCAN), not of one moment";
const ONE_NODE: &str = "this is one node of a cluster: each master needs a source of its own";
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
            if self.is_whole_cluster(&info) {
                let map = Map::ask(&mut connection, &self.server).await?;
                map.refuse_movement(cx).await?;
            } else if info.is_on("cluster_enabled") {
                warnings.push(ONE_NODE.to_owned());
            }
            if self.settings.way == Way::Export {
                export_allowed(&mut connection).await?;
                warnings.push(FUZZY.to_owned());
            } else if let Err(error) = replication_allowed(&mut connection).await {
                warnings.push(instead(&mut connection, &error).await?);
            } else if setting(&mut connection, "repl-diskless-sync").await?.as_deref() == Some("no") {
                let (host, data_dir) = (&*self.host, self.settings.data_dir.as_deref());
                in_danger(&mut connection, host, data_dir, self.settings.dump_file).await?;
                warnings.push(
                    "`repl-diskless-sync` is `no`: the server writes each snapshot to its own disk first".to_owned(),
                );
            }
            self.refuse_files_of_a_cluster(&info)?;
            if self.settings.tls.as_ref().is_some_and(|tls| tls.verify == Verification::None) {
                warnings.push("`verify: none`: whoever answers is believed to be the server".to_owned());
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
        cx.unless_cancelled(self.save(cx, out, None)).await
    }
}

impl Redis {
    /// Saves everything. `handed` is the RDB, when a follower receives it already.
    pub(crate) async fn save(
        &self,
        cx: &RunContext,
        out: &BackupWriter,
        handed: Option<Snapshot>,
    ) -> Result<SourceSummary> {
        let mut connection = self.server.connect(cx).await?;
        let info = self.info(cx, &mut connection).await?;
        info.refuse_sentinel()?;
        for warning in warnings(&info) {
            cx.warn(warning);
        }
        if info.is_on("cluster_enabled") && !self.is_whole_cluster(&info) {
            cx.warn(ONE_NODE);
        }
        self.refuse_files_of_a_cluster(&info)?;
        let mut details = Details::new(&info);
        details.sentinels = sentinels(&mut connection).await?;
        if details.sentinels > 0 {
            cx.warn(format!(
                "{} Sentinels watch this server: their own configuration is not saved here, save it as a file",
                details.sentinels
            ));
        }
        let mode = if handed.is_none() && self.settings.way == Way::Export { "export" } else { "rdb" };
        let (summary, position) = if handed.is_none() && self.is_whole_cluster(&info) {
            (self.save_cluster(cx, out, &mut connection, &mut details).await?, None)
        } else {
            let one = match handed {
                Some(snapshot) => SavedOne::of(out, snapshot, DUMP).await?,
                None => self.save_one(cx, out, &self.server, DUMP).await?,
            };
            details.way_was(one.way);
            details.position_time = one.position_time;
            (one.summary, one.position)
        };
        if summary.checksum == Checksum::Off {
            cx.warn(
                "the server writes no checksums (`rdbchecksum no`): only the structure of its snapshot was checked",
            );
        }
        if summary.keys() == 0 {
            cx.warn("the server holds no keys");
        }
        companions::save(cx, out, &mut connection, &info).await?;
        if self.settings.append_only_files {
            let data_dir = self.settings.data_dir.as_deref();
            let told = aof::save(cx, out, &mut connection, &*self.host, data_dir).await?;
            (details.aof_from, details.aof_to) = told.map(|told| (told.from, told.to)).unzip();
        }
        Ok(SourceSummary {
            mode: Some(mode.to_owned()),
            server: info.product(),
            position,
            fingerprint: counts::fingerprint(&summary),
            details: details.with_rdb(&summary).to_map()?,
        })
    }

    /// Whether the node of the plan stands for its whole cluster.
    pub(crate) fn is_whole_cluster(&self, info: &Info) -> bool {
        info.is_on("cluster_enabled") && self.settings.cluster == Extent::Whole
    }

    /// Append-only files are read from this machine's disk: those of one node, and not of a cluster.
    fn refuse_files_of_a_cluster(&self, info: &Info) -> Result<()> {
        if self.settings.append_only_files && self.is_whole_cluster(info) {
            return Err(Error::new(ErrorKind::Unsupported, "the append-only files of a whole cluster cannot be saved")
                .hint("leave `aof` out of `modes`, or name each master as a source of its own with `cluster: node`"));
        }
        Ok(())
    }

    /// Saves every master of the cluster, each as of its own moment.
    async fn save_cluster(
        &self,
        cx: &RunContext,
        out: &BackupWriter,
        connection: &mut Connection,
        details: &mut Details,
    ) -> Result<RdbSummary> {
        let map = Map::ask(connection, &self.server).await?;
        map.refuse_movement(cx).await?;
        if map.unserved() > 0 {
            cx.warn(format!("nobody serves {} slots of the cluster", map.unserved()));
        }
        cx.warn("each master of the cluster is saved as of a moment of its own");
        let names: Vec<String> = (1..=map.0.len()).map(|number| format!("{SHARDS}/{number}/{DUMP}")).collect();
        let mut all = Vec::new();
        for (master, name) in map.0.iter().zip(&names) {
            all.push(self.save_one(cx, out, &master.server, name));
        }
        let saved: Vec<SavedOne> = stream::iter(all).buffered(cx.jobs()).try_collect().await?;
        map.refuse_movement(cx).await?;
        map.refuse_change(&Map::ask(connection, &self.server).await?)?;
        let mut total: Option<RdbSummary> = None;
        for ((master, artifact), one) in map.0.iter().zip(names).zip(saved) {
            details.way_was(one.way);
            details.shards.push(Shard {
                artifact,
                node: master.node.clone(),
                address: master.server.describe(),
                slots: master.slots.to_string(),
                way: one.way.to_owned(),
                position: one.position,
            });
            one.summary.add_to(&mut total);
        }
        total.ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "no master of the cluster serves any slot")
                .hint("finish setting the cluster up, or save this node alone with `cluster: node`")
        })
    }

    /// Saves what one server holds as the artifact `name`.
    async fn save_one(&self, cx: &RunContext, out: &BackupWriter, server: &Server, name: &str) -> Result<SavedOne> {
        SavedOne::of(out, Snapshot::begin(cx, self, server, self.settings.way).await?, name).await
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

/// What was saved of one server.
struct SavedOne {
    summary: RdbSummary,
    position: Option<Position>,
    position_time: Option<Timestamp>,
    way: &'static str,
}

impl SavedOne {
    /// Stores what comes from `snapshot` as the artifact `name`.
    async fn of(out: &BackupWriter, mut snapshot: Snapshot, name: &str) -> Result<Self> {
        let summary = store(out, &mut snapshot, ArtifactName::new(name)?).await?;
        // Dropped here: the server would keep what its clients write meanwhile, for the replica that we seem to be.
        let (position, position_time) = (snapshot.position(), snapshot.position_time());
        Ok(Self { summary, position, position_time, way: snapshot.way() })
    }
}

/// Sentinels subscribe to a channel of their own on every server that they watch.
async fn sentinels(connection: &mut Connection) -> Result<u64> {
    let reply = connection.ask(&["PUBSUB", "NUMSUB", SENTINELS_CHANNEL]).await?;
    Ok(match reply.items().get(1) {
        Some(Reply::Integer(count)) => u64::try_from(*count).unwrap_or(0),
        _ => 0,
    })
}

/// Stores the RDB, and lets it be scanned on its way.
async fn store(out: &BackupWriter, snapshot: &mut Snapshot, name: ArtifactName) -> Result<RdbSummary> {
    let mut artifact = out.artifact(name, ChunkHint::Stream).await?;
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

/// What will be done where replication is refused.
async fn instead(connection: &mut Connection, refused: &Error) -> Result<String> {
    let Err(error) = allowed(connection, &["BGSAVE"]).await else {
        return Ok(format!("{}; BGSAVE will be used instead", refused.message()));
    };
    // The hint of the better way stands.
    export_allowed(connection).await.map_err(|_| error)?;
    Ok(format!("{}; {FUZZY}", refused.message()))
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
    let names: Vec<&str> = info.modules.keys().map(String::as_str).filter(|name| !BUILT_IN.contains(name)).collect();
    if !names.is_empty() {
        warnings.push(format!("a restore needs the modules of this server: {}", names.join(", ")));
    }
    if info.get("rdb_last_bgsave_status") == Some("err") {
        warnings.push("the server's last save failed; its log has the reason".to_owned());
    }
    warnings
}
