//! Clusters whose names are not UTF-8, or hard on terminals: saved, verified, drilled and restored all the same.

use backup_core::engine::RestoreTarget;
use backup_testkit::PrivatePostgres;

use crate::support::{back_up, context, databases, drill, engine, open_folder, restore, select};

/// A server whose shared names are in `encoding`; the C locale works with all.
fn cluster(encoding: &str) -> PrivatePostgres {
    let encoding = format!("--encoding={encoding}");
    PrivatePostgres::with_initdb(&[&encoding, "--no-locale"], &[])
}

/// Names that are not ASCII, wherever there can be some. Escapes (`U&`) are the same in every client encoding.
const FILL: &str = r#"
    CREATE ROLE U&"m\00fcller"; ALTER ROLE U&"m\00fcller" SET work_mem = '8MB'; COMMENT ON ROLE U&"m\00fcller" IS U&'gr\00fcn; ''x''
CREATE ROLE postgres;';
    CREATE ROLE reader IN ROLE U&"m\00fcller";
    CREATE DATABASE U&"gr\00f6\00dfe" OWNER U&"m\00fcller";
    COMMENT ON DATABASE U&"gr\00f6\00dfe" IS U&'\00fc';
    ALTER DATABASE U&"gr\00f6\00dfe" SET app.x = U&'\00fc';"#;
const INSIDE: &str = r#"
    CREATE TABLE U&"sch\00f6n" (U&"gr\00f6\00dfe" text, id serial PRIMARY KEY);
    INSERT INTO U&"sch\00f6n" VALUES (U&'gr\00fcn'), ('x');
    ALTER TABLE U&"sch\00f6n" OWNER TO U&"m\00fcller";
    CREATE MATERIALIZED VIEW U&"\00fcbersicht" AS SELECT count(*) AS n FROM U&"sch\00f6n";"#;

async fn names_of(engine: &backup_core::engine::Engine, reader: &backup_core::BackupReader) -> Vec<String> {
    let verified = engine.verifier.verify(&context(), reader).await.unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
    let report = drill(engine, reader).await;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    report.fingerprint.0.keys().cloned().collect()
}

#[tokio::test]
async fn a_latin1_cluster_comes_back_name_by_name() {
    let server = cluster("LATIN1");
    server.sql("postgres", &format!("SET client_encoding = 'UTF8'; {FILL}"));
    // psql sends the bytes of its argument; the server has others.
    let template = "CREATE DATABASE way TEMPLATE template0";
    server.sql("postgres", template);
    server.sql("way", INSIDE);
    server.sql("postgres", "SET client_encoding = 'UTF8'; ALTER DATABASE way OWNER TO \"müller\"");
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let details = saved.record().details["databases"].as_array().unwrap().clone();
    let names: Vec<&str> = details.iter().map(|database| database["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["größe", "postgres", "way"]);
    assert_eq!((&details[0]["owner"], &details[0]["comment"]), (&"müller".into(), &"ü".into()));
    let reader = saved.reader().await;
    let globals = reader.read(&backup_core::ArtifactName::new("globals.sql").unwrap(), 1 << 20).await.unwrap();
    assert!(String::from_utf8(globals).unwrap().contains("CREATE ROLE \"müller\""));
    assert!(names_of(&engine, &reader).await.contains(&"tables of way".to_owned()));

    // The physical drill goes into every database, too.
    let physical = crate::support::engine(&server, "modes: [physical]");
    let base = back_up(&physical).await.unwrap();
    let report = drill(&physical, &base.reader().await).await;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert!(report.fingerprint.0.contains_key("objects of größe"), "{:?}", report.fingerprint);

    let target = cluster("LATIN1");
    let report = restore(&crate::support::engine(&target, ""), &reader, &RestoreTarget::default()).await.unwrap();
    assert!(report.lacking.is_empty(), "{report:?}");
    assert_eq!(databases(&target), databases(&server));
    assert_eq!(target.dump_globals(), server.dump_globals());
    assert_eq!(target.dump("way"), server.dump("way"));
    assert_eq!(crate::support::properties(&target, "way"), crate::support::properties(&server, "way"));
}

#[tokio::test]
async fn globals_that_were_saved_in_the_clusters_own_encoding_are_read() {
    let server = cluster("LATIN1");
    server.sql("postgres", &format!("SET client_encoding = 'UTF8'; {FILL}"));
    server.sql("postgres", "CREATE DATABASE way TEMPLATE template0");
    server.sql("way", INSIDE);
    // As `pg_dumpall` writes them when nobody says how.
    let script = "out=$(\"$real\" \"$@\" --encoding=LATIN1; echo \"end $?\"); \
                  printf '%s' \"${out%end *}\"; exit \"${out##*end }\"";
    let script = format!("[ \"$1\" = --version ] && exec \"$real\" \"$@\"\n{script}");
    let (_tools, bin) = crate::support::tools_with(&server, &[("pg_dumpall", &script)]);
    let old = crate::support::engine(&server, &format!("bin: {}", bin.display()));
    let saved = back_up(&old).await.unwrap();
    let reader = saved.reader().await;
    let globals = reader.read(&backup_core::ArtifactName::new("globals.sql").unwrap(), 1 << 20).await.unwrap();
    assert!(String::from_utf8(globals).is_err(), "it is in LATIN1");
    let report = drill(&engine(&server, ""), &reader).await;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    // Onto a cluster in UTF-8 that has the role already.
    let target = PrivatePostgres::start();
    target.sql("postgres", "CREATE ROLE \"müller\"");
    let whole = RestoreTarget::default();
    let report = restore(&engine(&target, ""), &reader, &whole).await.unwrap();
    assert!(databases(&target).contains(&"größe".to_owned()), "{report:?}");
    let comment = "SELECT shobj_description(oid, 'pg_authid') FROM pg_authid WHERE rolname = 'müller'";
    assert!(target.sql("postgres", comment).starts_with("grün; 'x'"));
}

#[tokio::test]
async fn japanese_and_unknown_encodings_are_verified_and_drilled() {
    let server = cluster("EUC_JP");
    let name = r#"U&"\8868""#;
    server.sql(
        "postgres",
        &format!("CREATE ROLE {name}; CREATE DATABASE {name} OWNER {name}; CREATE TABLE {name} (id int)"),
    );
    server.sql(
        "postgres",
        &format!("INSERT INTO {name} VALUES (1); CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0"),
    );
    server.sql("latin", r#"CREATE TABLE U&"gr\00f6\00dfe" (id int)"#);
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let groups = names_of(&engine, &saved.reader().await).await;
    assert!(groups.contains(&"tables of 表".to_owned()) || groups.contains(&"objects of 表".to_owned()), "{groups:?}");
    drop(server);

    // A cluster that does not know its encoding has any bytes.
    let server = cluster("SQL_ASCII");
    let raw = r"SELECT format('CREATE ROLE %I', E'm\xfcller'), format('CREATE TABLE %I (id int)', E't\xff'),
        format('CREATE DATABASE %I', E'd\xfe') \gexec";
    server.sql("postgres", &format!("SET client_encoding = 'SQL_ASCII'; {raw}"));
    server.sql(
        "postgres",
        "SET client_encoding = 'SQL_ASCII'; SELECT format('INSERT INTO %I VALUES (1)', E't\\xff') \\gexec",
    );
    let engine = crate::support::engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let groups = names_of(&engine, &saved.reader().await).await;
    assert!(groups.len() >= 3, "{groups:?}");
    let target = cluster("SQL_ASCII");
    restore(&crate::support::engine(&target, ""), &saved.reader().await, &RestoreTarget::default()).await.unwrap();
    assert_eq!(target.dump_globals(), server.dump_globals());
    assert_eq!(target.dump("postgres"), server.dump("postgres"));
}

/// In a cluster in UTF-8 a database of another encoding sees the bytes of shared names through its own.
#[tokio::test]
async fn a_mixed_cluster_keeps_its_owners() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "CREATE ROLE \"müller 😀\"; CREATE ROLE \"new\nline\"");
    let create = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0 OWNER \"müller 😀\"";
    let evil = "evil\u{1b}[2J\nname 😀";
    server.sql("postgres", &format!("CREATE DATABASE latin {create}"));
    server.sql("postgres", &format!("CREATE DATABASE \"{evil}\" OWNER \"new\nline\""));
    server.sql("latin", "CREATE TABLE t AS SELECT 1 AS id");
    server.sql(evil, "CREATE TABLE \"a\nb\" AS SELECT 1 AS id; CREATE MATERIALIZED VIEW \"m\nv\" AS SELECT 1 AS one");
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let told = format!("{:?}", saved.recorder);
    assert!(!told.contains("\\u{1b}[2J\\n"), "no name moves a cursor: {told}");
    names_of(&engine, &saved.reader().await).await;
    let target = PrivatePostgres::start();
    let report = restore(&crate::support::engine(&target, ""), &saved.reader().await, &RestoreTarget::default()).await;
    let report = report.unwrap();
    assert!(report.restored.iter().all(|line| !line.contains(['\n', '\u{1b}'])), "{report:?}");
    for name in ["latin", evil] {
        assert_eq!(target.dump(name), server.dump(name));
        assert_eq!(crate::support::properties(&target, name), crate::support::properties(&server, name));
    }
    let folder = open_folder();
    let place = backup_core::engine::Place::Folder(folder.path().join("out"));
    let files = RestoreTarget { place, ..select(evil) };
    restore(&engine, &saved.reader().await, &files).await.unwrap();
}
