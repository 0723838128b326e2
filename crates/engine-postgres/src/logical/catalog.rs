//! Questions to the server's catalogues: versions, databases, privileges, roles, extensions.
//!
//! Invariant: every query here reads only, and works on all supported versions. What all databases share (names of databases,
//! roles, tablespaces) is bytes of no known encoding to the server; it is read in the maintenance session alone, so that one name
//! is the same text everywhere.

use std::collections::BTreeMap;

use backup_core::error::{Error, ErrorKind, Result};
use serde::Deserialize;

use super::details::{DatabaseDetails, Extension, Privilege, Setting, Tablespace};
use crate::psql::{CLIENT_ENCODING, Psql};
use crate::server::Server;
use crate::sql::{ident, literal, literals};
use crate::text::encode;
use crate::tools::{OLDEST_MAJOR, PgVersion, ToolBox, Tools};

/// The databases that are asked about the others, in this order.
const MAINTENANCE: [&str; 2] = ["postgres", "template1"];

/// What a session learns of its server.
#[derive(Debug, Clone, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "independent answers of the server, as the query names them")]
pub(crate) struct ServerFacts {
    pub(crate) version_number: u32,
    pub(crate) version: String,
    pub(crate) bootstrap_role: Option<String>,
    pub(crate) superuser: bool,
    /// Whether the role may create databases.
    pub(crate) creates_databases: bool,
    /// Whether the role may read every table: a superuser, or a member of `pg_read_all_data`.
    pub(crate) reads_all: bool,
    /// Whether the role may read password hashes.
    pub(crate) reads_passwords: bool,
    pub(crate) standby: bool,
    pub(crate) data_checksums: bool,
    pub(crate) prepared_transactions: u64,
    /// The encoding of the database that is asked about the others.
    pub(crate) encoding: String,
}

impl ServerFacts {
    pub(crate) const fn version(&self) -> PgVersion {
        PgVersion(self.version_number)
    }
}

/// A database as the catalogue lists it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ListedDatabase {
    pub(crate) name: String,
    pub(crate) template: bool,
    pub(crate) allows_connections: bool,
    pub(crate) connection_limit: i64,
    pub(crate) size: Option<u64>,
    /// The version of the operating system's collation when it is not the recorded one.
    pub(crate) other_collation_version: Option<String>,
}

/// A connected maintenance session, with what was learned on the way.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) session: Psql,
    /// The server, with what further sessions need to know of it.
    pub(crate) server: Server,
    pub(crate) facts: ServerFacts,
    pub(crate) tools: Tools,
}

/// Connects, and finds the tools that match the server.
pub(crate) async fn connect(server: &Server, tools: &ToolBox) -> Result<Connected> {
    let any = tools.any().await?;
    let mut session = connect_maintenance(server, &any, None).await?;
    let facts = facts(&mut session).await?;
    if facts.version().major() < OLDEST_MAJOR {
        let message =
            format!("the server has version {}; versions from {OLDEST_MAJOR} on are supported", facts.version);
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let tools = tools.matching(facts.version()).await?;
    let server = server.knowing(facts.version(), facts.superuser).spelling(spellings(&mut session).await?);
    Ok(Connected { session, server, facts, tools })
}

/// The bytes of the databases' names, where they are not those of their UTF-8.
pub(crate) async fn spellings(session: &mut Psql) -> Result<BTreeMap<String, Vec<u8>>> {
    #[derive(Deserialize)]
    struct Named {
        id: String,
        name: String,
    }
    let select = "SELECT oid::text AS id, datname AS name FROM pg_database";
    let read: Vec<Named> = session.rows(select).await?;
    if read.iter().all(|database| database.name.is_ascii()) {
        return Ok(BTreeMap::new());
    }
    session.execute("SET client_encoding = 'SQL_ASCII'").await?;
    let raw: Vec<Named> = session.rows(select).await?;
    session.execute(CLIENT_ENCODING).await?;
    let mut raw: BTreeMap<String, String> = raw.into_iter().map(|Named { id, name }| (id, name)).collect();
    let spelled = read.into_iter().filter_map(|Named { id, name }| Some((name, encode(&raw.remove(&id)?))));
    Ok(spelled.filter(|(name, bytes)| encode(name) != *bytes).collect())
}

/// A session in a database that is not `avoid`, to ask about (or to change) the others.
pub(crate) async fn connect_maintenance(server: &Server, tools: &Tools, avoid: Option<&str>) -> Result<Psql> {
    let named = server.endpoint.database.as_deref();
    let wanted = |name: &&str| Some(*name) != avoid;
    let mut first = None;
    for name in named.into_iter().chain(MAINTENANCE).filter(wanted) {
        match Psql::connect(server, tools, name).await {
            Ok(session) => return Ok(session),
            // A missing database says nothing about the next one; what has a name of its own would fail there, too. Not all
            // servers speak English, and the first connection cannot know how a name is spelled there.
            Err(error) if error.kind() == ErrorKind::Tool && (named != Some(name) || !name.is_ascii()) => {
                first.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(first.unwrap_or_else(|| Error::new(ErrorKind::NotFound, "there is no database to connect to")))
}

/// What the session's server is, and what the role may do there.
pub(crate) async fn facts(session: &mut Psql) -> Result<ServerFacts> {
    session
        .row(
            "SELECT current_setting('server_version_num')::int AS version_number, \
             current_setting('server_version') AS version, \
             (SELECT rolname FROM pg_roles WHERE oid = 10) AS bootstrap_role, \
             (SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user) AS creates_databases, \
             (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser, \
             ((SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR EXISTS (SELECT FROM pg_roles \
              WHERE rolname = 'pg_read_all_data' AND pg_has_role(current_user, oid, 'USAGE'))) AS reads_all, \
             has_table_privilege('pg_catalog.pg_authid', 'SELECT') AS reads_passwords, \
             pg_is_in_recovery() AS standby, current_setting('data_checksums') = 'on' AS data_checksums, \
             (SELECT count(*) FROM pg_prepared_xacts) AS prepared_transactions, getdatabaseencoding() AS encoding",
        )
        .await
}

/// All databases, by name.
pub(crate) async fn databases(session: &mut Psql, version: PgVersion) -> Result<Vec<ListedDatabase>> {
    // 15 began to record the version of a database's default collation.
    let other = if version.major() >= 15 {
        "(CASE WHEN datallowconn AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid) \
          AND datcollversion IS NOT NULL THEN coalesce(pg_database_collation_actual_version(oid), 'unknown') END)"
    } else {
        "NULL::text"
    };
    session
        .rows(&format!(
            "SELECT datname AS name, datistemplate AS template, datallowconn AS allows_connections, \
             datconnlimit AS connection_limit, CASE WHEN has_database_privilege(oid, 'CONNECT') \
             THEN pg_database_size(oid) END AS size, {other} AS other_collation_version \
             FROM pg_database ORDER BY datname"
        ))
        .await
}

/// Whether the database still exists.
pub(crate) async fn exists(session: &mut Psql, database: &str) -> Result<bool> {
    session.value(&format!("EXISTS (SELECT FROM pg_database WHERE datname = {})", literal(database))).await
}

/// The part of [`DatabaseDetails`] that the shared catalogues know, without extensions and publications. `None`: it is gone.
pub(crate) async fn describe(
    session: &mut Psql,
    database: &str,
    artifact: &backup_core::ArtifactName,
) -> Result<Option<DatabaseDetails>> {
    let name = literal(database);
    // `to_jsonb(d)` reads columns that only some versions have.
    let found: Vec<DatabaseDetails> = session
        .rows(&format!(
            "SELECT d.datname AS name, {} AS artifact, r.rolname AS owner, pg_encoding_to_char(d.encoding) AS encoding, \
             d.datcollate AS collate, d.datctype AS ctype, to_jsonb(d)->>'datlocprovider' AS provider, \
             coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale') AS locale, \
             to_jsonb(d)->>'daticurules' AS icu_rules, to_jsonb(d)->>'datcollversion' AS collation_version, \
             d.datconnlimit AS connection_limit, d.datistemplate AS template, t.spcname AS tablespace, \
             shobj_description(d.oid, 'pg_database') AS comment, pg_database_size(d.oid) AS size \
             FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba JOIN pg_tablespace t ON t.oid = d.dattablespace \
             WHERE d.datname = {name}",
            literal(artifact.as_str())
        ))
        .await?;
    let Some(mut details) = found.into_iter().next() else { return Ok(None) };
    let custom: bool =
        session.value(&format!("SELECT datacl IS NOT NULL FROM pg_database WHERE datname = {name}")).await?;
    if custom {
        let privileges: Vec<Privilege> = session
            .rows(&format!(
                "SELECT r.rolname AS grantee, a.privilege_type AS kind, bool_or(a.is_grantable) AS grantable \
                 FROM pg_database d, aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee \
                 WHERE d.datname = {name} AND (a.grantee = 0 OR r.oid IS NOT NULL) GROUP BY 1, 2 ORDER BY 1, 2"
            ))
            .await?;
        details.privileges = Some(privileges);
    }
    details.settings = settings(session, &name).await?;
    details.roles = roles(session, &name).await?;
    let subscriptions = format!(
        "SELECT subname AS name FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = {name} \
         ORDER BY 1"
    );
    details.subscriptions = names(session, &subscriptions).await?;
    Ok(Some(details))
}

async fn settings(session: &mut Psql, name: &str) -> Result<Vec<Setting>> {
    session
        .rows(&format!(
            "SELECT r.rolname AS role, c.setting FROM pg_db_role_setting s \
             CROSS JOIN unnest(s.setconfig) WITH ORDINALITY AS c (setting, position) JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole \
             WHERE d.datname = {name} AND (s.setrole = 0 OR r.oid IS NOT NULL) ORDER BY r.rolname NULLS FIRST, c.position"
        ))
        .await
}

/// Adds what only a session inside the database can tell.
pub(crate) async fn describe_inside(
    session: &mut Psql,
    details: &mut DatabaseDetails,
    bootstrap: Option<&String>,
) -> Result<()> {
    details.extensions =
        session.rows::<Extension>("SELECT extname AS name, extversion AS version FROM pg_extension ORDER BY 1").await?;
    details.publications = names(session, "SELECT pubname AS name FROM pg_publication ORDER BY 1").await?;
    if let Some(bootstrap) = bootstrap
        && !details.roles.contains(bootstrap)
        && has_bootstrap_owned(session).await?
    {
        details.roles.push(bootstrap.clone());
        details.roles.sort();
    }
    Ok(())
}

/// The roles that the database and its objects refer to, but the one that `initdb` made.
async fn roles(session: &mut Psql, name: &str) -> Result<Vec<String>> {
    let select = format!(
        "SELECT DISTINCT r.rolname AS name FROM pg_roles r WHERE r.oid IN (SELECT d.refobjid FROM pg_shdepend d, \
         pg_database b WHERE b.datname = {name} AND d.refclassid = 'pg_authid'::regclass AND \
         (d.dbid = b.oid OR (d.dbid = 0 AND d.classid = 'pg_database'::regclass AND d.objid = b.oid))) ORDER BY 1"
    );
    names(session, &select).await
}

/// Whether the role that `initdb` made owns something here: that leaves no trace in `pg_shdepend`.
async fn has_bootstrap_owned(session: &mut Psql) -> Result<bool> {
    let owned: Vec<String> = [
        ("pg_class", "relowner"),
        ("pg_proc", "proowner"),
        ("pg_type", "typowner"),
        ("pg_namespace", "nspowner"),
        ("pg_largeobject_metadata", "lomowner"),
        ("pg_database", "datdba"),
    ]
    .iter()
    .map(|(table, owner)| {
        let here = if *table == "pg_database" { "datname = current_database()" } else { "oid >= 16384" };
        format!("EXISTS (SELECT FROM {table} WHERE {owner} = 10 AND {here})")
    })
    .collect();
    session.value(&owned.join(" OR ")).await
}

/// The column `name` of a `SELECT`.
pub(crate) async fn names(session: &mut Psql, select: &str) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    Ok(session.rows::<Named>(select).await?.into_iter().map(|named| named.name).collect())
}

/// Tablespaces besides the built-in ones.
pub(crate) async fn tablespaces(session: &mut Psql) -> Result<Vec<Tablespace>> {
    session
        .rows(
            "SELECT t.spcname AS name, r.rolname AS owner, pg_tablespace_location(t.oid) AS location \
             FROM pg_tablespace t JOIN pg_roles r ON r.oid = t.spcowner \
             WHERE t.spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1",
        )
        .await
}

/// The cluster's identifier, when the role may see it.
pub(crate) async fn system_identifier(session: &mut Psql, facts: &ServerFacts) -> Result<Option<String>> {
    if !facts.superuser {
        return Ok(None);
    }
    session.value("SELECT system_identifier::text FROM pg_control_system()").await.map(Some)
}

/// Which of `wanted` the query `select` (a column `name`) does not answer.
pub(crate) async fn missing<'a>(
    session: &mut Psql,
    select: &str,
    wanted: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<String>> {
    let wanted: Vec<&str> = wanted.into_iter().collect();
    let select = format!("SELECT name FROM ({select}) s WHERE name IN ({})", literals(wanted.iter().copied()));
    let found = names(session, &select).await?;
    Ok(wanted.into_iter().filter(|name| !found.iter().any(|found| found == name)).map(str::to_owned).collect())
}

/// Whether nobody ever created anything in the session's database.
pub(crate) async fn is_untouched(session: &mut Psql) -> Result<bool> {
    let tables = ["pg_class", "pg_proc", "pg_type", "pg_namespace", "pg_extension", "pg_largeobject_metadata"];
    // Objects that `initdb` makes have numbers below 16384 (FirstNormalObjectId).
    let any: Vec<String> =
        tables.iter().map(|table| format!("EXISTS (SELECT FROM {table} WHERE oid >= 16384)")).collect();
    session.value(&format!("NOT ({})", any.join(" OR "))).await
}

/// `ALTER DATABASE name`, quoted.
pub(crate) fn alter_database(name: &str) -> String {
    format!("ALTER DATABASE {}", ident(name))
}
