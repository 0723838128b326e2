//! `stackward schema`: the JSON Schemas of the two wire formats.

use backup_core::{Error, ErrorKind, Result, manifest, plan};

use crate::args::{SchemaArgs, SchemaOf};
use crate::exit::Exit;
use crate::session::Session;

pub(crate) fn run(session: &Session<'_>, args: &SchemaArgs) -> Result<Exit> {
    let schema = match args.of {
        SchemaOf::Plan => plan::schema(session.world.engines),
        SchemaOf::Manifest => manifest::schema(),
    };
    let text = serde_json::to_string_pretty(&schema)
        .map_err(|source| Error::new(ErrorKind::Internal, "the schema cannot be written").caused_by(source))?;
    session.output.raw(format!("{text}\n").as_bytes());
    Ok(Exit::Done)
}
