//! Key pairs, recipients and the wrapping of session keys: the age format (age-encryption.org/v1), nothing of our own.
//!
//! Invariant: a private key is held in memory only, and never named in an error.

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::str::FromStr;

use age::secrecy::{ExposeSecret, SecretString};
use age::x25519;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::secret::Secret;
use zeroize::Zeroizing;

/// A new key pair.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// The private half: `AGE-SECRET-KEY-1…`. Whoever has it reads every backup.
    pub identity: Secret,
    /// The public half: `age1…`. It belongs into the plan.
    pub recipient: String,
}

/// What may open content. Empty on a writing host, which can back up, list and check, and not read.
#[derive(Debug, Clone, Default)]
pub struct Unlock {
    /// Private keys.
    pub identities: Vec<Secret>,
    /// The passphrase, for a repository that has one.
    pub passphrase: Option<Secret>,
}

/// Makes a key pair.
#[must_use]
pub fn generate() -> KeyPair {
    let identity = x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    KeyPair { identity: Secret::new(identity.to_string().expose_secret()), recipient }
}

/// Checks that `text` is a public key.
///
/// # Errors
/// [`ErrorKind::Plan`] with what it should look like; a private key in its place is recognised and not repeated.
pub fn check_recipient(text: &str) -> Result<()> {
    recipient(text).map(|_| ())
}

/// The public half of a private key.
///
/// # Errors
/// [`ErrorKind::WrongKey`] when it is no private key.
pub fn recipient_of(identity: &Secret) -> Result<String> {
    parse_identity(identity.expose()).map(|identity| identity.to_public().to_string())
}

/// Reads the private keys of an age identity file: one a line, `#` begins a comment.
///
/// # Errors
/// [`ErrorKind::WrongKey`] when the file cannot be read or holds no private key.
pub fn read_identities(path: &Path) -> Result<Vec<Secret>> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|source| {
        Error::new(ErrorKind::WrongKey, format!("the key file {} cannot be read", path.display())).caused_by(source)
    })?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut identities = Vec::new();
    for line in lines {
        parse_identity(line).map_err(|error| error.with("file", path.display()))?;
        identities.push(Secret::new(line));
    }
    if identities.is_empty() {
        return Err(Error::new(ErrorKind::WrongKey, format!("the key file {} holds no private key", path.display()))
            .hint("a private key is a line that begins with AGE-SECRET-KEY-1"));
    }
    Ok(identities)
}

fn parse_identity(text: &str) -> Result<x25519::Identity> {
    x25519::Identity::from_str(text).map_err(|_| {
        Error::new(ErrorKind::WrongKey, "this is not a private key").hint("a private key begins with AGE-SECRET-KEY-1")
    })
}

pub(crate) fn recipient(text: &str) -> Result<x25519::Recipient> {
    x25519::Recipient::from_str(text).map_err(|_| {
        if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
            return Error::new(ErrorKind::Plan, "a recipient is a public key, and this is a private one")
                .hint("write the line that begins with age1; keep the private key off this machine");
        }
        Error::new(ErrorKind::Plan, format!("`{}` is not a public key", text.escape_debug()))
            .hint("a public key begins with age1; `stackward key generate` makes a pair")
    })
}

/// Private keys, parsed.
#[derive(Clone, Default)]
pub(crate) struct Unlocked(Vec<x25519::Identity>);

impl Unlocked {
    pub(crate) fn new(identities: &[Secret]) -> Result<Self> {
        identities.iter().map(|identity| parse_identity(identity.expose())).collect::<Result<_>>().map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their public halves.
    pub(crate) fn recipients(&self) -> Vec<String> {
        self.0.iter().map(|identity| identity.to_public().to_string()).collect()
    }

    pub(crate) fn push(&mut self, identity: &Secret) -> Result<()> {
        self.0.push(parse_identity(identity.expose())?);
        Ok(())
    }
}

impl fmt::Debug for Unlocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} private keys", self.0.len())
    }
}

/// Wraps `plain` so that each of `recipients` can unwrap it.
pub(crate) fn wrap(recipients: &[String], plain: &[u8]) -> Result<Vec<u8>> {
    let recipients = recipients.iter().map(|text| recipient(text)).collect::<Result<Vec<_>>>()?;
    let encryptor =
        age::Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as &dyn age::Recipient));
    let failed = |source: std::io::Error| Error::from_io("cannot wrap a key", source);
    let encryptor = encryptor.map_err(|source| {
        Error::new(ErrorKind::Plan, "there is nobody to encrypt to")
            .caused_by(source)
            .hint("name a public key in `recipients`")
    })?;
    seal(encryptor, plain).map_err(failed)
}

/// Wraps `plain` under a passphrase.
pub(crate) fn wrap_with_passphrase(passphrase: &Secret, plain: &[u8]) -> Result<Vec<u8>> {
    let encryptor = age::Encryptor::with_user_passphrase(SecretString::from(passphrase.expose().to_owned()));
    seal(encryptor, plain).map_err(|source| Error::from_io("cannot wrap a key", source))
}

fn seal(encryptor: age::Encryptor, plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut wrapped = Vec::new();
    let mut writer = encryptor.wrap_output(&mut wrapped)?;
    writer.write_all(plain)?;
    writer.finish()?;
    Ok(wrapped)
}

/// No wrapped key is longer than this.
const MAX_KEY_BYTES: u64 = 4096;

/// Unwraps what [`wrap`] made.
///
/// # Errors
/// [`ErrorKind::WrongKey`] when it was wrapped for others, [`ErrorKind::Damaged`] when it is not what was written.
pub(crate) fn unwrap(identities: &Unlocked, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    open(wrapped, identities.0.iter().map(|identity| identity as &dyn age::Identity)).map_err(|error| match error {
        age::DecryptError::NoMatchingKeys => {
            Error::new(ErrorKind::WrongKey, "the private key at hand is not one that this repository is encrypted to")
                .hint("pass the right key file with `--identity FILE`; `stackward key list` shows the public halves")
        }
        other => Error::new(ErrorKind::Damaged, "a wrapped key is not what was written").caused_by(other),
    })
}

/// Unwraps what [`wrap_with_passphrase`] made.
///
/// # Errors
/// As [`unwrap`].
pub(crate) fn unwrap_with_passphrase(passphrase: &Secret, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let identity = age::scrypt::Identity::new(SecretString::from(passphrase.expose().to_owned()));
    open(wrapped, std::iter::once(&identity as &dyn age::Identity)).map_err(|error| match error {
        age::DecryptError::NoMatchingKeys
        | age::DecryptError::DecryptionFailed
        | age::DecryptError::KeyDecryptionFailed => Error::new(ErrorKind::WrongKey, "the passphrase is wrong"),
        other => Error::new(ErrorKind::Damaged, "a wrapped key is not what was written").caused_by(other),
    })
}

fn open<'a>(
    wrapped: &[u8],
    identities: impl Iterator<Item = &'a dyn age::Identity>,
) -> std::result::Result<Zeroizing<Vec<u8>>, age::DecryptError> {
    let reader = age::Decryptor::new_buffered(wrapped)?.decrypt(identities)?;
    let mut plain = Zeroizing::new(Vec::with_capacity(256));
    reader.take(MAX_KEY_BYTES).read_to_end(&mut plain)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_opens_for_its_recipients_only() {
        let (a, b, other) = (generate(), generate(), generate());
        let wrapped = wrap(&[a.recipient.clone(), b.recipient.clone()], b"key").unwrap();
        for pair in [&a, &b] {
            let unlocked = Unlocked::new(std::slice::from_ref(&pair.identity)).unwrap();
            assert_eq!(&**unwrap(&unlocked, &wrapped).unwrap(), b"key");
        }
        let error = unwrap(&Unlocked::new(&[other.identity]).unwrap(), &wrapped).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        let error = unwrap(&Unlocked::new(&[a.identity]).unwrap(), &wrapped[..wrapped.len() - 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
    }

    #[test]
    fn a_private_key_in_the_plan_is_recognised_and_not_repeated() {
        let pair = generate();
        let error = check_recipient(pair.identity.expose()).unwrap_err();
        assert!(!format!("{error:?}").contains(pair.identity.expose()));
        assert!(error.to_string().contains("private"));
        check_recipient(&pair.recipient).unwrap();
        assert_eq!(recipient_of(&pair.identity).unwrap(), pair.recipient);
        assert!(check_recipient("age1nonsense").is_err());
    }

    #[test]
    fn an_identity_file_may_hold_comments_and_must_hold_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let pair = generate();
        std::fs::write(&path, format!("# created today\n{}\n", pair.identity.expose())).unwrap();
        assert_eq!(read_identities(&path).unwrap().len(), 1);
        std::fs::write(&path, "# nothing\n").unwrap();
        assert_eq!(read_identities(&path).unwrap_err().kind(), ErrorKind::WrongKey);
        assert_eq!(read_identities(&folder.path().join("none")).unwrap_err().kind(), ErrorKind::WrongKey);
    }
}
