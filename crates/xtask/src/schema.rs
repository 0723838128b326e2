//! The generated files of `docs/reference`: what the binary prints must be what is committed.

use std::path::PathBuf;

use crate::cache::Cache;
use crate::process::{Result, Run, root};
use crate::steps::say;

/// Each file below `docs/reference` and the command that prints it.
const PAGES: &[(&str, &[&str])] = &[
    ("plan.schema.json", &["schema", "plan"]),
    ("manifest.schema.json", &["schema", "manifest"]),
    ("cli.md", &["reference", "cli"]),
    ("exit-codes.md", &["reference", "exit-codes"]),
];

fn folder() -> PathBuf {
    root().join("docs/reference")
}

/// The page as the binary prints it.
fn print(cache: &Cache, arguments: &[&str]) -> Result<String> {
    Run::new(cache.target().join("debug/stackward")).args(arguments).output()
}

fn build(cache: &Cache) -> Result {
    // With the features that the tests have, so that their build is used.
    cache.cargo(["build", "--workspace", "--bins", "--locked", "--quiet"]).run()
}

/// Writes the files anew.
pub(crate) fn write(cache: &Cache) -> Result {
    build(cache)?;
    std::fs::create_dir_all(folder()).map_err(|error| format!("{}: {error}", folder().display()))?;
    for (name, arguments) in PAGES {
        let (path, text) = (folder().join(name), print(cache, arguments)?);
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        say(&format!("    wrote docs/reference/{name}"));
    }
    Ok(())
}

/// Fails when a file is not what the binary prints.
pub(crate) fn check(cache: &Cache) -> Result {
    build(cache)?;
    let mut drifted = Vec::new();
    for (name, arguments) in PAGES {
        let committed = std::fs::read_to_string(folder().join(name)).unwrap_or_default();
        if let Some(difference) = first_difference(&committed, &print(cache, arguments)?) {
            drifted.push(format!("docs/reference/{name} has drifted: {difference}"));
        }
    }
    if drifted.is_empty() { Ok(()) } else { Err(drifted.join("\n")) }
}

fn first_difference(committed: &str, printed: &str) -> Option<String> {
    if committed == printed {
        return None;
    }
    let (mut old, mut new) = (committed.lines(), printed.lines());
    let mut number = 0;
    loop {
        number += 1;
        match (old.next(), new.next()) {
            (Some(a), Some(b)) if a == b => {}
            (None, None) => return Some("the end of the file".to_owned()),
            (a, b) => {
                let shown = |line: Option<&str>| line.map_or("nothing".to_owned(), |line| format!("`{}`", line.trim()));
                return Some(format!("line {number} is {}, the binary prints {}", shown(a), shown(b)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n").unwrap(), "line 2 is `b`, the binary prints `c`");
        assert_eq!(first_difference("a\n", "a\nc\n").unwrap(), "line 2 is nothing, the binary prints `c`");
        assert_eq!(first_difference("a", "a\n").unwrap(), "the end of the file");
    }
}
