//! The configured server: connecting to it, and what it tells about itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::ServerRecord;
use backup_core::secret::SecretRef;
use backup_core::tls::TlsConfig;

use crate::config::{Address, CommandNames, Settings};
use crate::connection::{Connection, Reply, refusal};

/// How often a server that is loading, or busy with a script, is asked again.
pub(crate) const POLL: Duration = Duration::from_millis(100);

/// Where the server listens and as whom to connect.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    address: Address,
    tls: Option<TlsConfig>,
    user: Option<String>,
    password: Option<SecretRef>,
    commands: CommandNames,
}

impl Server {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            address: settings.address.clone(),
            tls: settings.tls.clone(),
            user: settings.user.clone(),
            password: settings.password.clone(),
            commands: settings.commands.clone(),
        }
    }

    /// A server of ours on a unix socket, open to whoever reaches it.
    pub(crate) fn scratch(socket: PathBuf) -> Self {
        let (address, commands) = (Address::Socket(socket), CommandNames::default());
        Self { address, tls: None, user: None, password: None, commands }
    }

    /// The same for another node, reached in the same way.
    pub(crate) fn at(&self, address: Address) -> Self {
        Self { address, ..self.clone() }
    }

    /// The host that connections go to, unless it is a socket.
    pub(crate) fn host(&self) -> Option<&str> {
        match &self.address {
            Address::Tcp { host, .. } => Some(host),
            Address::Socket(_) => None,
        }
    }

    pub(crate) fn describe(&self) -> String {
        self.address.to_string()
    }

    /// Connects, and waits while the server loads its data or is busy with a script.
    pub(crate) async fn connect(&self, cx: &RunContext) -> Result<Connection> {
        cx.unless_cancelled(async {
            loop {
                match self.try_connect().await {
                    Err(error) if error.kind() == ErrorKind::Busy => {
                        cx.step(format!("waiting: {}", error.message()));
                        tokio::time::sleep(POLL).await;
                    }
                    result => return result,
                }
            }
        })
        .await
    }

    /// Connects once. [`ErrorKind::Busy`] while the server loads its data.
    pub(crate) async fn try_connect(&self) -> Result<Connection> {
        let mut connection = Connection::open(&self.address, self.tls.as_ref(), &self.commands).await?;
        if let Some(password) = &self.password {
            let password = password.resolve()?;
            let command = match &self.user {
                Some(user) => vec!["AUTH", user, password.expose()],
                None => vec!["AUTH", password.expose()],
            };
            connection.call(&command).await?;
        }
        connection.call(&["PING"]).await?;
        Ok(connection)
    }
}

/// The fields of `INFO`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Info {
    fields: BTreeMap<String, String>,
    /// The modules that are loaded, by name and version.
    pub(crate) modules: BTreeMap<String, String>,
}

impl Info {
    /// Asks for one section, or for the default ones.
    pub(crate) async fn ask(connection: &mut Connection, section: Option<&str>) -> Result<Self> {
        let reply = match section {
            Some(section) => connection.call(&["INFO", section]).await?,
            None => connection.call(&["INFO"]).await?,
        };
        Ok(Self::parse(&reply.text().unwrap_or_default()))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut info = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.trim_end().split_once(':')) {
            if name == "module" {
                let field =
                    |wanted: &str| value.split(',').find_map(|pair| pair.strip_prefix(wanted)).unwrap_or_default();
                info.modules.insert(field("name=").to_owned(), field("ver=").to_owned());
            }
            info.fields.insert(name.to_owned(), value.to_owned());
        }
        info
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// Whether a field that is 0 or 1 is 1.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        self.get(name) == Some("1")
    }

    /// The number of keys of each database that has any.
    pub(crate) fn keyspace(&self) -> BTreeMap<u32, u64> {
        let database = |(name, value): (&String, &String)| {
            let keys = value.strip_prefix("keys=")?.split(',').next()?.parse().ok()?;
            Some((name.strip_prefix("db")?.parse().ok()?, keys))
        };
        self.fields.iter().filter_map(database).collect()
    }

    /// What product and version it is; `None` when the server does not tell.
    pub(crate) fn product(&self) -> Option<ServerRecord> {
        let record = |product: &str, version: &str| ServerRecord {
            product: product.to_owned(),
            version: version.to_owned(),
            image: None,
            digest: None,
        };
        // Valkey tells the version of the Redis that it is compatible with as `redis_version`.
        let valkey = self.get("valkey_version").map(|version| record("Valkey", version));
        valkey.or_else(|| self.get("redis_version").map(|version| record("Redis", version)))
    }

    /// Fails for what holds no data of its own.
    pub(crate) fn refuse_sentinel(&self) -> Result<()> {
        // Valkey calls it `server_mode`.
        if ![self.get("redis_mode"), self.get("server_mode")].contains(&Some("sentinel")) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, "this is a Sentinel, which holds no data")
            .hint("name the master or a replica that it watches; save the Sentinel's own configuration as a file"))
    }
}

/// What a restore says that must know the version.
pub(crate) fn unknown_version() -> Error {
    Error::new(ErrorKind::PermissionDenied, "the server does not tell its version")
        .hint("allow +info to the plan's user")
}

/// Asks for one setting; `None` when the server does not tell.
pub(crate) async fn setting(connection: &mut Connection, name: &str) -> Result<Option<String>> {
    let reply = connection.ask(&["CONFIG", "GET", name]).await?;
    Ok(reply.items().get(1).and_then(Reply::text))
}

/// Whether the connection's user may run `command`, as far as the server tells: `Err` has the reason.
pub(crate) async fn allowed(connection: &mut Connection, command: &[&str]) -> Result<()> {
    let known = connection.ask(&["COMMAND", "INFO", &command[0].to_ascii_lowercase()]).await?;
    if known.items() == [Reply::Nil] {
        return Err(refusal(command[0], "ERR unknown command"));
    }
    let Some(user) = connection.ask(&["ACL", "WHOAMI"]).await?.text() else { return Ok(()) };
    let mut question = vec!["ACL", "DRYRUN", &user];
    question.extend(command);
    match connection.ask(&question).await? {
        Reply::Bulk(why) => Err(refusal(command[0], &format!("NOPERM {}", String::from_utf8_lossy(&why)))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_taken_apart() {
        let info = Info::parse(
            "# Server\r\nredis_version:7.2.4\r\nvalkey_version:8.1.1\r\nredis_mode:standalone\r\nrdb_saves:12\r\n\
             module:name=ReJSON,ver=20607,api=1\r\ndb0:keys=3,expires=1,avg_ttl=0\r\ndb15:keys=40,expires=0\r\n",
        );
        let product = info.product().unwrap();
        assert_eq!((product.product.as_str(), product.version.as_str()), ("Valkey", "8.1.1"));
        assert_eq!(info.number("rdb_saves"), Some(12));
        assert_eq!(info.keyspace(), BTreeMap::from([(0, 3), (15, 40)]));
        assert_eq!(info.modules, BTreeMap::from([("ReJSON".to_owned(), "20607".to_owned())]));
        assert!(info.refuse_sentinel().is_ok());
        for sentinel in ["redis_mode:sentinel", "server_mode:sentinel"] {
            assert!(Info::parse(sentinel).refuse_sentinel().is_err());
        }
    }
}
