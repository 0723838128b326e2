//! One backup of a source at a time, on one machine: two at once would both store everything.
//!
//! Invariant: a lock is that of the operating system on a file in this machine's state, so it ends with its process; no file
//! that is left behind locks anything.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::SinkConfig;
use backup_core::{PlanName, SourceName};
use rustix::fs::FlockOperation;

use crate::repository::default_state;

/// Held while sources are backed up. See the module.
#[derive(Debug)]
pub struct RunLock(#[expect(dead_code, reason = "they hold the locks")] Vec<File>);

impl RunLock {
    /// Takes the locks of `sources` of `plan` into this sink. `folder` is where relative paths start.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when another process holds one of them.
    pub fn take(sink: &SinkConfig, folder: &Path, plan: &PlanName, sources: &[&SourceName]) -> Result<Self> {
        let (state, place) = match sink {
            SinkConfig::Repository(config) => {
                let place = crate::location::local_path(&config.url, folder);
                (
                    config.state.as_ref().map(|state| folder.join(state)),
                    place.unwrap_or_else(|| PathBuf::from(&config.url)),
                )
            }
            SinkConfig::Directory(config) => (None, crate::location::folder_of(&config.path, folder)?),
        };
        let folder = state.unwrap_or_else(default_state).join("running");
        let place = hex::encode(&blake3::hash(place.as_os_str().as_encoded_bytes()).as_bytes()[..8]);
        let mut names: Vec<&SourceName> = sources.to_vec();
        // In one order everywhere; of two that want several, one gets all.
        names.sort_unstable();
        let locks = names
            .into_iter()
            .filter_map(|source| lock(&folder, &format!("{place}-{plan}-{source}"), source).transpose());
        locks.collect::<Result<_>>().map(Self)
    }
}

/// `None` where this machine has no place for state, or its file system no locks: then nobody can be told from another.
fn lock(folder: &Path, name: &str, source: &SourceName) -> Result<Option<File>> {
    let path = folder.join(name);
    let opened =
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).and_then(|()| {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)
        });
    let Ok(mut file) = opened else { return Ok(None) };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _unknown = file.read_to_string(&mut holder);
            return Err(Error::new(ErrorKind::Busy, format!("another backup of `{source}` is running"))
                .with("process", holder.trim())
                .hint("wait until it has ended, then run the command again")
                .retry_later());
        }
        Err(_) => return Ok(None),
    }
    // For whoever comes meanwhile; that it cannot be written hurts nobody.
    let _unsaid = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use backup_core::plan::{EncryptionConfig, RepositoryConfig};

    use super::*;

    fn name(text: &str) -> SourceName {
        SourceName::new(text).unwrap()
    }

    #[test]
    fn a_source_is_backed_up_once_at_a_time_and_others_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let sink = |url: &str| {
            SinkConfig::Repository(RepositoryConfig {
                url: url.to_owned(),
                recipients: Vec::new(),
                passphrase: None,
                encryption: EncryptionConfig::None,
                compression_level: 1,
                state: Some(PathBuf::from("state")),
                requests: backup_core::plan::RequestsConfig::default(),
            })
        };
        let plan = PlanName::new("test").unwrap();
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let take = |url: &str, sources: &[&SourceName]| RunLock::take(&sink(url), folder.path(), &plan, sources);
        let held = take("./here", &[&b, &a]).unwrap();
        let error = take("./here", &[&c, &b]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(take("./here", &[&c]).unwrap());
        drop(take("./there", &[&a, &b]).unwrap());
        drop(held);
        take("./here", &[&a, &b, &c]).unwrap();
        assert!(folder.path().join("state/running").is_dir());
    }

    #[test]
    fn without_a_place_for_state_nobody_is_kept_from_anything() {
        assert!(lock(Path::new("/proc/nowhere"), "a", &name("a")).unwrap().is_none());
    }
}
