//! Makes and opens repositories.
//!
//! Invariant: `config` is created last and conditionally: of two creations at once one wins, and half a creation is none.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::EncryptionConfig;
use backup_core::secret::Secret;
use bytes::Bytes;
use jiff::Timestamp;
use object_store::ObjectStore;
use object_store::path::Path;
use tokio::sync::Mutex;

use super::Repository;
use super::config::{Config, FORMAT_VERSION, RecipientInfo, RepositoryKeys, WriterKey, default_state};
use super::crypto::random;
use super::index::Index;
use super::keyring::{self, Condition, Keyring};
use super::layout;
use super::load::IndexLoader;
use super::opened::Opened;
use super::read::{ChunkReader, KeySource, Sessions};
use super::store::Store;
use crate::keys::{self, Unlock, Unlocked};

/// Where objects lie that are made to try the store.
const PROBES: &str = "probe";

/// How a repository is made and opened.
#[derive(Debug, Clone)]
pub struct RepositoryOptions {
    /// Public keys that can read it.
    pub recipients: Vec<String>,
    /// A passphrase that can read it.
    pub passphrase: Option<Secret>,
    /// Whether it is encrypted.
    pub encryption: EncryptionConfig,
    /// The zstd level of what this machine writes.
    pub level: i32,
    /// The folder of this machine's writer key; `None` for the default.
    pub state: Option<PathBuf>,
}

/// What [`Repository::create`] did.
#[derive(Debug, Clone)]
pub struct Created {
    /// The repository, in a few words.
    pub description: String,
    /// `false` when it was there already.
    pub created: bool,
    /// What an operator should know: the store ignores conditional puts, say.
    pub notes: Vec<String>,
}

impl Repository {
    /// Makes a repository in `store`, or finds that there is one. Writes this machine's writer key.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] when nobody could read it; [`ErrorKind::AlreadyExists`] when something else lies there.
    pub async fn create(store: Arc<dyn ObjectStore>, describe: &str, options: &RepositoryOptions) -> Result<Created> {
        let store = Store::new(store, describe);
        let done = |created, notes| Created { description: store.describe().to_owned(), created, notes };
        match store.get(&layout::config()).await {
            Ok(bytes) => {
                Config::parse(&bytes)?;
                return Ok(done(false, Vec::new()));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        check_recipients(options)?;
        check_free(&store).await?;
        let Probed { conditional_put, left } = probe(&store).await?;
        let id = hex::encode(random::<16>()?);
        let keys = create_keys(&store, options, &id).await?;
        let mut config = Config {
            format_version: FORMAT_VERSION,
            repository_id: id,
            created: Timestamp::now(),
            encryption: options.encryption,
            recipients: keys.recipients,
            conditional_put,
            mac: String::new(),
        };
        config.authenticate(&keys.keys.index_key);
        store.create(&layout::config(), config.render()?).await?;
        let mut notes = Vec::new();
        if let Some(left) = left {
            notes.push(format!(
                "the store does not let us delete the object `{left}`, made to try it; nothing needs it"
            ));
        }
        if !conditional_put {
            notes.push("this store ignores conditional puts: names of snapshots are unique by chance alone".to_owned());
        }
        Ok(done(true, notes))
    }

    /// Opens the repository in `store`.
    ///
    /// # Errors
    /// [`ErrorKind::NoRepository`] when there is none; [`ErrorKind::WrongKey`] when a key that was given does not fit, or
    /// when this machine has neither a writer key nor a private key; [`ErrorKind::Unsupported`] for a newer format.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        describe: &str,
        options: &RepositoryOptions,
        unlock: &Unlock,
    ) -> Result<Self> {
        let store = Store::new(store, describe);
        let (config, config_object) = read_config(&store).await?;
        let state = options.state.clone().unwrap_or_else(default_state);
        let encrypted = config.encryption == EncryptionConfig::Age;
        if encrypted && options.encryption == EncryptionConfig::None {
            return Err(Error::new(
                ErrorKind::Plan,
                format!("{} is encrypted, and the plan says `encryption: none`", store.describe()),
            ));
        }
        if !encrypted && options.encryption == EncryptionConfig::Age {
            return Err(Error::new(
                ErrorKind::Plan,
                format!("{} is not encrypted, and the plan expects that it is", store.describe()),
            )
            .hint("write `encryption: none` into the plan, or choose another place"));
        }
        let (writer, unlocked) = if encrypted {
            let unlocked = unlock_all(&store, &config.repository_id, unlock).await?;
            (WriterKey::load(&state, &config.repository_id)?, unlocked)
        } else {
            (Some(WriterKey::open()), Unlocked::default())
        };
        let keys = repository_keys(&store, &config, writer.as_ref(), &unlocked, &state).await?;
        config.check_mac(&keys.index_key)?;
        let (encryption, id) = (config.encryption, config.repository_id.clone());
        let config = Arc::new(Mutex::new(config));
        let store = store.of(Opened::new(Arc::clone(&config), config_object, keys.index_key.clone()));
        let source = if encrypted {
            KeySource::Sealed {
                writer_secret: writer.as_ref().map(|writer| writer.secret.clone()),
                identities: unlocked.clone(),
                index_key: keys.index_key.clone(),
            }
        } else {
            KeySource::Open
        };
        let index = Arc::new(RwLock::new(Index::default()));
        let loader = Arc::new(IndexLoader::new(store.clone(), Arc::clone(&index), keys.index_key.clone()));
        let sessions = Arc::new(Sessions::new(store.clone(), source));
        let chunks = Arc::new(ChunkReader::new(
            store.clone(),
            Arc::clone(&index),
            Arc::clone(&loader),
            Arc::clone(&sessions),
            keys.id_key.clone(),
        ));
        Ok(Self {
            encryption,
            id,
            config,
            store,
            recipients: options.recipients.clone(),
            level: options.level,
            state,
            index_key: keys.index_key,
            id_key: keys.id_key,
            writer: writer.map(Arc::new),
            index,
            loader,
            sessions,
            chunks,
            unlocked: Arc::new(unlocked),
            logs: Arc::default(),
        })
    }

    /// Writes a writer key for this machine, so that it can back up into a repository that another machine made.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] without a private key.
    pub fn enroll(&self) -> Result<PathBuf> {
        if !self.sessions.can_read() {
            return Err(super::read::needs_identity());
        }
        let keys = RepositoryKeys { id_key: self.id_key.clone(), index_key: self.index_key.clone() };
        if let Some(writer) = &self.writer {
            return writer.save(&self.state, &self.id);
        }
        WriterKey::generate(keys)?.save(&self.state, &self.id)
    }
}

/// Refuses a place that holds something else, or the remains of a repository.
async fn check_free(store: &Store) -> Result<()> {
    if store.is_empty().await? {
        return Ok(());
    }
    let begun = [layout::KEYS, layout::KEY_COPIES, PROBES].map(|folder| format!("{folder}/"));
    let is_begun = |path: &Path| begun.iter().any(|folder| path.as_ref().starts_with(folder.as_str()));
    if store.list("").await?.iter().all(|(path, _)| is_begun(path)) {
        // Key objects and probes alone: a creation that died before its `config`. Nothing was ever stored under them.
        return Ok(());
    }
    Err(Error::new(ErrorKind::AlreadyExists, format!("{} is not empty, and is not a repository", store.describe()))
        .hint(
            "choose an empty place; if this was a repository whose `config` was lost, restore that object from a copy",
        ))
}

/// Looks, before anything is written, whether somebody could read what will be stored.
fn check_recipients(options: &RepositoryOptions) -> Result<()> {
    options.recipients.iter().try_for_each(|recipient| keys::check_recipient(recipient))?;
    let nobody = options.recipients.is_empty() && options.passphrase.is_none();
    if options.encryption == EncryptionConfig::None || !nobody {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Plan, "the repository would be encrypted to nobody").hint(
        "name a public key in `repository.recipients` (`stackward key generate` makes a pair), or a `passphrase`",
    ))
}

struct CreatedKeys {
    keys: RepositoryKeys,
    recipients: Vec<RecipientInfo>,
}

async fn create_keys(store: &Store, options: &RepositoryOptions, id: &str) -> Result<CreatedKeys> {
    if options.encryption == EncryptionConfig::None {
        return Ok(CreatedKeys { keys: RepositoryKeys::open(), recipients: Vec::new() });
    }
    let now = Timestamp::now();
    let mut recipients = Vec::new();
    for recipient in &options.recipients {
        recipients.push(RecipientInfo { recipient: recipient.clone(), added: now, passphrase: false });
    }
    if let Some(passphrase) = &options.passphrase {
        // The passphrase protects a key pair, so that writing needs no passphrase and no slow derivation.
        let pair = keys::generate();
        let (secret, phrase) = (pair.identity.clone(), passphrase.clone());
        let wrapped =
            tokio::task::spawn_blocking(move || keys::wrap_with_passphrase(&phrase, secret.expose().as_bytes())).await;
        let wrapped = wrapped
            .map_err(|source| Error::new(ErrorKind::Internal, "the key derivation failed").caused_by(source))??;
        keyring::create(store, &layout::passphrase_identity(id), wrapped.into()).await?;
        recipients.push(RecipientInfo { recipient: pair.recipient, added: now, passphrase: true });
    }
    let keys = RepositoryKeys::generate()?;
    let to: Vec<String> = recipients.iter().map(|info| info.recipient.clone()).collect();
    let wrapped = keys::wrap(&to, &keys.to_bytes())?;
    keyring::create(store, &layout::repository_keys(id), wrapped.into()).await?;
    let state = options.state.clone().unwrap_or_else(default_state);
    WriterKey::generate(keys.clone())?.save(&state, id)?;
    Ok(CreatedKeys { keys, recipients })
}

/// The `config` of the repository in `store`, and its object.
async fn read_config(store: &Store) -> Result<(Config, Bytes)> {
    match store.get(&layout::config()).await {
        Ok(object) => Ok((Config::parse(&object)?, object)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let half = !store.is_empty().await.unwrap_or(true);
            let what =
                if half { "only part of a repository (its `config` object is missing)" } else { "no repository" };
            let hint = if half {
                "restore `config` from a copy, or start in an empty place"
            } else {
                "run `stackward init` to make it"
            };
            Err(Error::new(ErrorKind::NoRepository, format!("there is {what} at {}", store.describe())).hint(hint))
        }
        Err(error) => Err(error),
    }
}

/// The identities that were given, and the one that a passphrase opens.
async fn unlock_all(store: &Store, id: &str, unlock: &Unlock) -> Result<Unlocked> {
    let mut unlocked = Unlocked::new(&unlock.identities)?;
    let Some(passphrase) = unlock.passphrase.clone() else { return Ok(unlocked) };
    let path = layout::passphrase_identity(id);
    let wrapped = match Keyring::list(store).await?.inspect(store, &path).await? {
        Condition::Whole => store.get(&path).await?,
        Condition::Single(wrapped) | Condition::Another(wrapped) | Condition::Mendable { copy: wrapped, .. } => wrapped,
        Condition::Lost { .. } if !unlocked.is_empty() => return Ok(unlocked),
        Condition::Lost { problem } => {
            return Err(Error::new(ErrorKind::WrongKey, format!("{} has no passphrase: {problem}", store.describe()))
                .with("object", path)
                .hint("pass the private key with `--identity FILE`"));
        }
    };
    let opened = tokio::task::spawn_blocking(move || keys::unwrap_with_passphrase(&passphrase, &wrapped)).await;
    let identity =
        opened.map_err(|source| Error::new(ErrorKind::Internal, "the key derivation failed").caused_by(source))??;
    let text =
        std::str::from_utf8(&identity).map_err(|_| super::codec::malformed("the passphrase's identity is not text"))?;
    unlocked.push(&Secret::new(text.trim()))?;
    Ok(unlocked)
}

async fn repository_keys(
    store: &Store,
    config: &Config,
    writer: Option<&WriterKey>,
    unlocked: &Unlocked,
    state: &std::path::Path,
) -> Result<RepositoryKeys> {
    if !unlocked.is_empty() {
        let path = layout::repository_keys(&config.repository_id);
        let open = |wrapped: &[u8]| RepositoryKeys::from_bytes(&keys::unwrap(unlocked, wrapped)?);
        let keys = keyring::open(store, &path, config.names(&unlocked.recipients()), open).await?;
        // Anybody can encrypt to a public key; only this machine's writer key was never in the store.
        if writer.is_some_and(|writer| writer.keys != keys) {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "the keys in {} are not those that this machine made: somebody replaced them",
                    store.describe()
                ),
            )
            .with("object", path)
            .hint("do not change recipients and do not restore from here; restore `config` and `keys/` from a copy"));
        }
        return Ok(keys);
    }
    match writer {
        Some(writer) => Ok(writer.keys.clone()),
        None => Err(Error::new(ErrorKind::WrongKey, format!("this machine holds no key for {}", store.describe()))
            .with("expected", WriterKey::path(state, &config.repository_id).display())
            .hint("to read, pass the private key with `--identity FILE`; to back up from here, run `stackward key enroll --identity FILE` once")),
    }
}

/// What a store did with an object that was made to try it.
struct Probed {
    /// Whether it refuses to create an object twice.
    conditional_put: bool,
    /// The object, where it may not be deleted.
    left: Option<Path>,
}

/// Whether the store refuses to create an object twice. Stores that ignore the condition exist (docs/adr/0003).
async fn probe(store: &Store) -> Result<Probed> {
    let path = Path::from(format!("{PROBES}/{}", hex::encode(random::<8>()?)));
    store.create(&path, "stackward".into()).await?;
    let conditional_put = match store.try_create(&path, "stackward".into()).await {
        Ok(()) => false,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => true,
        Err(error) => return Err(error),
    };
    let left = store.delete(&path).await.is_err().then_some(path);
    Ok(Probed { conditional_put, left })
}
