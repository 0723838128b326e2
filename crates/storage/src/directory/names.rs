//! Where things lie below a directory: snapshot folders, `manifest.json`, `SHA256SUMS`, and the files of artifacts.
//!
//! Invariant: a file's place is fixed when it is made (`create_new`), so two artifacts never share one.

use std::collections::BTreeMap;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::ArtifactKind;
use backup_core::{ArtifactName, SourceName};
use sha2::{Digest, Sha256};

use super::compression::Compression;

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const SUMS: &str = "SHA256SUMS";
/// By this a directory knows itself.
pub(super) const MARKER: &str = "stackward-directory.json";
/// Folders of runs that have not committed begin with this.
pub(super) const PARTIAL: &str = ".partial-";

/// So many letters of a name are kept when its file cannot bear it.
const KEPT_LETTERS: usize = 100;
/// So many places are tried for one file.
pub(super) const MAX_ATTEMPTS: u32 = 100;

/// The file of an artifact, below its snapshot's folder. The first attempt is the plain name; it can be taken
/// (the stream `a.tar` and the tree `a`), have a folder in its way (`a` and `a/b`), or be too long for the file system.
pub(super) fn artifact_file(
    source: &SourceName,
    name: &ArtifactName,
    kind: ArtifactKind,
    compression: Compression,
    attempt: u32,
) -> Result<ArtifactName> {
    let tar = if kind == ArtifactKind::Tree { ".tar" } else { "" };
    let suffix = compression.suffix();
    let folder = source_folder(source);
    if attempt == 0
        && let Ok(path) = ArtifactName::new(format!("{folder}/{name}{tar}{suffix}"))
    {
        return Ok(path);
    }
    let kept: String = name.as_str().replace('/', "_").chars().take(KEPT_LETTERS).collect();
    let digest = hex::encode(Sha256::digest(format!("{name}{tar} {attempt}")));
    ArtifactName::new(format!("{folder}/{kept}-{}{tar}{suffix}", &digest[..16]))
}

/// A source may have the name of one of our own files; no source begins with `_`.
fn source_folder(source: &SourceName) -> String {
    let own = [MANIFEST, SUMS].iter().any(|own| own.eq_ignore_ascii_case(source.as_str()));
    if own { format!("_{source}") } else { source.to_string() }
}

/// What `SHA256SUMS` says: the digest of each file in hexadecimal, by its path below the snapshot's folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sums(pub(super) BTreeMap<String, String>);

impl Sums {
    /// As `sha256sum` writes it. No path of ours needs its escapes.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        for (path, digest) in &self.0 {
            text.push_str(&format!("{digest}  {path}\n"));
        }
        text
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        let damaged = || Error::new(ErrorKind::Damaged, format!("{SUMS} is not what `sha256sum` writes"));
        let text = std::str::from_utf8(text).map_err(|_| damaged())?;
        let mut sums = BTreeMap::new();
        for line in text.strip_suffix('\n').ok_or_else(damaged)?.split('\n') {
            // `sha256sum --binary` writes a star where ours has a second space.
            let (digest, path) = line.split_once("  ").or_else(|| line.split_once(" *")).ok_or_else(damaged)?;
            let digits = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
            let path = path.strip_prefix("./").unwrap_or(path);
            if !digits || sums.insert(path.to_owned(), digest.to_ascii_lowercase()).is_some() {
                return Err(damaged());
            }
        }
        Ok(Self(sums))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(source: &str, name: &str, kind: ArtifactKind, attempt: u32) -> String {
        let (source, name) = (SourceName::new(source).unwrap(), ArtifactName::new(name).unwrap());
        artifact_file(&source, &name, kind, Compression::Zstd, attempt).unwrap().to_string()
    }

    #[test]
    fn artifacts_have_readable_files() {
        assert_eq!(file("db", "app/a.dump", ArtifactKind::Stream, 0), "db/app/a.dump.zst");
        assert_eq!(file("files", "tree", ArtifactKind::Tree, 0), "files/tree.tar.zst");
        assert_eq!(file("manifest.json", "a", ArtifactKind::Stream, 0), "_manifest.json/a.zst");
        assert_eq!(file("sha256sums", "a", ArtifactKind::Stream, 0), "_sha256sums/a.zst");
    }

    #[test]
    fn further_attempts_are_short_and_differ() {
        let long = "x".repeat(512);
        let names: Vec<String> = (0..5).map(|attempt| file("db", &long, ArtifactKind::Stream, attempt)).collect();
        for name in &names {
            assert!(name.len() < 140 && name.starts_with("db/xxx"), "{name}");
        }
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
    }

    #[test]
    fn sums_round_trip_and_nonsense_is_refused() {
        let digest = "0123456789abcdef".repeat(4);
        let text = format!("{digest}  a/b\n{digest}  c\n");
        let sums = Sums::parse(text.as_bytes()).unwrap();
        assert_eq!(sums.render(), text);
        let short = &text[..text.len() - 1];
        let twice = format!("{digest}  a\n{digest}  a\n");
        for bad in ["", "\n", "x  y\n", short, &twice, &text.replace("  ", " ")] {
            assert_eq!(Sums::parse(bad.as_bytes()).unwrap_err().kind(), ErrorKind::Damaged, "{bad}");
        }
    }
}
