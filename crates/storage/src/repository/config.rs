//! The repository's `config` object, this machine's writer key, and how both come into being.
//!
//! Invariant: `config` is written last when a repository is made, so a place without one is no repository;
//! its fields are authenticated under the index key, so the store cannot add a recipient of its own.

use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::EncryptionConfig;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::crypto::{KEY_BYTES, Key, derive, random_key};

/// The version that this code writes and reads.
pub(super) const FORMAT_VERSION: u32 = 1;
const MAC_CONTEXT: &str = "stackward 2026-11 config key";
const WRITER_ID_CONTEXT: &str = "stackward 2026-11 writer id";

/// Who can read a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientInfo {
    /// The public key.
    pub recipient: String,
    /// When it was added.
    pub added: Timestamp,
    /// Whether its private half lies in the repository, under the passphrase.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passphrase: bool,
}

/// The `config` object: JSON, readable by anybody.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Config {
    pub(super) format_version: u32,
    pub(super) repository_id: String,
    pub(super) created: Timestamp,
    pub(super) encryption: EncryptionConfig,
    #[serde(default)]
    pub(super) recipients: Vec<RecipientInfo>,
    /// What the probe of the store found: whether it honours conditional puts.
    pub(super) conditional_put: bool,
    pub(super) mac: String,
}

impl Config {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let broken = |source: serde_json::Error| {
            Error::new(ErrorKind::Damaged, "the repository's `config` object is not readable").caused_by(source)
        };
        let Version { format_version } = serde_json::from_slice(bytes).map_err(broken)?;
        if format_version != FORMAT_VERSION {
            let message = format!(
                "the repository has format version {format_version}; this program reads version {FORMAT_VERSION}"
            );
            return Err(Error::new(ErrorKind::Unsupported, message).hint("use a newer stackward"));
        }
        let config: Self = serde_json::from_slice(bytes).map_err(broken)?;
        let plain =
            config.repository_id.len() == 32 && config.repository_id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if plain {
            Ok(config)
        } else {
            Err(Error::new(ErrorKind::Damaged, "the repository's `config` object has no valid id"))
        }
    }

    pub(super) fn render(&self) -> Result<bytes::Bytes> {
        let json = serde_json::to_vec_pretty(self);
        json.map(Into::into)
            .map_err(|source| Error::new(ErrorKind::Internal, "cannot write the config").caused_by(source))
    }

    /// BLAKE3, keyed with a key derived from the index key, of the fields one a line.
    fn compute_mac(&self, index_key: &Key) -> blake3::Hash {
        let encryption = match self.encryption {
            EncryptionConfig::Age => "age",
            EncryptionConfig::None => "none",
        };
        let mut text = format!("{}\n{}\n{}\n{encryption}\n", self.format_version, self.repository_id, self.created);
        for info in &self.recipients {
            text.push_str(&format!(
                "{} {} {}\n",
                info.recipient,
                info.added,
                if info.passphrase { "passphrase" } else { "key" }
            ));
        }
        blake3::keyed_hash(&derive(MAC_CONTEXT, &[&**index_key]), text.as_bytes())
    }

    pub(super) fn authenticate(&mut self, index_key: &Key) {
        self.mac = self.compute_mac(index_key).to_hex().to_string();
    }

    /// # Errors
    /// [`ErrorKind::Damaged`] when somebody without the keys changed it.
    pub(super) fn check_mac(&self, index_key: &Key) -> Result<()> {
        // Comparing hashes, not their text, takes the same time whatever the first difference.
        let same = blake3::Hash::from_hex(&self.mac).is_ok_and(|mac| mac == self.compute_mac(index_key));
        if same {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Damaged, "the repository's `config` object was changed by somebody without its keys")
            .hint("compare its recipients with your plan; restore the object from another copy of the repository"))
    }

    /// The recipients that a new key is wrapped to, when the plan and the repository agree about them: whoever reads the
    /// repository reads all of it.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] when one names a recipient that the other does not.
    pub(super) fn agreed_recipients(&self, planned: &[String]) -> Result<Vec<String>> {
        let recipients = self.recipients_to_write(planned)?;
        match self.recipients.iter().find(|info| !recipients.contains(&info.recipient)) {
            None => Ok(recipients),
            Some(RecipientInfo { recipient, .. }) => Err(Error::new(
                ErrorKind::Plan,
                format!("the repository can be read by {recipient}, and the plan does not name it"),
            )
            .hint(format!(
                "add it to `recipients` in the plan, or take it from the repository with `stackward key remove {recipient} --identity FILE`"
            ))),
        }
    }

    /// Those of the plan, and the passphrase. What others may read was wrapped to them by `key add`.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] when the plan names one that the repository does not know.
    pub(super) fn recipients_to_write(&self, planned: &[String]) -> Result<Vec<String>> {
        let mut recipients = self.recipient_keys();
        for name in planned {
            if !recipients.contains(name) {
                return Err(Error::new(
                    ErrorKind::Plan,
                    format!("the plan names the recipient {name}, and the repository does not know it"),
                )
                .hint(format!(
                    "run `stackward key add {name} --identity FILE`, so that it can read earlier snapshots too"
                )));
            }
        }
        let passphrases: Vec<&str> =
            self.recipients.iter().filter(|info| info.passphrase).map(|info| info.recipient.as_str()).collect();
        if !planned.is_empty() {
            recipients.retain(|known| planned.contains(known) || passphrases.contains(&known.as_str()));
        }
        Ok(recipients)
    }

    /// Whether one of `recipients` at least is named.
    pub(super) fn names(&self, recipients: &[String]) -> bool {
        self.recipients.iter().any(|info| recipients.contains(&info.recipient))
    }

    pub(super) fn recipient_keys(&self) -> Vec<String> {
        self.recipients.iter().map(|info| info.recipient.clone()).collect()
    }
}

/// The keys that every writer of a repository shares: they make ids and seal the index.
#[derive(Clone, PartialEq)]
pub(super) struct RepositoryKeys {
    pub(super) id_key: Key,
    pub(super) index_key: Key,
}

impl RepositoryKeys {
    pub(super) fn generate() -> Result<Self> {
        Ok(Self { id_key: random_key()?, index_key: random_key()? })
    }

    /// Those of a repository that is not encrypted.
    pub(super) fn open() -> Self {
        Self { id_key: Key::new([0; KEY_BYTES]), index_key: Key::new([0; KEY_BYTES]) }
    }

    /// As wrapped to the recipients: id key, index key.
    pub(super) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([&self.id_key[..], &self.index_key[..]].concat())
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let wrong = || Error::new(ErrorKind::Damaged, "the repository's key object has the wrong length");
        let (id, index) = bytes.split_at_checked(KEY_BYTES).ok_or_else(wrong)?;
        let key = |part: &[u8]| <[u8; KEY_BYTES]>::try_from(part).map(Key::new).map_err(|_| wrong());
        Ok(Self { id_key: key(id)?, index_key: key(index)? })
    }
}

/// What this machine keeps to write into a repository: `<repository id>.writer-key`, mode 0600.
#[derive(Clone)]
pub(super) struct WriterKey {
    pub(super) keys: RepositoryKeys,
    pub(super) secret: Key,
}

#[derive(Serialize, Deserialize)]
struct WriterKeyFile {
    repository_id: String,
    id_key: Zeroizing<String>,
    index_key: Zeroizing<String>,
    writer_secret: Zeroizing<String>,
}

impl WriterKey {
    pub(super) fn generate(keys: RepositoryKeys) -> Result<Self> {
        Ok(Self { keys, secret: random_key()? })
    }

    pub(super) fn open() -> Self {
        Self { keys: RepositoryKeys::open(), secret: Key::new([0; KEY_BYTES]) }
    }

    /// Names the writer without giving its secret away.
    pub(super) fn id(&self) -> String {
        writer_id(&self.secret)
    }

    pub(super) fn path(state: &Path, repository_id: &str) -> PathBuf {
        state.join(format!("{repository_id}.writer-key"))
    }

    /// Reads this machine's writer key; `None` when it has none for this repository.
    pub(super) fn load(state: &Path, repository_id: &str) -> Result<Option<Self>> {
        let path = Self::path(state, repository_id);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("cannot read this machine's writer key", &path, error)),
        };
        let broken = || {
            Error::new(ErrorKind::WrongKey, format!("this machine's writer key {} is not usable", path.display()))
                .hint("remove it and write a new one with `stackward key enroll --identity FILE`")
        };
        let file: WriterKeyFile = serde_json::from_str(&text).map_err(|_| broken())?;
        let key = |hex: &str| {
            let mut key = Key::new([0; KEY_BYTES]);
            hex::decode_to_slice(hex, &mut *key).map(|()| key).map_err(|_| broken())
        };
        let keys = RepositoryKeys { id_key: key(&file.id_key)?, index_key: key(&file.index_key)? };
        Ok(Some(Self { keys, secret: key(&file.writer_secret)? }))
    }

    /// Writes the writer key, complete or not at all.
    pub(super) fn save(&self, state: &Path, repository_id: &str) -> Result<PathBuf> {
        let path = Self::path(state, repository_id);
        let file = WriterKeyFile {
            repository_id: repository_id.to_owned(),
            id_key: Zeroizing::new(hex::encode(*self.keys.id_key)),
            index_key: Zeroizing::new(hex::encode(*self.keys.index_key)),
            writer_secret: Zeroizing::new(hex::encode(*self.secret)),
        };
        let json = serde_json::to_vec_pretty(&file).map(Zeroizing::new);
        let json =
            json.map_err(|source| Error::new(ErrorKind::Internal, "cannot write a key file").caused_by(source))?;
        write_state(&path, &json)
            .map_err(|source| Error::io("cannot write this machine's writer key", &path, source))?;
        Ok(path)
    }
}

/// Writes a file of this machine's state, mode 0600 in a folder of mode 0700, complete or not at all.
pub(super) fn write_state(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let written = (|| {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    })();
    if written.is_err() {
        let _gone = std::fs::remove_file(&partial);
    }
    written
}

/// See [`WriterKey::id`].
pub(super) fn writer_id(secret: &Key) -> String {
    hex::encode(&derive(WRITER_ID_CONTEXT, &[&**secret])[..16])
}

/// The folder for writer keys when the plan names none.
pub(crate) fn default_state() -> PathBuf {
    if let Some(folder) = std::env::var_os("STACKWARD_STATE") {
        return PathBuf::from(folder);
    }
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/stackward");
    }
    let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    base.or_else(home).unwrap_or_else(|| PathBuf::from(".")).join("stackward")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            format_version: FORMAT_VERSION,
            repository_id: "0123456789abcdef0123456789abcdef".to_owned(),
            created: "2026-11-20T00:00:00Z".parse().unwrap(),
            encryption: EncryptionConfig::Age,
            recipients: vec![RecipientInfo {
                recipient: "age1x".to_owned(),
                added: "2026-11-20T00:00:00Z".parse().unwrap(),
                passphrase: false,
            }],
            conditional_put: true,
            mac: String::new(),
        }
    }

    #[test]
    fn a_recipient_that_the_store_added_is_noticed() {
        let key = random_key().unwrap();
        let mut config = config();
        config.authenticate(&key);
        config.check_mac(&key).unwrap();
        let mut changed = config.clone();
        changed.recipients.push(RecipientInfo { recipient: "age1enemy".to_owned(), ..changed.recipients[0].clone() });
        assert_eq!(changed.check_mac(&key).unwrap_err().kind(), ErrorKind::Damaged);
        assert!(config.check_mac(&random_key().unwrap()).is_err());
    }

    #[test]
    fn a_newer_format_says_so_before_anything_else() {
        let error = Config::parse(br#"{"format_version": 9, "whatever": true}"#).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(Config::parse(b"{}").unwrap_err().kind(), ErrorKind::Damaged);
    }

    #[test]
    fn a_writer_key_is_private_and_round_trips() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let key = WriterKey::generate(RepositoryKeys::generate().unwrap()).unwrap();
        let path = key.save(&state, "abc").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(WriterKey::load(&state, "abc").unwrap().unwrap().id(), key.id());
        assert!(WriterKey::load(&state, "other").unwrap().is_none());
        std::fs::write(&path, "{}").unwrap();
        let error = WriterKey::load(&state, "abc").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
    }
}
