//! The globals script on its way into a server that has some of it already.
//!
//! `pg_dumpall --globals-only` writes one statement after the other; a statement is left out only when its beginning is
//! exactly of the form that `pg_dumpall` writes. Quotes and comments are respected, so no name and no comment of a role
//! can pose as a statement. Invariant: the script is bytes, in whatever encoding it says; all encodings that it can have leave
//! ASCII alone, and nothing else is looked at.

use std::collections::{BTreeMap, BTreeSet};

use crate::text::decode;

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

/// A script in two: what databases need, and what must wait until they are there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Globals {
    pub(crate) first: Vec<u8>,
    /// The settings of roles: they would apply to every session of the restore.
    pub(crate) last: Vec<u8>,
}

/// What names in a script's own encoding mean; what is not listed is UTF-8.
pub(crate) type Names = BTreeMap<Vec<u8>, String>;

impl GlobalsFilter {
    /// The script without what is left out.
    pub(crate) fn apply(&self, script: &[u8], names: &Names) -> Globals {
        let mut globals = Globals::default();
        let mut has_settings = false;
        for statement in statements(script) {
            let words: Vec<String> = words(statement).iter().map(|word| text(word, names)).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if is_about_the_session(statement, &words) {
                globals.last.extend_from_slice(statement);
            }
            if is_setting_of_role(&words) {
                has_settings = true;
                globals.last.extend_from_slice(statement);
            } else if !self.leaves_out(statement, &words) {
                globals.first.extend_from_slice(statement);
            }
        }
        if !has_settings {
            globals.last.clear();
        }
        globals
    }

    fn leaves_out(&self, statement: &[u8], words: &[&str]) -> bool {
        if statement.starts_with(b"\\restrict ") || statement.starts_with(b"\\unrestrict ") {
            return self.drop_restrict;
        }
        match words {
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

/// `SET client_encoding = …` and its like, without which the rest would mean something else.
fn is_about_the_session(statement: &[u8], words: &[&str]) -> bool {
    words.first() == Some(&"SET") && !statement.starts_with(b"\\")
}

fn is_setting_of_role(words: &[&str]) -> bool {
    matches!(words, ["ALTER", "ROLE", _, "SET" | "RESET", ..] | ["ALTER", "ROLE", _, "IN", "DATABASE", ..])
}

/// The encoding that the script says it is in.
pub(crate) fn encoding(script: &[u8]) -> Option<String> {
    statements(script).into_iter().find_map(|statement| {
        let rest = statement.strip_prefix(b"SET client_encoding = '")?;
        let end = rest.iter().position(|byte| *byte == b'\'')?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    })
}

/// Every name and word of the script that is not ASCII, in its own encoding.
pub(crate) fn foreign_words(script: &[u8]) -> BTreeSet<Vec<u8>> {
    statements(script).into_iter().flat_map(words).filter(|word| !word.is_ascii()).collect()
}

fn text(word: &[u8], names: &Names) -> String {
    names.get(word).cloned().unwrap_or_else(|| decode(word))
}

#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Nothing,
    Literal,
    Name,
    Comment,
}

/// Cuts a script into statements, each with the line breaks that follow; empty lines, comments and `psql` commands stand alone.
fn statements(script: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let (mut start, mut inside, mut begun) = (0, Inside::Nothing, false);
    for (at, byte) in script.iter().enumerate() {
        inside = match (inside, byte) {
            (Inside::Nothing, b'\'') => Inside::Literal,
            (Inside::Nothing, b'"') => Inside::Name,
            (Inside::Nothing, b'-') if script.get(at + 1) == Some(&b'-') => Inside::Comment,
            (Inside::Literal, b'\'') | (Inside::Name, b'"') | (Inside::Comment, b'\n') => Inside::Nothing,
            (inside, _) => inside,
        };
        begun |= inside != Inside::Comment && !byte.is_ascii_whitespace();
        if *byte != b'\n' || inside != Inside::Nothing {
            continue;
        }
        let statement = &script[start..at];
        if !begun || statement.trim_ascii_end().ends_with(b";") || statement.starts_with(b"\\") {
            found.push(&script[start..=at]);
            (start, begun) = (at + 1, false);
        }
    }
    found.push(&script[start..]);
    found
}

/// The words of a statement: names without their quotes, literals as `'`, `;` by itself.
fn words(statement: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut rest = statement.trim_ascii_start();
    while let Some(first) = rest.first() {
        let (word, length) = match first {
            b'"' => quoted(rest, b'"'),
            b'\'' => (b"'".to_vec(), quoted(rest, b'\'').1),
            b';' => (b";".to_vec(), 1),
            _ => {
                let ends = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b';' | b'"');
                let length = rest.iter().position(ends).unwrap_or(rest.len());
                (rest[..length].to_vec(), length)
            }
        };
        words.push(word);
        rest = rest[length..].trim_ascii_start();
    }
    words
}

/// The text between quotes, doubled ones halved, and how many bytes it takes with its quotes.
fn quoted(text: &[u8], quote: u8) -> (Vec<u8>, usize) {
    let mut content = Vec::new();
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        if *byte != quote {
            content.push(*byte);
        } else if text.get(at + 1) == Some(&quote) {
            content.push(quote);
            at += 1;
        } else {
            return (content, at + 1);
        }
        at += 1;
    }
    (content, text.len())
}

/// What must hold for any script, for [`crate::fuzzing`]: nothing is lost and nothing is made up.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzzing(script: &[u8]) -> bool {
    assert_eq!(statements(script).concat(), script);
    let globals = GlobalsFilter::default().apply(script, &Names::new());
    assert!(globals.first.len() <= script.len() && globals.first.len() + globals.last.len() >= script.len());
    foreign_words(script).iter().all(|word| !word.is_empty()) && encoding(script).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = r#"--
-- Roles
--

\restrict abc

SET client_encoding = 'UTF8';
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
        let globals = GlobalsFilter::default().apply(SCRIPT.as_bytes(), &Names::new());
        let setting = "ALTER ROLE postgres SET search_path TO 'a', 'b';\n";
        assert_eq!(String::from_utf8(globals.first).unwrap(), SCRIPT.replace(setting, ""));
        assert_eq!(String::from_utf8(globals.last).unwrap(), format!("SET client_encoding = 'UTF8';\n{setting}"));
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
            let kept = String::from_utf8(filter.apply(SCRIPT.as_bytes(), &Names::new()).first).unwrap();
            let lines: Vec<&str> = kept.lines().collect();
            let is_kept = |line: &&str| !line.contains("SET search_path");
            let mut expected: Vec<&str> = SCRIPT.lines().filter(is_kept).collect();
            for line in &gone {
                // The last one: the first `CREATE ROLE postgres;` stands inside a comment's text.
                let position = expected.iter().rposition(|present| present == line).unwrap();
                expected.remove(position);
            }
            assert_eq!(lines, expected, "{gone:?}");
        }
    }

    /// Names are compared in the script's own encoding, and no byte is lost.
    #[test]
    fn names_may_be_in_any_encoding() {
        let cases: [(&[u8], &str, bool); 4] = [
            ("müller😀".as_bytes(), "UTF8", false),
            (b"m\xfcller", "LATIN1", true),
            (b"\xc9\xbd", "EUC_JP", true),
            (b"m\xffller", "SQL_ASCII", false),
        ];
        for (name, code, is_foreign) in cases {
            let create = [b"CREATE ROLE \"", name, b"\";\n"].concat();
            let alter = [b"ALTER ROLE \"", name, b"\" SET \"app\".\"x\" TO '", name, b"';\n"].concat();
            let begin = format!("SET client_encoding = '{code}';\n").into_bytes();
            let script = [&begin[..], &create, &alter].concat();
            assert_eq!(encoding(&script).as_deref(), Some(code));
            assert!(foreign_words(&script).contains(name), "{code}");
            let names = if is_foreign { Names::from([(name.to_vec(), "its name".to_owned())]) } else { Names::new() };
            let known = if is_foreign { "its name".to_owned() } else { decode(name) };
            for (filter, first) in [
                (GlobalsFilter::default(), [&begin[..], &create].concat()),
                (GlobalsFilter { roles: [known].into(), ..GlobalsFilter::default() }, begin.clone()),
            ] {
                let globals = filter.apply(&script, &names);
                assert_eq!((globals.first, globals.last), (first, [&begin[..], &alter].concat()), "{code}");
            }
        }
    }
}
