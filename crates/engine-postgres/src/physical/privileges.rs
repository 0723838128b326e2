//! The role that a physical backup needs, and nothing more: the SQL that `stackward init` writes into a new plan.

/// Its statements. The tests run them, and look what the role can and cannot do.
pub(crate) const ROLE: [(&str, &str); 3] = [
    ("CREATE ROLE stackward LOGIN REPLICATION PASSWORD '…';", "base backups and the log; no table"),
    ("GRANT pg_read_all_settings TO stackward;", "where the configuration files are"),
    ("GRANT pg_read_server_files TO stackward;", "and what is in them, when they are outside the data directory"),
];

/// What pg_hba.conf must say; `all` as a database does not include replication.
pub(crate) const HBA: [&str; 2] =
    ["local replication stackward scram-sha-256", "local postgres stackward scram-sha-256"];

/// As comments of a plan.
pub(crate) fn comments() -> String {
    let mut text = String::from(
        "  # With `modes: [physical]` (or `[physical, logical]`) the whole cluster is saved over the replication protocol.\n\
         \x20 # A role that can do this and nothing else (then also: `user: stackward` and a `password`):\n",
    );
    for (statement, why) in ROLE {
        text.push_str(&format!("  #   {statement}  -- {why}\n"));
    }
    text.push_str("  # and in pg_hba.conf, before other lines that fit:\n");
    for line in HBA {
        text.push_str(&format!("  #   {line}\n"));
    }
    text
}
