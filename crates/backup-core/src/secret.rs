//! Secrets: held in memory only, wiped when dropped, never printed.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// A secret's text. `Debug` and `Display` print a placeholder; there is no `Serialize`.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself: pass it on by environment, file descriptor or protocol, never in an argument list.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where a secret is found. A plan holds references only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretRef {
    /// The environment variable of this name.
    Env(String),
    /// The first line of this file.
    File(PathBuf),
}

/// A secret longer than this is a mistake: somebody named the wrong file.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

impl SecretRef {
    /// Fetches the secret.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] when the variable or the file is not there, is empty, or is not text.
    pub fn resolve(&self) -> Result<Secret> {
        let text = match self {
            Self::Env(name) => Zeroizing::new(std::env::var(name).map_err(|source| {
                Error::new(ErrorKind::Plan, format!("the secret in the environment variable `{name}` is missing"))
                    .hint(format!("set `{name}`, or name another place for the secret in the plan"))
                    .caused_by(source)
            })?),
            Self::File(path) => read_secret_file(path)?,
        };
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            return Err(Error::new(ErrorKind::Plan, format!("the secret in {self} is empty")));
        }
        Ok(Secret::new(line))
    }
}

fn read_secret_file(path: &std::path::Path) -> Result<Zeroizing<String>> {
    let missing = |source: std::io::Error| {
        Error::new(ErrorKind::Plan, format!("the secret file {} cannot be read", path.display()))
            .hint("create it with mode 0600, readable by the user that runs stackward")
            .caused_by(source)
    };
    let length = std::fs::metadata(path).map_err(missing)?.len();
    if length > MAX_SECRET_BYTES {
        return Err(Error::new(ErrorKind::Plan, format!("{} is too long to be a secret", path.display())));
    }
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(missing)
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "the environment variable `{name}`"),
            Self::File(path) => write!(f, "the file {}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_file_gives_its_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "s3cret\n# a note\n").unwrap();
        assert_eq!(SecretRef::File(path.clone()).resolve().unwrap().expose(), "s3cret");
        std::fs::write(&path, "\n").unwrap();
        assert!(SecretRef::File(path).resolve().unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn a_missing_secret_names_its_place() {
        let error = SecretRef::Env("STACKWARD_TEST_UNSET".into()).resolve().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Plan);
        assert!(error.to_string().contains("STACKWARD_TEST_UNSET"));
    }
}
