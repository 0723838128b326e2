//! The keys of sessions, unwrapped when they are first needed.
//!
//! Invariant: without an identity only listings of this machine's own runs can be opened, never contents.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use tokio::sync::Mutex;

use crate::keys::{self, Unlocked};
use crate::repository::crypto::{FrameOpener, KEY_BYTES, Key, SessionId, SessionKeys};
use crate::repository::store::Store;
use crate::repository::{keyring, layout};

/// What opens the chunks of one session.
pub(in crate::repository) struct SessionOpeners {
    content: Option<FrameOpener>,
    pub(in crate::repository) meta: FrameOpener,
    pub(in crate::repository) meta_id: Key,
    pub(in crate::repository) meta_key: Key,
}

impl SessionOpeners {
    fn new(keys: &SessionKeys) -> Result<Self> {
        let content = keys.content.as_ref().map(FrameOpener::new).transpose()?;
        let meta = FrameOpener::new(&keys.meta)?;
        Ok(Self { content, meta, meta_id: keys.meta_id.clone(), meta_key: keys.meta.clone() })
    }

    pub(in crate::repository) fn content(&self) -> Result<&FrameOpener> {
        self.content.as_ref().ok_or_else(needs_identity)
    }
}

/// The error of a machine that can write and list, and was asked to read.
pub(in crate::repository) fn needs_identity() -> Error {
    Error::new(ErrorKind::WrongKey, "this needs the private key: the machine that backs up cannot read backups")
        .hint("pass the key file with `--identity FILE`, or run this where the private key is kept")
}

/// How the keys of a session are found.
pub(in crate::repository) enum KeySource {
    /// The repository is not encrypted: every key is zero.
    Open,
    /// By this machine's writer secret and, when there are any, by identities.
    Sealed { writer_secret: Option<Key>, identities: Unlocked, index_key: Key },
}

/// See the module.
pub(in crate::repository) struct Sessions {
    store: Store,
    source: KeySource,
    known: Mutex<HashMap<SessionId, Arc<SessionOpeners>>>,
}

impl Sessions {
    pub(in crate::repository) fn new(store: Store, source: KeySource) -> Self {
        Self { store, source, known: Mutex::default() }
    }

    pub(in crate::repository) async fn get(&self, session: SessionId) -> Result<Arc<SessionOpeners>> {
        let mut known = self.known.lock().await;
        if let Some(openers) = known.get(&session) {
            return Ok(Arc::clone(openers));
        }
        let openers = Arc::new(SessionOpeners::new(&self.find(session).await?)?);
        known.insert(session, Arc::clone(&openers));
        Ok(openers)
    }

    async fn find(&self, session: SessionId) -> Result<SessionKeys> {
        match &self.source {
            KeySource::Open => Ok(open_keys()),
            KeySource::Sealed { identities, index_key, .. } if !identities.is_empty() => {
                let open = |wrapped: &[u8]| SessionKeys::from_bytes(&keys::unwrap(identities, wrapped)?, index_key);
                let is_named = self.store.names(&identities.recipients()).await;
                keyring::open(&self.store, &layout::session_keys(session), is_named, open).await
            }
            KeySource::Sealed { writer_secret: Some(secret), .. } => Ok(SessionKeys::derived(secret, session)),
            KeySource::Sealed { .. } => Err(needs_identity()),
        }
    }

    /// Whether contents can be opened at all.
    pub(in crate::repository) fn can_read(&self) -> bool {
        match &self.source {
            KeySource::Open => true,
            KeySource::Sealed { identities, .. } => !identities.is_empty(),
        }
    }
}

/// The keys of every session of a repository that is not encrypted.
pub(in crate::repository) fn open_keys() -> SessionKeys {
    let zero = Key::new([0; KEY_BYTES]);
    SessionKeys { content: Some(zero.clone()), meta: zero.clone(), meta_id: zero }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}
