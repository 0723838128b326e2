//! `stackward cat`: the bytes of an artifact, or of one file of a tree, checked to the last one.

use backup_core::manifest::ArtifactKind;
use backup_core::sink::{Piece, PieceReader, StoredEntry};
use backup_core::tree::{EntryKind, TreePath};
use backup_core::{ArtifactName, BackupReader, Error, ErrorKind, Result};

use super::ls::{not_found, tree_path};
use crate::args::CatArgs;
use crate::exit::Exit;
use crate::session::Session;
use crate::stack::{Access, Stack, choose};

/// Holes are printed in pieces of this size.
const ZEROES: &[u8] = &[0; 64 * 1024];

pub(crate) async fn run(session: &Session<'_>, args: &CatArgs) -> Result<Exit> {
    super::refuse_json(session, "cat", "prints bytes as they are")?;
    let stack = Stack::load(session)?;
    let sink = stack.open(session, Access::Read).await?;
    let id = choose(sink.as_ref(), &stack.plan.name, &args.snapshot).await?;
    let reader = BackupReader::new(sink.open(&id).await?, args.source.clone())?;
    let kind = reader.record().artifact(&args.artifact).map(|record| record.kind);
    match (kind, &args.path) {
        (Some(ArtifactKind::Tree), None) => {
            Err(Error::new(ErrorKind::Usage, format!("`{}` is a tree; name one of its files", args.artifact))
                .hint(format!("`stackward ls -R {id} {} {}` lists them", args.source, args.artifact)))
        }
        (Some(ArtifactKind::Tree), Some(path)) => file(session, &reader, &args.artifact, &tree_path(Some(path))?).await,
        (_, Some(_)) => {
            Err(Error::new(ErrorKind::Usage, format!("`{}` is one stream of bytes; it has no files", args.artifact))
                .hint("leave the path out"))
        }
        (_, None) => stream(session, &reader, &args.artifact).await,
    }
}

async fn stream(session: &Session<'_>, reader: &BackupReader, name: &ArtifactName) -> Result<Exit> {
    let mut artifact = reader.stream(name).await?;
    while let Some(data) = artifact.next().await? {
        if !session.output.raw(&data) {
            break;
        }
    }
    Ok(Exit::Done)
}

async fn file(session: &Session<'_>, reader: &BackupReader, name: &ArtifactName, path: &TreePath) -> Result<Exit> {
    let found = find(reader, name, path).await?;
    let found = match &found.entry.kind {
        EntryKind::Hardlink { target } => find(reader, name, target).await?,
        _ => found,
    };
    let Some(content) = found.content else {
        return Err(Error::new(ErrorKind::Usage, format!("`{path}` is not a regular file")));
    };
    pieces(session, content.open().await?, found.entry.size()).await
}

async fn find(reader: &BackupReader, name: &ArtifactName, path: &TreePath) -> Result<StoredEntry> {
    let mut tree = reader.tree(name).await?;
    while let Some(entry) = tree.next().await? {
        if entry.entry.path == *path {
            return Ok(entry);
        }
    }
    Err(not_found(reader, name, path))
}

async fn pieces(session: &Session<'_>, mut from: Box<dyn PieceReader>, size: u64) -> Result<Exit> {
    let mut printed = 0;
    while let Some(piece) = from.next().await? {
        let open = match piece {
            Piece::Data(data) => {
                printed += data.len() as u64;
                session.output.raw(&data)
            }
            Piece::Hole(length) => {
                printed += length;
                zeroes(session, length)
            }
        };
        if !open {
            return Ok(Exit::Done);
        }
    }
    if printed == size {
        return Ok(Exit::Done);
    }
    Err(Error::new(ErrorKind::Damaged, format!("the file has {size} bytes, {printed} were read")))
}

fn zeroes(session: &Session<'_>, mut left: u64) -> bool {
    while left > 0 {
        let count = usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
        if !session.output.raw(&ZEROES[..count]) {
            return false;
        }
        left -= count as u64;
    }
    true
}
