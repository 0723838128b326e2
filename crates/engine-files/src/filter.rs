//! What is left out: globs of the plan, ignore files in the tree, cache directory tags.
//!
//! Invariant: the decision depends on the path and on ignore files above it only, never on the order of the walk.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreePath;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::fs::{Mode, OFlags};

use crate::config::{FilesConfig, Unreadable, default_settle};
use crate::futile::{TakenBack, Unmatched};

/// The name and the first bytes that mark a cache directory (bford.info/cachedir).
pub(crate) const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";
const CACHE_SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// A longer ignore file is something else.
const MAX_IGNORE_BYTES: u64 = 1024 * 1024;

/// Whether something is a directory, for patterns that only match those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Directory,
    Other,
}

/// The rules of a plan.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    exclude: Option<Gitignore>,
    include: Option<Gitignore>,
    ignore_files: Vec<Vec<u8>>,
    /// The patterns of `include`, each by itself.
    pub(crate) unmatched: Unmatched,
    taken_back: TakenBack,
    /// See [`FilesConfig::exclude_caches`].
    pub(crate) exclude_caches: bool,
    /// See [`FilesConfig::one_file_system`].
    pub(crate) one_file_system: bool,
    /// See [`FilesConfig::unreadable`].
    pub(crate) unreadable: Unreadable,
    /// See [`FilesConfig::settle`].
    pub(crate) settle: Duration,
    /// As the manifest keeps them: what a later restore may not remove.
    pub(crate) record: serde_json::Value,
}

impl Rules {
    /// Compiles the globs.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] for a pattern that cannot be understood.
    pub(crate) fn new(config: &FilesConfig) -> Result<Self> {
        for name in &config.ignore_files {
            if name.is_empty() || name.contains('/') {
                return Err(Error::new(ErrorKind::Plan, format!("`ignore_files`: `{name}` is not the name of a file"))
                    .hint("write a name without folders, like `.stackignore`"));
            }
        }
        Ok(Self {
            exclude: compile("exclude", &config.exclude)?,
            include: compile("include", &config.include)?,
            unmatched: Unmatched::new(&config.include)?,
            taken_back: TakenBack::of_plan(&config.exclude),
            ignore_files: config.ignore_files.iter().map(|name| name.as_bytes().to_vec()).collect(),
            exclude_caches: config.exclude_caches,
            one_file_system: config.one_file_system,
            unreadable: config.unreadable,
            settle: config.settle.0,
            record: serde_json::json!({
                "exclude": config.exclude,
                "include": config.include,
                "ignore_files": config.ignore_files,
                "exclude_caches": config.exclude_caches,
                "one_file_system": config.one_file_system,
            }),
        })
    }

    /// The rules that a manifest recorded. Fields of newer versions are passed over.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when they cannot be understood.
    pub(crate) fn recorded(record: &serde_json::Value) -> Result<Self> {
        let damaged = || Error::new(ErrorKind::Damaged, "the manifest does not say what was left out");
        let list = |name: &str| -> Result<Vec<String>> {
            let items = record.get(name).and_then(serde_json::Value::as_array).ok_or_else(damaged)?;
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(damaged)).collect()
        };
        let flag = |name: &str| record.get(name).and_then(serde_json::Value::as_bool).ok_or_else(damaged);
        Self::new(&FilesConfig {
            paths: Vec::new(),
            exclude: list("exclude")?,
            include: list("include")?,
            ignore_files: list("ignore_files")?,
            exclude_caches: flag("exclude_caches")?,
            one_file_system: flag("one_file_system")?,
            unreadable: Unreadable::Skip,
            settle: default_settle(),
        })
    }

    /// Whether the plan's `exclude` leaves this out.
    pub(crate) fn excludes(&self, path: &TreePath, what: What) -> bool {
        self.exclude.as_ref().is_some_and(|globs| matched(globs, path.as_bytes(), what).unwrap_or(false))
    }

    /// Whether this, and everything in it, is among what the plan's `include` asks for.
    pub(crate) fn includes(&self, path: &TreePath, what: What) -> bool {
        self.include.as_ref().is_none_or(|globs| matched(globs, path.as_bytes(), what).unwrap_or(false))
    }

    /// The patterns of `exclude` that would take back something in the folder `path`, were it not left out as a whole.
    pub(crate) fn out_of_reach<'a>(&'a self, path: &'a TreePath) -> impl Iterator<Item = &'a str> {
        self.taken_back.within(path.as_bytes())
    }

    /// The names of ignore files.
    pub(crate) fn ignore_files(&self) -> &[Vec<u8>] {
        &self.ignore_files
    }
}

pub(crate) fn compile(field: &str, patterns: &[String]) -> Result<Option<Gitignore>> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let bad = |pattern: &str, why: ignore::Error| {
        Error::new(ErrorKind::Plan, format!("`{field}`: `{pattern}` is not a pattern")).caused_by(why)
    };
    let mut builder = GitignoreBuilder::new("/");
    for pattern in patterns {
        builder.add_line(None, &anywhere(pattern)).map_err(|why| bad(pattern, why))?;
    }
    builder.build().map(Some).map_err(|why| bad(&patterns.join(" "), why))
}

/// In a `.gitignore`, `a/b` is anchored at the file's folder. A plan has none, so there it matches at any depth.
pub(crate) fn anywhere(pattern: &str) -> String {
    let (negation, rest) = pattern.strip_prefix('!').map_or(("", pattern), |rest| ("!", rest));
    let inner = rest.trim_end_matches('/').contains('/');
    if inner && !rest.starts_with('/') && !rest.starts_with("**/") {
        format!("{negation}**/{rest}")
    } else {
        pattern.to_owned()
    }
}

/// `Some(true)`: left out; `Some(false)`: taken back by `!`; `None`: not mentioned.
pub(crate) fn matched(globs: &Gitignore, path: &[u8], what: What) -> Option<bool> {
    let found = globs.matched(Path::new(OsStr::from_bytes(path)), what == What::Directory);
    if found.is_none() { None } else { Some(found.is_ignore()) }
}

/// The ignore files that apply in a folder: its own, then those of the folders above.
#[derive(Debug)]
pub(crate) struct IgnoreChain {
    globs: Gitignore,
    taken_back: TakenBack,
    /// The length of the folder's path in bytes, with its separator.
    prefix: usize,
    above: Option<Arc<IgnoreChain>>,
}

impl IgnoreChain {
    /// Reads the ignore file `name` of the folder `path`, opened as `folder`.
    ///
    /// # Errors
    /// When it cannot be read or has a line that cannot be understood.
    pub(crate) fn read(folder: &OwnedFd, name: &[u8], path: &TreePath, above: Option<Arc<Self>>) -> Result<Self> {
        let shown = path.as_path().join(OsStr::from_bytes(name));
        let broken = |source| Error::io("cannot read the ignore file", &shown, source);
        let text = read_start(folder, name, MAX_IGNORE_BYTES + 1).map_err(broken)?;
        if text.len() as u64 > MAX_IGNORE_BYTES {
            return Err(Error::new(ErrorKind::Unsupported, "the ignore file is too long").with("path", shown.display()));
        }
        let mut builder = GitignoreBuilder::new("");
        let text = String::from_utf8_lossy(&text);
        for line in text.lines() {
            builder.add_line(None, line).map_err(|why| {
                Error::new(ErrorKind::Unsupported, format!("`{line}` is not a pattern"))
                    .with("path", shown.display())
                    .caused_by(why)
            })?;
        }
        let globs = builder
            .build()
            .map_err(|why| Error::new(ErrorKind::Unsupported, "the ignore file cannot be used").caused_by(why))?;
        let prefix = if path.is_root() { 0 } else { path.as_bytes().len() + 1 };
        Ok(Self { globs, taken_back: TakenBack::of_ignore_file(&text), prefix, above })
    }

    /// The patterns that would take back something in the folder `path`, were it not left out as a whole.
    pub(crate) fn out_of_reach<'a>(&'a self, path: &'a TreePath) -> impl Iterator<Item = &'a str> {
        let chain = std::iter::successors(Some(self), |link| link.above.as_deref());
        chain.flat_map(|link| link.taken_back.within(path.as_bytes().get(link.prefix..).unwrap_or_default()))
    }

    /// Whether `path`, which lies below this folder, is left out. The nearest file that mentions it decides.
    pub(crate) fn ignores(&self, path: &TreePath, what: What) -> bool {
        let mut chain = Some(self);
        while let Some(link) = chain {
            let below = path.as_bytes().get(link.prefix..).unwrap_or_default();
            if let Some(decision) = matched(&link.globs, below, what) {
                return decision;
            }
            chain = link.above.as_deref();
        }
        false
    }
}

/// Whether the folder's `CACHEDIR.TAG` is a real one.
pub(crate) fn is_cache(folder: &OwnedFd) -> bool {
    read_start(folder, CACHE_TAG, CACHE_SIGNATURE.len() as u64).is_ok_and(|start| start == CACHE_SIGNATURE)
}

fn read_start(folder: &OwnedFd, name: &[u8], limit: u64) -> std::io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, OsStr::from_bytes(name), flags, Mode::empty())?;
    let mut start = Vec::new();
    std::fs::File::from(file).take(limit).read_to_end(&mut start)?;
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_a_plan() {
        let cases = [
            ("*.tmp", "srv/a.tmp", What::Other, true),
            ("*.tmp", "srv/a.tmpx", What::Other, false),
            ("node_modules", "srv/x/node_modules", What::Directory, true),
            ("node_modules/", "srv/x/node_modules", What::Other, false),
            ("node_modules/", "srv/x/node_modules", What::Directory, true),
            ("/srv/cache", "srv/cache", What::Directory, true),
            ("/srv/cache", "var/srv/cache", What::Directory, false),
            ("var/cache", "srv/x/var/cache", What::Directory, true),
            ("/srv/**/log", "srv/a/b/log", What::Other, true),
        ];
        for (pattern, path, what, expected) in cases {
            let globs = compile("exclude", &[pattern.to_owned()]).unwrap().unwrap();
            assert_eq!(matched(&globs, path.as_bytes(), what).unwrap_or(false), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_later_pattern_takes_an_earlier_one_back() {
        let globs = compile("exclude", &["*.log".into(), "!keep.log".into()]).unwrap().unwrap();
        assert_eq!(matched(&globs, b"srv/keep.log", What::Other), Some(false));
        assert_eq!(matched(&globs, b"srv/x.log", What::Other), Some(true));
    }

    #[test]
    fn a_broken_pattern_is_an_error_of_the_plan() {
        let error = compile("exclude", &["[z-a]".to_owned()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Plan);
    }
}
