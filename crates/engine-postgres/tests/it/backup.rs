//! What a backup holds, and what it says of itself.

use backup_core::evidence::EvidenceRecord;
use backup_testkit::PrivatePostgres;

use crate::support::{WEIRD, back_up, context, engine, fill};

#[tokio::test]
async fn a_cluster_is_saved_with_evidence_and_described() {
    let server = PrivatePostgres::start();
    fill(&server);
    let engine = engine(&server, "");
    let preflight = engine.source.preflight(&context()).await.unwrap();
    assert!(preflight.description.starts_with("PostgreSQL 15."), "{}", preflight.description);
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
        ("public.per_year", 2),
    ] {
        assert_eq!(tables.get(table), Some(&rows), "{table} in {tables:?}");
    }
    assert!(!tables.contains_key("public.events") && !tables.contains_key("public.empty"));
    assert_eq!(record.fingerprint.0["objects of app"]["large objects"], 5);
    assert_eq!(record.fingerprint.0[&format!("tables of {WEIRD}")]["public.\"odd.schema table\""], 2);
    let details = serde_json::to_string(&record.details).unwrap();
    for word in ["hstore", "o'brien", "UTF8", "C.UTF-8", "data_checksums\":true", "search_path"] {
        assert!(details.contains(word), "{word} in {details}");
    }
    assert!(record.server.as_ref().unwrap().version.starts_with("15."));
    assert_eq!(record.warnings, Vec::<String>::new());
}
