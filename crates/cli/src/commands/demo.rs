//! `stackward demo`: the whole circle on a stack made up for it.

use backup_core::{Error, ErrorKind, Result};

use crate::args::DemoArgs;
use crate::exit::Exit;
use crate::session::Session;

pub(crate) async fn run(_: &Session<'_>, _: &DemoArgs) -> Result<Exit> {
    Err(Error::new(ErrorKind::Unsupported, "not yet"))
}
