//! Altered, cut and hostile files: all are found, none does harm.

use backup_core::ErrorKind;
use engine_redis::rdb::{Checksum, ExportOptions, Target, export, scan};
use proptest::prelude::*;

use crate::bytes::{Rdb, listpack, text};
use crate::encodings;
use crate::fill::{Amount, fill};
use crate::round_trip::options;
use crate::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn every_flipped_bit_and_every_cut_is_found() {
    let server = Server::start().await;
    fill(&mut server.connect(), Amount::Little);
    let rdb = server.save();
    assert_eq!(scan(&rdb[..], 0).unwrap().checksum, Checksum::Verified);
    assert!(rdb.len() > 100_000);
    let mut altered = rdb.clone();
    for position in (0..rdb.len()).step_by(1000).chain(rdb.len() - 9..rdb.len()) {
        altered[position] ^= 1 << (position / 1000 % 8);
        scan(&altered[..], 0).expect_err("a flipped bit");
        altered[position] = rdb[position];
        let error = scan(&rdb[..position], 0).expect_err("a cut");
        assert_eq!(error.kind(), ErrorKind::Damaged, "cut at {position}: {error}");
        assert!(error.context().iter().any(|(name, _)| *name == "offset"), "{error}");
    }
    assert_eq!(altered, rdb);
    let longer = [&rdb[..], b"x"].concat();
    assert!(scan(&longer[..], 0).unwrap_err().to_string().contains("something follows"));
}

#[test]
fn every_bit_of_a_small_file_counts() {
    // The checksum as the server computes it, over a file made by hand.
    let mut rdb = Rdb::new("REDIS0009").raw(&[254, 0]).key(0, "a").string(b"1").raw(&[255]).0;
    let checksum = crc(&rdb);
    rdb.extend(checksum.to_le_bytes());
    assert_eq!(scan(&rdb[..], 0).unwrap().checksum, Checksum::Verified);
    for bit in 0..rdb.len() * 8 {
        rdb[bit / 8] ^= 1 << (bit % 8);
        scan(&rdb[..], 0).expect_err("a flipped bit");
        rdb[bit / 8] ^= 1 << (bit % 8);
    }
}

/// The CRC-64 of redis/src/crc64.c, bit by bit.
fn crc(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xad93_d235_94c9_35a9_u64.reverse_bits() } else { crc >> 1 }
        })
    })
}

#[test]
fn lengths_that_cannot_be_are_damage_and_cost_nothing() {
    let huge = [0x81, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let start = || Rdb::new("REDIS0011").raw(&[254, 0]);
    let cases = [
        start().raw(&[0]).raw(&huge).end(),
        start().key(0, "k").raw(&huge).end(),
        start().key(1, "k").raw(&huge).end(),
        start().key(4, "k").raw(&huge).string(b"f").end(),
        start().key(5, "k").raw(&huge).end(),
        start().key(10, "k").raw(&huge).end(),
        start().key(18, "k").raw(&huge).end(),
        start().key(24, "k").raw(&[0; 8]).raw(&huge).end(),
        start().key(21, "k").raw(&huge).end(),
        start().key(20, "k").string(&listpack(&[b"\xf0\xff\xff\xff\x7f"])).end(),
        start().key(16, "k").string(&listpack(&[&text("field without a value")])).end(),
        start().key(17, "k").string(&listpack(&[&text("member"), &text("no number")])).end(),
        start().key(17, "k").string(&listpack(&[&text("member"), &text("nan")])).end(),
        start().key(20, "k").string(b"\x0a\0\0\0\x02\0\x81a\x02\xff").end(),
        start().key(20, "k").string(b"\x0a\0\0\0\x01\0\x81a\x03\xff").end(),
        start().key(0, "k").raw(&[0xc3]).raw(&huge).raw(&huge).end(),
        start().key(11, "k").string(b"\x08\0\0\0\xff\xff\xff\x1f").end(),
        Rdb::new("REDIS0011").raw(&[254]).raw(&huge).end(),
    ];
    for rdb in cases {
        // A packed form is opened by the export only.
        let error = export(&rdb[..], &newest(), &mut std::io::sink()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{rdb:x?}: {error}");
        assert_eq!(error.context()[0].0, "offset", "{error}");
    }
    assert_eq!(scan(&b""[..], 0).unwrap_err().kind(), ErrorKind::Damaged);
    assert!(scan(&b"PGDMP 1.14"[..], 0).unwrap_err().to_string().contains("not an RDB"));
    let waiting = start().raw(&[252]).raw(&[0; 8]).end();
    assert!(scan(&waiting[..], 0).unwrap_err().to_string().contains("no key follows"));
}

fn newest() -> ExportOptions {
    ExportOptions { target: Target::redis(8, 6), ..options() }
}

/// Both readers; whatever they say, they come to an end, without a panic.
fn survive(rdb: &[u8]) {
    let scanned = scan(rdb, 0);
    let exported = export(rdb, &newest(), &mut std::io::sink());
    if let (Err(scanned), Ok(_)) = (scanned, exported) {
        panic!("the export overlooked {scanned}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_no_harm(body in prop::collection::vec(any::<u8>(), 0..200), version in 1_u32..14) {
        survive(&Rdb::new(&format!("REDIS{version:04}")).raw(&body).end());
        survive(&Rdb::new("VALKEY080").raw(&body).end());
    }

    #[test]
    fn altered_files_do_no_harm(
        which in 0_usize..8,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut rdb = encodings::all().swap_remove(which);
        for (place, byte) in changes {
            let place = place.index(rdb.len());
            rdb[place] = byte;
        }
        survive(&rdb);
        survive(&rdb[..cut.index(rdb.len())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_files_of_a_server_do_no_harm() {
    let server = Server::start().await;
    let mut connection = server.connect();
    fill(&mut connection, Amount::Little);
    connection.words("DEL s:noise s:zeros s:compressible l:lengths set:large h:large z:large x:large l:plain l:many h:many z:many set:many");
    let mut rdb = server.save();
    let length = rdb.len();
    rdb[length - 8..].fill(0);
    assert_eq!(scan(&rdb[..], 0).unwrap().checksum, Checksum::Off, "so that what is inside is reached");
    for position in (0..length).step_by(3) {
        let original = rdb[position];
        rdb[position] = original.wrapping_add(1 + (position % 255) as u8);
        survive(&rdb);
        rdb[position] = original;
    }
}
