//! What a plan's `url` or `path` names: a folder on a local disk, or the URL of an object store.
//!
//! Invariant: what looks like a place elsewhere (`s3:bucket/x`, `user@host:/x`, `~/x`) never becomes a folder here, and what
//! is repeated in a message holds no password.

use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Address<'a> {
    /// A folder on a local disk.
    Folder(PathBuf),
    /// An object store.
    Remote { scheme: &'a str },
}

/// What `text` names; `folder` is where relative paths start, and `what` is how messages call the text.
pub(crate) fn read<'a>(what: &str, text: &'a str, folder: &Path) -> Result<Address<'a>> {
    let fault = |why: &str| Error::new(ErrorKind::Plan, format!("{what} `{}` {why}", shown(text)));
    if text.trim().is_empty() {
        return Err(Error::new(ErrorKind::Plan, format!("{what} is empty")));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::new(ErrorKind::Plan, format!("{what} holds a control character, a line break say")));
    }
    // Written without the `.` between, a folder has one name only.
    let local = |path: &Path| Address::Folder(folder.join(path).components().collect());
    if let Some(path) = text.strip_prefix("file://") {
        return if path.starts_with('/') {
            Ok(local(Path::new(path)))
        } else {
            Err(fault("does not name a folder of this machine").hint("write three slashes: file:///srv/backups"))
        };
    }
    if text.starts_with('/') || matches!(text, "." | "..") || text.starts_with("./") || text.starts_with("../") {
        return Ok(local(Path::new(text)));
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Ok(Address::Remote { scheme });
    }
    let first = text.split('/').next().unwrap_or_default();
    if first.starts_with('~') {
        return Err(fault("begins with `~`, which nothing replaces here").hint("write the whole path, from `/` on"));
    }
    if let Some((scheme, _)) = first.split_once(':') {
        if is_scheme(scheme) {
            let slashes = if scheme == "file" { "file:///" } else { &format!("{scheme}://") };
            return Err(fault("is not a URL").hint(format!("write `{slashes}` with its slashes before what follows")));
        }
        return Err(fault("looks like a place on another machine").hint(ELSEWHERE));
    }
    if first.contains('@') {
        return Err(fault("looks like a place on another machine").hint(ELSEWHERE));
    }
    Err(fault("is neither an absolute path nor a URL")
        .hint(format!("write `./{text}` for the folder beside the plan, or the whole path from `/` on")))
}

const ELSEWHERE: &str = "use an object store (s3://bucket/prefix, say), or mount the other machine's folder and write its path; \
                         a folder beside the plan begins with `./`";

fn is_scheme(text: &str) -> bool {
    matches!(text, "file" | "s3" | "s3a" | "gs" | "az" | "abfs" | "abfss")
}

/// A URL as messages repeat it: without what may be a user, a password or a signature.
pub(crate) fn shown(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), text),
    };
    let rest = rest.rsplit_once('@').map_or_else(|| rest.to_owned(), |(_, host)| format!("…@{host}"));
    let rest = rest.split_once('?').map_or_else(|| rest.clone(), |(path, _)| format!("{path}?…"));
    format!("{scheme}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_elsewhere_is_no_folder_here() {
        let cases = [
            ("s3:bucket/x", "s3://"),
            ("file:/srv/x", "file:///"),
            ("file://host/x", "file:///"),
            ("~/backups", "from `/` on"),
            ("~ann/backups", "from `/` on"),
            ("ann@host:/srv/x", "mount"),
            ("host:x", "mount"),
            ("sftp:ann@host:/x", "mount"),
            ("ann@host/x", "mount"),
            ("srv/backups", "`./srv/backups`"),
            ("repository", "`./repository`"),
        ];
        for (text, hint) in cases {
            let error = read("the url", text, Path::new("/plans")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Plan, "{text}");
            assert!(error.remedy().unwrap_or_default().contains(hint), "{text}: {error:?}");
        }
        for text in ["", "  ", "/srv/a\nb", "/srv/a\0"] {
            assert!(read("the url", text, Path::new("/plans")).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_folder_is_absolute_or_says_that_it_is_relative() {
        let cases = [
            ("/srv/b", "/srv/b"),
            ("/srv/a:b@c", "/srv/a:b@c"),
            ("file:///srv/b", "/srv/b"),
            ("./b", "/plans/b"),
            ("././b/./c", "/plans/b/c"),
            ("../b", "/plans/../b"),
            (".", "/plans"),
        ];
        for (text, path) in cases {
            let expected = Address::Folder(PathBuf::from(path));
            assert_eq!(read("the url", text, Path::new("/plans")).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn no_message_repeats_a_secret() {
        for text in
            ["ann:hunter2@host:/x", "ftp://ann:hunter2@host/x", "s3://b/x?signature=hunter2", "a:hunter2@b@host"]
        {
            assert!(!shown(text).contains("hunter2"), "{}", shown(text));
            if let Err(error) = read("the url", text, Path::new("/")) {
                assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
            }
        }
    }
}
