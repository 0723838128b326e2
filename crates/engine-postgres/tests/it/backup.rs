//! What a backup holds, and what it says of itself.

use backup_core::ErrorKind;
use backup_core::evidence::EvidenceRecord;
use backup_testkit::PrivatePostgres;

use crate::support::{WEIRD, back_up, bin_of, build, context, engine, fill, tools_with};

#[tokio::test]
async fn a_cluster_is_saved_with_evidence_and_described() {
    let server = PrivatePostgres::start();
    fill(&server);
    let engine = engine(&server, "");
    let preflight = engine.source.preflight(&context()).await.unwrap();
    let major = server.major();
    assert!(preflight.description.starts_with(&format!("PostgreSQL {major}.")), "{}", preflight.description);
    assert!(preflight.expected_bytes.unwrap() > 1_000_000);
    assert!(preflight.warnings.is_empty(), "{:?}", preflight.warnings);

    let saved = back_up(&engine).await.unwrap();
    let record = saved.record();
    let names: Vec<&str> = record.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "config/pg_hba.conf",
            "config/pg_ident.conf",
            "config/postgresql.auto.conf",
            "config/postgresql.conf",
            "databases/app.dump",
            "databases/ascii.dump",
            "databases/icu.dump",
            "databases/latin.dump",
            "databases/postgres.dump",
            "databases/we%22ird%20%C3%9Cn%C3%AF%2Fdb%27%5C%20%24x.dump",
            "globals.sql"
        ]
    );
    for artifact in &record.artifacts {
        let proven = match &artifact.evidence {
            EvidenceRecord::Exit { trailer, .. } => trailer.is_some(),
            EvidenceRecord::ExactLength { bytes } => *bytes == artifact.bytes,
            _ => false,
        };
        assert!(proven, "{}: {:?}", artifact.name, artifact.evidence);
    }
    let tables = &record.fingerprint.0["tables of app"];
    for (table, rows) in [
        ("public.users", 1000),
        ("public.events_2025", 31),
        ("public.events_2026", 30),
        ("public.parent", 1),
        ("public.child", 2),
        ("public.unlogged", 3),
        ("\"Odd,Name\".\"tab\"\"le\"", 1),
    ] {
        assert_eq!(tables.get(table), Some(&rows), "{table} in {tables:?}");
    }
    assert!(!tables.contains_key("public.events") && !tables.contains_key("public.empty"));
    assert_eq!(record.fingerprint.0["materialized views of app"], [("public.per_year".to_owned(), 2)].into());
    assert_eq!(record.fingerprint.0["objects of app"]["large objects"], 5);
    assert_eq!(record.fingerprint.0[&format!("tables of {WEIRD}")]["public.\"odd.schema table\""], 2);
    let details = serde_json::to_string(&record.details).unwrap();
    for word in ["hstore", "o'brien", "UTF8", "C.UTF-8", "data_checksums\":true", "search_path"] {
        assert!(details.contains(word), "{word} in {details}");
    }
    assert!(record.server.as_ref().unwrap().version.starts_with(&format!("{major}.")));
    assert_eq!(record.warnings, Vec::<String>::new());
}

fn dumps(saved: &crate::support::Saved) -> Vec<&str> {
    let names = saved.record().artifacts.iter().map(|artifact| artifact.name.as_str());
    names.filter_map(|name| name.strip_prefix("databases/")?.strip_suffix(".dump")).collect()
}

#[tokio::test]
async fn the_newcomer_is_root_and_the_server_wants_peers() {
    let server = PrivatePostgres::start();
    server.set_hba("local all all peer\n");
    let (socket, bin) = (server.socket_folder().display(), bin_of(&server));
    let root = std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own)).unwrap() == 0;
    let result = back_up(&build(&format!("{{ socket: {socket}{bin} }}")).unwrap()).await;
    if root {
        assert_eq!(dumps(&result.unwrap()), ["postgres"]);
    }
    // As somebody else than the role: the error says what to do.
    let engine = build(&format!("{{ socket: {socket}, user: nobody{bin} }}")).unwrap();
    let error = engine.source.preflight(&context()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert!(error.remedy().unwrap().contains("root"), "{error:?}");
}

#[tokio::test]
async fn databases_are_chosen_and_what_is_left_out_is_said() {
    let server = PrivatePostgres::start();
    for name in ["a", "b", "c"] {
        server.sql("postgres", &format!("CREATE DATABASE {name}"));
    }
    server.sql("postgres", "ALTER DATABASE b IS_TEMPLATE true; ALTER DATABASE c ALLOW_CONNECTIONS false");
    server.sql("template1", "CREATE TABLE house_style (id int)");
    let saved = back_up(&engine(&server, "exclude: [postgres, gone]")).await.unwrap();
    assert_eq!(dumps(&saved), ["a"]);
    let warnings = saved.record().warnings.join("\n");
    for word in ["`b` is a template", "`c` does not allow", "template1 has objects", "`gone`, which does not exist"] {
        assert!(warnings.contains(word), "{word}: {warnings}");
    }
    let saved = back_up(&engine(&server, "databases: [b, template1]")).await.unwrap();
    assert_eq!(dumps(&saved), ["b", "template1"]);
    for (config, kind) in [
        ("databases: [nosuch]", ErrorKind::NotFound),
        ("databases: [c]", ErrorKind::PermissionDenied),
        ("databases: [a], exclude: [a]", ErrorKind::Plan),
    ] {
        let error = back_up(&engine(&server, config)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{config}: {error:?}");
        assert!(error.remedy().is_some(), "{error:?}");
    }
    let saved = back_up(&engine(&server, "databases: [a], fingerprint: none")).await.unwrap();
    assert!(saved.record().fingerprint.is_empty());
    let folder = server.socket_folder().display().to_string().replace('/', "%2F");
    let url =
        format!("{{ url: 'postgres://postgres@{folder}:5432/a?sslmode=disable', databases: [a]{} }}", bin_of(&server));
    assert_eq!(dumps(&back_up(&build(&url).unwrap()).await.unwrap()), ["a"]);
}

#[tokio::test]
async fn a_reader_without_superuser_saves_what_it_may_and_says_what_not() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "CREATE ROLE reader LOGIN PASSWORD 'x'; CREATE TABLE t AS SELECT 1 AS id");
    let engine = engine(&server, "user: reader");
    for error in [
        engine.source.preflight(&context()).await.map(|_| ()).unwrap_err(),
        back_up(&engine).await.map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
        assert!(error.remedy().unwrap().contains("GRANT pg_read_all_data TO reader;"), "{error:?}");
    }
    for (grant, without_passwords) in [("SELECT ON t", true), ("pg_read_all_data", false)] {
        if grant == "pg_read_all_data" && server.major() < 14 {
            // It came with 14; before, only a superuser reads the passwords.
            continue;
        }
        server.sql("postgres", &format!("GRANT {grant} TO reader"));
        let saved = back_up(&engine).await.unwrap();
        let warnings = saved.record().warnings.join("\n");
        assert_eq!(warnings.contains("passwords are not saved"), without_passwords, "{warnings}");
        assert!(warnings.contains("configuration files are not saved"), "{warnings}");
        assert_eq!(dumps(&saved), ["postgres"]);
        let globals = saved.reader().await.read(&"globals.sql".parse().unwrap(), 100_000).await.unwrap();
        assert_eq!(String::from_utf8(globals).unwrap().contains("PASSWORD"), !without_passwords);
    }
}

#[tokio::test]
async fn configuration_files_include_what_they_include() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let part = folder.path().join("10 more.conf");
    std::fs::write(&part, "work_mem = 5MB\n").unwrap();
    let include = format!("'{}'", folder.path().display());
    let server = PrivatePostgres::with_settings(&[("include_dir", &include)]);
    server.sql("postgres", "ALTER SYSTEM SET maintenance_work_mem = '33MB'");
    let saved = back_up(&engine(&server, "")).await.unwrap();
    let reader = saved.reader().await;
    let mut texts = Vec::new();
    for artifact in saved.record().artifacts.iter().filter(|artifact| artifact.name.as_str().starts_with("config/")) {
        texts.push(String::from_utf8(reader.read(&artifact.name, 1_000_000).await.unwrap()).unwrap());
    }
    for words in ["work_mem = 5MB", "maintenance_work_mem = '33MB'", "include_dir"] {
        assert!(texts.iter().any(|text| text.contains(words)), "{words}");
    }
}

#[tokio::test]
async fn a_database_that_vanishes_is_reported_and_recorded() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "CREATE DATABASE gone");
    // Whoever connects to it first finds it dropped.
    let script = "case \"$*\" in *dbname=\\'gone*) \"$real\" -q -d \"${@: -1}\" -c '' 2>/dev/null && \
                  \"$real\" -q -h \"$DROP_HOST\" -U postgres -d postgres -c 'DROP DATABASE IF EXISTS gone';; esac\n\
                  exec \"$real\" \"$@\"";
    let script = script.replace("$DROP_HOST", &server.socket_folder().display().to_string());
    let (_folder, bin) = tools_with(&server, &[("psql", &script)]);
    let saved = back_up(&engine(&server, &format!("bin: {}", bin.display()))).await.unwrap();
    assert_eq!(dumps(&saved), ["postgres"]);
    assert!(saved.record().warnings.iter().any(|warning| warning.contains("`gone` was dropped")));
    assert_eq!(saved.record().details["cluster"]["vanished"], serde_json::json!(["gone"]));
}

#[tokio::test]
async fn a_standby_is_saved_without_unlogged_rows_and_says_so() {
    let primary = PrivatePostgres::start();
    let tables = "CREATE TABLE kept AS SELECT 1 AS id; CREATE UNLOGGED TABLE lost AS SELECT 2 AS id";
    primary.sql("postgres", tables);
    let standby = primary.standby();
    let engine = engine(&standby, "");
    let saved = back_up(&engine).await.unwrap();
    assert!(saved.record().warnings.iter().any(|warning| warning.contains("standby")), "{:?}", saved.record().warnings);
    let counted = &saved.record().fingerprint.0["tables of postgres"];
    assert_eq!(counted.keys().collect::<Vec<_>>(), ["public.kept"]);
    let report = crate::support::drill(&engine, &saved.reader().await).await;
    assert_eq!(report.findings, Vec::<String>::new());
    let whole = backup_core::engine::RestoreTarget::default();
    let error = engine.restorer.plan_restore(&context(), &saved.reader().await, &whole).await.unwrap_err();
    assert!(error.remedy().unwrap().contains("primary"), "{error:?}");
}
