//! What to do with the files of a backup, written beside them: exact commands, for this backup.
//!
//! Invariant: it names only what is there; somebody who never saw Stackward can follow it.

use backup_core::BackupReader;

use crate::aof;
use crate::companions::{ACL, CONFIGURATION};
use crate::details::Details;
use crate::rdb::Slots;

/// The name of the file.
pub(crate) const FILE: &str = "HOW-TO-RESTORE.txt";

/// The text.
pub(crate) fn text(from: &BackupReader, details: &Details) -> String {
    let has = |name: &str| from.record().artifacts.iter().any(|artifact| artifact.name.as_str() == name);
    let server = from.record().server.as_ref();
    let server = server.map_or_else(|| "the server".to_owned(), |it| format!("{} {}", it.product, it.version));
    let mut text = format!(
        "Saved from {server}, snapshot {}.\nA server of this version or a newer one of its family loads these files.\n\n",
        from.manifest().id
    );
    text.push_str(&if details.shards.is_empty() { single(details) } else { cluster(details) });
    if from.record().artifacts.iter().any(|artifact| aof::is_of_the_set(&artifact.name)) {
        text.push_str(
            "\nThe append-only files as they were, newer than the RDB: aof/. With the server stopped, `appendonly yes`:\n\
             \x20 copy the files of aof/ into the folder `appenddirname` (appendonlydir) of its `dir`, instead of what is there;\n\
             \x20 the manifest must be called <appendfilename>.manifest. A single aof/appendonly.aof goes into `dir` itself\n\
             \x20 (servers before 7.0; newer ones take it over when they find no appendonlydir).\n",
        );
    }
    if has(ACL) {
        text.push_str(
            "\nAccess rules: acl.txt\n  cp acl.txt /etc/redis/users.acl     # `aclfile /etc/redis/users.acl` in the configuration\n\
             \x20 or, on a running server: stackward restore --source … --select acl\n",
        );
    }
    if has(CONFIGURATION) {
        text.push_str(
            "\nConfiguration: config.txt, without passwords. Compare it with the new server's (CONFIG GET '*'), and take over\n\
             what you need; `dir`, `bind`, `port`, `unixsocket`, `logfile`, `pidfile` belong to the old machine. Set again what is\n\
             secret: requirepass, masterauth, masteruser, tls-key-file-pass.\n",
        );
    }
    if details.sentinels > 0 {
        text.push_str(
            "\nSentinels watched this server. Restore into the master; let its replicas follow it (REPLICAOF), and look that the\n\
             Sentinels have the right one: redis-cli -p 26379 SENTINEL get-master-addr-by-name NAME.\n",
        );
    }
    text
}

fn single(details: &Details) -> String {
    let aof = if details.append_only {
        "The server had `appendonly yes`: such a server ignores dump.rdb. With the server stopped:\n\
         \x20 copy appendonlydir/ (appendonly.aof, of servers before 7.0) into its `dir`, and dump.rdb not at all\n"
    } else {
        "With the server stopped, and `appendonly no`:\n\
         \x20 install -o redis -g redis -m 660 dump.rdb /var/lib/redis/dump.rdb\n\
         With `appendonly yes` that file would be ignored; then:\n\
         \x20 mkdir /var/lib/redis/appendonlydir\n\
         \x20 cp dump.rdb /var/lib/redis/appendonlydir/appendonly.aof.1.base.rdb\n\
         \x20 echo 'file appendonly.aof.1.base.rdb seq 1 type b' > /var/lib/redis/appendonlydir/appendonly.aof.manifest\n"
    };
    format!("Data and functions: dump.rdb\n{aof}")
}

fn cluster(details: &Details) -> String {
    let mut text = "A cluster: one RDB for each master, with the slots that it served. On each new master, stopped:\n\
                    \x20 put its RDB where it loads it (see above all `appendonly`), start it with cluster-enabled yes, then\n"
        .to_owned();
    for (number, shard) in details.shards.iter().enumerate() {
        text.push_str(&format!(
            "\n  master {}: {} (was {} at {})\n",
            number + 1,
            shard.artifact,
            shard.node,
            shard.address
        ));
        text.push_str(&format!("    redis-cli -h HOST -p PORT CLUSTER ADDSLOTSRANGE{}\n", pairs(&shard.slots)));
    }
    text.push_str(
        "\n  A node that loads an RDB claims the slots that hold keys by itself; ADDSLOTSRANGE then is for the empty ones:\n\
         \x20 leave out what it answers `is already busy` for. Then let the masters meet, each once:\n\
         \x20   redis-cli -h HOST -p PORT CLUSTER SET-CONFIG-EPOCH NUMBER     # another one on each, before they meet\n\
         \x20   redis-cli -h HOST -p PORT CLUSTER MEET OTHER-HOST OTHER-PORT\n\
         \x20 and look: redis-cli -h HOST -p PORT CLUSTER INFO says cluster_state:ok and cluster_slots_assigned:16384.\n\
         \x20 Easier: `stackward restore` with a plan that names a node of a running, empty cluster loads all of it.\n",
    );
    text
}

/// Slots as ADDSLOTSRANGE takes them: the first and the last of each range.
fn pairs(slots: &str) -> String {
    let slots = Slots::parse(slots).unwrap_or_default();
    slots.ranges().iter().map(|(first, last)| [" ", &first.to_string(), " ", &last.to_string()].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_pairs() {
        assert_eq!(pairs("0-5460 7000"), " 0 5460 7000 7000");
    }
}
