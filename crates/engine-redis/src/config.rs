//! The engine's part of the plan. Parsing is pure; a secret is a reference until a connection is made.
//!
//! Invariant: a password is never part of the URL, so nothing made from the configuration can carry one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::Node;
use backup_core::secret::SecretRef;
use backup_core::tls::TlsConfig;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::follow::{FollowConfig, Limits};
use crate::snapshot::{OwnDump, Way};

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_HOST: &str = "127.0.0.1";

/// A Redis or Valkey server: all its databases and functions, its access rules and its configuration.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Redis and Valkey")]
pub(crate) struct RedisConfig {
    /// `redis://user@host:port`, without a password; `rediss://` over TLS. Either this or `socket`. By default
    /// `redis://127.0.0.1:6379`.
    url: Option<String>,
    /// The absolute path of the server's unix socket.
    socket: Option<PathBuf>,
    /// TLS: whom to trust, and what to show. `{}` is what `rediss://` means by itself.
    tls: Option<TlsConfig>,
    /// The ACL user to connect as. By default the server's `default` user.
    user: Option<String>,
    /// Where the password is found, when the server asks for one.
    password: Option<SecretRef>,
    /// How to save: `rdb` is a snapshot over the replication protocol, or in the best way that the server allows; `export`
    /// reads key by key; `aof` adds the append-only files as they are, for which the server must run on this machine. By
    /// default `[rdb]`.
    modes: Option<Vec<Mode>>,
    /// Whether `stackward follow` archives the replication stream, so that the server can be recovered to any moment:
    /// `true`, or a mapping with `segment_bytes`, `segment_age` and `spool_bytes`.
    #[serde(default)]
    follow: FollowConfig,
    /// The server's working directory, when the server may not be asked for it (`CONFIG GET dir`).
    data_dir: Option<PathBuf>,
    /// Commands that the server's configuration renames (`rename-command`): the original name and the new one.
    #[serde(default)]
    commands: BTreeMap<String, String>,
    /// A node of a cluster stands for the whole cluster, or for itself. By default `whole`.
    #[serde(default)]
    cluster: Extent,
    /// What becomes of the server's own dump file when the server must write one for us: by default it is kept as it was,
    /// unless the server has save points and replaces it by itself.
    #[serde(default)]
    dump_file: OwnDump,
    /// The command that stops the server, as a list of words. With `start`, a restore puts files in place instead of
    /// loading a running server by commands.
    stop: Option<Vec<String>>,
    /// The command that starts the server, as a list of words.
    start: Option<Vec<String>>,
    /// The folder of the server's programs, for drills. By default they are looked for in `PATH`.
    bin: Option<PathBuf>,
}

/// How to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// A snapshot over the replication protocol, or by BGSAVE where that is not allowed.
    Rdb,
    /// The append-only files, besides.
    Aof,
    /// Key by key, for servers that allow nothing else: each key whole, but not all of one moment.
    Export,
}

/// What a node of a cluster stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Extent {
    /// Every master of its cluster.
    #[default]
    Whole,
    /// Itself.
    Node,
}

/// The configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) address: Address,
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<SecretRef>,
    pub(crate) way: Way,
    pub(crate) append_only_files: bool,
    /// When segments of the replication stream are stored; `None` when it is not archived.
    pub(crate) follow: Option<Limits>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) commands: CommandNames,
    pub(crate) cluster: Extent,
    pub(crate) dump_file: OwnDump,
    pub(crate) service: Option<Service>,
    pub(crate) bin: Option<PathBuf>,
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp { host: String, port: u16 },
    Socket(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The new names of renamed commands, by their original names in capitals.
#[derive(Debug, Clone, Default)]
pub(crate) struct CommandNames(pub(crate) Arc<BTreeMap<String, String>>);

/// How the server is stopped and started.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) stop: Vec<String>,
    pub(crate) start: Vec<String>,
}

impl Settings {
    /// Parses and checks the engine's part of the plan. Relative paths start from `folder`.
    pub(crate) fn parse(node: &Node, folder: &Path) -> Result<Self> {
        let config: RedisConfig = node.parse()?;
        let placed = |error: Error| match error.remedy() {
            Some(hint) => node.error(error.message()).hint(hint.to_owned()),
            None => node.error(error.message()),
        };
        let Endpoint { address, user: url_user, private } = endpoint(&config).map_err(placed)?;
        Ok(Self {
            tls: tls(config.tls.as_ref(), &address, private, folder).map_err(placed)?,
            address,
            user: config.user.clone().or(url_user),
            way: way(&config).map_err(placed)?,
            append_only_files: config.modes.as_ref().is_some_and(|modes| modes.contains(&Mode::Aof)),
            follow: config.follow.limits().map_err(placed)?,
            service: service(&config).map_err(placed)?,
            cluster: config.cluster,
            dump_file: config.dump_file,
            password: config.password,
            data_dir: config.data_dir.map(|data| folder.join(data)),
            commands: CommandNames(Arc::new(
                config.commands.into_iter().map(|(original, new)| (original.to_ascii_uppercase(), new)).collect(),
            )),
            bin: config.bin.map(|bin| folder.join(bin)),
        })
    }
}

fn way(config: &RedisConfig) -> Result<Way> {
    let modes = config.modes.as_deref().unwrap_or(&[Mode::Rdb]);
    match (modes.contains(&Mode::Rdb), modes.contains(&Mode::Export)) {
        (true, false) => Ok(Way::Best),
        (false, true) => Ok(Way::Export),
        (true, true) => Err(fault("`modes` has both `rdb` and `export`, and each saves everything")
            .hint("write `modes: [rdb]`: it exports by itself where the server allows nothing better")),
        (false, false) => Err(fault("`modes` has no `rdb`, which every restore starts from")
            .hint("write `modes: [rdb]` or `modes: [rdb, aof]`")),
    }
}

fn service(config: &RedisConfig) -> Result<Option<Service>> {
    match (&config.stop, &config.start) {
        (None, None) => Ok(None),
        (Some(stop), Some(start)) if !stop.is_empty() && !start.is_empty() => {
            Ok(Some(Service { stop: stop.clone(), start: start.clone() }))
        }
        _ => Err(fault("`stop` and `start` need each other")
            .hint("write both, each as a list of words: `stop: [systemctl, stop, redis]`")),
    }
}

/// What a URL says.
struct Endpoint {
    address: Address,
    user: Option<String>,
    /// Whether it asks for TLS.
    private: bool,
}

fn tls(config: Option<&TlsConfig>, address: &Address, private: bool, folder: &Path) -> Result<Option<TlsConfig>> {
    if let (Some(_), Address::Socket(_)) = (config, address) {
        return Err(
            fault("`tls` and `socket` exclude each other").hint("a socket is private as it is: leave `tls` out")
        );
    }
    let config = config.cloned().or_else(|| private.then(TlsConfig::default));
    config.as_ref().map_or(Ok(()), TlsConfig::check)?;
    Ok(config.map(|config| config.in_folder(folder)))
}

fn endpoint(config: &RedisConfig) -> Result<Endpoint> {
    let plain = |address| Endpoint { address, user: None, private: false };
    match (&config.url, &config.socket) {
        (Some(_), Some(_)) => Err(fault("`url` and `socket` exclude each other").hint("keep one of them")),
        (Some(url), None) => parse_url(url),
        (None, Some(socket)) if !socket.is_absolute() => Err(fault("`socket` must be an absolute path")),
        (None, Some(socket)) => Ok(plain(Address::Socket(socket.clone()))),
        (None, None) => Ok(plain(Address::Tcp { host: DEFAULT_HOST.to_owned(), port: DEFAULT_PORT })),
    }
}

/// Takes a URL apart. Errors never quote it: it may hold a password.
fn parse_url(url: &str) -> Result<Endpoint> {
    let form = || fault("`url` is not of the form redis://user@host:port");
    let schemes = [("redis://", false), ("valkey://", false), ("rediss://", true), ("valkeys://", true)];
    let matching = |(scheme, private)| url.strip_prefix(scheme).map(|rest| (rest, private));
    let (rest, private) = schemes.into_iter().find_map(matching).ok_or_else(form)?;
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    if !database.is_empty() {
        return Err(fault("`url` names a database, and a snapshot holds all of them")
            .hint("leave it out; a restore can select one: `db3`"));
    }
    let (user, address) = authority.rsplit_once('@').unwrap_or(("", authority));
    if user.contains(':') {
        return Err(fault("`url` holds a password")
            .hint("take it out of the plan and name its place: `password: { file: … }` or `password: { env: … }`"));
    }
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => rest
            .split_once(']')
            .map(|(host, after)| (host, after.strip_prefix(':').unwrap_or(after)))
            .ok_or_else(form)?,
        None => address.rsplit_once(':').unwrap_or((address, "")),
    };
    let host = if host.is_empty() { DEFAULT_HOST } else { host };
    let port = if port.is_empty() { DEFAULT_PORT } else { port.parse().map_err(|_| form())? };
    let user = Some(user.to_owned()).filter(|user| !user.is_empty());
    Ok(Endpoint { address: Address::Tcp { host: host.to_owned(), port }, user, private })
}

fn fault(message: &'static str) -> Error {
    Error::new(ErrorKind::Plan, message)
}

#[cfg(test)]
mod tests {
    use backup_core::tls::Verification;

    use super::*;

    fn parse(yaml: &str) -> Result<Settings> {
        Settings::parse(&Node::from_yaml(yaml).unwrap(), Path::new("/plans"))
    }

    #[test]
    fn addresses_are_taken_apart() {
        let cases = [
            ("{}", "127.0.0.1:6379", None),
            ("url: redis://cache.example", "cache.example:6379", None),
            ("url: 'redis://ann@cache:7000/'", "cache:7000", Some("ann")),
            ("url: 'valkey://[::1]:1'", "[::1]:1", None),
            ("{ socket: /run/redis.sock, user: bob }", "/run/redis.sock", Some("bob")),
        ];
        for (yaml, address, user) in cases {
            let settings = parse(yaml).unwrap();
            assert_eq!((settings.address.to_string().as_str(), settings.user.as_deref()), (address, user), "{yaml}");
        }
    }

    #[test]
    fn tls_is_asked_for_by_the_url_or_by_its_settings() {
        let cases = [
            ("url: redis://db", None),
            ("url: rediss://db", Some(TlsConfig::default())),
            ("url: 'valkeys://db:7'", Some(TlsConfig::default())),
            (
                "{ url: 'redis://db', tls: { ca: ca.pem, verify: ca } }",
                Some(TlsConfig { ca: Some("/plans/ca.pem".into()), verify: Verification::Ca, ..TlsConfig::default() }),
            ),
        ];
        for (yaml, expected) in cases {
            assert_eq!(parse(yaml).unwrap().tls, expected, "{yaml}");
        }
    }

    #[test]
    fn faults_are_named_with_a_remedy_and_without_the_password() {
        let cases = [
            ("url: 'redis://:hunter2@db'", "password"),
            ("{ socket: /run/x, tls: {} }", "exclude"),
            ("{ url: 'rediss://db', tls: { cert: c.pem } }", "need each other"),
            ("{ url: 'rediss://db', tls: { verify: sometimes } }", "sometimes"),
            ("url: 'mysql://db'", "form"),
            ("url: 'redis://db/3'", "database"),
            ("{ url: 'redis://db', socket: /run/x }", "exclude"),
            ("socket: run", "absolute"),
            ("follow: { segment_age: 1h }", "segment_age"),
            ("modes: [export, rdb]", "both"),
            ("modes: [aof]", "rdb"),
            ("modes: []", "rdb"),
            ("stop: [systemctl, stop, redis]", "need each other"),
            ("sockets: /run", "sockets"),
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
        let schema = schemars::schema_for!(RedisConfig);
        let fields = schema.get("properties").and_then(serde_json::Value::as_object).unwrap();
        assert_eq!(fields.len(), 14);
        for (name, field) in fields {
            assert!(field.get("description").is_some(), "{name}");
        }
    }
}
