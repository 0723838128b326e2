//! A server's data, through an RDB and commands, into another server.

use std::collections::{BTreeMap, BTreeSet};

use engine_redis::rdb::{
    Checksum, ExportOptions, ExportSummary, Flavour, Functions, Glob, KeyType, Target, export, scan,
};

use crate::bytes::commands;
use crate::fill::{Amount, FAR_MS, FARTHEST_MS, fill};
use crate::server::{Connection, DATABASES, Reply, Server};

pub(crate) fn options() -> ExportOptions {
    ExportOptions {
        databases: None,
        pattern: None,
        slots: None,
        functions: Functions::WithTheWhole,
        now_ms: 1_700_000_000_000,
        target: Target::redis(7, 0),
        chunk: 500,
        replace: false,
    }
}

pub(crate) fn exported(rdb: &[u8], options: &ExportOptions) -> (Vec<u8>, ExportSummary) {
    let mut commands = Vec::new();
    let summary = export(rdb, options, &mut commands).unwrap();
    (commands, summary)
}

/// What a server says of all its data: a digest, when keys expire, and all about streams that can be set.
fn portrait(of: &mut Connection) -> Vec<(String, Reply)> {
    let mut portrait = vec![("digest".to_owned(), of.words("DEBUG DIGEST"))];
    portrait.push(("functions".to_owned(), of.words("FUNCTION LIST WITHCODE")));
    for database in 0..DATABASES {
        of.words(&format!("SELECT {database}"));
        for key in of.keys(None) {
            let name = format!("{database} {}", String::from_utf8_lossy(&key));
            portrait.push((name, of.ok(&[b"PEXPIRETIME", &key[..]])));
        }
        for key in of.keys(Some(KeyType::Stream)) {
            let name = format!("{database} stream {}", String::from_utf8_lossy(&key));
            let about = of.ok(&[&b"XINFO"[..], b"STREAM", &key, b"FULL", b"COUNT", b"0"]);
            portrait.push((name, without_times(about)));
        }
    }
    portrait
}

/// Leaves out what no command sets: when consumers were seen, and how the stream lies in memory.
fn without_times(reply: Reply) -> Reply {
    let Reply::Row(row) = reply else { return reply };
    let mut kept = Vec::new();
    let mut items = row.into_iter();
    while let Some(item) = items.next() {
        let dropped = ["seen-time", "radix-tree-keys", "radix-tree-nodes"];
        if dropped.iter().any(|name| item == Reply::Text(name.as_bytes().to_vec())) {
            items.next();
        } else {
            kept.push(without_times(item));
        }
    }
    Reply::Row(kept)
}

fn assert_same(one: &[(String, Reply)], other: &[(String, Reply)]) {
    for (one, other) in one.iter().zip(other) {
        assert_eq!(one, other);
    }
    assert_eq!(one.len(), other.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_counts_what_the_server_counts() {
    let server = Server::start().await;
    fill(&mut server.connect(), Amount::Much);
    let rdb = server.save();
    let summary = scan(&rdb[..], 0).unwrap();
    let counts: BTreeMap<_, _> =
        summary.databases.iter().map(|(number, database)| (*number, database.keys.clone())).collect();
    assert_eq!(counts, server.connect().counts());
    assert_eq!(counts.len(), DATABASES as usize);
    assert_eq!(counts[&0].len(), 6, "every type");
    assert_eq!((summary.version, summary.magic), (10, Flavour::Redis));
    assert_eq!(summary.checksum, Checksum::Verified);
    assert_eq!(summary.bytes, rdb.len() as u64);
    assert_eq!(summary.functions, 1);
    assert!(summary.modules.is_empty());
    assert_eq!(summary.aux["redis-bits"], "64");
    assert!(summary.aux["redis-ver"].starts_with('7'));
    assert_eq!((summary.databases[&0].expiring, summary.databases[&0].expired), (5, 0));
    let later = scan(&rdb[..], FAR_MS + 1).unwrap();
    assert_eq!((later.databases[&0].expiring, later.databases[&0].expired), (5, 3));
    assert_eq!(later.expired(), 3);
    assert_eq!(scan(&rdb[..], FARTHEST_MS).unwrap().expired(), 3, "a key lives through its last millisecond");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_through_commands() {
    let source = Server::start().await;
    fill(&mut source.connect(), Amount::Much);
    let rdb = source.save();
    let expected = portrait(&mut source.connect());
    for chunk in [500, 1] {
        let target = Server::start().await;
        let (sent, summary) = exported(&rdb, &ExportOptions { chunk, ..options() });
        assert_bounded(&sent, chunk);
        target.pipe(sent).await;
        assert_same(&portrait(&mut target.connect()), &expected);
        assert_eq!(summary.keys.values().sum::<u64>(), scan(&rdb[..], 0).unwrap().keys());
        assert_eq!(summary.functions, 1);
        assert_eq!((summary.refused_total, summary.incomplete_total, summary.skipped_expired), (0, 0, 0));
        // Once more onto the same server: what is there is replaced, not added to.
        let (commands, _) = exported(&rdb, &ExportOptions { replace: true, ..options() });
        target.pipe(commands).await;
        assert_same(&portrait(&mut target.connect()), &expected);
    }
}

/// No command has more elements than asked for, and only one with a single element is long.
fn assert_bounded(sent: &[u8], chunk: usize) {
    let bytes = |command: &[Vec<u8>]| command.iter().map(Vec::len).sum::<usize>();
    let mut largest = 0;
    for command in commands(sent) {
        let (per_element, around) = match &command[0][..] {
            b"RPUSH" | b"SADD" => (1, 2),
            b"HSET" | b"ZADD" => (2, 2),
            b"XCLAIM" => (1, 11),
            _ => continue,
        };
        let elements = (command.len() - around) / per_element;
        assert!(elements <= chunk, "{elements} elements");
        assert!(elements == 1 || bytes(&command) < 1_300_000, "{} bytes", bytes(&command));
        largest = largest.max(elements);
    }
    assert_eq!(largest, chunk, "commands are filled");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pending_entries_come_back() {
    let source = Server::start().await;
    let mut connection = source.connect();
    // More than are held in memory, of two consumers by turns.
    let script = "redis.call('XGROUP', 'CREATE', 'x', 'g', '0', 'MKSTREAM') \
        for n = 1, 70000 do redis.call('XADD', 'x', n .. '-1', 'f', n) end \
        for n = 1, 700 do \
            redis.call('XREADGROUP', 'GROUP', 'g', 'c' .. n % 2, 'COUNT', 100, 'STREAMS', 'x', '>') \
        end \
        redis.call('XCLAIM', 'x', 'g', 'c0', 0, '55555-1', 'TIME', 5, 'RETRYCOUNT', 3, 'JUSTID')";
    connection.ok(&["EVAL", script, "0"]);
    let (sent, summary) = exported(&source.save(), &options());
    assert_eq!(summary.incomplete_total, 0);
    let target = Server::start().await;
    target.pipe(sent).await;
    // Who has which entry, since when, and how often it was delivered.
    let pending = "local function get(row, name) for i = 1, #row, 2 do if row[i] == name then return row[i + 1] end end end \
        local group = get(redis.call('XINFO', 'STREAM', 'x', 'FULL', 'COUNT', 0), 'groups')[1] \
        return { get(group, 'pel-count'), redis.sha1hex(cjson.encode(get(group, 'pending'))) }";
    let expected = connection.ok(&["EVAL", pending, "0"]);
    assert!(matches!(&expected, Reply::Row(row) if row[0] == Reply::Number(70_000)), "{expected:?}");
    assert_eq!(target.connect().ok(&["EVAL", pending, "0"]), expected);
    assert_eq!(target.connect().words("DEBUG DIGEST"), connection.words("DEBUG DIGEST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_for_an_older_server_do_without_what_it_lacks() {
    let source = Server::start().await;
    fill(&mut source.connect(), Amount::Little);
    let rdb = source.save();
    for (target, words) in [(Target::redis(6, 0), false), (Target::redis(3, 2), true)] {
        let (commands, summary) = exported(&rdb, &ExportOptions { target, replace: true, ..options() });
        let commands = String::from_utf8_lossy(&commands).into_owned();
        for word in ["PXAT", "ENTRIESADDED", "ENTRIESREAD", "CREATECONSUMER", "FUNCTION"] {
            assert!(!commands.contains(&format!("\r\n{word}\r\n")), "{word} for {target}");
        }
        assert_eq!(commands.contains("\r\nUNLINK\r\n"), !words, "{target}");
        let refused: Vec<_> = summary.refused.iter().map(|refused| refused.key.as_str()).collect();
        assert!(refused.contains(&"library of functions #!lua name=lib"), "{refused:?}");
        assert_eq!(refused.iter().filter(|key| key.starts_with("x:")).count(), if words { 5 } else { 0 });
        assert_eq!(summary.refused_total, refused.len() as u64);
    }
    // What was written for 6.0 says the same to a newer server, but for the counters that 6.0 does not have.
    let target = Server::start().await;
    target.pipe(exported(&rdb, &ExportOptions { target: Target::redis(6, 0), ..options() }).0).await;
    let digest = source.connect().words("DEBUG DIGEST");
    assert_eq!(target.connect().words("DEBUG DIGEST"), digest);
    let pending = "XPENDING x:many all - + 1000";
    assert_eq!(pending_of(&target, pending), pending_of(&source, pending));
    let consumers = |of: &Server| without_times(of.connect().words("XINFO CONSUMERS x:many all"));
    assert_eq!(names(&consumers(&target)), names(&consumers(&source)), "idle ones too");
}

/// Pending entries without how long they idle.
fn pending_of(server: &Server, command: &str) -> Vec<Reply> {
    let Reply::Row(rows) = server.connect().words(command) else { panic!("a row") };
    let entries: Vec<_> = rows
        .into_iter()
        .map(|entry| match entry {
            Reply::Row(mut parts) => {
                parts.remove(2);
                Reply::Row(parts)
            }
            other => other,
        })
        .collect();
    assert!(entries.len() > 20);
    entries
}

fn names(consumers: &Reply) -> Vec<Reply> {
    let Reply::Row(rows) = consumers else { panic!("a row") };
    rows.iter()
        .map(|consumer| match consumer {
            Reply::Row(parts) => parts[1].clone(),
            other => other.clone(),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_patterns_and_expiries_choose_the_keys() {
    let source = Server::start().await;
    fill(&mut source.connect(), Amount::Little);
    let rdb = source.save();
    let target = Server::start().await;
    let part = ExportOptions {
        databases: Some(BTreeSet::from([0, 3])),
        pattern: Some(Glob::new("[lw]*")),
        now_ms: FAR_MS + 1,
        ..options()
    };
    let (commands, summary) = exported(&rdb, &part);
    target.pipe(commands).await;
    assert_eq!(summary.keys, BTreeMap::from([(0, 4), (3, 2)]));
    assert_eq!((summary.skipped_expired, summary.functions, summary.refused_total), (1, 0, 0));
    let mut connection = target.connect();
    let words = |keys: Vec<Vec<u8>>| keys.into_iter().map(|key| String::from_utf8(key).unwrap()).collect::<Vec<_>>();
    assert_eq!(words(connection.keys(None)), ["l:heavy", "l:lengths", "l:many", "l:plain"]);
    connection.words("SELECT 3");
    assert_eq!(words(connection.keys(None)), ["list:3", "where"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_entry_whose_message_is_deleted_is_named() {
    let source = Server::start().await;
    let mut connection = source.connect();
    for line in [
        "XADD x 1-1 a b",
        "XADD x 2-1 a b",
        "XADD x 3-1 a b",
        "XGROUP CREATE x g 0",
        "XREADGROUP GROUP g c STREAMS x >",
        "XDEL x 2-1",
    ] {
        connection.words(line);
    }
    let (commands, summary) = exported(&source.save(), &options());
    assert_eq!(summary.incomplete_total, 1);
    assert_eq!(summary.incomplete[0].key, "x");
    assert_eq!(summary.incomplete[0].why, "1 pending entries whose message is deleted");
    let target = Server::start().await;
    target.pipe(commands).await;
    assert_eq!(target.connect().words("DEBUG DIGEST"), connection.words("DEBUG DIGEST"));
    let Reply::Row(pending) = target.connect().words("XPENDING x g - + 10") else { panic!("a row") };
    assert_eq!(pending.len(), 2);
}
