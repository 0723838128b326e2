//! What belongs to a database but is not inside its dump: privileges, settings, comment, limits. `pg_restore --create`
//! would bring them, but only under the old name.

use super::catalog::alter_database;
use super::details::{DatabaseDetails, Setting};
use crate::sql::{ident, literal};

/// Settings that are lists of names: their stored value is quoted already, element by element (`GUC_LIST_QUOTE`).
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// The statements that give the database `name` the properties that were saved.
pub(crate) fn statements(details: &DatabaseDetails, name: &str) -> Vec<String> {
    let alter = alter_database(name);
    let mut statements = Vec::new();
    if let Some(comment) = &details.comment {
        statements.push(format!("COMMENT ON DATABASE {} IS {}", ident(name), literal(comment)));
    }
    statements.extend(privileges(details, name));
    statements.extend(details.settings.iter().filter_map(|setting| set(setting, name)));
    if details.connection_limit >= 0 {
        statements.push(format!("{alter} CONNECTION LIMIT {}", details.connection_limit));
    }
    if details.template {
        statements.push(format!("{alter} IS_TEMPLATE true"));
    }
    statements
}

fn privileges(details: &DatabaseDetails, name: &str) -> Vec<String> {
    let Some(privileges) = &details.privileges else { return Vec::new() };
    let database = ident(name);
    // The defaults that a new database has.
    let mut statements = vec![
        format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
        format!("REVOKE ALL ON DATABASE {database} FROM {}", ident(&details.owner)),
    ];
    for privilege in privileges {
        // The words come from a manifest: only those that exist for databases are used.
        let Some(word) = ["CREATE", "CONNECT", "TEMPORARY"].into_iter().find(|word| *word == privilege.kind) else {
            continue;
        };
        let grantee = privilege.grantee.as_deref().map_or("PUBLIC".to_owned(), ident);
        let option = if privilege.grantable && privilege.grantee.is_some() { " WITH GRANT OPTION" } else { "" };
        statements.push(format!("GRANT {word} ON DATABASE {database} TO {grantee}{option}"));
    }
    statements
}

fn set(setting: &Setting, database: &str) -> Option<String> {
    let (name, value) = setting.setting.split_once('=')?;
    let target = match &setting.role {
        Some(role) => format!("ALTER ROLE {} IN DATABASE {}", ident(role), ident(database)),
        None => alter_database(database),
    };
    let value = if LISTS.contains(&name.to_ascii_lowercase().as_str()) { list(value) } else { literal(value) };
    // A setting of an extension has a dot, each part a name of its own.
    let name: Vec<String> = name.split('.').map(ident).collect();
    Some(format!("{target} SET {} TO {value}", name.join(".")))
}

/// `"$user", public` as literals: `'$user', 'public'`. An empty list is one empty literal.
fn list(value: &str) -> String {
    let mut elements = Vec::new();
    let mut rest = value.trim();
    while !rest.is_empty() {
        let (element, after) = if let Some(quoted) = rest.strip_prefix('"') {
            let mut end = 0;
            let bytes = quoted.as_bytes();
            while end < bytes.len() && (bytes[end] != b'"' || bytes.get(end + 1) == Some(&b'"')) {
                end += if bytes[end] == b'"' { 2 } else { 1 };
            }
            (quoted[..end].replace("\"\"", "\""), quoted.get(end + 1..).unwrap_or_default())
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            (rest[..end].trim().to_owned(), &rest[end..])
        };
        elements.push(literal(&element));
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    if elements.is_empty() { "''".to_owned() } else { elements.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_statements() {
        let cases = [
            (None, "work_mem=64MB", "ALTER DATABASE \"d\" SET \"work_mem\" TO '64MB'"),
            (Some("o\"b"), "app.name=it's", "ALTER ROLE \"o\"\"b\" IN DATABASE \"d\" SET \"app\".\"name\" TO 'it''s'"),
            (
                None,
                "search_path=\"$user\", public, \"a,\"\"b\"",
                "ALTER DATABASE \"d\" SET \"search_path\" TO '$user', 'public', 'a,\"b'",
            ),
            (None, "search_path=", "ALTER DATABASE \"d\" SET \"search_path\" TO ''"),
        ];
        for (role, setting, expected) in cases {
            let setting = Setting { role: role.map(str::to_owned), setting: setting.to_owned() };
            assert_eq!(set(&setting, "d").unwrap(), expected);
        }
    }
}
