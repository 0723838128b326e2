//! What the tests share: a cluster with something of everything, and an engine for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::engine::{DrillReport, Engine, EngineSetup, Place, RestoreReport, RestoreTarget};
use backup_core::error::Result;
use backup_core::event::{Event, Observer, Recorder};
use backup_core::host::LocalHost;
use backup_core::manifest::Manifest;
use backup_core::plan::{Node, OnFailure};
use backup_core::run::{RunOptions, Task, run};
use backup_core::sink::Sink;
use backup_core::{BackupReader, PlanName, RunContext, SourceName};
use backup_testkit::{LiveGuard, MemorySink, PrivatePostgres};
use engine_postgres::POSTGRES;

/// A name that is hard on quoting, of files, SQL, connection strings and shells.
pub(crate) const WEIRD: &str = "we\"ird Ünï/db'\\ $x";

pub(crate) fn source() -> SourceName {
    SourceName::new("db").unwrap()
}

pub(crate) fn context() -> RunContext {
    RunContext::new(source())
}

/// The engine for a server; `more` are further fields of its configuration, in YAML's flow style.
pub(crate) fn engine(server: &PrivatePostgres, more: &str) -> Engine {
    let bin = server.bin().display();
    let bin = if more.contains("bin:") { String::new() } else { format!("bin: {bin}, ") };
    build(&format!("{{ socket: {}, {bin}{more} }}", server.socket_folder().display())).unwrap()
}

/// Where the programs are, in YAML's flow style; nothing for Debian's own, which are found without.
pub(crate) fn bin_of(server: &PrivatePostgres) -> String {
    let bin = server.bin();
    if bin.starts_with("/usr/lib/postgresql") { String::new() } else { format!(", bin: {}", bin.display()) }
}

pub(crate) fn build(yaml: &str) -> Result<Engine> {
    let (name, config) = (source(), Node::from_yaml(yaml)?);
    let host = Arc::new(LocalHost);
    (POSTGRES.build)(&EngineSetup { name: &name, config: &config, folder: Path::new("/"), host })
}

pub(crate) fn options() -> RunOptions {
    RunOptions::new(PlanName::new("plan").unwrap(), "here")
}

pub(crate) fn task(engine: &Engine) -> Task {
    Task {
        name: source(),
        engine: "postgres".into(),
        source: Arc::clone(&engine.source),
        on_failure: OnFailure::Continue,
    }
}

/// A backup through the runner, as the command line makes it.
pub(crate) async fn back_up(engine: &Engine) -> Result<Saved> {
    back_up_while(engine, |_| {}).await
}

/// The same; `told` hears every event before the engine goes on.
pub(crate) async fn back_up_while(engine: &Engine, told: impl Fn(&Event) + Send + Sync + 'static) -> Result<Saved> {
    let sink = MemorySink::default();
    let recorder = Arc::new(Recorder::default());
    let observer = Arc::new(Listening { told, recorder: Arc::clone(&recorder) });
    let options = RunOptions { observer, ..options() };
    let manifest = run(vec![task(engine)], &sink, &options).await?;
    Ok(Saved { sink, manifest, recorder })
}

struct Listening<T> {
    told: T,
    recorder: Arc<Recorder>,
}

impl<T: Fn(&Event) + Send + Sync> Observer for Listening<T> {
    fn event(&self, event: &Event) {
        self.recorder.event(event);
        (self.told)(event);
    }
}

#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) sink: MemorySink,
    pub(crate) manifest: Manifest,
    pub(crate) recorder: Arc<Recorder>,
}

impl Saved {
    pub(crate) async fn reader(&self) -> BackupReader {
        BackupReader::new(self.sink.open(&self.manifest.id).await.unwrap(), source()).unwrap()
    }

    pub(crate) fn record(&self) -> &backup_core::manifest::SourceRecord {
        self.manifest.source(&source()).unwrap()
    }
}

/// Plans and restores, as the command line does. Beside a live server, nothing of that may change.
pub(crate) async fn restore(engine: &Engine, from: &BackupReader, target: &RestoreTarget) -> Result<RestoreReport> {
    let _live = matches!(target.place, Place::Folder(_)).then(LiveGuard::all);
    let plan = engine.restorer.plan_restore(&context(), from, target).await?;
    engine.restorer.restore(&context(), from, plan).await
}

/// Drills below a scratch folder that is empty afterwards.
pub(crate) async fn drill(engine: &Engine, from: &BackupReader) -> DrillReport {
    drill_below(engine, from, open_folder().path()).await
}

/// Drills below `scratch`, which is empty afterwards. Nothing of live servers may change.
pub(crate) async fn drill_below(engine: &Engine, from: &BackupReader, scratch: &Path) -> DrillReport {
    let _live = LiveGuard::all();
    let report = engine.driller.drill(&context().scratch_in(scratch), from).await.unwrap();
    assert!(is_empty(scratch), "the scratch server is gone");
    report
}

pub(crate) fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

pub(crate) fn select(name: &str) -> RestoreTarget {
    RestoreTarget { select: vec![name.to_owned()], ..RestoreTarget::default() }
}

pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(crate) fn databases(server: &PrivatePostgres) -> Vec<String> {
    let list = server.sql("postgres", "select datname from pg_database where not datistemplate order by 1");
    list.lines().map(str::to_owned).collect()
}

/// Everything that belongs to a database and not to its dump.
pub(crate) fn properties(server: &PrivatePostgres, name: &str) -> String {
    let name = name.replace('\'', "''");
    server.sql(
        "postgres",
        &format!(
            "select pg_get_userbyid(datdba), encoding, datcollate, datctype, to_jsonb(d) ->> 'datlocprovider', \
             coalesce(to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale'), datconnlimit, datacl, \
             shobj_description(d.oid, 'pg_database'), (select array_agg((r.rolname, s.setconfig)::text order by (r.rolname, s.setconfig)::text) \
             from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole where s.setdatabase = d.oid) \
             from pg_database d where datname = '{name}'"
        ),
    )
}

/// Gives the superuser a password that is proven with SCRAM, which was not the default before 14.
pub(crate) fn set_password(server: &PrivatePostgres, password: &str) {
    let scram = "SET password_encryption = 'scram-sha-256'";
    server.sql("postgres", &format!("{scram}; ALTER ROLE postgres PASSWORD '{password}'"));
}

/// What a drill says of tables and indexes: 14 was the first to have the program that looks at all of them.
pub(crate) fn amcheck_says(server: &PrivatePostgres) -> &'static str {
    if server.major() >= 14 { "pg_amcheck found every" } else { "pg_amcheck is not installed here" }
}

/// The databases that [`fill`] makes, and the one that every server has.
pub(crate) const SAMPLE_DATABASES: [&str; 6] = ["app", "ascii", "icu", "latin", "postgres", WEIRD];

/// Roles, and databases with something of everything.
pub(crate) fn fill(server: &PrivatePostgres) {
    server.sql(
        "postgres",
        r#"CREATE ROLE app LOGIN PASSWORD 'app-password';
        CREATE ROLE "o'brien" NOLOGIN;
        COMMENT ON ROLE "o'brien" IS 'first
CREATE ROLE postgres;
last';
        GRANT app TO "o'brien" WITH ADMIN OPTION;
        ALTER ROLE app SET work_mem = '8MB';
        CREATE DATABASE app OWNER app CONNECTION LIMIT 20;
        COMMENT ON DATABASE app IS 'the application''s';
        ALTER DATABASE app SET search_path = "$user", public, "Odd,Name";
        ALTER DATABASE app SET app.name = 'it''s';
        ALTER ROLE "o'brien" IN DATABASE app SET statement_timeout = '7s';
        REVOKE ALL ON DATABASE app FROM public;
        GRANT CONNECT ON DATABASE app TO "o'brien" WITH GRANT OPTION;"#,
    );
    server.sql("app", SAMPLE);
    server.sql("postgres", &format!("CREATE DATABASE {}", quoted(WEIRD)));
    server.sql(
        "postgres",
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;
        CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;",
    );
    // 15 was the first to have another provider than the C library.
    let icu = if server.major() >= 15 { "LOCALE_PROVIDER icu ICU_LOCALE 'de-DE'" } else { "" };
    server.sql("postgres", &format!("CREATE DATABASE icu {icu} TEMPLATE template0"));
    server.sql("latin", "CREATE TABLE t AS SELECT 'gr\u{fc}n' AS color");
    server.sql("icu", "CREATE TABLE t AS SELECT unnest(ARRAY['z', '\u{e4}', 'a']) AS word; CREATE INDEX ON t (word)");
    server.sql("ascii", "CREATE TABLE t (raw text); INSERT INTO t VALUES (E'\\xff\\xfe')");
    server.sql(WEIRD, "CREATE TABLE \"odd.schema table\" (id int); INSERT INTO \"odd.schema table\" VALUES (1), (2)");
}

const SAMPLE: &str = r#"
    CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION pgcrypto;
    CREATE TABLE users (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name citext UNIQUE, tags hstore, raw bytea,
        mail text, at timestamptz DEFAULT '2026-01-01 12:00:00.123456+00');
    INSERT INTO users (name, tags, raw, mail)
        SELECT 'user ' || n, hstore('n', n::text), decode(lpad(to_hex(n), 8, '0'), 'hex'), E'😀 \t\n\\ "q"'
        FROM generate_series(1, 1000) n;
    ALTER TABLE users OWNER TO app;
    CREATE TABLE events (at date NOT NULL, what text) PARTITION BY RANGE (at);
    CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
    CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    INSERT INTO events SELECT '2025-12-01'::date + n, 'event ' || n FROM generate_series(0, 60) n;
    CREATE TABLE parent (id int); CREATE TABLE child (more int) INHERITS (parent);
    INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3), (4, 5);
    CREATE UNLOGGED TABLE unlogged (id int); INSERT INTO unlogged VALUES (1), (2), (3);
    CREATE SCHEMA "Odd,Name"; CREATE TABLE "Odd,Name"."tab""le" (id int); INSERT INTO "Odd,Name"."tab""le" VALUES (1);
    CREATE MATERIALIZED VIEW per_year AS SELECT extract(year FROM at) AS year, count(*) AS n FROM events GROUP BY 1;
    CREATE MATERIALIZED VIEW empty AS SELECT 1 AS one WITH NO DATA;
    CREATE SEQUENCE numbers START 41; SELECT nextval('numbers');
    CREATE TYPE mood AS ENUM ('happy', 'sad');
    CREATE FUNCTION double(n int) RETURNS int LANGUAGE sql AS 'SELECT n * 2';
    CREATE TABLE files (name text, object oid);
    INSERT INTO files SELECT 'file ' || n, lo_from_bytea(0, decode(repeat(md5(n::text), 200), 'hex'))
        FROM generate_series(1, 5) n;
    GRANT SELECT ON users TO "o'brien";
"#;

/// A folder of client programs in which some are replaced by shell scripts. `$real` is the real program.
pub(crate) fn tools_with(server: &PrivatePostgres, scripts: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix("swbin-").tempdir_in("/tmp").unwrap();
    let open = || std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder.path(), open()).unwrap();
    for entry in std::fs::read_dir(server.bin()).unwrap() {
        let entry = entry.unwrap();
        let path = folder.path().join(entry.file_name());
        let script = scripts.iter().find(|(name, _)| entry.file_name() == *name);
        if let Some((_, script)) = script {
            let text = format!("#!/bin/bash\nreal={}\n{script}\n", entry.path().display());
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, open()).unwrap();
        } else {
            std::os::unix::fs::symlink(entry.path(), &path).unwrap();
        }
    }
    let path = folder.path().to_owned();
    (folder, path)
}

/// A folder for temporary files that the server's user may enter.
pub(crate) fn open_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}
