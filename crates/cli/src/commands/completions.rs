//! `stackward completions`: what a shell needs to complete the command line.

use backup_core::Result;
use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs};
use crate::exit::Exit;
use crate::session::Session;

pub(crate) fn run(session: &Session<'_>, args: &CompletionsArgs) -> Result<Exit> {
    super::refuse_json(session, "completions", "prints a script")?;
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "stackward", &mut script);
    session.output.raw(&script);
    Ok(Exit::Done)
}
