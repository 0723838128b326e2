//! Data of every type, small and large, with everything that is hard about it.

use crate::server::{Connection, DATABASES};

/// Milliseconds since 1970, in the year 2100 and in the far future.
pub(crate) const FAR_MS: i64 = 4_102_444_800_000;
pub(crate) const FARTHEST_MS: i64 = 99_999_999_999_999;

/// Bytes that do not compress, the same in every run.
pub(crate) fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 32) as u8
    })
    .take(length)
    .collect()
}

/// How much data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Amount {
    /// A few kilobytes, every type.
    Little,
    /// Some megabytes: every large encoding too.
    Much,
}

pub(crate) fn fill(to: &mut Connection, amount: Amount) {
    let many = if amount == Amount::Much { 20_000 } else { 200 };
    let large = if amount == Amount::Much { 700_000 } else { 3_000 };
    strings(to, large);
    lists(to, many, large);
    sets_and_hashes(to, many, large);
    sorted_sets(to, many);
    streams(to, many / 4);
    to.ok(&["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('one', function() return 1 end)"]);
    for database in 1..DATABASES {
        to.words(&format!("SELECT {database}"));
        to.words(&format!("SET where {database}"));
        to.words(&format!("RPUSH list:{database} a b c"));
    }
    to.words("SELECT 0");
}

fn strings(to: &mut Connection, large: usize) {
    let far_back = noise(8000, 13).repeat(large / 3000);
    let noise = noise(large, 7);
    let values: [(&[u8], &[u8]); 15] = [
        (b"s:plain", b"hello"),
        (b"s:empty", b""),
        (b"", b"the empty key"),
        (b"s:int8", b"-128"),
        (b"s:int16", b"32767"),
        (b"s:int32", b"-2147483648"),
        (b"s:int64", b"9223372036854775807"),
        (b"s:almost-int", b"007"),
        (b"s:compressible", &b"abcabcabd".repeat(large / 9)),
        (b"s:zeros", &vec![0; large]),
        (b"s:far-back", &far_back), // As far back as a copy in a compressed string may reach.
        (b"s:noise", &noise),
        ("s:emoji 🦀".as_bytes(), "🎉 done ✅".as_bytes()),
        (b"s:binary\r\n\0\xff\xfe", b"\r\n$5\r\n\0\xff"),
        (&b"k".repeat(300), b"a long key"),
    ];
    for (key, value) in values {
        to.ok(&[b"SET", key, value]);
    }
    to.words(&format!("SET s:far there PXAT {FAR_MS}"));
    to.words(&format!("SET s:farthest there PXAT {FARTHEST_MS}"));
}

/// Sends elements in commands of a thousand.
fn send(to: &mut Connection, verb: &str, key: &str, elements: &[Vec<u8>]) {
    for chunk in elements.chunks(1000) {
        let head = [verb.as_bytes(), key.as_bytes()].map(<[u8]>::to_vec);
        to.ok(&[&head[..], chunk].concat());
    }
}

fn numbered(prefix: &str, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| format!("{prefix}{number}").into_bytes()).collect()
}

fn lists(to: &mut Connection, many: usize, large: usize) {
    to.words("RPUSH l:small a 1 -1 200 -5000 70000 -9000000 5000000000 -9223372036854775808 end");
    send(to, "RPUSH", "l:many", &numbered("element ", many));
    let lengths = [0, 1, 63, 64, 127, 128, 4095, 4096, 16_384, large];
    let elements: Vec<_> = lengths.iter().map(|length| noise(*length, 1 + *length as u64)).collect();
    send(to, "RPUSH", "l:lengths", &elements);
    let heavy: Vec<_> = (1..=40).map(|number| noise(large / 7, number)).collect();
    send(to, "RPUSH", "l:heavy", &heavy);
    to.words("DEBUG QUICKLIST-PACKED-THRESHOLD 2000b");
    send(to, "RPUSH", "l:plain", &[b"x".to_vec(), noise(large, 3), b"y".to_vec(), noise(2500, 4)]);
    to.words("DEBUG QUICKLIST-PACKED-THRESHOLD 0");
    to.words(&format!("PEXPIREAT l:small {FAR_MS}"));
}

fn sets_and_hashes(to: &mut Connection, many: usize, large: usize) {
    to.words("SADD set:16 1 2 3 -4");
    to.words("SADD set:32 1 70000 -70000");
    to.words("SADD set:64 1 5000000000 -5000000000");
    to.ok(&["SADD", "set:words", "a", "🦀", "\r\n", ""]);
    send(to, "SADD", "set:many", &numbered("member ", many));
    to.ok(&[b"SADD", &b"set:large"[..], &noise(large, 5), b"small"]);
    to.ok(&["HSET", "h:small", "f", "v", "🦀", "🎉", "n", "-12", "", "empty"]);
    send(to, "HSET", "h:many", &numbered("either ", many));
    to.ok(&[b"HSET", &b"h:large"[..], b"a", &noise(large, 6), &noise(large / 2, 8), b"b", b"c", b"d"]);
    to.words(&format!("PEXPIREAT h:many {FARTHEST_MS}"));
}

fn sorted_sets(to: &mut Connection, many: usize) {
    to.words("ZADD z:small -1.5 a inf b -inf c 0.1 d 3 e -0 f 1e300 g 5e-324 h 0.30000000000000004 i");
    let pairs = (0..many).flat_map(|number| {
        let score = (number as f64 - 1000.0) / 7.0;
        [format!("{score:?}").into_bytes(), format!("member {number}").into_bytes()]
    });
    send(to, "ZADD", "z:many", &pairs.collect::<Vec<_>>());
    to.words("ZADD z:many inf top -inf bottom");
    to.ok(&[b"ZADD", &b"z:large"[..], b"-2.5", &noise(400_000, 9), b"1", b"small"]);
}

fn streams(to: &mut Connection, many: usize) {
    for number in 1..=many {
        let id = format!("{}-{}", 1000 + number / 3, number % 3 + 1);
        let (number, other) = (number.to_string(), format!("other {}", number % 50));
        if number.ends_with('7') {
            to.ok(&["XADD", "x:many", &id, "n", &number, &other, "🦀", "third", ""]);
        } else {
            to.ok(&["XADD", "x:many", &id, "n", &number, "text", &other]);
        }
    }
    to.words("XDEL x:many 1001-1 1003-2 1010-1");
    to.words("XGROUP CREATE x:many all 0");
    to.words("XGROUP CREATE x:many late 1005-1 ENTRIESREAD 14");
    to.words("XGROUP CREATE x:many unknown 1004-1");
    to.words("XREADGROUP GROUP all alice COUNT 30 STREAMS x:many >");
    to.words("XREADGROUP GROUP all bob COUNT 10 STREAMS x:many >");
    to.words("XREADGROUP GROUP all alice COUNT 5 STREAMS x:many >");
    to.words("XACK x:many all 1002-1 1002-2");
    to.words("XCLAIM x:many all bob 0 1005-1 1005-2 TIME 1600000000000 RETRYCOUNT 7 JUSTID");
    to.words("XGROUP CREATECONSUMER x:many all idle");
    to.ok(&["XREADGROUP", "GROUP", "late", "🦀", "COUNT", "3", "STREAMS", "x:many", ">"]);
    to.words("XADD x:emptied 5-5 a b");
    to.words("XDEL x:emptied 5-5");
    to.words("XGROUP CREATE x:emptied g 5-5");
    to.words("XGROUP CREATE x:never g 0 MKSTREAM");
    to.words("XADD x:trimmed 1-1 a 1");
    to.words("XADD x:trimmed MAXLEN 2 2-1 a 2");
    to.words("XADD x:trimmed MAXLEN 2 18446744073709551615-1 a 3");
    to.ok(&[b"XADD", &b"x:large"[..], b"*", b"f", &noise(300_000, 11), &noise(300_000, 12), b"v"]);
    to.words(&format!("PEXPIREAT x:trimmed {FAR_MS}"));
}
