//! Whose places lie in one another, and what follows for a restore: outer places come first, and a restore around
//! somebody else's place leaves that alone.

use std::path::{Path, PathBuf};

use backup_core::engine::{Claim, Neighbour, Place, RestoreTarget};
use backup_core::manifest::Manifest;
use backup_core::{SnapshotId, SourceName};

use super::locate::key_beside;
use super::{Part, Stack};
use crate::sinks::local_places;

/// What a restore of `part` from this snapshot must not take for its own: the places of other sources and of the sink.
/// And of the operator: the plan and the private key in use open everything, and an old state of them must not replace them.
pub(crate) fn neighbours(stack: &Stack, part: &Part, manifest: &Manifest, identity: Option<&Path>) -> Vec<Neighbour> {
    let mut all = Vec::new();
    for other in stack.parts.iter().filter(|other| other.name() != part.name()) {
        let record = record(manifest, other.name());
        // What the snapshot has of it as a source of its own comes back as such. Otherwise this is the only copy.
        let claim = if record.is_some() { Claim::LeaveAlone } else { Claim::Write };
        let owner = owner(other.name());
        let places = other.engine.restorer.places(record);
        all.extend(places.into_iter().map(|path| Neighbour { path, owner: owner.clone(), claim }));
    }
    let places = local_places(&stack.plan.sink, &stack.folder);
    let key = identity.map_or_else(|| key_beside(&stack.path), Path::to_owned);
    let places =
        places.into_iter().chain([(stack.path.clone(), "this run: the plan"), (key, "this run: the private key")]);
    let there = places.filter(|(path, _)| path.exists());
    all.extend(there.map(|(path, owner)| Neighbour { path, owner: owner.to_owned(), claim: Claim::LeaveAlone }));
    all
}

/// A source, as the owner of its places.
fn owner(name: &SourceName) -> String {
    format!("the source `{name}`")
}

/// The sources whose places inside `part`'s stay as they are, for they are not restored with it.
pub(crate) fn left_out<'a>(
    stack: &'a Stack,
    part: &Part,
    target: &RestoreTarget,
    with: &[&Part],
) -> Vec<&'a SourceName> {
    let own = part.engine.restorer.places(None);
    let is_inside = |path: &Path| own.iter().any(|place| path != place && path.starts_with(place));
    let names = stack.parts.iter().map(Part::name).filter(|name| with.iter().all(|other| other.name() != *name));
    let stays = |name: &&SourceName| {
        let owner = owner(name);
        let mut places = target.neighbours.iter().filter(|known| known.owner == owner);
        places.any(|known| known.claim == Claim::LeaveAlone && is_inside(&known.path))
    };
    if target.place == Place::Original { names.filter(stays).collect() } else { Vec::new() }
}

fn record<'a>(manifest: &'a Manifest, name: &SourceName) -> Option<&'a backup_core::manifest::SourceRecord> {
    manifest.sources.iter().find(|record| record.name == *name && record.is_complete())
}

/// The parts in the order in which they can be restored: what lies in another's place after that one. Otherwise as given.
pub(crate) fn outer_first<'c, 'p, 'm>(
    chosen: &'c [(&'p Part, SnapshotId)],
    manifest: impl Fn(&SnapshotId) -> &'m Manifest,
) -> Vec<&'c (&'p Part, SnapshotId)> {
    let place = |one: &'c (&'p Part, SnapshotId)| {
        let (part, id) = one;
        let places = part.engine.restorer.places(record(manifest(id), part.name()));
        (one, places.iter().map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone())).collect())
    };
    let placed: Vec<(_, Vec<PathBuf>)> = chosen.iter().map(place).collect();
    let order = order(&placed.iter().map(|(_, places)| places.as_slice()).collect::<Vec<_>>());
    order.into_iter().map(|index| placed[index].0).collect()
}

/// Indices, outer first. Sources that lie in one another both ways stay as they are.
fn order(places: &[&[PathBuf]]) -> Vec<usize> {
    let holds = |outer: &Path, inner: &Path| outer != inner && inner.starts_with(outer);
    let around = |a: usize, b: usize| places[a].iter().any(|outer| places[b].iter().any(|inner| holds(outer, inner)));
    let mut left: Vec<usize> = (0..places.len()).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let is_free = |index: &usize| !left.iter().any(|other| other != index && around(*other, *index));
        let next = left.iter().position(is_free).unwrap_or_default();
        order.push(left.remove(next));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_another_place_comes_after_it() {
        let check = |places: &[&[&str]], expected: &[usize]| {
            let places: Vec<Vec<PathBuf>> =
                places.iter().map(|paths| paths.iter().map(PathBuf::from).collect()).collect();
            let places: Vec<&[PathBuf]> = places.iter().map(Vec::as_slice).collect();
            assert_eq!(order(&places), expected, "{places:?}");
        };
        check(&[&["/d/app.sqlite"], &["/d"]], &[1, 0]);
        check(&[&["/a"], &["/b"], &[]], &[0, 1, 2]);
        check(&[&["/d/e/f"], &["/d/e"], &["/x"], &["/d"]], &[2, 3, 1, 0]);
        check(&[&["/d"], &["/data"]], &[0, 1]);
        check(&[&["/a", "/b/x"], &["/b", "/a/y"]], &[0, 1]);
        check(&[&["/d"], &["/d"]], &[0, 1]);
    }
}
