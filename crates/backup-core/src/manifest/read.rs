//! Reading and writing manifests. A manifest may have been written by an enemy: nothing in it is trusted unchecked.

use schemars::Schema;

use super::model::{Manifest, Outcome};
use crate::error::{Error, ErrorKind, Result};

/// The version that this code writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// More bytes than this are not a manifest. (A million tables' fingerprint takes about 60 MB.)
const MAX_MANIFEST_BYTES: usize = 256 * 1024 * 1024;

/// Parses and checks a manifest.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a newer format; [`ErrorKind::Damaged`] for anything that is not a consistent manifest.
pub fn parse(bytes: &[u8]) -> Result<Manifest> {
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(damaged("it is too large"));
    }
    check_version(bytes)?;
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|source| damaged("it does not parse").caused_by(source))?;
    check_consistency(&manifest)?;
    Ok(manifest)
}

fn check_version(bytes: &[u8]) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Version {
        format_version: u32,
    }
    let Version { format_version } =
        serde_json::from_slice(bytes).map_err(|source| damaged("it names no format version").caused_by(source))?;
    if (1..=FORMAT_VERSION).contains(&format_version) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("the manifest has format version {format_version}; this program reads up to {FORMAT_VERSION}"),
    )
    .hint("use a newer stackward"))
}

fn check_consistency(manifest: &Manifest) -> Result<()> {
    let mut names = std::collections::BTreeSet::new();
    for source in &manifest.sources {
        if !names.insert(&source.name) {
            return Err(damaged(format!("it lists the source `{}` twice", source.name)));
        }
        let mut artifacts = std::collections::BTreeSet::new();
        for artifact in &source.artifacts {
            if !artifacts.insert(&artifact.name) {
                return Err(damaged(format!("it lists the artifact `{}` of `{}` twice", artifact.name, source.name)));
            }
        }
        if !source.is_complete() && !source.artifacts.is_empty() {
            return Err(damaged(format!("the failed source `{}` has artifacts", source.name)));
        }
    }
    let all = manifest.sources.iter().all(super::SourceRecord::is_complete);
    if all == (manifest.outcome == Outcome::Complete) {
        Ok(())
    } else {
        Err(damaged("its outcome contradicts its sources"))
    }
}

fn damaged(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("the manifest is not usable: {why}"))
}

/// The manifest as JSON, readable by a person.
///
/// # Errors
/// Never in practice; kept so that callers need not panic.
pub fn render(manifest: &Manifest) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(manifest)
        .map_err(|source| Error::new(ErrorKind::Internal, "the manifest cannot be written as JSON").caused_by(source))
}

/// The JSON Schema of the manifest.
#[must_use]
pub fn schema() -> Schema {
    schemars::schema_for!(Manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine's details may have any number. Read to the last digit, or a manifest would change each time it is written.
    #[test]
    fn numbers_of_many_digits_do_not_change() {
        let number = "6.666666666666666e+117";
        let text = format!(
            r#"{{ "format_version": 1, "id": "20261120-063551-7k3q9xwm", "plan": "p", "host": "h", "tool_version": "0",
                 "started": "2026-11-20T00:00:00Z", "finished": "2026-11-20T00:00:00Z", "outcome": "complete",
                 "sources": [{{ "name": "s", "engine": "e", "outcome": {{ "result": "complete" }}, "artifacts": [],
                               "started": "2026-11-20T00:00:00Z", "finished": "2026-11-20T00:00:00Z",
                               "details": {{ "size": {number} }} }}] }}"#
        );
        let rendered = render(&parse(text.as_bytes()).unwrap()).unwrap();
        assert!(String::from_utf8_lossy(&rendered).contains(number));
        assert_eq!(render(&parse(&rendered).unwrap()).unwrap(), rendered);
    }
}
