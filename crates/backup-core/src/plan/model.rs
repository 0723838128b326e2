//! The plan's types. `docs/reference/plan.schema.json` is generated from them and from the engines' configurations.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::node::Node;
use crate::names::{PlanName, SourceName};
use crate::secret::SecretRef;

/// What to back up, where to, and what is promised.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its name; snapshots carry it.
    pub name: PlanName,
    /// Where snapshots are kept.
    pub sink: SinkConfig,
    /// What is promised; drills are judged against it.
    pub promise: Promise,
    /// How many sources are worked on at the same time.
    pub concurrency: usize,
    /// What happens to the run when a source fails.
    pub on_failure: OnFailure,
    /// What to back up, in the plan's order.
    pub sources: Vec<SourceConfig>,
}

impl Plan {
    /// The source of this name.
    #[must_use]
    pub fn source(&self, name: &SourceName) -> Option<&SourceConfig> {
        self.sources.iter().find(|source| source.name == *name)
    }
}

/// Where snapshots are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkConfig {
    /// A deduplicating, encrypted repository.
    Repository(RepositoryConfig),
    /// A folder of ordinary files.
    Directory(DirectoryConfig),
}

/// A repository.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// A folder, as a whole path or beside the plan (`./backups`), or the URL of an object store: `s3://bucket/prefix`,
    /// `gs://…`, `az://…`.
    pub url: String,
    /// The public keys (`age1…`) that can read the backups. The private halves belong on another machine.
    #[serde(default)]
    pub recipients: Vec<String>,
    /// A passphrase that can read the backups, instead of or besides public keys.
    #[serde(default)]
    pub passphrase: Option<SecretRef>,
    /// `none` for a repository that anybody can read.
    #[serde(default)]
    pub encryption: EncryptionConfig,
    /// The zstd level, 1 to 19.
    #[serde(default = "default_level")]
    #[schemars(range(min = 1, max = 19))]
    pub compression_level: u8,
    /// The folder of this machine's writer key; by default below `/var/lib/stackward`, or the user's state folder.
    #[serde(default)]
    pub state: Option<PathBuf>,
    /// How patient we are with an object store. A folder needs none of it.
    #[serde(default)]
    pub requests: RequestsConfig,
}

/// How long requests to an object store may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestsConfig {
    /// The longest that one request may take, with all that it sends and receives: a pack of 16 MiB over a slow line, and
    /// others beside it. `15m` unless it is said.
    #[serde(default = "default_timeout")]
    pub timeout: Span,
    /// So long a request is repeated while the store is not reached or answers that it is too busy. `5m` unless it is said.
    #[serde(default = "default_retry_for")]
    pub retry_for: Span,
}

impl Default for RequestsConfig {
    fn default() -> Self {
        Self { timeout: default_timeout(), retry_for: default_retry_for() }
    }
}

const fn default_timeout() -> Span {
    Span(Duration::from_mins(15))
}

const fn default_retry_for() -> Span {
    Span(Duration::from_mins(5))
}

const fn default_level() -> u8 {
    1
}

/// Whether a repository is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EncryptionConfig {
    /// To the recipients, or under the passphrase.
    #[default]
    Age,
    /// Not at all.
    None,
}

/// A folder of ordinary files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DirectoryConfig {
    /// The folder, as a whole path or beside the plan (`./backups`).
    pub path: PathBuf,
    /// How files are compressed.
    #[serde(default)]
    pub compression: CompressionConfig,
}

/// How the files of a plain directory are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CompressionConfig {
    /// zstd.
    #[default]
    Zstd,
    /// gzip.
    Gzip,
    /// Not at all.
    None,
}

/// What is promised to those who depend on the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Recovery point objective: at most so much is lost. `15m`, `4h`, `1d`.
    #[serde(default)]
    pub rpo: Option<Span>,
    /// Recovery time objective: at most so long until it runs again.
    #[serde(default)]
    pub rto: Option<Span>,
}

/// What happens to the run when a source fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The others go on; the snapshot is partial.
    #[default]
    Continue,
    /// Nothing is committed.
    Abort,
}

/// One thing to back up.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Its name.
    pub name: SourceName,
    /// The engine's name, as written.
    pub engine: String,
    /// The engine's configuration.
    pub config: Node,
    /// Overrides the plan's [`Plan::on_failure`].
    pub on_failure: Option<OnFailure>,
}

/// A span of time written as a number and a unit: `30s`, `15m`, `4h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("`{text}` is not a span of time; write a number and a unit: 30s, 15m, 4h, 7d");
        let unit = text.chars().last().ok_or_else(fault)?;
        let seconds: u64 = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return Err(fault()),
        };
        let number = text.strip_suffix(unit).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let count: u64 = number.and_then(|digits| digits.parse().ok()).ok_or_else(fault)?;
        count.checked_mul(seconds).map(|total| Self(Duration::from_secs(total))).ok_or_else(fault)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        for (unit, size) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
            if seconds >= size && seconds.is_multiple_of(size) {
                return write!(f, "{}{unit}", seconds / size);
            }
        }
        write!(f, "{seconds}s")
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9]+[smhd]$" })
    }
}
