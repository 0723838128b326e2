//! Names as servers keep them: bytes, mostly UTF-8, but not in every cluster.
//!
//! Invariant: `encode(&decode(bytes)) == bytes`, whatever the bytes: what is no UTF-8 stands for itself as a code point of the
//! private use area (0x80 to 0xFF are U+EF80 to U+EFFF), and what is such a code point already is taken for bytes, too.

/// Where bytes that are no UTF-8 go.
const RAW: u32 = 0xEF00;

/// What the bytes say, without loss.
pub(crate) fn decode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if byte_of(character).is_some() {
                text.extend(character.encode_utf8(&mut [0; 4]).bytes().map(raw));
            } else {
                text.push(character);
            }
        }
        text.extend(chunk.invalid().iter().copied().map(raw));
    }
    text
}

/// The bytes that [`decode`] read.
pub(crate) fn encode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// The text for people: what would move a terminal's cursor, or turn its text around, is escaped.
pub(crate) fn shown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match (byte_of(character), character) {
            (Some(byte), _) => safe.push_str(&format!("\\x{byte:02x}")),
            (None, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}') => {
                safe.extend(character.escape_unicode());
            }
            (None, _) if character.is_control() => safe.extend(character.escape_debug()),
            _ => safe.push(character),
        }
    }
    safe
}

/// The same text with each stretch of characters beyond ASCII made one: equal for a name in UTF-8 and in any other encoding
/// that a server may have, all of which leave ASCII alone.
pub(crate) fn masked(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut before = ' ';
    for character in text.chars() {
        if character.is_ascii() {
            masked.push(character);
        } else if before.is_ascii() {
            masked.push(char::REPLACEMENT_CHARACTER);
        }
        before = character;
    }
    masked
}

fn raw(byte: u8) -> char {
    // A byte below 0x80 is never part of what is no ASCII.
    char::from_u32(RAW + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn byte_of(character: char) -> Option<u8> {
    u8::try_from(u32::from(character).checked_sub(RAW)?).ok().filter(|byte| *byte >= 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive() {
        let cases: [&[u8]; 7] = [
            b"plain",
            "größe 😀".as_bytes(),
            b"gr\xf6\xdfe",
            b"\xff\x80\xc3",
            "\u{ef80}\u{efff}\u{ef7f}\u{f000}".as_bytes(),
            b"\xee\xbe\x80\xee\xbe",
            b"\xed\xa0\x80",
        ];
        for bytes in cases {
            assert_eq!(encode(&decode(bytes)), bytes, "{bytes:x?}");
        }
        assert_eq!(decode("größe".as_bytes()), "größe");
        assert_ne!(decode(b"\xf6"), decode(b"\xf7"));
    }

    #[test]
    fn what_is_shown_moves_no_cursor() {
        let cases = [
            ("größe \"x\" a\\b 😀", "größe \"x\" a\\b 😀"),
            ("a\nb\x1b[2J", "a\\nb\\u{1b}[2J"),
            ("\u{202e}x", "\\u{202e}x"),
        ];
        for (name, expected) in cases {
            assert_eq!(shown(name), expected);
        }
        assert_eq!(shown(&decode(b"gr\xf6")), "gr\\xf6");
    }

    #[test]
    fn masks_are_the_same_in_every_encoding() {
        let [utf8, latin1, euc] = ["表x_größe".as_bytes(), b"?x_gr\xf6\xdfe", b"\xc9\xbdx_gr\xf6\xdfe"].map(decode);
        assert_eq!(masked(&utf8), masked(&euc));
        assert_ne!(masked(&utf8), masked(&latin1));
    }
}
