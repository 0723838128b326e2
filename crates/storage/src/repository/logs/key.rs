//! The key pair that a machine seals its logs to. The private half goes, wrapped, to the recipients; the machine keeps the
//! public half only, so it cannot read what it archived.
//!
//! Invariant: the public half never comes from the store, which could offer one of its own; it is made here and kept in
//! this machine's state. A pair serves one set of recipients: when that changes, a new pair is made.

use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::secrecy::ExposeSecret;
use age::x25519;
use backup_core::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::repository::crypto::{Key, derive, random};

const FINGERPRINT_CONTEXT: &str = "stackward 2026-11 log key fingerprint";
const RECIPIENTS_CONTEXT: &str = "stackward 2026-11 log key recipients";

/// The public half: seals bodies.
#[derive(Clone)]
pub(in crate::repository) struct LogRecipient {
    id: String,
    key: x25519::Recipient,
}

impl LogRecipient {
    /// Names the pair: 32 hexadecimal digits.
    pub(in crate::repository) fn id(&self) -> &str {
        &self.id
    }

    /// Begins an age file.
    pub(in crate::repository) fn seal<W: Write>(&self, out: W) -> Result<age::stream::StreamWriter<W>> {
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&self.key as &dyn age::Recipient))
            .map_err(|source| Error::new(ErrorKind::Internal, "cannot seal a segment").caused_by(source))?;
        encryptor.wrap_output(out).map_err(|source| Error::from_io("cannot seal a segment", source))
    }
}

/// The private half: opens bodies.
#[derive(Clone)]
pub(in crate::repository) struct LogIdentity(x25519::Identity);

impl LogIdentity {
    /// Reads an age file.
    pub(in crate::repository) fn open<'a>(&self, body: &'a [u8]) -> Result<impl Read + use<'a>> {
        let damaged =
            |source: age::DecryptError| Error::new(ErrorKind::Damaged, "a segment cannot be opened").caused_by(source);
        let decryptor = age::Decryptor::new_buffered(body).map_err(damaged)?;
        decryptor.decrypt(std::iter::once(&self.0 as &dyn age::Identity)).map_err(damaged)
    }

    /// As wrapped to the recipients: the fingerprint of the index key, then the private key as text.
    pub(in crate::repository) fn to_bytes(&self, index_key: &Key) -> Zeroizing<Vec<u8>> {
        let text = self.0.to_string();
        Zeroizing::new([&fingerprint(index_key)[..], text.expose_secret().as_bytes()].concat())
    }

    /// Reads what [`LogIdentity::to_bytes`] made, and checks that it belongs to the repository of `index_key`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`].
    pub(in crate::repository) fn from_bytes(bytes: &[u8], index_key: &Key) -> Result<Self> {
        let wrong = |what: &str| Error::new(ErrorKind::Damaged, format!("the key of a log {what}"));
        let (found, text) = bytes.split_first_chunk::<32>().ok_or_else(|| wrong("is too short"))?;
        if *found != *fingerprint(index_key) {
            return Err(wrong("belongs to another repository")
                .hint("somebody replaced `config` and `keys/`: change nothing, and restore them from a copy"));
        }
        let text = std::str::from_utf8(text).map_err(|_| wrong("is not text"))?;
        x25519::Identity::from_str(text).map(Self).map_err(|_| wrong("is not a private key"))
    }
}

impl fmt::Debug for LogIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogIdentity(…)")
    }
}

fn fingerprint(index_key: &Key) -> Key {
    derive(FINGERPRINT_CONTEXT, &[&**index_key])
}

/// A new pair.
pub(in crate::repository) fn pair() -> Result<(LogRecipient, LogIdentity)> {
    let identity = x25519::Identity::generate();
    let recipient = LogRecipient { id: hex::encode(random::<16>()?), key: identity.to_public() };
    Ok((recipient, LogIdentity(identity)))
}

/// `<repository id>.log-key` in this machine's state: no secret.
#[derive(Serialize, Deserialize)]
struct LogKeyFile {
    key: String,
    recipient: String,
    /// For whom the private half was wrapped.
    recipients: String,
}

/// A keyed hash of the set of `recipients`.
fn recipients_hash(recipients: &[String]) -> String {
    let mut sorted: Vec<&[u8]> = recipients.iter().map(String::as_bytes).collect();
    sorted.sort_unstable();
    hex::encode(*derive(RECIPIENTS_CONTEXT, &[&sorted.join(&b'\n')]))
}

fn path(state: &Path, repository_id: &str) -> PathBuf {
    state.join(format!("{repository_id}.log-key"))
}

/// The pair that this machine uses for these recipients; `None` when it has none, or one for others.
///
/// # Errors
/// When the file is there and cannot be read.
pub(in crate::repository) fn load(
    state: &Path,
    repository_id: &str,
    recipients: &[String],
) -> Result<Option<LogRecipient>> {
    let path = path(state, repository_id);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("cannot read this machine's log key", &path, error)),
    };
    // What is not readable is replaced: a pair costs one small object.
    let Ok(file) = serde_json::from_str::<LogKeyFile>(&text) else { return Ok(None) };
    let Ok(key) = x25519::Recipient::from_str(&file.recipient) else { return Ok(None) };
    let plain = file.key.len() == 32 && file.key.bytes().all(|byte| byte.is_ascii_hexdigit());
    let fits = plain && file.recipients == recipients_hash(recipients);
    Ok(fits.then_some(LogRecipient { id: file.key, key }))
}

/// Keeps the public half for the next push.
///
/// # Errors
/// When the state cannot be written.
pub(in crate::repository) fn save(
    state: &Path,
    repository_id: &str,
    recipients: &[String],
    recipient: &LogRecipient,
) -> Result<()> {
    let file = LogKeyFile {
        key: recipient.id.clone(),
        recipient: recipient.key.to_string(),
        recipients: recipients_hash(recipients),
    };
    let json = serde_json::to_vec_pretty(&file)
        .map_err(|source| Error::new(ErrorKind::Internal, "cannot write a key file").caused_by(source))?;
    let path = path(state, repository_id);
    crate::repository::config::write_state(&path, &json)
        .map_err(|source| Error::io("cannot write this machine's log key", &path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::crypto::random_key;

    #[test]
    fn a_pair_serves_one_set_of_recipients() {
        let folder = tempfile::tempdir().unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (recipient, _) = pair().unwrap();
        let find = |recipients: &[String]| load(folder.path(), "abc", recipients).unwrap().map(|found| found.id);
        assert_eq!(find(&names(&["a", "b"])), None);
        save(folder.path(), "abc", &names(&["a", "b"]), &recipient).unwrap();
        assert_eq!(find(&names(&["b", "a"])), Some(recipient.id.clone()), "order means nothing");
        assert_eq!(find(&names(&["a"])), None, "b was removed and may know the private half");
        assert_eq!(find(&names(&["a", "b", "c"])), None, "c could not read it");
        std::fs::write(path(folder.path(), "abc"), "{").unwrap();
        assert_eq!(find(&names(&["a", "b"])), None);
    }

    #[test]
    fn a_private_half_is_bound_to_its_repository() {
        let (index_key, other) = (random_key().unwrap(), random_key().unwrap());
        let (_, identity) = pair().unwrap();
        let bytes = identity.to_bytes(&index_key);
        LogIdentity::from_bytes(&bytes, &index_key).unwrap();
        assert!(LogIdentity::from_bytes(&bytes, &other).unwrap_err().to_string().contains("another repository"));
        assert!(LogIdentity::from_bytes(&bytes[..40], &index_key).is_err());
        assert!(!format!("{identity:?}").contains("AGE"));
    }
}
