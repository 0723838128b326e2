//! What was saved for roles and databases never decides how a backup, a restore or a drill goes.

use backup_core::engine::RestoreTarget;
use backup_testkit::PrivatePostgres;

use crate::support::{amcheck_says, back_up, databases, drill, engine, restore};

/// Settings that ended our own sessions, made them see nothing, or made them write nothing.
const HOSTILE: &str = "
    CREATE ROLE app LOGIN;
    CREATE DATABASE app OWNER app; CREATE DATABASE locked;
    ALTER DATABASE app SET default_transaction_read_only = on;
    ALTER DATABASE app SET search_path = nowhere;
    ALTER DATABASE app SET array_nulls = off;
    ALTER DATABASE locked SET client_encoding = 'SJIS';
    ALTER DATABASE locked SET default_transaction_isolation = 'serializable';
    ALTER ROLE postgres IN DATABASE locked SET statement_timeout = '1ms';
    ALTER ROLE app SET statement_timeout = '3s';
    ALTER ROLE postgres SET default_transaction_read_only = on;
    ALTER ROLE postgres SET statement_timeout = '1ms';
    ALTER ROLE postgres SET lock_timeout = '1ms';
    ALTER ROLE postgres SET idle_in_transaction_session_timeout = '1ms';
    ALTER ROLE postgres SET row_security = off;
    ALTER ROLE postgres SET client_encoding = 'LATIN1';
    ALTER ROLE postgres SET session_replication_role = 'origin';
    ALTER ROLE postgres SET zero_damaged_pages = on;
    ALTER ROLE postgres SET client_min_messages = debug1;";
const FORBID: &str = "
    CREATE TABLE t AS SELECT n, ARRAY[n, NULL] AS a FROM generate_series(1, 5000) n; CREATE INDEX ON t (n);
    CREATE MATERIALIZED VIEW v AS SELECT count(*) FROM t;
    CREATE FUNCTION forbid() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''% is forbidden'', tg_tag; END';
    CREATE EVENT TRIGGER forbid ON ddl_command_start EXECUTE FUNCTION forbid();
    CREATE EVENT TRIGGER \"for\"\"ever\" ON ddl_command_start EXECUTE FUNCTION forbid();
    ALTER EVENT TRIGGER \"for\"\"ever\" ENABLE ALWAYS;";
/// Undone for the test's own questions.
const CALM: &str =
    "SET default_transaction_read_only = off; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;";

fn hostile(server: &PrivatePostgres) {
    // All in one session: a setting of a role is for those that come after.
    let inside = FORBID.replace('\n', " ");
    server.sql(
        "postgres",
        &format!("{HOSTILE}\n\\connect app\n{CALM}\nSET search_path = public;\nSET array_nulls = on;\n{inside}"),
    );
}

#[tokio::test]
async fn saved_settings_do_not_reach_our_sessions() {
    let server = PrivatePostgres::start();
    hostile(&server);
    let engine = engine(&server, "modes: [logical, physical]");
    let saved = back_up(&engine).await.unwrap();
    let reader = saved.reader().await;
    // Of the dumps and of the copy.
    let report = drill(&engine, &reader).await;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let sound = report.checked.iter().filter(|line| line.contains(amcheck_says(&server))).count();
    assert_eq!(sound, 2, "{:?}", report.checked);

    let target = PrivatePostgres::start();
    let report = restore(&crate::support::engine(&target, ""), &reader, &RestoreTarget::default()).await.unwrap();
    assert!(report.lacking.is_empty(), "{report:?}");
    let ask = |server: &PrivatePostgres, database: &str, sql: &str| server.sql(database, &format!("{CALM} {sql}"));
    let list = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE NOT datistemplate";
    assert_eq!(ask(&target, "postgres", list), "app locked postgres");
    assert_eq!(ask(&target, "app", "SELECT count(*), count(*) FILTER (WHERE a[2] IS NULL) FROM public.t"), "5000|5000");
    assert_eq!(ask(&target, "app", "SELECT * FROM public.v"), "5000");
    assert_eq!(ask(&target, "app", "SELECT reltuples FROM pg_class WHERE relname = 't'"), "5000");
    let kept = "SELECT string_agg(evtname || evtenabled::text, ' ' ORDER BY evtname) FROM pg_event_trigger";
    assert_eq!(ask(&target, "app", kept), "for\"everA forbidO");
    // And all settings are there in the end.
    let settings = "SELECT string_agg(format('%s %s %s', r.rolname, d.datname, s.setconfig), E'\\n' ORDER BY r.rolname, \
                    d.datname) FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d \
                    ON d.oid = s.setdatabase";
    assert_eq!(ask(&target, "postgres", settings), ask(&server, "postgres", settings));
    assert_eq!(databases(&target), databases(&server));
}
