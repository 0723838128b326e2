//! What a manifest's `details` say of a saved cluster: all that a restore must know besides the dumps.
//!
//! This is a wire format: fields are only ever added, with defaults. The crate's README documents it.

use std::collections::BTreeMap;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::SourceRecord;
use backup_core::names::ArtifactName;
use serde::{Deserialize, Serialize};

use crate::config_files::ConfigFile;

/// The key of the details under which [`ClusterDetails`] stand.
const CLUSTER: &str = "cluster";
/// The key of the details under which the list of [`DatabaseDetails`] stands.
const DATABASES: &str = "databases";

/// The server as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ClusterDetails {
    /// `server_version_num`: 150018 for 15.18.
    pub(crate) version_number: u32,
    /// The version of the `pg_dump` that wrote the dumps, in the same form.
    pub(crate) dump_version_number: u32,
    pub(crate) system_identifier: Option<String>,
    pub(crate) data_checksums: bool,
    pub(crate) standby: bool,
    /// The role that `initdb` made; objects that it owns leave no other trace.
    pub(crate) bootstrap_role: Option<String>,
    /// Whether `globals.sql` has the roles' password hashes.
    pub(crate) role_passwords: bool,
    pub(crate) tablespaces: Vec<Tablespace>,
    pub(crate) config_files: Vec<ConfigFile>,
    /// Databases that were dropped while the backup ran.
    pub(crate) vanished: Vec<String>,
    /// The encoding of the database that was asked about the others: names of roles and databases are bytes in it.
    pub(crate) encoding: Option<String>,
}

/// A tablespace besides the two built-in ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tablespace {
    pub(crate) name: String,
    pub(crate) owner: String,
    pub(crate) location: String,
}

/// One saved database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DatabaseDetails {
    pub(crate) name: String,
    /// The artifact that holds its dump.
    pub(crate) artifact: ArtifactName,
    pub(crate) owner: String,
    pub(crate) encoding: String,
    pub(crate) collate: String,
    pub(crate) ctype: String,
    /// `c` libc, `i` ICU, `b` built in.
    #[serde(default)]
    pub(crate) provider: Option<String>,
    /// The locale of a provider other than libc.
    #[serde(default)]
    pub(crate) locale: Option<String>,
    #[serde(default)]
    pub(crate) icu_rules: Option<String>,
    #[serde(default)]
    pub(crate) collation_version: Option<String>,
    pub(crate) connection_limit: i64,
    pub(crate) template: bool,
    pub(crate) tablespace: String,
    #[serde(default)]
    pub(crate) comment: Option<String>,
    /// Bytes on the server's disk.
    #[serde(default)]
    pub(crate) size: Option<u64>,
    /// `None`: the default privileges.
    #[serde(default)]
    pub(crate) privileges: Option<Vec<Privilege>>,
    #[serde(default)]
    pub(crate) settings: Vec<Setting>,
    #[serde(default)]
    pub(crate) extensions: Vec<Extension>,
    /// Every role that something in the database, or the database itself, refers to.
    #[serde(default)]
    pub(crate) roles: Vec<String>,
    #[serde(default)]
    pub(crate) publications: Vec<String>,
    #[serde(default)]
    pub(crate) subscriptions: Vec<String>,
}

/// A privilege on a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Privilege {
    /// `None`: everybody.
    pub(crate) grantee: Option<String>,
    pub(crate) kind: String,
    pub(crate) grantable: bool,
}

/// A setting of a database, or of a role in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setting {
    #[serde(default)]
    pub(crate) role: Option<String>,
    /// `name=value`, as `pg_db_role_setting` has it.
    pub(crate) setting: String,
}

/// An installed extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extension {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// Everything that a manifest says of a cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Details {
    pub(crate) cluster: ClusterDetails,
    pub(crate) databases: Vec<DatabaseDetails>,
}

impl Details {
    /// As a manifest keeps them.
    pub(crate) fn to_map(&self) -> Result<BTreeMap<String, serde_json::Value>> {
        let value = |value: serde_json::Result<serde_json::Value>| {
            value.map_err(|source| Error::new(ErrorKind::Internal, "the details are not JSON").caused_by(source))
        };
        Ok(BTreeMap::from([
            (CLUSTER.to_owned(), value(serde_json::to_value(&self.cluster))?),
            (DATABASES.to_owned(), value(serde_json::to_value(&self.databases))?),
        ]))
    }

    /// From a manifest, which may have been tampered with.
    pub(crate) fn of(record: &SourceRecord) -> Result<Self> {
        fn read<T: serde::de::DeserializeOwned>(record: &SourceRecord, key: &str) -> Result<T> {
            let damaged = |why: &str| {
                Error::new(ErrorKind::Damaged, format!("the details `{key}` of the source `{}` {why}", record.name))
            };
            let value = record.details.get(key).ok_or_else(|| damaged("are missing"))?;
            T::deserialize(value).map_err(|source| damaged("do not parse").caused_by(source))
        }
        Ok(Self { cluster: read(record, CLUSTER)?, databases: read(record, DATABASES)? })
    }

    /// The encoding that a cluster needs so that the names of roles are the same bytes as in the dumps.
    pub(crate) fn encoding(&self) -> &str {
        let before = || self.database("postgres").or(self.databases.first()).map(|database| database.encoding.as_str());
        self.cluster.encoding.as_deref().or_else(before).unwrap_or("UTF8")
    }

    /// The saved database of this name.
    pub(crate) fn database(&self, name: &str) -> Option<&DatabaseDetails> {
        self.databases.iter().find(|database| database.name == name)
    }
}

/// The group of the fingerprint that counts the rows of a database's tables.
pub(crate) fn tables_group(database: &str) -> String {
    format!("tables of {database}")
}

/// The group of the fingerprint that counts the rows of a database's materialized views. Their rows are not saved: a
/// restore computes them anew, and may come to others.
pub(crate) fn views_group(database: &str) -> String {
    format!("materialized views of {database}")
}

/// The group of the fingerprint that counts what is no table.
pub(crate) fn objects_group(database: &str) -> String {
    format!("objects of {database}")
}
