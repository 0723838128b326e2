//! TLS against real servers: who is believed, who is not, and what is said about it.
#![expect(clippy::unwrap_used, reason = "helpers of tests panic, like tests")]

use std::io::Write as _;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tls::{TlsConfig, TlsConnector, TlsStream, Verification, explain};
use backup_testkit::redis::{ClientCertificate, Listen};
use backup_testkit::{Certificates, Identity, PrivateRedis};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PING: &[u8] = b"PING\r\n";
const PONG: &[u8] = b"+PONG\r\n";

fn server(
    authority: &Certificates,
    identity: &Identity,
    clients: ClientCertificate,
    more: &[(&str, &str)],
) -> PrivateRedis {
    PrivateRedis::listening(Listen::Tls(authority, identity, clients), more)
}

async fn connect(port: u16, config: &TlsConfig, host: &str) -> Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    TlsConnector::new(config, host)?.connect(tcp).await
}

/// Connects and asks: a server that speaks TLS 1.3 refuses a client only when that wants an answer.
async fn ask(port: u16, config: &TlsConfig, host: &str) -> Result<Vec<u8>> {
    let mut stream = connect(port, config, host).await?;
    let mut answer = vec![0; PONG.len()];
    let asked = async {
        stream.write_all(PING).await?;
        stream.read_exact(&mut answer).await
    };
    asked.await.map_err(|source| explain("cannot read", source))?;
    Ok(answer)
}

fn trusting(authority: &Certificates) -> TlsConfig {
    TlsConfig { ca: Some(authority.ca()), ..TlsConfig::default() }
}

/// What is believed of each certificate, at each degree of care.
#[tokio::test]
async fn a_server_is_believed_as_far_as_the_plan_says() {
    let (authority, stranger) = (Certificates::new(), Certificates::new());
    let alone = authority.self_signed_server();
    let cases = [
        // (its certificate, the trusted file, the name that is asked for, what `full` and `ca` say)
        (authority.server(), authority.ca(), "localhost", None, None),
        (authority.server(), authority.ca(), "127.0.0.1", None, None),
        (authority.server(), authority.ca(), "db.example", Some("not for `db.example`, but for"), None),
        (authority.server_without_names(), authority.ca(), "localhost", Some("no name at all"), None),
        (authority.server(), stranger.ca(), "localhost", Some("not trusted"), Some("not trusted")),
        (authority.expired_server(), authority.ca(), "localhost", Some("has expired"), Some("has expired")),
        (alone.clone(), alone.certificate.clone(), "localhost", None, None),
        (alone.clone(), alone.certificate.clone(), "db.example", Some("not for"), None),
        (alone.clone(), authority.ca(), "localhost", Some("cannot be accepted"), Some("cannot be accepted")),
    ];
    for (identity, ca, name, full, only_ca) in cases {
        let server = server(&authority, &identity, ClientCertificate::NotAsked, &[]);
        for (verify, refused) in [(Verification::Full, full), (Verification::Ca, only_ca), (Verification::None, None)] {
            let ca = Some(ca.clone()).filter(|_| verify != Verification::None);
            let answer = ask(server.port(), &TlsConfig { ca, verify, ..TlsConfig::default() }, name).await;
            let case = format!("{} asked for {name}, {verify:?}: {answer:?}", identity.certificate.display());
            match refused {
                None => assert_eq!(answer.expect(&case), PONG),
                Some(words) => {
                    let error = answer.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{case}");
                    assert!(error.message().contains(words) && error.remedy().is_some(), "{case}");
                }
            }
        }
    }
}

/// Lists of revoked certificates: files and folders, in force and not, of the right authority and of another one.
#[tokio::test]
async fn a_certificate_that_was_revoked_is_not_believed() {
    let (authority, stranger) = (Certificates::new(), Certificates::named("another authority"));
    let (revoked, good) = (authority.server(), authority.server());
    let impostor = Certificates::new();
    let before = authority.revoked();
    authority.revoke(&revoked);
    let list = authority.revoked();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(&list, folder.path().join("0a1b2c3d.r0")).unwrap();
    std::fs::copy(stranger.revoked(), folder.path().join("4d3c2b1a.r0")).unwrap();
    std::fs::copy(authority.ca(), folder.path().join("0a1b2c3d.0")).unwrap();
    let folder = folder.path().to_owned();
    let cases = [
        (&revoked, vec![], None),
        (&revoked, vec![before.clone()], None),
        (&revoked, vec![list.clone()], Some("was revoked by its authority")),
        (&revoked, vec![folder.clone()], Some("was revoked by its authority")),
        (&revoked, vec![stranger.revoked(), list.clone()], Some("was revoked by its authority")),
        (&revoked, vec![stranger.revoked()], Some("no revocation list")),
        // Of the same name, which is not enough.
        (&revoked, vec![impostor.revoked()], Some("not made by the authority")),
        (&good, vec![list.clone()], None),
        (&good, vec![folder], None),
        (&good, vec![authority.revoked_out_of_date()], Some("out of date")),
    ];
    let servers =
        [&revoked, &good].map(|identity| (identity, server(&authority, identity, ClientCertificate::NotAsked, &[])));
    // Naming the very certificate does not help against its authority.
    let both = authority.ca().with_file_name("both.pem");
    let pem = [authority.ca(), revoked.certificate.clone()].map(|path| std::fs::read_to_string(path).unwrap());
    std::fs::write(&both, pem.concat()).unwrap();
    for (identity, crl, refused) in cases {
        let (_, server) = servers.iter().find(|(one, _)| *one == identity).unwrap();
        for (verify, name) in [(Verification::Full, "localhost"), (Verification::Ca, "another")] {
            for ca in [authority.ca(), both.clone()] {
                let named = identity == &revoked && ca == both;
                let config = TlsConfig { ca: Some(ca), crl: crl.clone(), verify, ..TlsConfig::default() };
                let answer = ask(server.port(), &config, name).await;
                let case = format!("{verify:?} {crl:?}: {answer:?}");
                match refused.filter(|words| !named || words.contains("was revoked")) {
                    None => assert_eq!(answer.expect(&case), PONG),
                    Some(words) => {
                        let error = answer.unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{case}");
                        assert!(error.message().contains(words) && error.remedy().is_some(), "{case}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn revocation_lists_that_cannot_be_used_are_refused_by_name() {
    let authority = Certificates::new();
    let empty = tempfile::tempdir().unwrap();
    let of = |crl: &std::path::Path, verify| {
        let ca = Some(authority.ca()).filter(|_| verify != Verification::None);
        TlsConnector::new(&TlsConfig { ca, crl: vec![crl.to_owned()], verify, ..TlsConfig::default() }, "localhost")
    };
    for path in [empty.path().to_owned(), authority.ca(), empty.path().join("nothing")] {
        let error = of(&path, Verification::Full).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Plan, "{error:?}");
        assert!(error.message().contains(path.to_str().unwrap()), "{error:?}");
    }
    let error = of(&authority.revoked(), Verification::None).unwrap_err();
    assert!(error.message().contains("`crl`"), "{error:?}");
}

#[tokio::test]
async fn the_system_does_not_know_an_authority_of_ours() {
    let authority = Certificates::new();
    let server = server(&authority, &authority.server(), ClientCertificate::NotAsked, &[]);
    // A machine without any authority says so instead; neither believes the server.
    let error = ask(server.port(), &TlsConfig::default(), "localhost").await.unwrap_err();
    assert!(error.remedy().is_some_and(|hint| hint.contains("`ca`") || hint.contains("ca-certificates")), "{error:?}");
}

#[tokio::test]
async fn a_server_that_asks_who_we_are_is_told() {
    let (authority, stranger) = (Certificates::new(), Certificates::new());
    for protocols in ["\"TLSv1.2\"", "\"TLSv1.3\""] {
        let more = [("tls-protocols", protocols)];
        let server = server(&authority, &authority.server(), ClientCertificate::Required, &more);
        let config = |client: Identity| TlsConfig {
            cert: Some(client.certificate),
            key: Some(client.key),
            ..trusting(&authority)
        };
        assert_eq!(ask(server.port(), &config(authority.client("ann")), "localhost").await.unwrap(), PONG);
        for (config, words) in [(trusting(&authority), "`cert`"), (config(stranger.client("eve")), "`cert`")] {
            let error = ask(server.port(), &config, "localhost").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{protocols}: {error:?}");
            assert!(error.remedy().is_some_and(|hint| hint.contains(words)), "{protocols}: {error:?}");
        }
    }
}

#[tokio::test]
async fn a_server_name_stands_in_for_the_host() {
    let authority = Certificates::new();
    let server = server(&authority, &authority.server(), ClientCertificate::NotAsked, &[]);
    let config = TlsConfig { server_name: Some("localhost".to_owned()), ..trusting(&authority) };
    assert_eq!(ask(server.port(), &config, "10.1.2.3").await.unwrap(), PONG);
    let error = ask(server.port(), &trusting(&authority), "not a name").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Plan);
}

#[tokio::test]
async fn the_servers_certificate_is_at_hand() {
    let authority = Certificates::new();
    let identity = authority.server();
    let server = server(&authority, &identity, ClientCertificate::NotAsked, &[]);
    for verify in [Verification::Ca, Verification::None] {
        let ca = Some(authority.ca()).filter(|_| verify == Verification::Ca);
        let stream =
            connect(server.port(), &TlsConfig { ca, verify, ..TlsConfig::default() }, "localhost").await.unwrap();
        let pem = std::fs::read_to_string(&identity.certificate).unwrap();
        assert_eq!(pem_of(stream.peer_certificate().unwrap()), pem.split_whitespace().collect::<String>());
        assert!(stream.describe().starts_with("TLSv1"), "{}", stream.describe());
    }
}

/// A certificate as PEM, without white space.
fn pem_of(der: &[u8]) -> String {
    use std::fmt::Write as _;
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = "-----BEGINCERTIFICATE-----".to_owned();
    for three in der.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63] as char;
            write!(text, "{}", if place > three.len() { '=' } else { digit }).unwrap();
        }
    }
    text + "-----ENDCERTIFICATE-----"
}

/// Whoever stands between may show the server's certificate, but does not hold its key.
#[tokio::test]
async fn a_certificate_without_its_key_is_not_believed_at_any_degree() {
    let authority = Certificates::new();
    let (shown, held) = (authority.server(), authority.self_signed_server());
    let port = cutting(acceptor(&shown, &held), PONG).await;
    for verify in [Verification::Full, Verification::Ca, Verification::None] {
        let ca = Some(authority.ca()).filter(|_| verify != Verification::None);
        let error = connect(port, &TlsConfig { ca, verify, ..TlsConfig::default() }, "localhost").await.unwrap_err();
        assert!(error.message().contains("does not hold the key"), "{verify:?}: {error:?}");
    }
}

/// A server that shows one identity's certificate and signs with the other's key.
fn acceptor(shown: &Identity, held: &Identity) -> tokio_rustls::TlsAcceptor {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certificate = CertificateDer::from_pem_file(&shown.certificate).unwrap();
    let key = provider.key_provider.load_private_key(PrivateKeyDer::from_pem_file(&held.key).unwrap()).unwrap();
    let forged = rustls::sign::CertifiedKey::new(vec![certificate], key);
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(std::sync::Arc::new(rustls::sign::SingleCertAndKey::from(forged)));
    tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config))
}

#[tokio::test]
async fn a_port_without_tls_is_said_to_be_one() {
    // Refuses at once, as PostgreSQL and web servers do; or hangs up.
    for answer in [b"-ERR unknown command\r\n".as_slice(), b"HTTP/1.1 400 Bad Request\r\n\r\n", b""] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 64];
            let _read = stream.read(&mut hello).await;
            stream.write_all(answer).await
        });
        let error = connect(port, &TlsConfig::default(), "localhost").await.unwrap_err();
        assert_no_tls(&error);
    }
}

/// A plain Redis waits for the end of a line: nothing comes, and the wait has an end.
#[tokio::test(start_paused = true)]
async fn a_plain_server_that_waits_is_given_up() {
    let server = PrivateRedis::listening(Listen::Plain, &[]);
    let error = connect(server.port(), &TlsConfig::default(), "localhost").await.unwrap_err();
    assert_no_tls(&error);
}

fn assert_no_tls(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(error.message().contains("does not speak TLS"), "{error:?}");
}

/// What ends without being announced was cut.
#[tokio::test]
async fn a_cut_connection_is_not_an_end() {
    let authority = Certificates::new();
    let identity = authority.server();
    let port = cutting(acceptor(&identity, &identity), PONG).await;
    let mut stream = connect(port, &trusting(&authority), "localhost").await.unwrap();
    let mut received = Vec::new();
    let error = stream.read_to_end(&mut received).await.unwrap_err();
    assert_eq!((received.as_slice(), explain("cannot read", error).kind()), (PONG, ErrorKind::Incomplete));
}

/// A server that says `text` to everybody and closes the connection below TLS, without a word.
async fn cutting(acceptor: tokio_rustls::TlsAcceptor, text: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                stream.write_all(text).await?;
                stream.flush().await?;
                stream.into_inner().0.shutdown().await
            });
        }
    });
    port
}

#[test]
fn settings_and_files_that_cannot_be_used_are_named() {
    let authority = Certificates::new();
    let (client, folder) = (authority.client("ann"), tempfile::tempdir().unwrap());
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        Some(path)
    };
    let empty = file("empty.pem", "");
    let encrypted =
        file("locked.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let (cert, key) = (Some(client.certificate), Some(client.key));
    let other_key = Some(authority.client("bob").key);
    let none = TlsConfig::default;
    let cases = [
        (TlsConfig { cert: cert.clone(), ..none() }, "need each other"),
        (TlsConfig { key: key.clone(), ..none() }, "need each other"),
        (TlsConfig { ca: Some(authority.ca()), verify: Verification::None, ..none() }, "trusts everybody"),
        (TlsConfig { ca: empty.clone(), ..none() }, "empty.pem"),
        (TlsConfig { ca: Some("/no/such/file".into()), ..none() }, "/no/such/file"),
        (TlsConfig { cert: cert.clone(), key: empty, ..none() }, "empty.pem"),
        (TlsConfig { cert: cert.clone(), key: encrypted, ..none() }, "encrypted"),
        (TlsConfig { cert, key: other_key, ..none() }, "cannot be used"),
    ];
    for (config, words) in cases {
        let error = TlsConnector::new(&config, "localhost").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Plan, "{error:?}");
        assert!(format!("{error:?}").contains(words), "{words}: {error:?}");
    }
}

#[test]
fn relative_paths_start_from_the_plans_folder() {
    let config: TlsConfig =
        serde_json::from_str(r#"{"ca": "ca.pem", "cert": "/c.pem", "key": "k.pem", "verify": "ca"}"#).unwrap();
    let config = config.in_folder(std::path::Path::new("/plans"));
    assert_eq!(config.ca.unwrap(), std::path::Path::new("/plans/ca.pem"));
    assert_eq!(config.cert.unwrap(), std::path::Path::new("/c.pem"));
    assert_eq!(config.verify, Verification::Ca);
    assert!(serde_json::from_str::<TlsConfig>(r#"{"verify": "maybe"}"#).is_err());
    assert!(serde_json::from_str::<TlsConfig>(r#"{"verified": true}"#).is_err());
}
