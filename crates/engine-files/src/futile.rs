//! Patterns without effect: `include` that brings nothing, `!` below a folder that is left out as a whole.
//!
//! Invariant: each is named once a walk, and only when the tree that was walked shows it.

use std::collections::BTreeMap;

use backup_core::error::Result;
use backup_core::tree::TreePath;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::filter::{What, anywhere, compile, matched};

/// The patterns of `include` that brought nothing so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unmatched(Vec<(String, Gitignore)>);

impl Unmatched {
    /// All of `patterns`, each by itself. One that takes another back need not bring anything.
    pub(crate) fn new(patterns: &[String]) -> Result<Self> {
        let mut alone = Vec::new();
        for pattern in patterns.iter().filter(|pattern| !pattern.starts_with('!')) {
            if let Some(globs) = compile("include", std::slice::from_ref(pattern))? {
                alone.push((pattern.clone(), globs));
            }
        }
        Ok(Self(alone))
    }

    /// Strikes out those that match something that is saved.
    pub(crate) fn saw(&mut self, path: &TreePath, what: What) {
        self.0.retain(|(_, globs)| matched(globs, path.as_bytes(), what) != Some(true));
    }
}

/// The patterns with `!` that mean something in a folder, with the folders that they mean.
#[derive(Debug, Default)]
pub(crate) struct TakenBack(Vec<(String, Gitignore)>);

impl TakenBack {
    /// Those of a plan's `exclude`.
    pub(crate) fn of_plan(patterns: &[String]) -> Self {
        Self::new(patterns.iter().map(|pattern| (pattern.as_str(), anywhere(pattern))))
    }

    /// Those of an ignore file, where a pattern with a `/` inside begins at the file's folder.
    pub(crate) fn of_ignore_file(text: &str) -> Self {
        Self::new(text.lines().map(|line| {
            let rest = line.strip_prefix('!').unwrap_or(line);
            let is_anchored = rest.trim_end_matches('/').contains('/') && !rest.starts_with("**/");
            (line, format!("!{}{rest}", if is_anchored && !rest.starts_with('/') { "/" } else { "" }))
        }))
    }

    fn new<'a>(patterns: impl Iterator<Item = (&'a str, String)>) -> Self {
        let mut found = Vec::new();
        for (pattern, whole) in patterns.filter(|(pattern, _)| pattern.starts_with('!')) {
            let mut builder = GitignoreBuilder::new("/");
            let whole = whole.trim_start_matches('!').trim_end_matches('/');
            let start = if whole.starts_with("**/") { 3 } else { 1 };
            let ends = whole.match_indices('/').map(|(end, _)| end).filter(|end| *end > start);
            for folder in ends.map(|end| &whole[..end]) {
                // Behind `**` lies everything; naming each folder that is left out would say nothing.
                if !folder[start.min(folder.len())..].contains("**") {
                    let _unusual = builder.add_line(None, &format!("{folder}/"));
                }
            }
            if let Ok(folders) = builder.build()
                && !folders.is_empty()
            {
                found.push((pattern.to_owned(), folders));
            }
        }
        Self(found)
    }

    /// Those that mean something in the folder `path`, which is left out as a whole.
    pub(crate) fn within<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = &'a str> {
        let means = move |globs: &Gitignore| matched(globs, path, What::Directory) == Some(true);
        self.0.iter().filter(move |(_, globs)| means(globs)).map(|(pattern, _)| pattern.as_str())
    }
}

/// What one walk found to have no effect.
#[derive(Debug, Default)]
pub(crate) struct Futile {
    unmatched: Unmatched,
    /// Patterns that cannot reach into a folder, each with the first such folder.
    out_of_reach: BTreeMap<String, TreePath>,
}

impl Futile {
    /// For a walk by rules with these patterns in `include`.
    pub(crate) fn new(unmatched: &Unmatched) -> Self {
        Self { unmatched: unmatched.clone(), out_of_reach: BTreeMap::new() }
    }

    /// Notes what is saved.
    pub(crate) fn saw(&mut self, path: &TreePath, what: What) {
        self.unmatched.saw(path, what);
    }

    /// Notes that `pattern` cannot take back what lies in the folder `path`.
    pub(crate) fn out_of_reach(&mut self, pattern: &str, path: &TreePath) {
        self.out_of_reach.entry(pattern.to_owned()).or_insert_with(|| path.clone());
    }

    /// What there is to say.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        let beyond = self.out_of_reach.iter().map(|(pattern, path)| {
            format!("`{pattern}` takes nothing back from `/{path}`, which is left out as a whole: leave out what is in it, with a pattern that ends with `/*`")
        });
        let unmatched = self.unmatched.0.iter().map(|(pattern, _)| {
            format!("`include`: `{pattern}` brought nothing: nothing is called so, or all that is was left out")
        });
        beyond.chain(unmatched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_the_folders_above_what_it_takes_back() {
        let plan = |pattern: &str| TakenBack::of_plan(&[pattern.to_owned()]);
        let file = TakenBack::of_ignore_file;
        let cases = [
            (plan("!logs/keep"), "srv/logs", true),
            (plan("!logs/keep"), "srv/other", false),
            (plan("!logs/keep/"), "srv/logs", true),
            (plan("!/srv/logs/a/keep"), "srv/logs", true),
            (plan("!/srv/logs/a/keep"), "srv", true),
            (plan("!/srv/logs/a/keep"), "var/srv", false),
            (plan("!keep"), "srv/logs", false),
            (plan("logs/keep"), "srv/logs", false),
            (plan("!/srv/**/keep"), "srv/logs", false),
            (plan("!lo*/keep"), "srv/logs", true),
            (file("!logs/keep"), "logs", true),
            (file("!logs/keep"), "sub/logs", false),
            (file("!**/logs/keep"), "sub/logs", true),
        ];
        for (number, (taken, folder, expected)) in cases.into_iter().enumerate() {
            assert_eq!(taken.within(folder.as_bytes()).next().is_some(), expected, "case {number}: {folder}");
        }
    }
}
