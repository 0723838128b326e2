//! Quoting: names and values on their way into SQL and into connection strings.
//!
//! Invariant: text from a server or a manifest reaches SQL only through these functions.

/// An identifier, always quoted.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal, valid whatever `standard_conforming_strings` says.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A list of literals for `IN (…)`; never empty.
pub(crate) fn literals<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let list: Vec<String> = texts.into_iter().map(literal).collect();
    if list.is_empty() { "NULL".to_owned() } else { list.join(", ") }
}

/// A schema and a name in it, quoted.
pub(crate) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// A value in a connection string (`libpq`: single quotes, backslash escapes).
pub(crate) fn conninfo_value(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// `schema.table` for people and fingerprints: unambiguous, and the same on every server version
/// (`quote_ident` depends on the version's keywords).
pub(crate) fn readable(schema: &str, name: &str) -> String {
    let part = |text: &str| {
        let plain = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if plain && !text.is_empty() { text.to_owned() } else { ident(text) }
    };
    format!("{}.{}", part(schema), part(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes_its_quotes() {
        assert_eq!(ident(r#"we"ird"#), r#""we""ird""#);
        assert_eq!(literal("o'brien"), "'o''brien'");
        assert_eq!(literal(r"a\'b"), r" E'a\\''b'");
        assert_eq!(conninfo_value(r"a'\b"), r"'a\'\\b'");
        assert_eq!(literals([]), "NULL");
    }

    #[test]
    fn readable_names_are_unambiguous() {
        assert_eq!(readable("public", "users_1"), "public.users_1");
        assert_ne!(readable("a.b", "c"), readable("a", "b.c"));
        assert_eq!(readable("public", "Users"), "public.\"Users\"");
    }
}
