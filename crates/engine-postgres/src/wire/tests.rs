//! The client against real servers: every way in, what is refused and what is said then, and the log as it is streamed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::LocalHost;
use backup_core::plan::Node;
use backup_core::position::Lsn;
use backup_testkit::{Certificates, PrivatePostgres};

use super::*;
use crate::config::Settings;
use crate::server::Server;

fn server(yaml: &str) -> Server {
    let settings = Settings::parse(&Node::from_yaml(yaml).unwrap(), Path::new("/")).unwrap();
    Server::of(&settings, Arc::new(LocalHost))
}

fn over_socket(running: &PrivatePostgres, more: &str) -> Server {
    server(&format!("{{ socket: {}, {more} }}", running.socket_folder().display()))
}

fn over_tcp(running: &PrivatePostgres, user: &str, host: &str, query: &str, more: &str) -> Server {
    server(&format!("{{ url: 'postgres://{user}@{host}:{}/postgres?{query}', {more} }}", running.port()))
}

fn secret(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn password(file: &tempfile::NamedTempFile) -> String {
    format!("password: {{ file: {} }}", file.path().display())
}

async fn connects(server: &Server) -> Result<Connection> {
    let mut connection = Connection::connect(server, Purpose::Replication).await?;
    connection.identify_system().await?;
    Ok(connection)
}

async fn refused(server: &Server) -> Error {
    let error = connects(server).await.unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    error
}

#[tokio::test]
async fn peer_authentication_sees_the_user_that_the_plan_names() {
    let running = PrivatePostgres::start();
    running.set_hba("local all all peer\nlocal replication all peer\n");
    let us = rustix::process::geteuid();
    // As root the engine takes the server's user by itself.
    let mut connection = connects(&over_socket(&running, "")).await.unwrap();
    assert_eq!(connection.show("wal_level").await.unwrap(), "replica");
    let error = refused(&over_socket(&running, "run_as: nobody")).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert!(error.remedy().unwrap().contains("peer authentication"), "{error:?}");
    let error = refused(&over_socket(&running, "run_as: no-such-user")).await;
    assert!(error.remedy().unwrap().contains("run_as"), "{error:?}");
    assert_eq!(rustix::process::geteuid(), us, "the identity of this process never changed");
}

#[tokio::test]
async fn passwords_by_every_method_and_from_a_password_file() {
    let running = PrivatePostgres::start();
    let right = secret("right-hunter2");
    let wrong = secret("wrong-hunter2");
    running
        .sql("postgres", "SET password_encryption = 'md5'; CREATE ROLE old REPLICATION LOGIN PASSWORD 'right-hunter2'");
    running.sql(
        "postgres",
        "SET password_encryption = 'scram-sha-256'; CREATE ROLE new REPLICATION LOGIN PASSWORD 'right-hunter2'",
    );
    for (method, user) in [("md5", "old"), ("scram-sha-256", "new"), ("password", "new")] {
        running.set_hba(&format!("local all postgres trust\nlocal replication all {method}\n"));
        connects(&over_socket(&running, &format!("user: {user}, {}", password(&right)))).await.unwrap();
        let error = refused(&over_socket(&running, &format!("user: {user}, {}", password(&wrong)))).await;
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{method}: {error:?}");
        assert!(error.remedy().unwrap().contains("`password`"), "{method}: {error:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgpass");
    std::fs::write(&file, "localhost:*:replication:new:right-hunter2\n").unwrap();
    let mut server = over_socket(&running, "user: new, run_as: root");
    server.endpoint.parameters.insert("passfile".into(), file.display().to_string());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused(&server).await.remedy().unwrap().contains("0600"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    connects(&server).await.unwrap();
}

#[tokio::test]
async fn who_may_not_replicate_is_told_what_is_missing() {
    let running = PrivatePostgres::start();
    running.sql("postgres", "CREATE ROLE app LOGIN; CREATE ROLE backup LOGIN REPLICATION");
    let error = refused(&over_socket(&running, "user: app")).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert!(error.remedy().unwrap().contains("ALTER ROLE app REPLICATION"), "{error:?}");
    running.set_hba("local all all trust\n");
    let error = refused(&over_socket(&running, "user: backup")).await;
    assert!(error.remedy().unwrap().contains("local replication backup"), "{error:?}");
    let error = refused(&over_socket(&running, "user: nobody-there")).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    let folder = tempfile::tempdir().unwrap();
    let error = refused(&server(&format!("{{ socket: {}, run_as: root }}", folder.path().display()))).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
}

#[tokio::test]
async fn tls_proves_both_sides_and_binds_the_login() {
    let certificates = Certificates::new();
    let running = PrivatePostgres::on_loopback(&[]);
    let identity = certificates.server();
    let (certificate, key) = (&identity.certificate, &identity.key);
    for (setting, file) in [("ssl_cert_file", certificate), ("ssl_key_file", key), ("ssl_ca_file", &certificates.ca())]
    {
        running.set(setting, &format!("'{}'", running.adopt(file).display()));
    }
    running.sql(
        "postgres",
        "SET password_encryption = 'scram-sha-256'; CREATE ROLE backup LOGIN REPLICATION PASSWORD 'right-hunter2'",
    );
    running.sql("postgres", "CREATE ROLE cert LOGIN REPLICATION");
    running.set_hba(
        "local all all trust\nhostssl replication cert all cert\nhostssl replication backup all scram-sha-256\n\
         hostnossl replication postgres all trust\n",
    );
    running.set("ssl", "on");
    let right = password(&secret_kept());
    let ca = certificates.ca();
    let root = format!("sslrootcert={}", ca.display());
    let tcp = |host: &str, query: &str| over_tcp(&running, "backup", host, query, &right);
    let strict = format!("sslmode=verify-full&{root}&channel_binding=require");
    let connection = connects(&tcp("127.0.0.1", &strict)).await.unwrap();
    assert!(connection.is_encrypted());
    for mode in ["allow", "prefer", "require", "verify-ca"] {
        let query = if mode == "verify-ca" { format!("sslmode={mode}&{root}") } else { format!("sslmode={mode}") };
        let connection = connects(&tcp("localhost", &query)).await.unwrap();
        assert!(connection.is_encrypted(), "{mode}");
    }
    // Not encrypted, which pg_hba.conf does not allow to this role.
    let error = refused(&tcp("localhost", "sslmode=disable")).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    let error = refused(&tcp("localhost", "sslmode=disable&channel_binding=require")).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    // Only without encryption: `prefer` falls back, `require` does not.
    assert!(
        !connects(&over_tcp(&running, "postgres", "localhost", "sslmode=prefer", "")).await.unwrap().is_encrypted()
    );
    refused(&over_tcp(&running, "postgres", "localhost", "sslmode=require", "")).await;
    // Another authority than the server's.
    let other = Certificates::new();
    let wrong = format!("sslmode=verify-ca&sslrootcert={}", other.ca().display());
    let error = refused(&tcp("localhost", &wrong)).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert!(error.remedy().unwrap().contains("sslrootcert"), "{error:?}");
    // Lists of what was revoked: a file, then a folder in which the certificate is.
    let strict_list =
        |parameter: &str, list: &Path| tcp("localhost", &format!("{strict}&{parameter}={}", list.display()));
    connects(&strict_list("sslcrl", &certificates.revoked())).await.unwrap();
    certificates.revoke(&identity);
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list.r0");
    std::fs::copy(certificates.revoked(), &list).unwrap();
    for (parameter, path) in [("sslcrl", list.as_path()), ("sslcrldir", folder.path())] {
        let error = refused(&strict_list(parameter, path)).await;
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
        assert!(error.message().contains("was revoked"), "{error:?}");
    }
    let error = refused(&strict_list("sslcrl", &other.revoked())).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert!(error.remedy().unwrap().contains("`sslcrl` in the plan's `url`"), "{error:?}");
    // A name that the certificate does not have: the address is another form of the same server.
    let error = refused(&tcp("127.1", &strict)).await;
    assert!(error.kind() == ErrorKind::PermissionDenied || error.kind() == ErrorKind::Plan, "{error:?}");
    connects(&tcp("127.1", &format!("sslmode=verify-ca&{root}")))
        .await
        .map(|_| ())
        .or_else(|error| if error.kind() == ErrorKind::Plan { Ok(()) } else { Err(error) })
        .unwrap();
    // A client certificate in place of a password.
    let client = certificates.client("cert");
    let with =
        format!("{root}&sslmode=verify-full&sslcert={}&sslkey={}", client.certificate.display(), client.key.display());
    connects(&over_tcp(&running, "cert", "localhost", &with, "")).await.unwrap();
    let error = refused(&over_tcp(&running, "cert", "localhost", &format!("{root}&sslmode=verify-full"), "")).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert!(error.remedy().unwrap().contains("sslcert"), "{error:?}");
}

/// A password file that lives as long as the test's process.
fn secret_kept() -> tempfile::NamedTempFile {
    let mut file = secret("right-hunter2");
    file.disable_cleanup(true);
    file
}

#[tokio::test]
async fn a_password_is_not_sent_in_clear_text_where_others_can_listen() {
    let running = PrivatePostgres::on_loopback(&[]);
    running.sql("postgres", "ALTER ROLE postgres PASSWORD 'right-hunter2'");
    running.set_hba("local all all trust\nhost all,replication all all password\n");
    let right = secret("right-hunter2");
    let error = refused(&over_tcp(&running, "postgres", "127.0.0.1", "", &password(&right))).await;
    assert!(error.message().contains("clear text"), "{error:?}");
    assert!(error.remedy().unwrap().contains("sslmode"), "{error:?}");
    // What is no PostgreSQL server says nothing, or something else.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let web = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    });
    let error = refused(&server(&format!("url: 'postgres://127.0.0.1:{port}'"))).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    drop(web.await.unwrap());
}

#[tokio::test]
async fn a_session_survives_what_it_is_refused_and_keeps_what_the_server_remarks() {
    let running = PrivatePostgres::start();
    let mut connection = Connection::connect(&over_socket(&running, ""), Purpose::Sql("postgres")).await.unwrap();
    let error = connection.query("select 1; select no_such_column").await.unwrap_err();
    assert_eq!(server_error(&error).unwrap().code, "42703");
    let rows = connection.query("select 'a', null, ''; select generate_series(1, 3)").await.unwrap();
    assert_eq!(rows[0], [[Some("a".to_owned()), None, Some(String::new())]]);
    assert_eq!(rows[1].len(), 3);
    connection.query("do $$ begin raise warning 'look here'; end $$").await.unwrap();
    let notices = connection.take_notices();
    assert_eq!((notices[0].severity.as_str(), notices[0].message.as_str()), ("WARNING", "look here"));
    assert!(connection.take_notices().is_empty());
    assert!(connection.version().unwrap().major() >= 13);
    // The server ends the session: an error, and then no more.
    let error = connection.query("select pg_terminate_backend(pg_backend_pid())").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(connection.query("select 1").await.is_err());
}

#[tokio::test]
async fn a_dropped_session_cancels_what_the_server_does_for_it() {
    let running = PrivatePostgres::start();
    let mut connection = Connection::connect(&over_socket(&running, ""), Purpose::Sql("postgres")).await.unwrap();
    connection.begin("select pg_sleep(1000)").await.unwrap();
    let sleeping = "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'";
    while running.sql("postgres", sleeping) != "1" {}
    drop(connection);
    while running.sql("postgres", sleeping) != "0" {
        tokio::task::yield_now().await;
    }
}

/// Reads the log from `from` up to `to`.
async fn receive(stream: &mut WalStream, mut at: Lsn, to: Lsn) -> Vec<u8> {
    let mut log = Vec::new();
    while at < to {
        match stream.next().await.unwrap() {
            Received::Wal { start, data, end } => {
                assert_eq!(start, at, "without gaps");
                assert!(end >= start);
                at = Lsn(start.0 + data.len() as u64);
                log.extend_from_slice(&data);
            }
            Received::Keepalive { reply, .. } => {
                if reply {
                    stream.confirm(at, at, Reply::NotNeeded).await.unwrap();
                }
            }
            Received::Ended | Received::Stopped => panic!("the log ended"),
        }
    }
    stream.confirm(at, at, Reply::Requested).await.unwrap();
    log
}

#[tokio::test]
async fn the_log_is_streamed_from_a_slot_byte_for_byte() {
    let running = PrivatePostgres::start();
    let server = over_socket(&running, "");
    let mut connection = connects(&server).await.unwrap();
    connection.create_slot("stackward_test", SlotKind::Permanent).await.unwrap();
    let error = connection.create_slot("stackward_test", SlotKind::Permanent).await.unwrap_err();
    assert!(error.remedy().unwrap().contains("drop it"), "{error:?}");
    let from = Lsn(connection.identify_system().await.unwrap().flushed.0 & !0xff_ffff);
    running.sql("postgres", "create table t as select n from generate_series(1, 10000) n; select pg_switch_wal()");
    let to = Lsn(from.0 + 0x100_0000);
    let Started::Streaming(mut stream) = WalStream::start(connection, Some("stackward_test"), from, 1).await.unwrap()
    else {
        panic!("it streams")
    };
    let log = receive(&mut stream, from, to).await;
    let segment = format!("00000001{:08X}{:08X}", from.0 >> 32, (from.0 & 0xffff_ffff) >> 24);
    let file = std::fs::read(running.data_folder().join("pg_wal").join(&segment)).unwrap();
    assert!(log[..file.len()] == file, "the very segment");
    let confirmed = format!("select restart_lsn >= '{to}' from pg_replication_slots");
    while running.sql("postgres", &confirmed) != "t" {
        tokio::task::yield_now().await;
    }
    // Somebody else reads the slot.
    let another = connects(&server).await.unwrap();
    let error = WalStream::start(another, Some("stackward_test"), from, 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    let mut connection = stream.stop().await.unwrap();
    if connection.version().unwrap().major() >= 15 {
        let slot = connection.read_slot("stackward_test").await.unwrap().unwrap();
        assert!(slot.restart.unwrap() >= to);
        assert_eq!(connection.read_slot("no_such_slot").await.unwrap(), None);
    }
    connection.drop_slot("stackward_test").await.unwrap();
    assert_eq!(running.sql("postgres", "select count(*) from pg_replication_slots"), "0");
    // Without a slot the server removes what it does not need.
    let first = running.data_folder().join("pg_wal").join(segment);
    while first.exists() {
        running.sql("postgres", "create table if not exists u (); drop table u; select pg_switch_wal(); checkpoint");
    }
    let Started::Streaming(mut stream) = WalStream::start(connection, None, from, 1).await.unwrap() else {
        panic!("it tries")
    };
    let error = stream.next().await.unwrap_err();
    assert_eq!(server_error(&error).unwrap().code, "58P01", "{error:?}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn the_log_goes_on_after_a_promotion_on_the_next_timeline() {
    let primary = PrivatePostgres::start();
    let standby = primary.standby();
    let server = over_socket(&standby, "");
    let mut connection = connects(&server).await.unwrap();
    let from = Lsn(connection.identify_system().await.unwrap().flushed.0 & !0xff_ffff);
    let Started::Streaming(mut stream) = WalStream::start(connection, None, from, 1).await.unwrap() else {
        panic!("it streams")
    };
    standby.promote();
    while stream.next().await.unwrap() != Received::Ended {}
    let (mut connection, next) = stream.finish().await.unwrap();
    let next = next.expect("another timeline follows");
    assert_eq!(next.timeline, 2);
    let history = connection.timeline_history(2).await.unwrap();
    assert_eq!(history.file, "00000002.history");
    assert!(String::from_utf8_lossy(&history.content).contains(&next.start.to_string()));
    let error = connection.timeline_history(7).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    match WalStream::start(connection, None, next.start, 1).await.unwrap() {
        Started::Ended(mut connection, again) => {
            assert_eq!(again, Some(next));
            connection.identify_system().await.unwrap();
        }
        Started::Streaming(_) => panic!("there is nothing to stream"),
    }
}
