//! Who can read a repository: adding and removing recipients re-wraps keys, never data.
//!
//! Invariant: a key object is replaced by one put, so a crash leaves each of them wrapped for the old or for the new
//! recipients; `config` changes last when adding and first when removing, and the operation can be repeated.

use backup_core::error::{Error, ErrorKind, Result};
use jiff::Timestamp;

use super::config::{Config, RecipientInfo};
use super::crypto::SessionKeys;
use super::layout;
use super::logs::key::LogIdentity;
use super::{Repository, read};
use crate::keys;

impl Repository {
    /// Who can read the repository.
    pub async fn recipients(&self) -> Result<Vec<RecipientInfo>> {
        Ok(self.config.lock().await.recipients.clone())
    }

    /// Lets `recipient` read everything, earlier snapshots too. Returns the number of keys that were wrapped again.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] without a private key; [`ErrorKind::AlreadyExists`] when it can read already.
    pub async fn add_recipient(&self, recipient: &str) -> Result<u64> {
        keys::check_recipient(recipient)?;
        let mut config = self.fresh_config().await?;
        if config.recipients.iter().any(|info| info.recipient == recipient) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("{recipient} can read this repository already")));
        }
        let info = RecipientInfo { recipient: recipient.to_owned(), added: Timestamp::now(), passphrase: false };
        config.recipients.push(info);
        let wrapped = self.wrap_all(&config.recipient_keys()).await?;
        self.write_config(config).await?;
        Ok(wrapped)
    }

    /// Takes the right to read from `recipient`, for keys that it has not copied: data that it could read once, it may
    /// have read. Returns the number of keys that were wrapped again.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it is no recipient; [`ErrorKind::Usage`] for the last one.
    pub async fn remove_recipient(&self, recipient: &str) -> Result<u64> {
        let mut config = self.fresh_config().await?;
        let before = config.recipients.len();
        config.recipients.retain(|info| info.recipient != recipient);
        if config.recipients.len() == before {
            return Err(Error::new(ErrorKind::NotFound, format!("{recipient} is not a recipient of this repository"))
                .hint("`stackward key list` shows them"));
        }
        if config.recipients.is_empty() {
            return Err(Error::new(
                ErrorKind::Usage,
                "this is the last recipient: nobody could read the repository any more",
            )
            .hint("add another one first"));
        }
        let remaining = config.recipient_keys();
        self.write_config(config).await?;
        self.wrap_all(&remaining).await
    }

    /// See [`Config::recipients_to_write`].
    pub(super) async fn recipients_to_write(&self) -> Result<Vec<String>> {
        self.config.lock().await.recipients_to_write(&self.recipients)
    }

    async fn fresh_config(&self) -> Result<Config> {
        if !self.is_encrypted() {
            return Err(Error::new(ErrorKind::Usage, "this repository is not encrypted: everybody can read it"));
        }
        if !self.sessions.can_read() {
            return Err(read::needs_identity());
        }
        self.store.confirm().await?;
        Ok(self.config.lock().await.clone())
    }

    async fn write_config(&self, mut config: Config) -> Result<()> {
        config.authenticate(&self.index_key);
        self.store.replace(&layout::config(), config.render()?).await?;
        *self.config.lock().await = config;
        Ok(())
    }

    /// Wraps every key again. Nothing is replaced before all of them were opened and found to belong to this repository.
    async fn wrap_all(&self, recipients: &[String]) -> Result<u64> {
        let mut opened = Vec::new();
        for (path, _) in self.store.list(layout::KEYS).await? {
            let named = |start: &str| path.filename().is_some_and(|name| name.starts_with(start));
            let (session, log) = (named("session-"), named("log-"));
            // Others: the identity under the passphrase, and what a creation that died left.
            if !session && !log && path != layout::repository_keys(&self.id) {
                continue;
            }
            let in_object = |error: Error| error.with("object", &path);
            let plain = keys::unwrap(&self.unlocked, &self.store.get(&path).await?).map_err(in_object)?;
            if session {
                SessionKeys::from_bytes(&plain, &self.index_key).map_err(in_object)?;
            }
            if log {
                LogIdentity::from_bytes(&plain, &self.index_key).map_err(in_object)?;
            }
            opened.push((path, plain));
        }
        for (path, plain) in &opened {
            self.store.replace(path, keys::wrap(recipients, plain)?.into()).await?;
        }
        Ok(opened.len() as u64)
    }
}
