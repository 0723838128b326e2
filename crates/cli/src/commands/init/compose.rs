//! The text of a new plan: what was found on this machine, with comments that say what else there is.

use std::collections::BTreeSet;

use backup_core::engine::{Discovered, EngineDescriptor};
use backup_core::{PlanName, Result, SourceName};

/// What an engine finds, with the engine's name.
pub(super) fn discover(engine: &EngineDescriptor) -> Vec<(&'static str, Discovered)> {
    let name = engine.name;
    (engine.discover)().into_iter().map(|found| (name, found)).collect()
}

/// A plan's name from the machine's.
pub(super) fn plan_name(host: &str) -> Result<PlanName> {
    PlanName::new(plain(host, "stack"))
}

/// The nearest text that is a valid name.
fn plain(text: &str, otherwise: &str) -> String {
    let map = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c) => c,
        _ => '-',
    };
    let mapped: String = text.chars().map(map).collect();
    let trimmed = mapped.trim_matches(['-', '_', '.']);
    let short: String = trimmed.chars().take(63).collect();
    if short.is_empty() { otherwise.to_owned() } else { short }
}

/// A folder outside of what is usually backed up: the system's for root, the user's own otherwise.
pub(super) fn default_repository(plan: &PlanName) -> String {
    if rustix::process::geteuid().is_root() {
        return format!("/var/backups/stackward/{plan}");
    }
    let home = std::env::var("HOME").unwrap_or_else(|_| ".".to_owned());
    format!("{home}/stackward-backups/{plan}")
}

/// The plan's text.
pub(super) fn plan(name: &PlanName, url: &str, recipient: &str, found: &[(&str, Discovered)]) -> String {
    let mut text = format!(
        "# What Stackward backs up, and where to. `stackward validate --online` checks it.\n\
         # The schema for editors: `stackward schema plan`.\n\
         version: 1\n\
         name: {name}\n\
         \n\
         repository:\n\
         \x20 # A path, or an object store: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix.\n\
         \x20 # A repository on the same disk as the data does not survive that disk.\n\
         \x20 url: {}\n\
         \x20 # Who can read the backups: public keys. The private half of this one is in stackward.key;\n\
         \x20 # move it off this machine and keep two copies.\n\
         \x20 recipients: [{recipient}]\n\
         \n\
         # What you promise to those who depend on this; drills are judged against it.\n\
         # promise: {{ rpo: 1d, rto: 1h }}\n\
         \n\
         sources:\n",
        quoted(url),
    );
    if found.is_empty() {
        text.push_str(
            "  # Nothing was found on this machine; this is an example to change.\n\
             \x20 etc:\n    files:\n      paths: [/etc]\n",
        );
    }
    let mut names = BTreeSet::new();
    for (engine, found) in found {
        let name = unique(&plain(&found.name, engine), &mut names);
        text.push_str(&format!("  # {}\n  {name}:\n", one_line(&found.because)));
        for line in found.yaml.lines() {
            text.push_str(format!("    {line}").trim_end());
            text.push('\n');
        }
    }
    text
}

fn unique(wanted: &str, names: &mut BTreeSet<String>) -> String {
    let numbered = (2u32..).map(|number| format!("{wanted}-{number}"));
    let free = std::iter::once(wanted.to_owned()).chain(numbered).find(|name| !names.contains(name));
    let name = free.unwrap_or_else(|| wanted.to_owned());
    names.insert(name.clone());
    debug_assert!(name.len() > 63 || SourceName::new(name.clone()).is_ok(), "{name}");
    name
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// As a YAML scalar: JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-~:".contains(c);
    let safe = text.starts_with(['/', '.', '~']) || text.contains("://");
    if safe && text.chars().all(plain) && !text.ends_with(':') {
        return text.to_owned();
    }
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str) -> Discovered {
        Discovered {
            name: name.to_owned(),
            because: "it\nis there".to_owned(),
            yaml: "files:\n  paths:\n    - /srv\n".to_owned(),
        }
    }

    #[test]
    fn a_plan_lists_what_was_found_under_names_of_its_own() {
        let name = plan_name("Web 1.example.org").unwrap();
        let found = [("files", found("Uploads")), ("files", found("uploads")), ("files", found("…"))];
        insta::assert_snapshot!(plan(&name, "s3://bucket/x y", "age1xyz", &found));
    }

    #[test]
    fn names_are_made_valid() {
        assert_eq!(plain("My.Host", "x"), "my.host");
        assert_eq!(plain("-ä-", "x"), "x");
        assert_eq!(quoted("/srv/backups"), "/srv/backups");
        assert_eq!(quoted("yes"), "\"yes\"");
        assert_eq!(quoted("/srv/a b"), "\"/srv/a b\"");
    }
}
