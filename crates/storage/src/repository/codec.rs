//! The two primitives of the binary formats: LEB128 variable-length integers and length-prefixed bytes.
//!
//! Invariant: decoding never panics and never allocates more than the input holds.

use backup_core::error::{Error, ErrorKind, Result};

/// Appends `value` as LEB128: seven bits a byte, low bits first, the high bit set on all but the last byte.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7F) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed value: zigzag, then LEB128.
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends the length and then the bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends an optional text: zero for none, else its length plus one and its bytes.
pub(super) fn put_optional(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        None => put_varint(out, 0),
        Some(text) => {
            put_varint(out, text.len() as u64 + 1);
            out.extend_from_slice(text.as_bytes());
        }
    }
}

/// Reads what the functions above wrote.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(cut)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(cut)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number is too large"))
    }

    pub(super) fn varint_u32(&mut self) -> Result<u32> {
        u32::try_from(self.varint()?).map_err(|_| malformed("a number is too large"))
    }

    pub(super) fn signed(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8]> {
        let count = self.varint()?;
        self.take(usize::try_from(count).map_err(|_| cut())?)
    }

    pub(super) fn optional(&mut self) -> Result<Option<String>> {
        let Some(count) = self.varint()?.checked_sub(1) else { return Ok(None) };
        let bytes = self.take(usize::try_from(count).map_err(|_| cut())?)?;
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("a name is not UTF-8"))?;
        Ok(Some(text.to_owned()))
    }

    pub(super) fn finish(self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(malformed("bytes follow its end")) }
    }
}

fn cut() -> Error {
    malformed("it ends too early")
}

/// The error for bytes that do not follow the format.
pub(super) fn malformed(why: &'static str) -> Error {
    Error::new(ErrorKind::Damaged, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn numbers_round_trip(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            put_signed(&mut bytes, signed);
            let mut decoder = Decoder::new(&bytes);
            proptest::prop_assert_eq!(decoder.varint().unwrap(), value);
            proptest::prop_assert_eq!(decoder.signed().unwrap(), signed);
            decoder.finish().unwrap();
        }

        #[test]
        fn texts_round_trip(text: Option<String>, bytes: Vec<u8>) {
            let mut out = Vec::new();
            put_optional(&mut out, text.as_deref());
            put_bytes(&mut out, &bytes);
            let mut decoder = Decoder::new(&out);
            proptest::prop_assert_eq!(decoder.optional().unwrap(), text);
            proptest::prop_assert_eq!(decoder.bytes().unwrap(), &bytes[..]);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let mut decoder = Decoder::new(&bytes);
            while decoder.optional().is_ok() {
                let _any = decoder.signed();
                if decoder.is_empty() { break; }
            }
        }
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_refused() {
        assert!(Decoder::new(&[0xFF; 10]).varint().is_err());
        assert!(Decoder::new(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02]).varint().is_err());
        assert_eq!(
            Decoder::new(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]).varint().unwrap(),
            u64::MAX
        );
    }
}
