//! Ways to a server: TCP, TLS with and without certificates of clients, replicas.

use backup_core::engine::RestoreTarget;
use backup_core::error::ErrorKind;
use backup_core::position::Position;
use backup_testkit::redis::{ClientCertificate, Listen};
use backup_testkit::{Certificates, PrivateRedis};

use crate::support::{back_up, build, context, engine, engine_by_port, fill, replacing, restore};

fn filled(listen: Listen<'_>, options: &[(&str, &str)]) -> PrivateRedis {
    let server = PrivateRedis::listening(listen, options);
    server.fill(3000, 40);
    fill(&server);
    server
}

/// Commands, replication, the restore with its safety copy: all of it over TLS, and the drill beside it.
#[tokio::test]
async fn everything_works_over_tls() {
    let authority = Certificates::new();
    let identity = authority.server();
    let listen = Listen::Tls(&authority, &identity, ClientCertificate::Required);
    let (server, target) = (filled(listen, &[]), PrivateRedis::listening(listen, &[]));
    target.fill(10, 3);
    let tls = format!("tls: {{ ca: {}, {} }}", authority.ca().display(), shown(&authority));
    let engine = engine_by_port(&server, "rediss", &tls);
    let preflight = engine.source.preflight(&context()).await.unwrap();
    assert_eq!(preflight.warnings, Vec::<String>::new());
    let saved = back_up(&engine).await.unwrap();
    assert_eq!(saved.detail("way"), "replication");
    assert!(matches!(saved.record().position, Some(Position::Replication { .. })));
    let drill = engine.driller.drill(&context(), &saved.reader().await).await.unwrap();
    assert_eq!(drill.findings, Vec::<String>::new());
    let into = engine_by_port(&target, "redis", &tls);
    restore(&into, &saved, &replacing()).await.unwrap();
    assert_eq!(target.digest(), server.digest());
}

/// Many records of TLS, while the data changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_snapshot_comes_whole_over_tls() {
    let authority = Certificates::new();
    let identity = authority.server();
    let server = PrivateRedis::listening(Listen::Tls(&authority, &identity, ClientCertificate::NotAsked), &[]);
    server.fill(200_000, 200);
    let load = server.benchmark_in_background(&["-t", "set,lpush", "-r", "10000", "-n", "100000000", "-q"]);
    let tls = format!("tls: {{ ca: {} }}", authority.ca().display());
    let engine = engine_by_port(&server, "rediss", &tls);
    let saved = back_up(&engine).await.unwrap();
    drop(load);
    assert!(saved.record().fingerprint.total("keys of db0") >= 200_000);
    assert_eq!(engine.verifier.verify(&context(), &saved.reader().await).await.unwrap().findings, []);
}

/// What we show to a server that asks for a certificate.
fn shown(authority: &Certificates) -> String {
    let client = authority.client("backup");
    format!("cert: {}, key: {}", client.certificate.display(), client.key.display())
}

#[tokio::test]
async fn a_server_that_is_not_believed_is_named_with_the_remedy() {
    let authority = Certificates::new();
    let identity = authority.server();
    let private = PrivateRedis::listening(Listen::Tls(&authority, &identity, ClientCertificate::Required), &[]);
    let ca = format!("tls: {{ ca: {} }}", authority.ca().display());
    let stranger = Certificates::new();
    let other = format!("tls: {{ ca: {} }}", stranger.ca().display());
    let careless = engine_by_port(&private, "rediss", &format!("tls: {{ verify: none, {} }}", shown(&authority)));
    let preflight = careless.source.preflight(&context()).await.unwrap();
    assert!(preflight.warnings.iter().any(|warning| warning.contains("whoever answers")), "{preflight:?}");
    let cases = [
        (engine_by_port(&private, "rediss", &other), ErrorKind::PermissionDenied, "not trusted"),
        (engine_by_port(&private, "rediss", &ca), ErrorKind::PermissionDenied, "asks for a certificate"),
        (engine_by_port(&private, "redis", ""), ErrorKind::Incomplete, "rediss://"),
        (engine_by_port(&private, "rediss", "tls: { ca: /no/such/file }"), ErrorKind::Plan, "/no/such/file"),
    ];
    for (engine, kind, words) in cases {
        let error = back_up(&engine).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(format!("{error:?}").contains(words), "{words}: {error:?}");
    }
}

#[tokio::test]
async fn a_replica_gives_its_masters_data_and_says_what_it_is() {
    let master = filled(Listen::Plain, &[]);
    let replica = PrivateRedis::listening(Listen::Plain, &[]);
    replica.call(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    while !replica.call(&["INFO", "replication"]).contains("master_link_status:up") {
        tokio::task::yield_now().await;
    }
    let engine = engine_by_port(&replica, "redis", "");
    let saved = back_up(&engine).await.unwrap();
    assert!(saved.warnings().contains("this is a replica: "), "{}", saved.warnings());
    assert_eq!(saved.detail("role"), "slave");
    let target = PrivateRedis::start();
    restore(&crate::support::engine(&target, ""), &saved, &RestoreTarget::default()).await.unwrap();
    assert_eq!(target.digest(), master.digest());
}

#[tokio::test]
async fn an_address_that_nobody_listens_on_is_named() {
    let server = PrivateRedis::listening(Listen::Plain, &[]);
    let gone = engine_by_port(&server, "redis", "");
    let alive = engine(&server, "");
    back_up(&alive).await.unwrap();
    server.kill();
    for engine in [gone, build("url: 'redis://127.0.0.1:1'").unwrap()] {
        let error = engine.source.preflight(&context()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.message().contains("127.0.0.1:"), "{error:?}");
    }
}
