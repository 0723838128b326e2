//! The stored forms that the server at hand no longer, or not yet, writes.

use engine_redis::rdb::{Checksum, ExportOptions, Flavour, KeyType, Target, export, scan};

use crate::bytes::{Rdb, commands, listpack, number, text, ziplist};
use crate::round_trip::{exported, options};
use crate::server::Server;

/// The commands, one line each, their arguments apart by a space.
fn lines(rdb: &[u8], options: &ExportOptions) -> Vec<String> {
    let (bytes, summary) = exported(rdb, options);
    let commands = commands(&bytes);
    assert_eq!(commands.len() as u64, summary.commands);
    commands.into_iter().map(|command| String::from_utf8(command.join(&b' ')).unwrap()).collect()
}

/// Every form before Redis 7.0, as version 9 of the format.
pub(crate) fn old_forms() -> Vec<u8> {
    let zipmap =
        [&b"\x03\x01a\x03\x00one\x02bb\x03\x03two\0\0\0"[..], &[0xfe, 254, 0, 0, 0], &[b'c'; 254], b"\x01\x00x\xff"]
            .concat();
    let intset = |width: u32, members: &[i64]| {
        let mut set = [width.to_le_bytes(), (members.len() as u32).to_le_bytes()].concat();
        for member in members {
            set.extend(&member.to_le_bytes()[..width as usize]);
        }
        set
    };
    let long = [&[0x41, 0x2c][..], &[b'z'; 300]].concat();
    let longest = [&[0x80, 0, 0, 0x40, 0][..], &[b'y'; 16_384]].concat();
    let every = ziplist(&[
        b"\x02hi",
        &long,
        b"\x03abc",
        &longest,
        b"\xc0\x00\x80",
        b"\xd0\xff\xff\xff\x7f",
        b"\xe0\0\0\0\0\0\0\0\x80",
        b"\xf0\x00\x00\x80",
        b"\xfe\x80",
        b"\xf1",
        b"\xfd",
    ]);
    let scores = ziplist(&[b"\x01m", b"\x04-1.5", b"\x01n", b"\xfe\x07", b"\x01o", b"\x03inf"]);
    let hash = ziplist(&[b"\x01f", b"\x01v", b"\xf5", b"\x05world"]);
    Rdb::new("REDIS0009")
        .raw(&[250])
        .string(b"redis-ver")
        .string(b"5.0.0")
        .raw(&[254, 0, 251, 12, 1])
        .key(9, "zipmap")
        .string(&zipmap)
        .key(10, "ziplist")
        .string(&every)
        .key(11, "intset16")
        .string(&intset(2, &[-5, 1, 300]))
        .key(11, "intset32")
        .string(&intset(4, &[-70_000, 1]))
        .key(11, "intset64")
        .string(&intset(8, &[i64::MIN, 1]))
        .key(12, "zset-ziplist")
        .string(&scores)
        .key(13, "hash-ziplist")
        .string(&hash)
        .key(14, "quicklist")
        .raw(&[2])
        .string(&ziplist(&[b"\x01a", b"\xf2"]))
        .string(&ziplist(&[b"\x01b"]))
        .key(1, "list")
        .raw(&[3])
        .string(b"one")
        .raw(&[0xc1, 0x00, 0x80])
        .string(b"")
        .key(2, "set")
        .raw(&[2])
        .string(b"one")
        .string(b"two")
        .key(4, "hash")
        .raw(&[1])
        .string(b"f")
        .string(b"v")
        .raw(&[248, 5, 249, 9])
        .key(3, "zset-text")
        .raw(&[4])
        .string(b"a")
        .raw(b"\x04-2.5")
        .string(b"b")
        .raw(&[254])
        .string(b"c")
        .raw(&[255])
        .string(b"d")
        .raw(b"\x120.1000000000000000")
        .raw(&[253])
        .raw(&2_000_000_000_u32.to_le_bytes())
        .key(0, "seconds")
        .string(b"soon")
        .end()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_forms_mean_to_us_what_they_mean_to_the_server() {
    let rdb = old_forms();
    let summary = scan(&rdb[..], 0).unwrap();
    assert_eq!((summary.keys(), summary.databases[&0].expiring, summary.checksum), (13, 1, Checksum::Off));
    let expected =
        [(KeyType::String, 1), (KeyType::List, 3), (KeyType::Set, 4), (KeyType::SortedSet, 2), (KeyType::Hash, 3)];
    assert_eq!(summary.databases[&0].keys, expected.into());
    let native = Server::with_rdb(Some(&rdb)).await;
    let through = Server::start().await;
    through.pipe(exported(&rdb, &options()).0).await;
    assert_eq!(native.connect().keys(None).len(), 13);
    assert_eq!(through.connect().words("DEBUG DIGEST"), native.connect().words("DEBUG DIGEST"));
    let expires = |of: &Server| of.connect().words("PEXPIRETIME seconds");
    assert_eq!(expires(&through), expires(&native));
}

#[test]
fn versions_before_the_fifth_end_without_a_checksum() {
    let rdb = Rdb::new("REDIS0003").raw(&[254, 0]).key(0, "a").string(b"1").bare_end();
    let summary = scan(&rdb[..], 0).unwrap();
    assert_eq!((summary.version, summary.checksum, summary.keys()), (3, Checksum::Off, 1));
    assert_eq!(lines(&rdb, &options()), ["SELECT 0", "SET a 1"]);
}

/// Streams of Redis 5 (first form) and 8.6 (fourth), which 7.0 does not write.
fn stream(form: u8) -> Vec<u8> {
    let node = listpack(&[
        &[2],
        &[1],
        &[1],
        &text("f"),
        &[0], // Two entries, one deleted; the field.
        &[2],
        &[0],
        &[0],
        &text("one"),
        &[4],
        &[3],
        &[1],
        &[0],
        &text("gone"),
        &[4],
        &[0],
        &[5],
        &[1],
        &[2],
        &text("f"),
        &text("two"),
        &text("g"),
        &number(3),
        &[8],
    ]);
    let base = [1000_u64.to_be_bytes(), 7_u64.to_be_bytes()].concat();
    let pending = [1000_u64.to_be_bytes(), 7_u64.to_be_bytes()].concat();
    let mut rdb = Rdb::new(if form == 15 { "REDIS0009" } else { "REDIS0013" }).raw(&[254, 0]).key(form, "x");
    rdb = rdb.raw(&[1]).string(&base).string(&node).raw(&[2, 0x43, 0xed, 8]);
    if form >= 19 {
        rdb = rdb.raw(&[0x43, 0xe8, 7, 0x43, 0xe9, 7, 3]);
    }
    rdb = rdb.raw(&[1]).string(b"group").raw(&[0x43, 0xe8, 7]);
    if form >= 19 {
        rdb = rdb.raw(&[0x81]).raw(&[0xff; 8]);
    }
    rdb = rdb.raw(&[1]).raw(&pending).raw(&1_600_000_000_000_i64.to_le_bytes()).raw(&[4]);
    rdb = rdb.raw(&[1]).string(b"me").raw(&[0; 8]);
    if form >= 21 {
        rdb = rdb.raw(&[0xff; 8]);
    }
    rdb = rdb.raw(&[1]).raw(&pending);
    if form == 26 {
        rdb = rdb
            .raw(&[60, 0x40, 100])
            .raw(&[1])
            .string(b"producer")
            .raw(&[1])
            .string(b"message")
            .raw(&[0x43, 0xe8, 7, 1, 0]);
    }
    rdb.end()
}

#[test]
fn streams_of_every_generation() {
    let entries = ["SELECT 0", "XADD x 1000-7 f one", "XADD x 1005-8 f two g 3"];
    let last =
        ["XGROUP CREATECONSUMER x group me", "XCLAIM x group me 0 1000-7 TIME 1600000000000 RETRYCOUNT 4 FORCE JUSTID"];
    for form in [15, 19, 21, 26] {
        let rdb = stream(form);
        assert_eq!(scan(&rdb[..], 0).unwrap().databases[&0].keys, [(KeyType::Stream, 1)].into(), "{form}");
        let counters = if form == 15 {
            ["XSETID x 1005-8", "XGROUP CREATE x group 1000-7"]
        } else {
            ["XSETID x 1005-8 ENTRIESADDED 3 MAXDELETEDID 1001-7", "XGROUP CREATE x group 1000-7 ENTRIESREAD -1"]
        };
        assert_eq!(lines(&rdb, &options()), [&entries[..], &counters, &last].concat(), "{form}");
        let (_, summary) = exported(&rdb, &options());
        let lacks: Vec<_> = summary.incomplete.into_iter().map(|key| key.why).collect();
        let expected: &[&str] = if form == 26 { &["what it remembers of 1 producers"] } else { &[] };
        assert_eq!(lacks, expected);
    }
}

/// Hashes whose fields expire: both forms of Redis, before and after the release of 7.4.
fn expiring_hashes() -> Vec<u8> {
    let millis = 4_102_444_800_000_i64;
    let pack = listpack(&[
        &text("a"),
        &text("1"),
        &number(millis),
        &text("b"),
        &text("2"),
        &number(millis),
        &text("c"),
        &text("3"),
        &[0],
    ]);
    Rdb::new("REDIS0012")
        .raw(&[254, 0])
        .key(22, "pre")
        .raw(&[2, 0x81])
        .raw(&millis.to_be_bytes())
        .string(b"f")
        .string(b"v")
        .raw(&[0])
        .string(b"g")
        .string(b"w")
        .key(23, "pre-pack")
        .string(&pack)
        .key(24, "released")
        .raw(&millis.to_le_bytes())
        .raw(&[2, 1])
        .string(b"f")
        .string(b"v")
        .raw(&[11])
        .string(b"g")
        .string(b"w")
        .key(25, "pack")
        .raw(&millis.to_le_bytes())
        .string(&pack)
        .end()
}

/// What Valkey 9 writes: another magic, an import of slots, fields that expire.
fn valkey() -> Vec<u8> {
    Rdb::new("VALKEY080")
        .raw(&[250])
        .string(b"valkey-ver")
        .string(b"9.0.0")
        .raw(&[243])
        .string(&[b'n'; 40])
        .raw(&[2, 1, 2, 5, 6])
        .raw(&[254, 0, 251, 1, 0, 244, 7, 1, 0])
        .key(22, "h")
        .raw(&[2])
        .string(b"f")
        .string(b"v")
        .raw(&4_102_444_800_000_i64.to_le_bytes())
        .string(b"g")
        .string(b"w")
        .raw(&(-1_i64).to_le_bytes())
        .end()
}

#[test]
fn fields_that_expire() {
    let newer = ExportOptions { target: Target::redis(7, 4), ..options() };
    let expected = [
        "SELECT 0",
        "HSET pre f v g w",
        "HPEXPIREAT pre 4102444800000 FIELDS 1 f",
        "HSET pre-pack a 1 b 2 c 3",
        "HPEXPIREAT pre-pack 4102444800000 FIELDS 2 a b",
        "HSET released f v g w",
        "HPEXPIREAT released 4102444800000 FIELDS 1 f",
        "HPEXPIREAT released 4102444800010 FIELDS 1 g",
        "HSET pack a 1 b 2 c 3",
        "HPEXPIREAT pack 4102444800000 FIELDS 2 a b",
    ];
    assert_eq!(lines(&expiring_hashes(), &newer), expected);
    let expected = ["SELECT 0", "HSET h f v g w", "HPEXPIREAT h 4102444800000 FIELDS 1 f"];
    assert_eq!(lines(&valkey(), &ExportOptions { target: Target::valkey(9, 0), ..options() }), expected);
    let summary = scan(&valkey()[..], 0).unwrap();
    assert_eq!((summary.magic, summary.version, summary.keys()), (Flavour::Valkey, 80, 1));
}

#[test]
fn fields_that_expire_are_refused_by_name_for_a_server_without_them() {
    for target in [Target::redis(7, 2), Target::valkey(8, 1)] {
        let (commands, summary) = exported(&expiring_hashes(), &ExportOptions { target, replace: true, ..options() });
        assert!(commands.is_empty(), "not even a deletion");
        let keys: Vec<_> = summary.refused.iter().map(|refused| refused.key.as_str()).collect();
        assert_eq!(keys, ["pre", "pre-pack", "released", "pack"]);
        assert!(summary.refused[0].why.contains("HPEXPIREAT"), "{:?}", summary.refused[0]);
    }
}

/// Modules: a key, data beside the keys, what is attached to a key; and a set as a listpack (7.2).
fn modules() -> Vec<u8> {
    // `ReJSON-RL`, version 3.
    let id = 0x4423_1222_0e3e_44cb_u64 & !0x3ff | 3;
    let parts = [&[1, 5, 2, 6, 3, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 5, 2][..], b"hi", &[0]].concat();
    Rdb::new("REDIS0013")
        .raw(&[247, 0x81])
        .raw(&id.to_be_bytes())
        .raw(&[2, 2])
        .raw(&parts)
        .raw(&[254, 0])
        .key(7, "json")
        .raw(&[0x81])
        .raw(&id.to_be_bytes())
        .raw(&parts)
        .raw(&[243, 2])
        .raw(&[1, 2, 3, 4])
        .raw(&parts)
        .raw(&[4, 3, 2, 1])
        .raw(&[0])
        .key(20, "set")
        .string(&listpack(&[&text("a"), &[1]]))
        .end()
}

#[test]
fn what_modules_keep_is_counted_and_named() {
    let summary = scan(&modules()[..], 0).unwrap();
    assert_eq!(summary.databases[&0].keys, [(KeyType::Module, 1), (KeyType::Set, 1)].into());
    assert_eq!(summary.modules.len(), 1);
    assert_eq!(lines(&modules(), &options()), ["SELECT 0", "SADD set a 1"]);
    let (_, summary) = exported(&modules(), &options());
    let refused: Vec<_> = summary.refused.iter().map(|refused| refused.key.as_str()).collect();
    assert_eq!(refused, ["json"]);
    let incomplete: Vec<_> = summary.incomplete.iter().map(|key| key.why.as_str()).collect();
    assert_eq!(incomplete, ["what the module keeps beside its keys", "what modules attached to it"]);
}

#[test]
fn functions_of_a_release_candidate_are_refused() {
    let rdb =
        Rdb::new("REDIS0010").raw(&[246]).string(b"lib").string(b"LUA").raw(&[1]).string(b"about").string(b"code");
    let rdb = rdb.raw(&[245]).string(b"#!lua name=x\n").end();
    assert_eq!(scan(&rdb[..], 0).unwrap().functions, 2);
    assert_eq!(lines(&rdb, &options()), ["FUNCTION LOAD REPLACE #!lua name=x\n"]);
    assert_eq!(exported(&rdb, &options()).1.refused_total, 1);
}

#[test]
fn what_is_not_known_is_unsupported_and_says_which() {
    let cases = [
        (Rdb::new("REDIS0014").end(), "version 14 of Redis's RDB"),
        (Rdb::new("VALKEY081").end(), "version 81 of Valkey's RDB"),
        (Rdb::new("REDIS0011").key(26 + 5, "k").end(), "the byte 31 stands for no type or opcode known of version 11"),
        (Rdb::new("VALKEY080").key(24, "k").end(), "the byte 24"),
        (Rdb::new("REDIS0011").key(6, "k").end(), "the byte 6"),
    ];
    for (rdb, expected) in cases {
        for error in [scan(&rdb[..], 0).unwrap_err(), export(&rdb[..], &options(), &mut Vec::new()).unwrap_err()] {
            assert_eq!(error.kind(), backup_core::ErrorKind::Unsupported);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}

/// Hand-made files of every form, for who wants to damage them.
pub(crate) fn all() -> Vec<Vec<u8>> {
    let streams = [15, 19, 21, 26].map(stream);
    [vec![old_forms(), expiring_hashes(), valkey(), modules()], streams.to_vec()].concat()
}
