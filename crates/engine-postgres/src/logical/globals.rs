//! The globals script on its way into a server that has some of it already.
//!
//! `pg_dumpall --globals-only` writes one statement after the other; a statement is left out only when its beginning is
//! exactly of the form that `pg_dumpall` writes. Quotes and comments are respected, so no name and no comment of a role
//! can pose as a statement.

use std::collections::BTreeSet;

/// What of the script is left out.
#[derive(Debug, Default)]
pub(crate) struct GlobalsFilter {
    /// Roles that exist: not created again.
    pub(crate) roles: BTreeSet<String>,
    /// The role that restores and whose password must stay as it is, else the next connection fails.
    pub(crate) keep_role: Option<String>,
    /// Tablespaces that exist: not created again.
    pub(crate) tablespaces: BTreeSet<String>,
    /// Tablespaces that cannot be created: nothing about them is said.
    pub(crate) skipped_tablespaces: BTreeSet<String>,
    /// Whether `psql` is too old for `\restrict`.
    pub(crate) drop_restrict: bool,
}

impl GlobalsFilter {
    /// The script without what is left out.
    pub(crate) fn apply(&self, script: &str) -> String {
        let mut kept = String::with_capacity(script.len());
        for statement in statements(script) {
            if !self.leaves_out(statement) {
                kept.push_str(statement);
            }
        }
        kept
    }

    fn leaves_out(&self, statement: &str) -> bool {
        if statement.starts_with("\\restrict ") || statement.starts_with("\\unrestrict ") {
            return self.drop_restrict;
        }
        let words = words(statement);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["CREATE", "ROLE", name, ";"] => self.roles.contains(*name),
            ["ALTER", "ROLE", name, "WITH", ..] => self.keep_role.as_deref() == Some(*name),
            ["CREATE", "TABLESPACE", name, ..] => {
                self.tablespaces.contains(*name) || self.skipped_tablespaces.contains(*name)
            }
            ["ALTER", "TABLESPACE", name, ..] | ["COMMENT", "ON", "TABLESPACE", name, ..] => {
                self.skipped_tablespaces.contains(*name)
            }
            ["GRANT" | "REVOKE", rest @ ..] => {
                let name = rest.windows(3).find_map(|three| match three {
                    ["ON", "TABLESPACE", name] => Some(*name),
                    _ => None,
                });
                name.is_some_and(|name| self.skipped_tablespaces.contains(name))
            }
            _ => false,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Nothing,
    Literal,
    Name,
    Comment,
}

/// Cuts a script into statements, each with the line breaks that follow; empty lines, comments and `psql` commands stand alone.
fn statements(script: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut start, mut inside, mut begun) = (0, Inside::Nothing, false);
    let bytes = script.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        inside = match (inside, byte) {
            (Inside::Nothing, b'\'') => Inside::Literal,
            (Inside::Nothing, b'"') => Inside::Name,
            (Inside::Nothing, b'-') if bytes.get(at + 1) == Some(&b'-') => Inside::Comment,
            (Inside::Literal, b'\'') | (Inside::Name, b'"') | (Inside::Comment, b'\n') => Inside::Nothing,
            (inside, _) => inside,
        };
        begun |= inside != Inside::Comment && !byte.is_ascii_whitespace();
        let ended = script[start..at].trim_end().ends_with(';') || script[start..].starts_with('\\') || !begun;
        if *byte == b'\n' && inside == Inside::Nothing && ended {
            found.push(&script[start..=at]);
            (start, begun) = (at + 1, false);
        }
    }
    found.push(&script[start..]);
    found
}

/// The words of a statement: names without their quotes, literals as `'`, `;` by itself.
fn words(statement: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = statement.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, length) = match first {
            '"' => quoted(rest, '"'),
            '\'' => ("'".to_owned(), quoted(rest, '\'').1),
            ';' => (";".to_owned(), 1),
            _ => {
                let length = rest.find(|c: char| c.is_whitespace() || c == ';' || c == '"').unwrap_or(rest.len());
                (rest[..length].to_owned(), length)
            }
        };
        words.push(word);
        rest = rest[length..].trim_start();
    }
    words
}

/// The text between quotes, doubled ones halved, and how many bytes it takes with its quotes.
fn quoted(text: &str, quote: char) -> (String, usize) {
    let mut content = String::new();
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character != quote {
            content.push(character);
        } else if characters.peek().is_some_and(|(_, next)| *next == quote) {
            content.push(quote);
            characters.next();
        } else {
            return (content, at + 1);
        }
    }
    (content, text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = r#"--
-- Roles
--

\restrict abc

CREATE ROLE "o'brien";
ALTER ROLE "o'brien" WITH NOSUPERUSER PASSWORD 'SCRAM-SHA-256$x;y';
COMMENT ON ROLE "o'brien" IS 'first
CREATE ROLE postgres;
last';
CREATE ROLE postgres;
ALTER ROLE postgres WITH SUPERUSER;
ALTER ROLE postgres SET search_path TO 'a', 'b';

--
-- User Config "o'brien"
--

CREATE TABLESPACE "fast disk" OWNER postgres LOCATION '/fast';
ALTER TABLESPACE "fast disk" SET (seq_page_cost=1);
GRANT CREATE ON TABLESPACE "fast disk" TO "o'brien" WITH GRANT OPTION;
GRANT "fast disk" TO postgres;
\unrestrict abc
"#;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn without_a_reason_nothing_is_left_out() {
        assert_eq!(GlobalsFilter::default().apply(SCRIPT), SCRIPT);
    }

    /// Each filter, and exactly the lines that it takes out.
    #[test]
    fn only_the_exact_statements_are_left_out() {
        let cases = [
            (GlobalsFilter { roles: set(&["postgres"]), ..GlobalsFilter::default() }, vec!["CREATE ROLE postgres;"]),
            (GlobalsFilter { roles: set(&["o'brien"]), ..GlobalsFilter::default() }, vec!["CREATE ROLE \"o'brien\";"]),
            (
                GlobalsFilter { keep_role: Some("postgres".into()), ..GlobalsFilter::default() },
                vec!["ALTER ROLE postgres WITH SUPERUSER;"],
            ),
            (
                GlobalsFilter { drop_restrict: true, ..GlobalsFilter::default() },
                vec!["\\restrict abc", "\\unrestrict abc"],
            ),
            (
                GlobalsFilter { tablespaces: set(&["fast disk"]), ..GlobalsFilter::default() },
                vec!["CREATE TABLESPACE \"fast disk\" OWNER postgres LOCATION '/fast';"],
            ),
            (
                GlobalsFilter { skipped_tablespaces: set(&["fast disk"]), ..GlobalsFilter::default() },
                vec![
                    "CREATE TABLESPACE \"fast disk\" OWNER postgres LOCATION '/fast';",
                    "ALTER TABLESPACE \"fast disk\" SET (seq_page_cost=1);",
                    "GRANT CREATE ON TABLESPACE \"fast disk\" TO \"o'brien\" WITH GRANT OPTION;",
                ],
            ),
        ];
        for (filter, gone) in cases {
            let kept = filter.apply(SCRIPT);
            let lines: Vec<&str> = kept.lines().collect();
            let mut expected: Vec<&str> = SCRIPT.lines().collect();
            for line in &gone {
                // The last one: the first `CREATE ROLE postgres;` stands inside a comment's text.
                let position = expected.iter().rposition(|present| present == line).unwrap();
                expected.remove(position);
            }
            assert_eq!(lines, expected, "{gone:?}");
        }
    }
}
