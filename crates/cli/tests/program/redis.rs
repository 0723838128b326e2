//! A Redis server as operators keep it: reached over TLS, backed up, drilled, taken apart and put back.

use backup_testkit::redis::{ClientCertificate, Listen};
use backup_testkit::{Certificates, PrivateRedis};

use crate::support::{Machine, Readers, text};

const PASSWORD: &str = "hunter2-of-the-cache";

fn machine(server: &PrivateRedis, authority: &Certificates, more: &str) -> Machine {
    let machine = Machine::with_sources("  cache:\n    redis: {}\n", Readers::Everybody);
    std::fs::write(machine.path("password"), PASSWORD).unwrap();
    std::fs::copy(authority.ca(), machine.path("ca.pem")).unwrap();
    let source = format!(
        "  cache:\n    redis:\n      url: rediss://127.0.0.1:{}\n      tls: {{ ca: ca.pem }}\n      \
         password: {{ file: {} }}\n{more}",
        server.port(),
        machine.path("password").display()
    );
    machine.plan("repository:\n  url: ./repository\n  state: state\n  encryption: none\n", &source);
    machine
}

#[test]
fn a_server_behind_tls_is_saved_proven_and_taken_apart() {
    let authority = Certificates::new();
    let identity = authority.server();
    let listen = Listen::Tls(&authority, &identity, ClientCertificate::NotAsked);
    let server = PrivateRedis::listening(listen, &[("requirepass", PASSWORD)]);
    server.pipe("SET plain value\nHSET hash f v\nSELECT 3\nRPUSH list a b c\n");
    let digest = server.digest();
    let machine = machine(&server, &authority, "");
    machine.good("init");
    machine.good("validate --online");
    machine.good("backup");
    machine.good("verify --depth structure");
    machine.good("drill");
    // The portable form, for `redis-cli --pipe`.
    machine.good("restore --source cache --target out --select commands");
    let target = PrivateRedis::start();
    target.pipe_file(&machine.path("out/cache/commands.resp"));
    assert_eq!(target.digest(), digest);
    // Everything as files, with what to do with them.
    machine.good("restore --target files");
    assert!(machine.path("files/cache/HOW-TO-RESTORE.txt").exists());
    // Lost, and put back over TLS.
    server.call(&["FLUSHALL"]);
    let plan = machine.good("restore --dry-run");
    assert!(plan.contains("by commands"), "{plan}");
    machine.good("restore");
    assert_eq!(server.digest(), digest);
    let (code, stderr) = machine.bad("restore");
    assert!(code == 1 && stderr.contains("--force"), "{code}: {stderr}");
}

#[test]
fn a_fuzzy_snapshot_says_so_to_the_operator() {
    let authority = Certificates::new();
    let identity = authority.server();
    let listen = Listen::Tls(&authority, &identity, ClientCertificate::NotAsked);
    let server = PrivateRedis::listening(listen, &[("requirepass", PASSWORD)]);
    server.pipe("SET plain value\n");
    let machine = machine(&server, &authority, "      modes: [export]\n");
    machine.good("init");
    let output = machine.run("backup");
    assert_eq!(output.status.code(), Some(0));
    let shown = text(&output.stderr) + &text(&output.stdout) + &machine.good("show");
    assert!(shown.contains("fuzzy"), "{shown}");
    assert!(!shown.contains(PASSWORD));
    machine.good("drill");
}

#[test]
fn a_certificate_that_is_not_trusted_is_said_with_the_remedy() {
    let (authority, stranger) = (Certificates::new(), Certificates::new());
    let identity = authority.server();
    let listen = Listen::Tls(&authority, &identity, ClientCertificate::NotAsked);
    let server = PrivateRedis::listening(listen, &[("requirepass", PASSWORD)]);
    let machine = machine(&server, &stranger, "");
    machine.good("init");
    let (_, stderr) = machine.bad("validate --online");
    assert!(stderr.contains("not trusted") && stderr.contains("`ca` of `tls`"), "{stderr}");
    assert!(!stderr.contains(PASSWORD));
}
