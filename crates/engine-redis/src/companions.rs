//! What belongs to a server and is not in its RDB: access rules, configuration, state, the map of a cluster.
//!
//! Invariant: the configuration is saved without its passwords; the access rules hold hashes of passwords, never the
//! passwords. What the server does not let us read is a warning, not a failure.

use backup_core::error::Result;
use backup_core::evidence::Evidence;
use backup_core::sink::ChunkHint;
use backup_core::{ArtifactName, BackupWriter, RunContext};

use crate::connection::{Connection, Reply};
use crate::server::Info;

pub(crate) const ACL: &str = "acl.txt";
pub(crate) const CONFIGURATION: &str = "config.txt";
const INFO: &str = "info.txt";
const CLUSTER_NODES: &str = "cluster-nodes.txt";
/// Settings whose value is a list of words, written without quotes as the configuration file wants it.
const WORD_LISTS: [&str; 4] = ["save", "bind", "client-output-buffer-limit", "oom-score-adj-values"];

/// Saves them all.
pub(crate) async fn save(cx: &RunContext, out: &BackupWriter, connection: &mut Connection, info: &Info) -> Result<()> {
    let rules = connection.ask(&["ACL", "LIST"]).await?;
    write(cx, out, ACL, "the access rules (ACL LIST)", &rules, |reply| lines(reply.items())).await?;
    let settings = connection.ask(&["CONFIG", "GET", "*"]).await?;
    write(cx, out, CONFIGURATION, "the configuration (CONFIG GET)", &settings, |reply| configuration(reply.items()))
        .await?;
    let state = connection.ask(&["INFO"]).await?;
    write(cx, out, INFO, "the server's state (INFO)", &state, |reply| reply.text().unwrap_or_default()).await?;
    if info.is_on("cluster_enabled") {
        let nodes = connection.ask(&["CLUSTER", "NODES"]).await?;
        let what = "the cluster's nodes and slots (CLUSTER NODES)";
        write(cx, out, CLUSTER_NODES, what, &nodes, |reply| reply.text().unwrap_or_default()).await?;
    }
    Ok(())
}

async fn write(
    cx: &RunContext,
    out: &BackupWriter,
    name: &str,
    what: &str,
    reply: &Reply,
    render: impl Fn(&Reply) -> String,
) -> Result<()> {
    if let Reply::Error(text) = reply {
        let why = crate::connection::refusal(what, text);
        cx.warn(format!("{what} could not be saved: {}", why.message()));
        return Ok(());
    }
    let text = render(reply);
    let mut artifact = out.artifact(ArtifactName::new(name)?, ChunkHint::Stream).await?;
    let length = text.len() as u64;
    artifact.write(text.into()).await?;
    artifact.seal(Evidence::ExactLength(length)).await?;
    Ok(())
}

fn lines(items: &[Reply]) -> String {
    items.iter().filter_map(Reply::text).map(|line| line + "\n").collect()
}

/// The settings as a configuration file has them, without secrets.
fn configuration(items: &[Reply]) -> String {
    let mut text = String::new();
    for pair in items.chunks_exact(2) {
        if let (Some(name), Some(value)) = (pair[0].text(), pair[1].text())
            && !is_secret(&name)
        {
            let quote = !WORD_LISTS.contains(&name.as_str()) || value.is_empty();
            let value = if quote { quoted(&value) } else { value };
            text.push_str(&format!("{name} {value}\n"));
        }
    }
    text
}

/// `requirepass`, `masterauth`, `tls-key-file-pass`, …, and those of modules that follow the custom.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pass", "secret", "token"].iter().any(|word| name.contains(word)) || name.ends_with("auth")
}

/// As the server's own configuration files quote.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@*+".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c => text.push(c),
        }
    }
    text + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_a_file_without_secrets() {
        let pairs = [
            ("save", "3600 1 300 100"),
            ("appendonly", "no"),
            ("requirepass", "hunter2"),
            ("masterauth", "hunter2"),
            ("tls-key-file-pass", "hunter2"),
            ("tls-auth-clients", "yes"),
            ("proc-title-template", "{title} \"x\"\n"),
            ("unixsocket", ""),
        ];
        let items: Vec<Reply> = pairs
            .iter()
            .flat_map(|(name, value)| [name, value])
            .map(|text| Reply::Bulk(text.as_bytes().to_vec()))
            .collect();
        assert_eq!(
            configuration(&items),
            "save 3600 1 300 100\nappendonly no\ntls-auth-clients yes\nproc-title-template \"{title} \\\"x\\\"\\n\"\nunixsocket \"\"\n"
        );
    }
}
