//! Where the plan is, and the private key that may lie beside it.

use std::path::{Path, PathBuf};

use backup_core::{Error, ErrorKind, Result};

/// The plan's name when it lies in the current folder.
pub(crate) const DEFAULT_PLAN: &str = "stackward.yaml";
/// The plan of the machine.
const SYSTEM_PLAN: &str = "/etc/stackward/stackward.yaml";
/// The private key's name when it lies beside the plan.
const KEY: &str = "stackward.key";

/// The plan's file: the one that was named, the one here, or the machine's.
pub(crate) fn locate(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let found = [DEFAULT_PLAN, SYSTEM_PLAN].into_iter().map(PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| {
        Error::new(ErrorKind::Plan, format!("there is no plan: neither {DEFAULT_PLAN} here nor {SYSTEM_PLAN}"))
            .hint("`stackward init` writes one from what it finds on this machine; `--plan FILE` names another place")
    })
}

/// Where a private key lies beside the plan at `plan`.
pub(crate) fn key_beside(plan: &Path) -> PathBuf {
    plan.with_file_name(KEY)
}
