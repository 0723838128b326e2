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
use schemars::JsonSchema;
use serde::Deserialize;

use crate::follow::{FollowConfig, Limits};

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_HOST: &str = "127.0.0.1";

/// A Redis or Valkey server: all its databases and functions, its access rules and its configuration.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Redis and Valkey")]
pub(crate) struct RedisConfig {
    /// `redis://user@host:port`, without a password. Either this or `socket`. By default `redis://127.0.0.1:6379`.
    url: Option<String>,
    /// The absolute path of the server's unix socket.
    socket: Option<PathBuf>,
    /// The ACL user to connect as. By default the server's `default` user.
    user: Option<String>,
    /// Where the password is found, when the server asks for one.
    password: Option<SecretRef>,
    /// How to save: `rdb` is a snapshot over the replication protocol; `aof` adds the append-only files as they are, for
    /// which the server must run on this machine. By default `[rdb]`.
    modes: Option<Vec<Mode>>,
    /// Whether `stackward follow` archives the replication stream, so that the server can be recovered to any moment:
    /// `true`, or a mapping with `segment_bytes` and `segment_age`.
    #[serde(default)]
    follow: FollowConfig,
    /// The server's working directory, when the server may not be asked for it (`CONFIG GET dir`).
    data_dir: Option<PathBuf>,
    /// Commands that the server's configuration renames (`rename-command`): the original name and the new one.
    #[serde(default)]
    commands: BTreeMap<String, String>,
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
    /// Not yet in this version.
    #[schemars(skip)]
    Export,
}

/// The configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) address: Address,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<SecretRef>,
    pub(crate) append_only_files: bool,
    /// When segments of the replication stream are stored; `None` when it is not archived.
    pub(crate) follow: Option<Limits>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) commands: CommandNames,
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
        let (address, url_user) = endpoint(&config).map_err(placed)?;
        Ok(Self {
            address,
            user: config.user.clone().or(url_user),
            append_only_files: append_only_files(&config).map_err(placed)?,
            follow: config.follow.limits().map_err(placed)?,
            service: service(&config).map_err(placed)?,
            password: config.password,
            data_dir: config.data_dir.map(|data| folder.join(data)),
            commands: CommandNames(Arc::new(
                config.commands.into_iter().map(|(original, new)| (original.to_ascii_uppercase(), new)).collect(),
            )),
            bin: config.bin.map(|bin| folder.join(bin)),
        })
    }
}

fn append_only_files(config: &RedisConfig) -> Result<bool> {
    let modes = config.modes.as_deref().unwrap_or(&[Mode::Rdb]);
    if modes.contains(&Mode::Export) {
        return Err(
            fault("the mode `export` is not yet in this version").hint("write `modes: [rdb]`, or leave `modes` out")
        );
    }
    if !modes.contains(&Mode::Rdb) {
        return Err(fault("`modes` has no `rdb`, which every restore starts from")
            .hint("write `modes: [rdb]` or `modes: [rdb, aof]`"));
    }
    Ok(modes.contains(&Mode::Aof))
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

fn endpoint(config: &RedisConfig) -> Result<(Address, Option<String>)> {
    match (&config.url, &config.socket) {
        (Some(_), Some(_)) => Err(fault("`url` and `socket` exclude each other").hint("keep one of them")),
        (Some(url), None) => parse_url(url),
        (None, Some(socket)) if !socket.is_absolute() => Err(fault("`socket` must be an absolute path")),
        (None, Some(socket)) => Ok((Address::Socket(socket.clone()), None)),
        (None, None) => Ok((Address::Tcp { host: DEFAULT_HOST.to_owned(), port: DEFAULT_PORT }, None)),
    }
}

/// Takes a URL apart. Errors never quote it: it may hold a password.
fn parse_url(url: &str) -> Result<(Address, Option<String>)> {
    let form = || fault("`url` is not of the form redis://user@host:port");
    if url.starts_with("rediss://") || url.starts_with("valkeys://") {
        return Err(fault("TLS is not supported yet")
            .hint("connect over a unix socket, or through a tunnel (stunnel, ssh) that this machine trusts"));
    }
    let rest = url.strip_prefix("redis://").or_else(|| url.strip_prefix("valkey://")).ok_or_else(form)?;
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
    Ok((Address::Tcp { host: host.to_owned(), port }, user))
}

fn fault(message: &'static str) -> Error {
    Error::new(ErrorKind::Plan, message)
}

#[cfg(test)]
mod tests {
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
    fn faults_are_named_with_a_remedy_and_without_the_password() {
        let cases = [
            ("url: 'redis://:hunter2@db'", "password"),
            ("url: 'rediss://db'", "TLS is not supported yet"),
            ("url: 'mysql://db'", "form"),
            ("url: 'redis://db/3'", "database"),
            ("{ url: 'redis://db', socket: /run/x }", "exclude"),
            ("socket: run", "absolute"),
            ("follow: { segment_age: 1h }", "segment_age"),
            ("modes: [export]", "not yet"),
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
    fn the_schema_documents_every_field_and_offers_only_what_works() {
        let schema = schemars::schema_for!(RedisConfig);
        let fields = schema.get("properties").and_then(serde_json::Value::as_object).unwrap();
        assert_eq!(fields.len(), 11);
        for (name, field) in fields {
            assert!(field.get("description").is_some(), "{name}");
        }
        assert!(!schema.to_value().to_string().contains("export"));
    }
}
