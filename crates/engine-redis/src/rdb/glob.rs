//! Redis's own patterns for keys (util.c, `stringmatchlen`): `*`, `?`, `[a-z]`, `[^a]`, and `\` before a literal.
//!
//! Invariant: matching takes no more steps than the lengths of pattern and key multiplied, whatever the pattern.

/// A pattern for keys, as `KEYS` and `SCAN … MATCH` take it. Works on bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    pattern: String,
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Any run of bytes, the empty one too.
    Star,
    /// Any one byte.
    Any,
    One(u8),
    /// One byte of these ranges, or of none of them.
    Class {
        ranges: Vec<(u8, u8)>,
        negated: bool,
    },
}

impl Glob {
    /// Reads a pattern. Every text is one, as with Redis: an open class reaches to the end.
    #[must_use]
    pub fn new(pattern: impl Into<String>) -> Self {
        let pattern = pattern.into();
        let mut tokens = Vec::new();
        let mut rest = pattern.as_bytes();
        while let [first, tail @ ..] = rest {
            rest = tail;
            let token = match first {
                b'*' if tokens.last() == Some(&Token::Star) => continue,
                b'*' => Token::Star,
                b'?' => Token::Any,
                b'[' => class(&mut rest),
                b'\\' => match tail {
                    [literal, after @ ..] => {
                        rest = after;
                        Token::One(*literal)
                    }
                    [] => Token::One(b'\\'),
                },
                literal => Token::One(*literal),
            };
            tokens.push(token);
        }
        Self { pattern, tokens }
    }

    /// The pattern as it was given.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }

    /// Whether the whole of `key` matches.
    pub fn matches(&self, key: &[u8]) -> bool {
        let (mut token, mut byte) = (0, 0);
        // Where to go on when what follows the last star does not fit: the star takes one byte more.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match self.tokens.get(token) {
                Some(Token::Star) => {
                    retry = Some((token + 1, byte));
                    token += 1;
                    continue;
                }
                Some(one) if key.get(byte).is_some_and(|byte| one.accepts(*byte)) => {
                    (token, byte) = (token + 1, byte + 1);
                    continue;
                }
                None if byte == key.len() => return true,
                _ => {}
            }
            match retry {
                Some((after, from)) if from < key.len() => {
                    retry = Some((after, from + 1));
                    (token, byte) = (after, from + 1);
                }
                _ => return false,
            }
        }
    }
}

impl Token {
    fn accepts(&self, byte: u8) -> bool {
        match self {
            Self::Star | Self::Any => true,
            Self::One(one) => *one == byte,
            Self::Class { ranges, negated } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte)) != *negated
            }
        }
    }
}

/// Reads a class from behind its `[` through its `]`.
fn class(rest: &mut &[u8]) -> Token {
    let negated = rest.first() == Some(&b'^');
    if negated {
        *rest = &rest[1..];
    }
    let mut ranges = Vec::new();
    while let [first, tail @ ..] = *rest {
        *rest = tail;
        match (first, tail) {
            (b']', _) => break,
            (b'\\', [literal, after @ ..]) => {
                *rest = after;
                ranges.push((*literal, *literal));
            }
            (low, [b'-', high, after @ ..]) => {
                *rest = after;
                ranges.push((*low.min(high), *low.max(high)));
            }
            (literal, _) => ranges.push((*literal, *literal)),
        }
    }
    Token::Class { ranges, negated }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_to_redis() {
        let cases = [
            ("*", "", true),
            ("*", "anything", true),
            ("user:*", "user:1", true),
            ("user:*", "user", false),
            ("*:1*", "user:21:12", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h\\*llo", "h*llo", true),
            ("h\\*llo", "hello", false),
            ("[\\]]", "]", true),
            ("[abc", "b", true),
            ("", "", true),
            ("", "a", false),
            ("a\\", "a\\", true),
            ("**a**", "bab", true),
        ];
        for (pattern, key, expected) in cases {
            assert_eq!(Glob::new(pattern).matches(key.as_bytes()), expected, "{pattern} on {key}");
        }
    }

    #[test]
    fn a_hostile_pattern_does_not_explode() {
        let pattern = Glob::new("a*".repeat(100) + "b");
        assert!(!pattern.matches("a".repeat(10_000).as_bytes()));
    }
}
