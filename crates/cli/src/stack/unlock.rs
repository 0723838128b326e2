//! Which keys a command gets: a backup none that reads, everything else what can be found.

use backup_core::Result;
use backup_core::plan::SinkConfig;
use backup_core::secret::Secret;

use super::{Stack, key_beside};
use crate::session::Session;
use crate::sinks::{Unlock, keys};

/// The passphrase, when the plan does not say where it is.
const PASSPHRASE: &str = "STACKWARD_PASSPHRASE";

/// What a command does to the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It adds snapshots: private keys and passphrases are left alone even when they are at hand.
    Write,
    /// It reads, as far as the keys at hand allow.
    Read,
}

/// The keys for `access`.
pub(crate) fn unlock(session: &Session<'_>, stack: &Stack, access: Access) -> Result<Unlock> {
    match access {
        Access::Write => Ok(Unlock::default()),
        Access::Read => Ok(Unlock { identities: identities(session, stack)?, passphrase: passphrase(stack)? }),
    }
}

fn identities(session: &Session<'_>, stack: &Stack) -> Result<Vec<Secret>> {
    if let Some(path) = &session.options.identity {
        return keys::read_identities(path);
    }
    let beside = key_beside(&stack.path);
    if beside.exists() { keys::read_identities(&beside) } else { Ok(Vec::new()) }
}

fn passphrase(stack: &Stack) -> Result<Option<Secret>> {
    if let Ok(text) = std::env::var(PASSPHRASE)
        && !text.is_empty()
    {
        return Ok(Some(Secret::new(text)));
    }
    match &stack.plan.sink {
        SinkConfig::Repository(config) => {
            config.passphrase.as_ref().map(backup_core::secret::SecretRef::resolve).transpose()
        }
        SinkConfig::Directory(_) => Ok(None),
    }
}
