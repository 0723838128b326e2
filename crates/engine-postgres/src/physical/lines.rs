//! Lines of a server's configuration: what they set, what they include, and whether it leads out of the data directory.
//!
//! Invariant: what the server would read as a setting is read as one, however it is written.
//!
//! Source: `guc-file.l`, `hba.c`.

/// Whether a value is a path that leads out of the data directory, where the server stands.
pub(super) fn leads_outside(value: &str) -> bool {
    let value = value.trim();
    // Lists of paths, too; a Kerberos key file may have its kind before it.
    value.split([':', ',']).any(|part| part.trim().starts_with('/')) || value.split('/').any(|part| part == "..")
}

/// The line, as a comment of ours.
pub(super) fn comment(line: &str) -> String {
    format!("# stackward: {line}")
}

/// Ends the last line.
pub(super) fn end_line(text: &mut String) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
}

/// The name, in small letters, and the value of a line of settings.
pub(super) fn setting(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$'))).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquoted(quoted),
        None => rest.split(|c: char| c.is_whitespace() || c == '#').next().unwrap_or_default().to_owned(),
    };
    Some((name.to_ascii_lowercase(), value))
}

/// What stands in quotes, up to the closing one.
fn unquoted(text: &str) -> String {
    let (mut value, mut chars) = (String::new(), text.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\'' if chars.peek() == Some(&'\'') => value.extend(chars.next()),
            '\'' => break,
            '\\' => value.extend(chars.next()),
            other => value.push(other),
        }
    }
    value
}

/// What a line of `pg_hba.conf` includes.
pub(super) fn inclusion(line: &str) -> Option<(String, String)> {
    let (name, rest) = line.trim().split_once(char::is_whitespace)?;
    let rest = rest.trim_start();
    let value = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default(),
        None => rest.split(|c: char| c.is_whitespace() || c == '#').next().unwrap_or_default(),
    };
    matches!(name, "include" | "include_if_exists" | "include_dir").then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_server_reads_them() {
        for (line, expected) in [
            ("Work_Mem=4MB # more", Some(("work_mem", "4MB"))),
            ("  a.b  'it''s \\' x' # y", Some(("a.b", "it's ' x"))),
            ("include 'x'", Some(("include", "x"))),
            ("name =", Some(("name", ""))),
            ("# comment = 1", None),
            ("", None),
        ] {
            let read = setting(line);
            assert_eq!(read.as_ref().map(|(name, value)| (name.as_str(), value.as_str())), expected, "{line}");
        }
        for (line, expected) in
            [("include_dir \"a b\" # x", Some("a b")), ("include /x#y", Some("/x")), ("local all all trust", None)]
        {
            assert_eq!(inclusion(line).map(|(_, value)| value).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn paths_that_lead_outside_are_told_from_others() {
        for value in ["/x", "FILE:/x", "$libdir:/x", "../log", "a/../../b", " /x", "a,/x"] {
            assert!(leads_outside(value), "{value}");
        }
        for value in ["log", "Europe/Berlin", "$libdir", "%m [%p] ", "server.crt", ""] {
            assert!(!leads_outside(value), "{value}");
        }
    }
}
