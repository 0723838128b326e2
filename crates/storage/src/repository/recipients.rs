//! Who can read a repository: adding and removing recipients re-wraps keys, never data.
//!
//! Invariants: `config` changes first, on the condition that nobody else changed it, and then every key is wrapped to whom it
//! names, on the same condition, until both agree: whatever several do at once, the last to end leaves the keys to all
//! recipients. A key object is replaced by one put; a change that died is ended by repeating it.

use std::collections::BTreeSet;

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use jiff::Timestamp;
use object_store::path::Path;
use zeroize::Zeroizing;

use super::config::{Config, RecipientInfo};
use super::crypto::{SessionId, SessionKeys};
use super::keyring::{self, Keyring};
use super::logs::key::LogIdentity;
use super::store::{Updated, Versioned};
use super::{Repository, index, layout, read};
use crate::keys;

/// So often a change is made anew because others changed the same.
const ATTEMPTS: u32 = 100;

impl Repository {
    /// Who can read the repository.
    pub async fn recipients(&self) -> Result<Vec<RecipientInfo>> {
        Ok(self.config.lock().await.recipients.clone())
    }

    /// Lets `recipient` read everything, earlier snapshots too. Returns the number of keys that were wrapped again. Where it
    /// is a recipient already every key is wrapped again all the same: that ends a change that died.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] without a private key.
    pub async fn add_recipient(&self, recipient: &str) -> Result<u64> {
        keys::check_recipient(recipient)?;
        let is_named = self.is_named().await;
        self.change_config(is_named, |config| {
            if config.recipients.iter().all(|info| info.recipient != recipient) {
                let recipient = recipient.to_owned();
                config.recipients.push(RecipientInfo { recipient, added: Timestamp::now(), passphrase: false });
            }
            Ok(())
        })
        .await?;
        self.wrap_all(is_named).await
    }

    /// Takes the right to read from `recipient`, for keys that it has not copied: data that it could read once, it may
    /// have read. Returns the number of keys that were wrapped again. Every key is wrapped again also where it is no recipient
    /// any more: that ends a change that died.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it is no recipient, and there was no such change to end; [`ErrorKind::Usage`] for the last one.
    pub async fn remove_recipient(&self, recipient: &str) -> Result<u64> {
        // Who removes himself reads what there is for the last time.
        let is_named = self.is_named().await;
        let remove = |config: &mut Config| {
            let before = config.recipients.len();
            config.recipients.retain(|info| info.recipient != recipient);
            if config.recipients.len() < before && config.recipients.is_empty() {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "this is the last recipient: nobody could read the repository any more",
                )
                .hint("add another one first"));
            }
            Ok(())
        };
        if self.change_config(is_named, remove).await? {
            return self.wrap_all(is_named).await;
        }
        let had_died = !self.is_settled().await?;
        let wrapped = self.wrap_all(is_named).await?;
        if had_died {
            return Ok(wrapped);
        }
        let message = format!("{recipient} is not a recipient of this repository");
        Err(Error::new(ErrorKind::NotFound, message).hint("`stackward key list` shows them"))
    }

    /// Whether a private key at hand is that of a recipient.
    async fn is_named(&self) -> bool {
        self.store.names(&self.unlocked.recipients()).await
    }

    /// Whether every key is wrapped to as many as `config` names, and no copy is left of what it was.
    async fn is_settled(&self) -> Result<bool> {
        let recipients = self.config.lock().await.recipients.len();
        let keyring = Keyring::list(&self.store).await?;
        for path in keyring.paths().into_iter().filter(|path| self.is_wrapped_to_all(path)) {
            match self.store.get(path).await {
                Ok(wrapped) if keyring.is_settled(path, &wrapped, recipients) => {}
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Others are the identity under the passphrase, and what a creation that died left.
    fn is_wrapped_to_all(&self, path: &Path) -> bool {
        let named = |start: &str| path.filename().is_some_and(|name| name.starts_with(start));
        named("session-") || named("log-") || *path == layout::repository_keys(&self.id)
    }

    /// Wraps a new key to the recipients, and makes its object. Returns the recipients.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] when the plan and the repository do not agree who they are; [`ErrorKind::Busy`] when they were
    /// changed at the same moment.
    pub(super) async fn wrap_new(&self, path: &Path, plain: &[u8]) -> Result<Vec<String>> {
        self.store.confirm().await?;
        let agreed = async || self.config.lock().await.agreed_recipients(&self.recipients);
        let recipients = agreed().await?;
        keyring::create(&self.store, path, keys::wrap(&recipients, plain)?.into()).await?;
        // Whoever changes recipients changes `config` first and then wraps the keys that are there: this one is among them,
        // or `config` tells.
        self.store.confirm().await?;
        if agreed().await? == recipients {
            return Ok(recipients);
        }
        Err(Error::new(ErrorKind::Busy, "the recipients of the repository were changed at this moment")
            .hint("run the command again")
            .retry_later())
    }

    /// Makes a key whole from its copy, or its copy from it. Returns the problem of one that is lost.
    pub(super) async fn mend_key(&self, path: &Path) -> Result<Option<String>> {
        Keyring::list(&self.store).await?.mend(&self.store, path).await
    }

    /// Before a run relies on keys: each is there and whole, from its second copy if need be. Content whose keys are lost
    /// is forgotten, so that the run stores it again. Returns the sessions that are lost.
    ///
    /// # Errors
    /// [`ErrorKind::NoRepository`] when the keys are gone altogether.
    pub(super) async fn mend_keys(&self) -> Result<BTreeSet<SessionId>> {
        if !self.is_encrypted() {
            return Ok(BTreeSet::new());
        }
        let keyring = Keyring::list(&self.store).await?;
        if keyring.is_empty() {
            let message =
                format!("there is only part of a repository (all its keys are missing) at {}", self.store.describe());
            return Err(Error::new(ErrorKind::NoRepository, message)
                .with("objects", layout::KEYS)
                .hint("restore `keys/` from a copy of the repository, or from `key-copies/` beside it (docs/format.md, section 2); what was saved cannot be read without"));
        }
        let path = layout::repository_keys(&self.id);
        if keyring.mend(&self.store, &path).await?.is_some() {
            // This machine has the keys themselves.
            let keys = &self.writer()?.keys;
            let recipients = self.config.lock().await.agreed_recipients(&self.recipients)?;
            let wrapped = Bytes::from(keys::wrap(&recipients, &keys.to_bytes())?);
            keyring::replace(&self.store, &path, None, wrapped).await?;
        }
        let sessions = index::read(&self.index).packs().iter().map(|pack| pack.session).collect::<BTreeSet<_>>();
        let lost = keyring.mend_all(&self.store, sessions).await?;
        index::write(&self.index).forget(|pack| lost.contains(&pack.session));
        Ok(lost)
    }

    /// Changes `config`, on the condition that nobody else changes it at the same time; then once more. Returns whether there
    /// was something to change.
    async fn change_config(&self, is_named: bool, change: impl Fn(&mut Config) -> Result<()>) -> Result<bool> {
        if !self.is_encrypted() {
            return Err(Error::new(ErrorKind::Usage, "this repository is not encrypted: everybody can read it"));
        }
        if !self.sessions.can_read() {
            return Err(read::needs_identity());
        }
        // Before anything is changed: what does not open cannot be wrapped.
        self.open_keys(&Keyring::list(&self.store).await?, is_named).await?;
        for _ in 0..ATTEMPTS {
            self.store.confirm().await?;
            let before = self.store.get_versioned(&layout::config()).await?;
            let mut config = Config::parse(&before.content)?;
            config.check_mac(&self.index_key)?;
            let old = config.recipient_keys();
            change(&mut config)?;
            config.authenticate(&self.index_key);
            let unchanged = config.recipient_keys() == old;
            if unchanged || self.store.update(&layout::config(), &before, config.render()?).await? == Updated::Done {
                return self.store.confirm().await.map(|()| !unchanged);
            }
        }
        Err(too_busy())
    }

    /// Wraps every key to the recipients of `config`, as often as others change those meanwhile.
    async fn wrap_all(&self, is_named: bool) -> Result<u64> {
        for _ in 0..ATTEMPTS {
            self.store.confirm().await?;
            let recipients = self.config.lock().await.recipient_keys();
            let Some(wrapped) = self.wrap_to(&recipients, is_named).await? else { continue };
            self.store.confirm().await?;
            if self.config.lock().await.recipient_keys() == recipients {
                return Ok(wrapped);
            }
        }
        Err(too_busy())
    }

    /// Opens every key that is wrapped to the recipients.
    ///
    /// # Errors
    /// When one does not open, or does not belong to this repository.
    async fn open_keys(&self, keyring: &Keyring, is_named: bool) -> Result<Vec<OpenedKey>> {
        let mut opened = Vec::new();
        for path in keyring.paths() {
            let named = |start: &str| path.filename().is_some_and(|name| name.starts_with(start));
            let (session, log) = (named("session-"), named("log-"));
            if !self.is_wrapped_to_all(path) {
                continue;
            }
            let open = |wrapped: &[u8]| {
                let plain = keys::unwrap(&self.unlocked, wrapped)?;
                if session {
                    SessionKeys::from_bytes(&plain, &self.index_key)?;
                }
                if log {
                    LogIdentity::from_bytes(&plain, &self.index_key)?;
                }
                Ok(plain)
            };
            let from = match self.store.get_versioned(path).await {
                Ok(from) => Some(from),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            let plain = match from.as_ref().map(|from| open(&from.content)) {
                Some(Ok(plain)) => plain,
                _ => keyring::open(&self.store, path, is_named, open).await?,
            };
            opened.push(OpenedKey { path: path.clone(), from, plain });
        }
        Ok(opened)
    }

    /// Wraps every key again; `None` when somebody else replaced one meanwhile. Nothing is replaced before all of them were
    /// opened.
    async fn wrap_to(&self, recipients: &[String], is_named: bool) -> Result<Option<u64>> {
        let keyring = Keyring::list(&self.store).await?;
        let opened = self.open_keys(&keyring, is_named).await?;
        for OpenedKey { path, from, plain } in &opened {
            let wrapped = Bytes::from(keys::wrap(recipients, plain)?);
            if keyring::replace(&self.store, path, from.as_ref(), wrapped.clone()).await? == Updated::Changed {
                keyring::delete_copy(&self.store, path, &layout::object_hash(&wrapped)).await?;
                return Ok(None);
            }
            keyring.delete_copies(&self.store, path, &wrapped).await?;
        }
        Ok(Some(opened.len() as u64))
    }
}

/// A key that will be wrapped again, and the object it was read from.
struct OpenedKey {
    path: Path,
    from: Option<Versioned>,
    plain: Zeroizing<Vec<u8>>,
}

fn too_busy() -> Error {
    Error::new(ErrorKind::Busy, "others change the recipients of the repository all the time")
        .hint("run the command again when they are done; it wraps what is left")
        .retry_later()
}
