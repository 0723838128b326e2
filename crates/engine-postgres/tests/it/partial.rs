//! What of a cluster does not come back spoils nothing else, and is said.

use backup_core::engine::{Existing, Place, RestoreTarget};
use backup_testkit::PrivatePostgres;

use crate::faults::{Damage, damaged};
use crate::support::{back_up, databases, drill, engine, restore, select};

/// A view over a function that works only while the plan's own table is in the search path, and one that never works again.
const VIEWS: &str = "
    CREATE TABLE t AS SELECT generate_series(1, 10) AS n;
    CREATE FUNCTION helper(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN n + 1; END';
    CREATE FUNCTION by_path(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN helper(n); END';
    CREATE MATERIALIZED VIEW by_path_view AS SELECT by_path(n) AS n FROM t;
    CREATE TABLE divisor AS SELECT 1 AS by;
    CREATE MATERIALIZED VIEW broken AS SELECT n / by AS n FROM t, divisor;
    CREATE MATERIALIZED VIEW on_it AS SELECT count(*) AS n FROM broken;
    CREATE MATERIALIZED VIEW fine AS SELECT count(*) AS n FROM t;
    CREATE MATERIALIZED VIEW never AS SELECT 1 AS n WITH NO DATA;
    UPDATE divisor SET by = 0;";

#[tokio::test]
async fn a_view_that_cannot_be_filled_is_named_and_the_rest_is_there() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "CREATE DATABASE views; CREATE DATABASE other");
    server.sql("views", VIEWS);
    server.sql("other", "CREATE TABLE t AS SELECT 1 AS id");
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let reader = saved.reader().await;
    let target = PrivatePostgres::start();
    let report = restore(&crate::support::engine(&target, ""), &reader, &RestoreTarget::default()).await.unwrap();
    assert_eq!(databases(&target), ["other", "postgres", "views"]);
    assert_eq!(report.lacking.len(), 2, "{report:?}");
    assert!(report.lacking[0].contains("public.broken of `views`") && report.lacking[0].contains("division by zero"));
    assert!(report.lacking[1].contains("public.on_it"), "{report:?}");
    assert_eq!(target.sql("views", "SELECT sum(n) FROM by_path_view"), "65");
    assert_eq!(target.sql("views", "SELECT n FROM fine"), "10");
    let empty =
        "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relkind = 'm' AND NOT relispopulated";
    assert_eq!(target.sql("views", empty), "broken never on_it");
    assert_eq!(target.dump("views"), {
        server.sql(
            "views",
            "REFRESH MATERIALIZED VIEW broken WITH NO DATA; REFRESH MATERIALIZED VIEW on_it WITH NO DATA",
        );
        server.dump("views")
    });
    // A drill finds what a restore would lack.
    let report = drill(&engine, &reader).await;
    assert!(report.findings.len() == 2 && report.findings[0].contains("public.broken"), "{:?}", report.findings);
}

#[tokio::test]
async fn what_depends_on_the_search_path_is_loaded_with_it() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "CREATE DATABASE path; ALTER DATABASE path SET search_path = 'my own', public");
    server.sql(
        "path",
        "CREATE SCHEMA \"my own\"; CREATE FUNCTION \"my own\".helper(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS \
         'BEGIN RETURN n + 1; END'; CREATE FUNCTION by_path(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN \
         helper(n); END'; SET search_path = 'my own', public; CREATE TABLE public.t (n int CHECK (by_path(n) > 0), more int \
         GENERATED ALWAYS AS (by_path(n)) STORED); INSERT INTO public.t SELECT generate_series(1, 9); CREATE INDEX by_path ON \
         public.t (by_path(n)); CREATE FUNCTION public.in_line(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT helper(n)'; \
         CREATE INDEX in_line ON public.t (in_line(n))",
    );
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let target = PrivatePostgres::start();
    let report = restore(&crate::support::engine(&target, ""), &saved.reader().await, &RestoreTarget::default()).await;
    let report = report.unwrap();
    assert!(report.lacking.is_empty(), "{report:?}");
    assert!(report.warnings.iter().any(|line| line.contains("search path")), "{report:?}");
    assert_eq!(target.dump("path"), server.dump("path"));
    let report = drill(&engine, &saved.reader().await).await;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[tokio::test]
async fn one_database_that_does_not_load_spoils_no_other() {
    let server = PrivatePostgres::start();
    for name in ["a", "b", "c"] {
        server.sql("postgres", &format!("CREATE DATABASE {name}"));
        server.sql(name, "CREATE TABLE t AS SELECT generate_series(1, 100) AS id");
    }
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let reader = damaged(&saved, "databases/b.dump", Damage::FlipByte).await;
    let before = server.dump("c");
    for name in ["a", "b", "c"] {
        server.sql(name, "INSERT INTO t VALUES (101)");
    }
    let changed = server.dump("b");
    let replace = RestoreTarget { existing: Existing::Replace, ..RestoreTarget::default() };
    let report = restore(&engine, &reader, &replace).await.unwrap();
    assert_eq!(report.restored, ["database a", "database c", "database postgres"]);
    assert_eq!(report.lacking.len(), 1, "{report:?}");
    assert!(
        report.lacking[0].contains("the database `b` is not restored; what stood there is untouched"),
        "{report:?}"
    );
    assert_eq!((server.dump("a"), server.dump("c"), server.dump("b")), (before.clone(), before, changed));
    assert_eq!(databases(&server), ["a", "b", "c", "postgres"], "nothing is left over");
    // In a drill it is a finding, and the others are compared.
    let report = drill(&engine, &reader).await;
    assert!(report.findings.len() == 1 && report.findings[0].contains("`b` is not restored"), "{:?}", report.findings);
    assert!(report.items >= 200, "{report:?}");
}

#[tokio::test]
async fn copies_let_go_of_the_slots_of_their_subscriptions() {
    let server = PrivatePostgres::with_settings(&[("wal_level", "logical")]);
    server.sql("postgres", "CREATE DATABASE sub");
    server.sql("sub", "CREATE TABLE t AS SELECT 1 AS id");
    let connection = format!("host={} port={} dbname=postgres", server.socket_folder().display(), server.port());
    let create = format!(
        "CREATE SUBSCRIPTION \"li\"\"ve\" CONNECTION '{connection}' PUBLICATION p WITH (connect = false, slot_name = 'live')"
    );
    server.sql("sub", &create);
    server.sql("postgres", "SELECT pg_create_logical_replication_slot('live', 'pgoutput')");
    let engine = engine(&server, "");
    // What an interrupted restore left is never taken for a database.
    server.sql("postgres", "CREATE DATABASE stackward_restore_0123456789ab; CREATE DATABASE stackward_restore_mine");
    let saved = back_up(&engine).await.unwrap();
    let names: Vec<_> =
        saved.record().details["databases"].as_array().unwrap().iter().map(|d| d["name"].clone()).collect();
    assert_eq!(names, ["postgres", "stackward_restore_mine", "sub"]);
    assert!(saved.record().warnings.iter().any(|warning| warning.contains("stackward_restore_0123456789ab")));
    server.sql("postgres", "DROP DATABASE stackward_restore_0123456789ab; DROP DATABASE stackward_restore_mine");

    let reader = saved.reader().await;
    let renamed = RestoreTarget { rename: Some("copy".into()), ..select("sub") };
    let plan = engine.restorer.plan_restore(&crate::support::context(), &reader, &renamed).await.unwrap();
    assert!(plan.warnings.iter().any(|warning| warning.contains("detached from its slot")), "{plan:?}");
    let report = restore(&engine, &reader, &renamed).await.unwrap();
    assert!(report.warnings.iter().any(|line| line.contains("detached from its slot `live`")), "{report:?}");
    let state = "SELECT subenabled, coalesce(subslotname, 'none') FROM pg_subscription s JOIN pg_database d ON d.oid = \
                 s.subdbid WHERE d.datname = current_database()";
    assert_eq!(server.sql("copy", state), "f|none");
    assert_eq!(server.sql("sub", state), "f|live");
    let report = drill(&engine, &reader).await;
    assert!(report.findings.is_empty(), "{:?}", report.findings);

    // A restore that fails after the subscription was made takes everything back.
    let script = "[ \"$1\" = --version ] && exec \"$real\" \"$@\"\n\"$real\" \"$@\"; exit 1";
    let (_tools, bin) = crate::support::tools_with(&server, &[("pg_restore", script)]);
    let failing = crate::support::engine(&server, &format!("bin: {}", bin.display()));
    let again = RestoreTarget { rename: Some("again".into()), ..select("sub") };
    restore(&failing, &reader, &again).await.unwrap_err();
    assert_eq!(databases(&server), ["copy", "postgres", "sub"], "nothing is left over");
    // Dropping the copy leaves the slot alone.
    server.sql("copy", "DROP SUBSCRIPTION \"li\"\"ve\"");
    server.sql("postgres", "DROP DATABASE copy");
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM pg_replication_slots"), "1");

    // Under its own name it is another's to decide.
    let target = PrivatePostgres::start();
    let report = restore(&crate::support::engine(&target, ""), &reader, &RestoreTarget::default()).await.unwrap();
    assert!(report.warnings.iter().any(|line| line.contains("names the slot `live`")), "{report:?}");
    assert_eq!(target.sql("sub", state), "f|live");
    // Into a folder go the files as they are.
    let folder = crate::support::open_folder();
    let files = RestoreTarget { place: Place::Folder(folder.path().join("out")), ..RestoreTarget::default() };
    restore(&engine, &reader, &files).await.unwrap();
}
