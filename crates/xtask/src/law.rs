//! The dependency law: who may depend on whom, from `cargo metadata`.
//!
//! `backup-core` talks to no service; engines, `storage` and hosts know only `backup-core`; test helpers are for tests.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cache::Cache;
use crate::process::Result;

const CORE: &str = "backup-core";
const TESTKIT: &str = "backup-testkit";

/// Crates that talk to services, stores or databases, by the beginning of their names: none of them in the core.
const CLIENTS: &[&str] = &[
    "tokio-postgres",
    "postgres",
    "rusqlite",
    "sqlx",
    "diesel",
    "mysql",
    "redis",
    "fred",
    "bollard",
    "docker",
    "object_store",
    "opendal",
    "aws-",
    "rusoto",
    "google-",
    "azure",
    "reqwest",
    "hyper",
    "ureq",
    "curl",
    "ssh2",
    "russh",
];

/// One dependency of a member of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Edge {
    from: String,
    to: String,
    dev: bool,
}

/// Checks the law on this workspace.
pub(crate) fn check(cache: &Cache) -> Result {
    let text = cache.cargo(["metadata", "--format-version", "1", "--no-deps", "--locked"]).output()?;
    let metadata: Value = serde_json::from_str(&text).map_err(|error| format!("cargo metadata: {error}"))?;
    let faults = faults(&edges(&metadata));
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

fn edges(metadata: &Value) -> Vec<Edge> {
    let mut edges = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let from = package["name"].as_str().unwrap_or_default();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            let dev = dependency["kind"] == "dev";
            edges.push(Edge { from: from.to_owned(), to: to.to_owned(), dev });
        }
    }
    edges
}

fn faults(edges: &[Edge]) -> Vec<String> {
    let mut members: BTreeSet<&str> = edges.iter().map(|edge| edge.from.as_str()).collect();
    members.insert(CORE);
    let isolated = |name: &str| name == "storage" || name.starts_with("engine-") || name.starts_with("host-");
    let mut faults = Vec::new();
    for Edge { from, to, dev } in edges {
        let member = members.contains(to.as_str());
        let reason = if from == CORE && CLIENTS.iter().any(|client| to.starts_with(client)) {
            "the core talks to no service"
        } else if from == CORE && member && !(*dev && to == TESTKIT) {
            "the core depends on no other crate of the workspace"
        } else if to == TESTKIT && !dev {
            "the testkit is for tests: make it a dev-dependency"
        } else if isolated(from) && member && to != CORE && to != TESTKIT {
            "engines, storage and hosts depend on backup-core only"
        } else {
            continue;
        };
        faults.push(format!("{from} depends on {to}: {reason}"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str, dev: bool) -> Edge {
        Edge { from: from.to_owned(), to: to.to_owned(), dev }
    }

    #[test]
    fn what_the_law_allows() {
        let good = [
            edge("backup-core", "tokio", false),
            edge("storage", "backup-core", false),
            edge("storage", "object_store", false),
            edge("engine-files", "backup-core", false),
            edge("engine-files", "backup-testkit", true),
            edge("stackward", "engine-files", false),
            edge("backup-testkit", "backup-core", false),
        ];
        assert_eq!(faults(&good), Vec::<String>::new());
    }

    #[test]
    fn what_it_forbids() {
        let cases = [
            edge("backup-core", "object_store", false),
            edge("backup-core", "tokio-postgres", false),
            edge("backup-core", "storage", false),
            edge("engine-files", "backup-testkit", false),
            edge("engine-postgres", "engine-files", false),
            edge("engine-postgres", "storage", true),
            edge("host-docker", "engine-files", false),
            edge("storage", "engine-files", true),
        ];
        for case in cases {
            let members = [edge("storage", "x", false), edge("engine-files", "x", false), edge(TESTKIT, "x", false)];
            let edges = [members.as_slice(), std::slice::from_ref(&case)].concat();
            assert_eq!(faults(&edges).len(), 1, "{case:?}");
        }
    }
}
