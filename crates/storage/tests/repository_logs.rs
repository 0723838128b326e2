//! Continuous logs in a repository: the contract on every kind of store, the short way, keys, damage, faults.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::Cursor;
use std::sync::Arc;

use backup_core::RunContext;
use backup_core::error::{ErrorKind, Result};
use backup_core::log::{LogStore, SegmentId, SegmentMeta, Stored};
use backup_core::plan::{EncryptionConfig, RepositoryConfig};
use backup_core::sink::{CheckDepth, Sink};
use backup_testkit::log_suite::{Into, content, segment};
use backup_testkit::{Fault, FaultyStore, noise};
use bytes::Bytes;
use object_store::memory::InMemory;
use storage::{QuickLog, Repository, Unlock};
use support::{Place, source};

async fn on_disk() -> (Arc<dyn LogStore>, Place) {
    let place = Place::new();
    place.create().await;
    let repository = place.open(&place.reading()).await.unwrap();
    (repository.logs().unwrap(), place)
}

async fn unencrypted_in_memory() -> (Arc<dyn LogStore>, Place) {
    let mut place = Place::new();
    place.options.encryption = EncryptionConfig::None;
    place.options.recipients.clear();
    let store: Arc<InMemory> = Arc::default();
    Repository::create(Arc::clone(&store) as _, "memory", &place.options).await.unwrap();
    let repository = Repository::open(store, "memory", &place.options, &Unlock::default()).await.unwrap();
    (repository.logs().unwrap(), place)
}

fn of_a_memory_sink() -> std::future::Ready<(Arc<dyn LogStore>, ())> {
    std::future::ready((backup_testkit::MemorySink::default().logs().unwrap(), ()))
}

mod disk {
    backup_testkit::log_conformance!(super::on_disk);
}

mod memory {
    backup_testkit::log_conformance!(super::unencrypted_in_memory);
}

mod testkit {
    backup_testkit::log_conformance!(super::of_a_memory_sink);
}

fn id(name: &str) -> SegmentId {
    segment("00000001", name)
}

async fn put(log: &dyn LogStore, name: &str, bytes: &Bytes) -> Result<Stored> {
    log.put(&source("db"), &id(name), SegmentMeta::default(), content(bytes)).await
}

async fn read(log: &dyn LogStore, name: &str) -> Result<Vec<u8>> {
    let into = Into::default();
    log.read(&source("db"), &id(name), into.writer()).await?;
    Ok(into.bytes())
}

async fn logs(place: &Place, unlock: &Unlock) -> Arc<dyn LogStore> {
    place.open(unlock).await.unwrap().logs().unwrap()
}

fn files(place: &Place, folder: &str) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(place.data().join(folder)) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn log_keys(place: &Place) -> usize {
    let is_log = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("log-");
    files(place, "keys").iter().filter(|path| is_log(path)).count()
}

/// The same plan as `place` has, for the short way.
fn quick(place: &Place) -> Result<Option<QuickLog>> {
    let config = RepositoryConfig {
        url: "./repository".to_owned(),
        recipients: place.options.recipients.clone(),
        passphrase: None,
        encryption: place.options.encryption,
        compression_level: 1,
        state: place.options.state.clone(),
        requests: backup_core::plan::RequestsConfig::default(),
    };
    QuickLog::open(&config, place.folder.path())
}

#[tokio::test]
async fn the_machine_that_archives_cannot_read_and_can_compare() {
    let place = Place::new();
    place.create().await;
    let bytes = noise(100_000, 1);
    let writing = logs(&place, &Unlock::default()).await;
    put(&*writing, "a", &bytes).await.unwrap();
    assert_eq!(put(&*writing, "a", &bytes).await.unwrap(), Stored::Same);
    assert_eq!(writing.record(&source("db"), &id("a")).await.unwrap().bytes, 100_000);
    assert_eq!(read(&*writing, "a").await.unwrap_err().kind(), ErrorKind::WrongKey);
    assert!(read(&*logs(&place, &place.reading()).await, "a").await.unwrap() == bytes);
}

#[tokio::test]
async fn one_key_pair_serves_many_runs_and_a_removed_recipient_reads_nothing_new() {
    let mut place = Place::new();
    place.create().await;
    let other = storage::keys::generate();
    for name in ["a", "b"] {
        put(&*logs(&place, &Unlock::default()).await, name, &noise(1000, 2)).await.unwrap();
    }
    assert_eq!(log_keys(&place), 1);

    place.open(&place.reading()).await.unwrap().add_recipient(&other.recipient).await.unwrap();
    place.options.recipients.push(other.recipient.clone());
    let as_other = Unlock { identities: vec![other.identity.clone()], passphrase: None };
    assert!(read(&*logs(&place, &as_other).await, "a").await.is_ok(), "what came before is wrapped for it, too");
    put(&*logs(&place, &Unlock::default()).await, "c", &noise(1000, 3)).await.unwrap();
    assert!(read(&*logs(&place, &as_other).await, "c").await.is_ok());

    place.open(&place.reading()).await.unwrap().remove_recipient(&other.recipient).await.unwrap();
    place.options.recipients.pop();
    let pairs = log_keys(&place);
    put(&*logs(&place, &Unlock::default()).await, "d", &noise(1000, 4)).await.unwrap();
    assert_eq!(log_keys(&place), pairs + 1, "the old pair may be known to it");
    assert!(read(&*logs(&place, &place.reading()).await, "d").await.is_ok());
}

#[tokio::test]
async fn a_machine_that_lost_its_state_goes_on_with_a_new_pair() {
    let place = Place::new();
    place.create().await;
    put(&*logs(&place, &Unlock::default()).await, "a", &noise(1000, 5)).await.unwrap();
    for path in std::fs::read_dir(place.folder.path().join("state")).unwrap() {
        std::fs::remove_file(path.unwrap().path()).unwrap();
    }
    place.open(&place.reading()).await.unwrap().enroll().unwrap();
    let log = logs(&place, &Unlock::default()).await;
    assert_eq!(put(&*log, "a", &noise(1000, 5)).await.unwrap(), Stored::Same);
    put(&*log, "b", &noise(1000, 6)).await.unwrap();
    assert!(read(&*logs(&place, &place.reading()).await, "a").await.is_ok());
    assert!(read(&*logs(&place, &place.reading()).await, "b").await.is_ok());
}

#[tokio::test]
async fn the_short_way_writes_what_the_long_way_reads() {
    let place = Place::new();
    place.create().await;
    assert!(quick(&place).unwrap().is_none(), "the first push of a machine makes its key pair, the long way");
    put(&*logs(&place, &Unlock::default()).await, "a", &noise(1000, 1)).await.unwrap();
    let short = quick(&place).unwrap().unwrap();
    let push = |name: &str, bytes: &Bytes| {
        short.put(&source("db"), &id(name), SegmentMeta::default(), &mut Cursor::new(bytes.clone()))
    };
    let bytes = noise(3_000_000, 2);
    assert!(matches!(push("b", &bytes).unwrap(), Stored::New { .. }));
    assert_eq!(push("b", &bytes).unwrap(), Stored::Same);
    assert_eq!(push("a", &noise(1000, 1)).unwrap(), Stored::Same, "what the long way wrote");
    assert_eq!(push("a", &noise(1000, 9)).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(short.record(&source("db"), &id("c")).unwrap().is_none());
    assert_eq!(short.timelines(&source("db")).unwrap(), [id("a").timeline]);
    let named = short.segments(&source("db"), &id("a").timeline).unwrap();
    assert_eq!(named, [id("a").name, id("b").name]);
    let long = logs(&place, &place.reading()).await;
    assert!(read(&*long, "b").await.unwrap() == bytes);
    let record = long.record(&source("db"), &id("b")).await.unwrap();
    assert_eq!(short.record(&source("db"), &id("b")).unwrap(), Some(record));
    assert_eq!(put(&*long, "b", &bytes).await.unwrap(), Stored::Same);
    let listed = long.segments(&source("db"), &id("a").timeline).await.unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(files(&place, "logs/db/00000001").len(), 2, "no temporary file is left");
}

#[tokio::test]
async fn a_temporary_file_of_a_push_that_died_is_no_segment() {
    let place = Place::new();
    place.create().await;
    let log = logs(&place, &Unlock::default()).await;
    put(&*log, "a", &noise(1000, 1)).await.unwrap();
    std::fs::write(place.data().join("logs/db/00000001/b#4711"), "half").unwrap();
    assert_eq!(log.segments(&source("db"), &id("a").timeline).await.unwrap().len(), 1);
    assert!(log.check(&RunContext::new(source("db")), &source("db"), CheckDepth::Data).await.unwrap().is_empty());
}

#[tokio::test]
async fn damage_is_found_without_a_private_key() {
    let place = Place::new();
    place.create().await;
    let log = logs(&place, &Unlock::default()).await;
    for name in ["a", "b", "c", "d"] {
        put(&*log, name, &noise(50_000, 7)).await.unwrap();
    }
    let cx = RunContext::new(source("db"));
    let check = |depth| log.check(&cx, cx.source(), depth);
    let path = |name: &str| place.data().join("logs/db/00000001").join(name);
    let mut body = std::fs::read(path("a")).unwrap();
    let last = body.len() - 1;
    body[last] ^= 1;
    std::fs::write(path("a"), body).unwrap();
    assert!(check(CheckDepth::References).await.unwrap().is_empty());
    let found = check(CheckDepth::Data).await.unwrap();
    assert_eq!(found.iter().map(|damage| damage.id.name.as_str()).collect::<Vec<_>>(), ["a"]);

    let whole = std::fs::read(path("b")).unwrap();
    std::fs::write(path("b"), &whole[..whole.len() - 1]).unwrap();
    std::fs::copy(path("d"), path("c")).unwrap();
    let found = check(CheckDepth::References).await.unwrap();
    assert_eq!(found.iter().map(|damage| damage.id.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    assert!(found[1].problem.contains("under another name"), "{}", found[1].problem);
    let reading = logs(&place, &place.reading()).await;
    for name in ["a", "b", "c"] {
        assert_eq!(read(&*reading, name).await.unwrap_err().kind(), ErrorKind::Damaged, "{name}");
    }
    assert!(read(&*reading, "d").await.is_ok());
}

type Hurt = fn(&mut Vec<u8>);

/// However a stored copy was hurt, who pushes the same bytes again is not told that they are there: they are, afterwards.
#[tokio::test]
async fn a_damaged_copy_is_set_aside_for_a_sound_one() {
    let place = Place::new();
    place.create().await;
    let long = logs(&place, &Unlock::default()).await;
    let bytes = noise(50_000, 11);
    put(&*long, "first", &bytes).await.unwrap();
    let short = quick(&place).unwrap().unwrap();
    let path = |name: &str| place.data().join("logs/db/00000001").join(name);
    let sound = std::fs::read(path("first")).unwrap();
    let hurts: [(&str, Hurt); 5] = [
        ("last", |object| *object.last_mut().unwrap() ^= 1),
        ("header", |object| object[40] ^= 1),
        ("cut", |object| object.truncate(object.len() - 1)),
        ("short", |object| object.truncate(9)),
        ("empty", Vec::clear),
    ];
    for (way, name) in [("long", "a"), ("short", "b")] {
        for (number, (what, hurt)) in hurts.iter().enumerate() {
            let name = format!("{name}{number}");
            let push = async |bytes: &Bytes| match way {
                "long" => put(&*long, &name, bytes).await,
                _ => short.put(&source("db"), &id(&name), SegmentMeta::default(), &mut Cursor::new(bytes.clone())),
            };
            push(&bytes).await.unwrap();
            let mut object = std::fs::read(path(&name)).unwrap();
            hurt(&mut object);
            std::fs::write(path(&name), &object).unwrap();
            // Who brings other bytes learns of those that were there, as long as anything tells.
            if matches!(*what, "last" | "cut") {
                assert_eq!(
                    push(&noise(50_000, 12)).await.unwrap_err().kind(),
                    ErrorKind::AlreadyExists,
                    "{way} {what}"
                );
            }
            let again = push(&bytes).await.unwrap();
            assert!(matches!(again, Stored::Repaired { stored_bytes } if stored_bytes > 0), "{way} {what}: {again:?}");
            assert_eq!(push(&bytes).await.unwrap(), Stored::Same, "{way} {what}");
            let reading = logs(&place, &place.reading()).await;
            assert!(read(&*reading, &name).await.unwrap() == bytes, "{way} {what}");
            let aside = files(&place, "damaged/logs/db/00000001");
            let kept = aside.iter().filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&name));
            let kept: Vec<Vec<u8>> = kept.map(|path| std::fs::read(path).unwrap()).collect();
            assert!(kept == [object], "{way} {what}");
        }
    }
    assert!(std::fs::read(path("first")).unwrap() == sound);
    assert_eq!(files(&place, "logs/db/00000001").len(), 11, "no temporary file is left");
}

#[tokio::test]
async fn a_segment_whose_key_object_is_gone_is_damaged_not_absent() {
    let place = Place::new();
    place.create().await;
    put(&*logs(&place, &Unlock::default()).await, "a", &noise(1000, 1)).await.unwrap();
    let is_log = |path: &&std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("log-");
    let remove = |folder: &str| std::fs::remove_file(files(&place, folder).iter().find(is_log).unwrap()).unwrap();
    remove("keys");
    assert_eq!(read(&*logs(&place, &place.reading()).await, "a").await.unwrap(), noise(1000, 1), "its copy opens it");
    remove("key-copies");
    let error = read(&*logs(&place, &place.reading()).await, "a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
}

#[tokio::test]
async fn the_short_way_knows_the_notes_of_the_long_way() {
    let place = Place::new();
    place.create().await;
    let long = logs(&place, &Unlock::default()).await;
    put(&*long, "a", &noise(1000, 1)).await.unwrap();
    let short = quick(&place).unwrap().unwrap();
    let name = |name: &str| backup_core::SegmentName::new(name).unwrap();
    assert_eq!(short.note(&source("db"), &name("one")).unwrap(), None);
    long.add_note(&source("db"), &name("one"), "first").await.unwrap();
    assert_eq!(short.note(&source("db"), &name("one")).unwrap().as_deref(), Some("first"));
    assert_eq!(short.add_note(&source("db"), &name("one"), "x").unwrap_err().kind(), ErrorKind::AlreadyExists);
    short.add_note(&source("db"), &name("two"), "second").unwrap();
    assert_eq!(long.notes(&source("db")).await.unwrap()[1].1, "second");
    assert!(short.holds(&source("db"), &id("a"), &mut Cursor::new(noise(1000, 1))).unwrap());
    assert!(!short.holds(&source("db"), &id("a"), &mut Cursor::new(noise(1000, 2))).unwrap());
}

/// Whatever operation fails, a segment is there whole or not at all, and the next push succeeds.
#[tokio::test]
async fn a_store_that_fails_at_any_operation_leaves_no_half_segment() {
    let bytes = noise(10_000, 8);
    let mut failed = 0;
    for operation in 0.. {
        let place = Place::new();
        place.create().await;
        let store = Arc::new(FaultyStore::new(place.store(), Fault::FailOnce(operation)));
        let opened = Repository::open(Arc::clone(&store) as _, "a test", &place.options, &Unlock::default()).await;
        let Ok(log) = opened else { continue };
        let first = put(&log, "a", &bytes).await;
        if store.operations() <= operation {
            break;
        }
        let again = put(&log, "a", &bytes).await.unwrap();
        assert!(first.is_err() || again == Stored::Same, "{operation}");
        assert!(read(&*logs(&place, &place.reading()).await, "a").await.unwrap() == bytes, "{operation}");
        failed += u32::from(first.is_err());
    }
    assert!(failed >= 2, "the put of the key pair and that of the segment, at least");
}

#[tokio::test]
async fn a_store_that_ignores_conditions_does_not_lose_a_segment_to_another() {
    let place = Place::new();
    let store = || -> Arc<FaultyStore> { Arc::new(FaultyStore::new(place.store(), Fault::IgnoreConditions)) };
    Repository::create(store(), "a test", &place.options).await.unwrap();
    let log = Repository::open(store(), "a test", &place.options, &place.reading()).await.unwrap();
    put(&log, "a", &noise(1000, 1)).await.unwrap();
    assert_eq!(put(&log, "a", &noise(1000, 1)).await.unwrap(), Stored::Same);
    assert_eq!(put(&log, "a", &noise(1000, 2)).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(read(&log, "a").await.unwrap() == noise(1000, 1));
    assert!(quick(&place).unwrap().is_none(), "the short way relies on conditions");
}
