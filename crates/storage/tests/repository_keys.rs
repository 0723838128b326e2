//! Who can read: recipients, passphrases, the writing machine, and nobody else.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use backup_core::plan::EncryptionConfig;
use backup_core::secret::Secret;
use backup_core::sink::{Sink, SnapshotFilter};
use backup_core::{ErrorKind, SnapshotId};
use storage::{Repository, Unlock, keys};
use support::{Place, back_up, read_stream, read_tree, stream_source, tree_source};

const FILES: &[usize] = &[5, 500, 50_000];

async fn one_snapshot(place: &Place) -> SnapshotId {
    place.create().await;
    let repository = place.open(&Unlock::default()).await.unwrap();
    back_up(&repository, &[("db", stream_source(100_000, 1)), ("tree", tree_source(FILES))]).await.unwrap().id
}

fn with(identity: &Secret) -> Unlock {
    Unlock { identities: vec![identity.clone()], passphrase: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machine_that_backs_up_lists_and_cannot_read() {
    let place = Place::new();
    let id = one_snapshot(&place).await;
    let writer = place.open(&Unlock::default()).await.unwrap();
    assert_eq!(writer.snapshots(&SnapshotFilter::default()).await.unwrap()[0].id, id);
    assert_eq!(writer.manifest(&id).await.unwrap().sources.len(), 2);
    for error in
        [read_stream(&writer, &id, "db").await.unwrap_err(), read_tree(&writer, &id, "tree").await.unwrap_err()]
    {
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        assert!(error.remedy().unwrap().contains("--identity"));
    }
    let reader = place.open(&place.reading()).await.unwrap();
    assert_eq!(read_stream(&reader, &id, "db").await.unwrap().len(), 100_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_key_alone_reads_on_an_empty_machine_which_can_then_be_enrolled() {
    let place = Place::new();
    let id = one_snapshot(&place).await;
    std::fs::remove_dir_all(place.options.state.as_ref().unwrap()).unwrap();
    assert_eq!(place.open(&Unlock::default()).await.unwrap_err().kind(), ErrorKind::WrongKey);
    let reader = place.open(&place.reading()).await.unwrap();
    support::assert_tree(&reader, &id, "tree", FILES).await;
    let error = back_up(&reader, &[("db", stream_source(10, 1))]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    assert!(error.remedy().unwrap().contains("enroll"));
    reader.enroll().unwrap();
    let writer = place.open(&Unlock::default()).await.unwrap();
    let stored = back_up(&writer, &[("db", stream_source(100_000, 1))]).await.unwrap();
    assert_eq!(stored.stored_bytes(), 0, "an enrolled machine deduplicates against what others stored");
    let error = writer.manifest(&id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey, "one machine does not read another machine's manifests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrong_key_is_told_from_damage() {
    let place = Place::new();
    one_snapshot(&place).await;
    let error = place.open(&with(&keys::generate().identity)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    assert!(!format!("{error:?}").contains("AGE-SECRET"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipients_come_and_go_without_touching_data() {
    let place = Place::new();
    let id = one_snapshot(&place).await;
    let packs = || std::fs::read_dir(place.data().join("packs")).unwrap().count();
    let before = packs();
    let second = keys::generate();
    let owner = place.open(&place.reading()).await.unwrap();
    assert_eq!(owner.add_recipient(&second.recipient).await.unwrap(), 2, "the repository's key and one session's");
    assert_eq!(owner.add_recipient(&second.recipient).await.unwrap(), 2, "it may be repeated");
    let copies = || std::fs::read_dir(place.data().join("key-copies")).unwrap().count();
    assert_eq!(copies(), 2, "what only the first could read is gone");
    let reader = place.open(&with(&second.identity)).await.unwrap();
    assert_eq!(read_stream(&reader, &id, "db").await.unwrap().len(), 100_000);
    reader.remove_recipient(&place.options.recipients[0]).await.unwrap();
    assert_eq!(place.open(&place.reading()).await.unwrap_err().kind(), ErrorKind::WrongKey);
    assert_eq!(reader.remove_recipient(&second.recipient).await.unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!((packs(), copies()), (before, 2));
    assert_eq!(reader.recipients().await.unwrap().len(), 1);
}

fn contents(folder: &std::path::Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn put_back(folder: &std::path::Path, contents: &std::collections::BTreeMap<std::path::PathBuf, Vec<u8>>) {
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::create_dir(folder).unwrap();
    for (path, content) in contents {
        std::fs::write(path, content).unwrap();
    }
}

async fn verified(repository: &Repository) -> backup_core::sink::CheckReport {
    let listed = repository.snapshots(&SnapshotFilter::default()).await.unwrap();
    let ids: Vec<SnapshotId> = listed.into_iter().map(|summary| summary.id).collect();
    let cx = backup_core::RunContext::new(support::source("check"));
    repository.check(&cx, backup_core::sink::CheckDepth::Data, &ids).await.unwrap()
}

/// A version that knows no copies of keys leaves the earlier ones: neither a backup nor a reader undoes what it changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipients_that_an_earlier_version_changed_stay_changed() {
    let mut place = Place::new();
    let id = one_snapshot(&place).await;
    let (keys_folder, copies) = (place.data().join("keys"), place.data().join("key-copies"));
    let second = keys::generate();
    // Added.
    let earlier = contents(&copies);
    place.open(&place.reading()).await.unwrap().add_recipient(&second.recipient).await.unwrap();
    put_back(&copies, &earlier);
    place.options.recipients.push(second.recipient.clone());
    let wrapped = contents(&keys_folder);
    let back_up_again = async |place: &Place| {
        let writer = place.open(&Unlock::default()).await.unwrap();
        let report = verified(&writer).await;
        assert!(report.damage.is_empty(), "{report:?}");
        assert!(report.notes.iter().any(|note| note.contains("wrapped again by an earlier version")), "{report:?}");
        back_up(&writer, &[("db", stream_source(1000, 9))]).await.unwrap();
    };
    back_up_again(&place).await;
    assert!(wrapped.iter().all(|(path, content)| std::fs::read(path).unwrap() == *content), "no copy was put back");
    assert!(earlier.keys().all(|path| path.exists()), "the copies are kept");
    let reader = place.open(&with(&second.identity)).await.unwrap();
    assert_eq!(read_stream(&reader, &id, "db").await.unwrap().len(), 100_000);
    assert!(verified(&reader).await.damage.is_empty());
    // Whoever has a private key makes both one.
    reader.add_recipient(&second.recipient).await.unwrap();
    assert!(!earlier.keys().any(|path| path.exists()));
    assert!(verified(&reader).await.notes.is_empty());
    // Removed.
    let earlier = contents(&copies);
    place.open(&place.reading()).await.unwrap().remove_recipient(&second.recipient).await.unwrap();
    put_back(&copies, &earlier);
    place.options.recipients.pop();
    assert_eq!(place.open(&with(&second.identity)).await.unwrap_err().kind(), ErrorKind::WrongKey, "not by a copy");
    back_up_again(&place).await;
    assert_eq!(place.open(&with(&second.identity)).await.unwrap_err().kind(), ErrorKind::WrongKey);
    let owner = place.open(&place.reading()).await.unwrap();
    assert_eq!(read_stream(&owner, &id, "db").await.unwrap().len(), 100_000);
}

/// `config` is changed first; a change that died then is ended by repeating it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_died_is_ended_by_repeating_it() {
    let place = Place::new();
    let id = one_snapshot(&place).await;
    let (keys_folder, copies) = (place.data().join("keys"), place.data().join("key-copies"));
    let second = keys::generate();
    let owner = place.open(&place.reading()).await.unwrap();
    owner.add_recipient(&second.recipient).await.unwrap();
    let (wrapped, outdated) = (contents(&keys_folder), contents(&copies));
    owner.remove_recipient(&second.recipient).await.unwrap();
    // Before anything was wrapped again, and before the last copies were deleted.
    let (rewrapped, recopied) = (contents(&keys_folder), contents(&copies));
    let both = outdated.clone().into_iter().chain(recopied).collect();
    for (keys_left, copies_left) in [(&wrapped, &outdated), (&wrapped, &both), (&rewrapped, &both)] {
        put_back(&keys_folder, keys_left);
        put_back(&copies, copies_left);
        let owner = place.open(&place.reading()).await.unwrap();
        assert_eq!(owner.remove_recipient(&second.recipient).await.unwrap(), 2);
        assert_eq!(place.open(&with(&second.identity)).await.unwrap_err().kind(), ErrorKind::WrongKey);
        assert_eq!(contents(&copies).len(), 2, "no copy is left of what the keys were");
        let error = owner.remove_recipient(&second.recipient).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        assert_eq!(read_stream(&owner, &id, "db").await.unwrap().len(), 100_000);
    }
    // A backup deletes them, too.
    put_back(&keys_folder, &rewrapped);
    put_back(&copies, &both);
    back_up(&place.open(&Unlock::default()).await.unwrap(), &[("db", stream_source(1000, 9))]).await.unwrap();
    assert!(!outdated.keys().any(|path| path.exists()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plan_and_the_repository_agree_who_can_read() {
    let mut place = Place::new();
    let first = one_snapshot(&place).await;
    let (second, third) = (keys::generate(), keys::generate());
    place.open(&place.reading()).await.unwrap().add_recipient(&second.recipient).await.unwrap();
    let attempt = async |place: &Place| {
        back_up(&place.open(&Unlock::default()).await.unwrap(), &[("db", stream_source(1000, 9))]).await
    };
    let error = attempt(&place).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Plan, "{error:?}");
    let hint = error.remedy().unwrap();
    assert!(hint.contains("the plan") && hint.contains(&format!("key remove {}", second.recipient)), "{hint}");
    place.options.recipients.push(third.recipient.clone());
    let error = attempt(&place).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Plan, "a planned recipient that the repository does not know");
    assert!(error.remedy().unwrap().contains(&format!("key add {}", third.recipient)), "{error:?}");
    place.options.recipients.pop();
    place.options.recipients.push(second.recipient.clone());
    let id = attempt(&place).await.unwrap().id;
    let reader = place.open(&with(&second.identity)).await.unwrap();
    assert_eq!(read_stream(&reader, &id, "db").await.unwrap().len(), 1000);
    assert_eq!(read_stream(&reader, &first, "db").await.unwrap().len(), 100_000);
}

/// Three who add a reader each, and a run that begins meanwhile: everybody reads everything afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipients_that_are_added_at_once_all_read() {
    let mut place = Place::new();
    let first = one_snapshot(&place).await;
    let added: Vec<_> = (0..3).map(|_| keys::generate()).collect();
    let config = backup_core::plan::RepositoryConfig {
        requests: backup_core::plan::RequestsConfig::default(),
        url: place.data().to_str().unwrap().to_owned(),
        recipients: place.options.recipients.clone(),
        passphrase: None,
        encryption: EncryptionConfig::Age,
        compression_level: 1,
        state: place.options.state.clone(),
    };
    let mut changes = Vec::new();
    for pair in &added {
        let repository = storage::open_repository(&config, std::path::Path::new("/"), &place.reading()).await.unwrap();
        let recipient = pair.recipient.clone();
        changes.push(tokio::spawn(async move { repository.add_recipient(&recipient).await }));
    }
    for change in changes {
        change.await.unwrap().unwrap();
    }
    place.options.recipients.extend(added.iter().map(|pair| pair.recipient.clone()));
    let writer = place.open(&Unlock::default()).await.unwrap();
    let second = back_up(&writer, &[("db", stream_source(1000, 9))]).await.unwrap().id;
    for pair in &added {
        let reader = place.open(&with(&pair.identity)).await.unwrap();
        assert_eq!(read_stream(&reader, &first, "db").await.unwrap().len(), 100_000);
        assert_eq!(read_stream(&reader, &second, "db").await.unwrap().len(), 1000);
        assert_eq!(reader.recipients().await.unwrap().len(), 4);
    }
}

/// Who runs the store knows the public keys. With keys of his own and a `config` to match, wrapped to the true recipients,
/// he would be among those whom the next `key add` wraps every session's key to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_the_store_replaced_are_noticed_where_the_writer_key_is() {
    let place = Place::new();
    one_snapshot(&place).await;
    let mut forged = Place::new();
    forged.options.recipients = vec![place.options.recipients[0].clone(), keys::generate().recipient];
    forged.create().await;
    let json = |path: &std::path::Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let id = |place: &Place| json(&place.data().join("config"))["repository_id"].as_str().unwrap().to_owned();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let state = forged.options.state.as_ref().unwrap().join(format!("{}.writer-key", id(&forged)));
    let index_key = hex::decode(text(&json(&state)["index_key"])).unwrap();
    let mut config = json(&forged.data().join("config"));
    let mut authentic = format!("1\n{}\n{}\nage\n", id(&place), text(&config["created"]));
    for info in config["recipients"].as_array().unwrap() {
        authentic.push_str(&format!("{} {} key\n", text(&info["recipient"]), text(&info["added"])));
    }
    let key = blake3::derive_key("stackward 2026-11 config key", &index_key);
    config["mac"] = blake3::keyed_hash(&key, authentic.as_bytes()).to_hex().as_str().into();
    config["repository_id"] = id(&place).into();
    let keys_of = |place: &Place, id: &str| place.data().join(format!("keys/repository-{id}.age"));
    std::fs::copy(keys_of(&forged, &id(&forged)), keys_of(&place, &id(&place))).unwrap();
    std::fs::write(place.data().join("config"), config.to_string()).unwrap();

    let error = place.open(&place.reading()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert!(error.to_string().contains("replaced"), "{error}");
    assert_eq!(place.open(&Unlock::default()).await.unwrap_err().kind(), ErrorKind::Damaged);
    // Elsewhere it opens; but the sessions know whose they are, so no key of theirs is given away.
    std::fs::remove_dir_all(place.options.state.as_ref().unwrap()).unwrap();
    let deceived = place.open(&place.reading()).await.unwrap();
    let session = || {
        let keys = std::fs::read_dir(place.data().join("keys")).unwrap().map(|entry| entry.unwrap().path());
        keys.filter(|path| path.to_str().unwrap().contains("session-")).map(|path| std::fs::read(path).unwrap()).next()
    };
    let before = session();
    let error = deceived.add_recipient(&keys::generate().recipient).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert!(error.to_string().contains("another repository"), "{error}");
    assert_eq!(session(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passphrase_reads_and_is_not_needed_to_write() {
    let mut place = Place::new();
    place.options.recipients.clear();
    place.options.passphrase = Some(Secret::new("correct horse"));
    let id = one_snapshot(&place).await;
    let open = |phrase: &str| Unlock { identities: Vec::new(), passphrase: Some(Secret::new(phrase)) };
    let error = place.open(&open("wrong")).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::WrongKey, "the passphrase is wrong"));
    let reader = place.open(&open("correct horse")).await.unwrap();
    assert_eq!(read_stream(&reader, &id, "db").await.unwrap().len(), 100_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_nobody_could_read_is_not_made() {
    let mut place = Place::new();
    place.options.recipients.clear();
    let error = Repository::create(place.store(), "a test", &place.options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Plan);
    assert!(std::fs::read_dir(place.data()).unwrap().next().is_none(), "nothing was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_that_are_no_repository_say_what_they_are() {
    let place = Place::new();
    let error = place.open(&Unlock::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRepository);
    assert!(error.remedy().unwrap().contains("stackward init"));
    std::fs::write(place.data().join("holiday.jpg"), "x").unwrap();
    let error = Repository::create(place.store(), "a test", &place.options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let half = Place::new();
    one_snapshot(&half).await;
    std::fs::remove_file(half.data().join("config")).unwrap();
    let error = half.open(&half.reading()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRepository);
    assert!(error.to_string().contains("only part of a repository"), "{error}");
    assert!(Repository::create(half.store(), "a test", &half.options).await.is_err(), "the remains are not built upon");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creating_twice_and_at_once_makes_one_repository() {
    let place = Place::new();
    let create = || Repository::create(place.store(), "a test", &place.options);
    let (a, b) = tokio::join!(create(), create());
    let made = [&a, &b].iter().filter(|result| result.as_ref().is_ok_and(|created| created.created)).count();
    assert_eq!(made, 1, "{a:?} {b:?}");
    assert!(!create().await.unwrap().created);
    let repository = place.open(&place.reading()).await.unwrap();
    back_up(&repository, &[("db", stream_source(10, 1))]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_repository_is_named_so_in_the_plan_or_refused() {
    let mut place = Place::new();
    place.options.encryption = EncryptionConfig::None;
    let id = one_snapshot(&place).await;
    let anybody = place.open(&Unlock::default()).await.unwrap();
    assert_eq!(read_stream(&anybody, &id, "db").await.unwrap().len(), 100_000);
    place.options.encryption = EncryptionConfig::Age;
    assert_eq!(place.open(&Unlock::default()).await.unwrap_err().kind(), ErrorKind::Plan);
}

/// No key, and no name of a file or a source, can be read from the store without the keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_appear_nowhere() {
    let place = Place::new();
    one_snapshot(&place).await;
    let state = std::fs::read_dir(place.options.state.as_ref().unwrap()).unwrap().next().unwrap().unwrap().path();
    let writer: serde_json::Value = serde_json::from_slice(&std::fs::read(state).unwrap()).unwrap();
    let mut needles: Vec<Vec<u8>> =
        vec![b"f0001".to_vec(), b"dump".to_vec(), b"AGE-SECRET".to_vec(), b"\"host\"".to_vec()];
    for field in ["id_key", "index_key", "writer_secret"] {
        let key = writer[field].as_str().unwrap();
        needles.push(key.as_bytes().to_vec());
        needles.push(hex::decode(key).unwrap());
    }
    let mut folders = vec![place.data()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let content = std::fs::read(&path).unwrap();
            for needle in &needles {
                assert!(
                    !content.windows(needle.len()).any(|window| window == needle),
                    "{} shows a secret",
                    path.display()
                );
            }
        }
    }
}
