//! Control characters in names must not reach a terminal: a file or a database may be called anything.

use std::borrow::Cow;

/// `text` with control characters written out, but for line ends, tabs and our own colours (`ESC [ … m`).
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_odd) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let kept = if is_odd(first) { colour(rest) } else { first.len_utf8() };
        if kept > 0 {
            cleaned.push_str(&rest[..kept]);
            rest = &rest[kept..];
        } else {
            cleaned.extend(first.escape_unicode());
            rest = &rest[first.len_utf8()..];
        }
    }
    Cow::Owned(cleaned)
}

fn is_odd(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

/// The length of the colour sequence that `text` begins with; zero when it does not.
fn colour(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("\u{1b}[") else { return 0 };
    let digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
    if rest[digits..].starts_with('m') { 2 + digits + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out_and_colours_kept() {
        let cases = [
            ("plain Ünï\n\tline", "plain Ünï\n\tline"),
            ("\u{1b}[1;31merror\u{1b}[0m", "\u{1b}[1;31merror\u{1b}[0m"),
            ("title \u{1b}]0;owned\u{7}", "title \\u{1b}]0;owned\\u{7}"),
            ("clear\u{1b}[2J", "clear\\u{1b}[2J"),
            ("over\rwritten\u{8}", "over\\u{d}written\\u{8}"),
            ("\u{9b}2J", "\\u{9b}2J"),
        ];
        for (text, expected) in cases {
            assert_eq!(clean(text), expected);
        }
    }
}
