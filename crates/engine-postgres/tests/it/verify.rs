//! What a verification finds.

use backup_testkit::PrivatePostgres;

use crate::faults::{Damage, damaged, with_details};
use crate::support::{back_up, context, engine, fill};

#[tokio::test]
async fn a_whole_backup_verifies_without_a_server() {
    let server = PrivatePostgres::start();
    fill(&server);
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    server.stop_immediately();
    let report = engine.verifier.verify(&context(), &saved.reader().await).await.unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.checked.len(), saved.record().artifacts.len());
    assert!(report.checked.iter().any(|line| line.contains("app.dump") && line.contains("tables listed")));
}

#[tokio::test]
async fn verify_finds_one_flipped_bit_and_a_cut_dump() {
    let server = PrivatePostgres::start();
    fill(&server);
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    for artifact in ["databases/app.dump", "globals.sql", "config/postgresql.conf"] {
        for damage in [Damage::FlipByte, Damage::Cut] {
            if artifact.starts_with("config/") && damage == Damage::Cut {
                continue; // any text is a configuration file
            }
            let report = engine.verifier.verify(&context(), &damaged(&saved, artifact, damage).await).await.unwrap();
            let found: Vec<&str> = report.findings.iter().map(|finding| finding.artifact.as_str()).collect();
            assert_eq!(found, [artifact], "{damage:?}: {:?}", report.findings);
        }
    }
}

#[tokio::test]
async fn a_table_that_was_counted_and_is_not_listed_is_a_finding() {
    let server = PrivatePostgres::start();
    fill(&server);
    let engine = engine(&server, "");
    let mut saved = back_up(&engine).await.unwrap();
    saved.manifest.sources[0].fingerprint.count("tables of app", "public.lost", 7);
    // `with_details` reads the changed manifest.
    let reader = with_details(&saved, |details| details.replace("o'brien", "o'brian")).await;
    let report = engine.verifier.verify(&context(), &reader).await.unwrap();
    assert!(report.findings[0].problem.contains("public.lost"), "{:?}", report.findings);
}
