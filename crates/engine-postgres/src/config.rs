//! The engine's part of the plan. Parsing is pure; a secret is a reference until a command is built.
//!
//! Invariant: a password is never part of the URL, so nothing made from the configuration can carry one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::{Node, Span};
use backup_core::secret::SecretRef;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::wire::service;

/// Databases that are worked on at the same time, and jobs of a parallel restore, unless the plan says otherwise.
const DEFAULT_JOBS: usize = 2;
const MAX_JOBS: usize = 64;
const DEFAULT_PORT: u16 = 5432;
const DEFAULT_SOCKET: &str = "/run/postgresql";
const DEFAULT_USER: &str = "postgres";

/// A PostgreSQL server: every database of it, its roles and its configuration files.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "PostgreSQL")]
pub(crate) struct PostgresConfig {
    /// `postgres://user@host:port/database?sslmode=…`, without a password. The database is only the one that is asked
    /// about the others. Either this, `socket` or `service`.
    url: Option<String>,
    /// A service of the connection service file (`~/.pg_service.conf`), which has the address, the user and the parameters.
    service: Option<String>,
    /// The folder of the server's unix socket. By default `/run/postgresql`.
    socket: Option<PathBuf>,
    /// The port, which is also part of the socket's name. By default 5432.
    port: Option<u16>,
    /// The role to connect as. By default `postgres`.
    user: Option<String>,
    /// Where the role's password is found, when it needs one.
    password: Option<SecretRef>,
    /// The databases to save. By default all that allow connections and are no templates.
    databases: Option<Vec<String>>,
    /// Databases to leave out.
    #[serde(default)]
    exclude: Vec<String>,
    /// How to save: `physical` (a base backup of the whole cluster over the replication protocol), `logical` (`pg_dump`),
    /// or both into one snapshot. By default `[logical]`.
    modes: Option<Vec<Mode>>,
    /// How the write-ahead log is archived, so that every moment can be recovered: `stream` (`stackward wal receive`
    /// follows a replication slot) or `push` (the server's `archive_command` calls `stackward wal push`). By default not at all.
    wal: Option<WalMode>,
    /// The replication slot that `wal: stream` uses, and makes when it is not there. By default `stackward_` and the source's name.
    slot: Option<String>,
    /// Whether a physical backup reads only what changed since the last one, where the server can tell (PostgreSQL 17 and
    /// newer with `summarize_wal = on`). Each snapshot is whole all the same. By default `auto`.
    #[serde(default)]
    increments: Increments,
    /// The data directory, for restores to where it came from. By default where the server said that it was when it was
    /// backed up.
    data: Option<PathBuf>,
    /// The folder of the client programs (`pg_dump`, `pg_restore`, `psql`, …). By default those that match the server.
    bin: Option<PathBuf>,
    /// Whether the rows of every table are counted, so that a drill can compare them. By default `exact`.
    #[serde(default)]
    fingerprint: FingerprintMode,
    /// Databases saved at the same time, and jobs of a restore. By default 2.
    #[schemars(range(min = 1, max = 64))]
    jobs: Option<usize>,
    /// How long a dump waits for a table that somebody else has locked, before it fails: `5m`. By default as long as it
    /// takes; a warning says who holds the lock.
    lock_timeout: Option<Span>,
    /// The system user that the client programs run as. By default `postgres` when Stackward runs as root and connects
    /// over a unix socket without a password (so that Debian's peer authentication works), else the present user.
    run_as: Option<String>,
}

/// How to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// With `pg_dump`, database by database.
    Logical,
    /// The files of the whole cluster, over the replication protocol.
    Physical,
}

/// How the write-ahead log is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WalMode {
    /// By `stackward wal receive`, through a replication slot.
    Stream,
    /// By the server's `archive_command`, which calls `stackward wal push`.
    Push,
}

/// Whether a physical backup reads only what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Increments {
    /// Where the server can tell what changed.
    #[default]
    Auto,
    /// Everything is read every time.
    Never,
}

/// Whether the rows of every table are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FingerprintMode {
    /// Every row, in the snapshot that is dumped.
    #[default]
    Exact,
    /// Nothing is counted; drills compare nothing but that the restore succeeds.
    None,
}

/// The configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) endpoint: Endpoint,
    pub(crate) password: Option<SecretRef>,
    pub(crate) run_as: Option<String>,
    pub(crate) bin: Option<PathBuf>,
    pub(crate) databases: Option<Vec<String>>,
    pub(crate) exclude: Vec<String>,
    pub(crate) fingerprint: FingerprintMode,
    pub(crate) jobs: usize,
    /// How long a dump waits for a lock; `None`: as long as it takes.
    pub(crate) lock_timeout: Option<Duration>,
    pub(crate) wal: Option<WalMode>,
    /// The slot, when the plan names one.
    pub(crate) slot: Option<String>,
    pub(crate) modes: Vec<Mode>,
    pub(crate) increments: Increments,
    /// The data directory, when the plan names it.
    pub(crate) data: Option<PathBuf>,
}

/// Where the server listens, and as whom to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// A host name, an address, or the folder of a unix socket.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    /// The database to ask about the others, when the plan names one.
    pub(crate) database: Option<String>,
    /// Further connection parameters: `sslmode`, ….
    pub(crate) parameters: BTreeMap<String, String>,
}

impl Endpoint {
    /// A unix socket.
    pub(crate) fn socket(folder: &Path, port: u16, user: &str) -> Self {
        Self {
            host: folder.display().to_string(),
            port,
            user: user.to_owned(),
            database: None,
            parameters: BTreeMap::new(),
        }
    }

    pub(crate) fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }
}

/// Connection parameters that a URL may carry.
const PARAMETERS: [&str; 11] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "sslcrldir",
    "ssl_min_protocol_version",
    "channel_binding",
    "connect_timeout",
    "gssencmode",
    "passfile",
];

impl Settings {
    /// Parses and checks the engine's part of the plan. Relative paths start from `folder`.
    pub(crate) fn parse(node: &Node, folder: &Path) -> Result<Self> {
        let config: PostgresConfig = node.parse()?;
        if config.modes.as_ref().is_some_and(Vec::is_empty) {
            return Err(node
                .error("`modes` is empty")
                .hint("write `modes: [physical]`, `modes: [logical]`, or both; or leave `modes` out"));
        }
        if config.databases.as_ref().is_some_and(Vec::is_empty) {
            return Err(node
                .error("`databases` is empty")
                .hint("name a database, or leave `databases` out to save all"));
        }
        let jobs = config.jobs.unwrap_or(DEFAULT_JOBS);
        if !(1..=MAX_JOBS).contains(&jobs) {
            return Err(node.error(format!("`jobs` must be 1 to {MAX_JOBS}")));
        }
        let longest = Span(Duration::from_millis(i32::MAX.unsigned_abs().into()));
        if config.lock_timeout.is_some_and(|timeout| timeout.0.is_zero() || timeout > longest) {
            return Err(node
                .error("`lock_timeout` must be 1s to 24d")
                .hint("leave it out to wait as long as it takes"));
        }
        if config.slot.is_some() && config.wal != Some(WalMode::Stream) {
            return Err(node
                .error("`slot` is for `wal: stream`")
                .hint("write `wal: stream` as well, or leave `slot` out"));
        }
        if let Some(slot) = &config.slot
            && crate::wire::slot_name(slot).is_err()
        {
            return Err(node
                .error(format!("`{}` cannot be the name of a replication slot", slot.escape_debug()))
                .hint("1 to 63 of a-z, 0-9 and `_`"));
        }
        let endpoint = endpoint(&config).map_err(|error| match error.remedy() {
            Some(hint) => node.error(error.message()).hint(hint.to_owned()),
            None => node.error(error.message()),
        })?;
        Ok(Self {
            endpoint,
            password: config.password,
            run_as: config.run_as,
            bin: config.bin.map(|bin| folder.join(bin)),
            databases: config.databases,
            exclude: config.exclude,
            fingerprint: config.fingerprint,
            jobs,
            lock_timeout: config.lock_timeout.map(|span| span.0),
            wal: config.wal,
            slot: config.slot,
            modes: config.modes.unwrap_or_else(|| vec![Mode::Logical]),
            increments: config.increments,
            data: config.data.map(|data| folder.join(data)),
        })
    }
}

fn endpoint(config: &PostgresConfig) -> Result<Endpoint> {
    let mut endpoint = match (&config.url, &config.socket, &config.service) {
        (Some(url), None, None) => parse_url(url)?,
        (None, None, Some(service)) => of_service(service)?,
        (None, Some(socket), None) if !socket.is_absolute() => {
            return Err(fault("`socket` must be the absolute path of the folder that holds the socket"));
        }
        (None, Some(socket), None) => Endpoint::socket(socket, DEFAULT_PORT, DEFAULT_USER),
        (None, None, None) => Endpoint::socket(Path::new(DEFAULT_SOCKET), DEFAULT_PORT, DEFAULT_USER),
        _ => return Err(fault("`url`, `socket` and `service` exclude each other").hint("keep one of them")),
    };
    if let Some(port) = config.port {
        endpoint.port = port;
    }
    if let Some(user) = &config.user {
        endpoint.user.clone_from(user);
    }
    Ok(endpoint)
}

/// Takes the service's parameters. The file is read here, when the plan is: it is part of what the plan says.
fn of_service(name: &str) -> Result<Endpoint> {
    let mut endpoint = Endpoint::socket(Path::new(DEFAULT_SOCKET), DEFAULT_PORT, DEFAULT_USER);
    for (key, value) in service(name)? {
        match key.as_str() {
            "host" => endpoint.host = value,
            "port" => {
                endpoint.port = value.parse().map_err(|_| fault(format!("the service `{name}` has no valid port")))?;
            }
            "user" => endpoint.user = value,
            "dbname" => endpoint.database = Some(value),
            known if PARAMETERS.contains(&known) => {
                endpoint.parameters.insert(key, value);
            }
            other => {
                return Err(fault(format!(
                    "the service `{name}` has the parameter `{other}`, which is not known here"
                ))
                .hint(format!("known here: host, port, user, dbname, {}", PARAMETERS.join(", "))));
            }
        }
    }
    Ok(endpoint)
}

fn fault(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Plan, message.into())
}

/// Takes a connection URL apart (PostgreSQL manual, "Connection URIs"). Errors never quote it: it may hold a password.
fn parse_url(url: &str) -> Result<Endpoint> {
    let form = || fault("`url` is not of the form postgres://user@host:port/database");
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")).ok_or_else(form)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, address) = authority.rsplit_once('@').unwrap_or(("", authority));
    if user.contains(':') {
        return Err(fault("`url` holds a password")
            .hint("take it out of the plan and name its place: `password: { file: … }` or `password: { env: … }`"));
    }
    let (host, port) = split_address(address).ok_or_else(form)?;
    let mut parameters = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(form)?;
        if !PARAMETERS.contains(&name) {
            return Err(fault(format!("`url` has the parameter `{name}`, which is not known here"))
                .hint(format!("known here: {}", PARAMETERS.join(", "))));
        }
        parameters.insert(name.to_owned(), percent_decode(value).ok_or_else(form)?);
    }
    let text = |text: &str| percent_decode(text).ok_or_else(form);
    let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
    Ok(Endpoint {
        host: or(text(host)?, DEFAULT_SOCKET),
        port: if port.is_empty() { DEFAULT_PORT } else { port.parse().map_err(|_| form())? },
        user: or(text(user)?, DEFAULT_USER),
        database: Some(text(database)?).filter(|database| !database.is_empty()),
        parameters,
    })
}

fn split_address(address: &str) -> Option<(&str, &str)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return Some((host, after.strip_prefix(':').unwrap_or(after)));
    }
    Some(address.rsplit_once(':').unwrap_or((address, "")))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            bytes.extend(hex::decode(after.get(..2)?).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<Settings> {
        Settings::parse(&Node::from_yaml(yaml).unwrap(), Path::new("/plans"))
    }

    #[test]
    fn urls_are_taken_apart() {
        let cases = [
            ("postgres://db.example", ("db.example", 5432, "postgres", None)),
            ("postgresql://ann@db:6543/app?sslmode=require", ("db", 6543, "ann", Some("app"))),
            ("postgres://ann%40x@[::1]:1/a%2Fb", ("::1", 1, "ann@x", Some("a/b"))),
            ("postgres://%2Frun%2Fpg/", ("/run/pg", 5432, "postgres", None)),
            ("postgres:///app", ("/run/postgresql", 5432, "postgres", Some("app"))),
        ];
        for (url, (host, port, user, database)) in cases {
            let endpoint = parse(&format!("url: '{url}'")).unwrap().endpoint;
            let found = (endpoint.host.as_str(), endpoint.port, endpoint.user.as_str(), endpoint.database.as_deref());
            assert_eq!(found, (host, port, user, database), "{url}");
        }
    }

    #[test]
    fn faults_are_named_with_a_remedy_and_without_the_password() {
        let cases = [
            ("modes: []", "empty"),
            ("url: 'postgres://ann:hunter2@db/app'", "password"),
            ("url: 'mysql://db'", "form"),
            ("url: 'postgres://db?sslmod=require'", "sslmod"),
            ("{ url: 'postgres://db', socket: /run }", "exclude"),
            ("{ service: x, socket: /run }", "exclude"),
            ("service: no-such-service", "no service `no-such-service`"),
            ("socket: run", "absolute"),
            ("databases: []", "databases"),
            ("jobs: 0", "jobs"),
            ("lock_timeout: 0s", "lock_timeout"),
            ("lock_timeout: 25d", "lock_timeout"),
            ("sockets: /run", "sockets"),
            ("wal: streams", "stream"),
            ("{ wal: push, slot: a }", "wal: stream"),
            ("{ wal: stream, slot: A-B }", "slot"),
        ];
        for (yaml, word) in cases {
            let error = parse(yaml).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Plan, "{yaml}");
            assert!(error.chain().contains(word), "{yaml}: {error}");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }

    #[test]
    fn the_schema_documents_every_field() {
        let schema = schemars::schema_for!(PostgresConfig);
        let fields = schema.get("properties").and_then(serde_json::Value::as_object).unwrap();
        assert_eq!(fields.len(), 18);
        for (name, field) in fields {
            assert!(field.get("description").is_some(), "{name}");
        }
    }

    #[test]
    fn the_shortest_plan_means_the_local_server() {
        let settings = parse("{}").unwrap();
        assert_eq!(settings.endpoint, Endpoint::socket(Path::new("/run/postgresql"), 5432, "postgres"));
        assert_eq!(parse("bin: pg/bin").unwrap().bin.unwrap(), Path::new("/plans/pg/bin"));
    }
}
