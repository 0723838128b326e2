//! Extended headers of pax archives: records of a keyword and a value, each with its length in front.
//!
//! Invariant: a value may hold any bytes; only its length says where it ends.

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::FileTime;

/// Appends a record: `length SP keyword = value LF`, where the length counts itself.
pub(super) fn put_record(out: &mut Vec<u8>, keyword: &[u8], value: &[u8]) {
    let rest = keyword.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + digits(length) {
        length = rest + digits(length);
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(keyword);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// The records of an extended header, in order.
pub(super) fn records(mut header: &[u8]) -> Result<Vec<(&[u8], &[u8])>> {
    let broken = || damaged("an extended header is malformed");
    let mut records = Vec::new();
    while !header.is_empty() {
        let space = header.iter().take(20).position(|byte| *byte == b' ').ok_or_else(broken)?;
        let length: usize = number(&header[..space]).and_then(|length| length.try_into().ok()).ok_or_else(broken)?;
        if length <= space + 1 || length > header.len() {
            return Err(broken());
        }
        let (record, rest) = header.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(broken)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
        records.push((&record[..equals], &record[equals + 1..]));
        header = rest;
    }
    Ok(records)
}

/// A plain decimal number.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A time in decimal seconds. `-1` s and 999,999,999 ns, which is a nanosecond before 1970, is `-0.000000001`.
pub(super) fn render_time(time: FileTime) -> String {
    match time.nanos {
        0 => time.seconds.to_string(),
        nanos if time.seconds >= 0 => format!("{}.{nanos:09}", time.seconds),
        nanos => format!("-{}.{:09}", (time.seconds + 1).unsigned_abs(), 1_000_000_000 - nanos),
    }
}

pub(super) fn parse_time(text: &[u8]) -> Option<FileTime> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = i128::from(number(whole.as_bytes())?);
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos = i128::from(number(format!("{fraction:0<9}").as_bytes())?);
    let total = whole * 1_000_000_000 + nanos;
    let total = if negative { -total } else { total };
    let seconds = i64::try_from(total.div_euclid(1_000_000_000)).ok()?;
    Some(FileTime { seconds, nanos: total.rem_euclid(1_000_000_000) as u32 })
}

/// GNU tar writes `=` and `%` in the names of extended attributes as `%3D` and `%25`: a keyword cannot hold a `=`.
pub(super) fn encode_keyword(name: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'=' => encoded.extend_from_slice(b"%3D"),
            b'%' => encoded.extend_from_slice(b"%25"),
            byte => encoded.push(*byte),
        }
    }
    encoded
}

pub(super) fn decode_keyword(mut encoded: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(encoded.len());
    while let Some((byte, rest)) = encoded.split_first() {
        let (byte, rest) = match (byte, rest) {
            (b'%', [b'3', b'D', rest @ ..]) => (b'=', rest),
            (b'%', [b'2', b'5', rest @ ..]) => (b'%', rest),
            (byte, rest) => (*byte, rest),
        };
        name.push(byte);
        encoded = rest;
    }
    name
}

pub(super) fn damaged(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("the archive is not usable: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for length in 0..2000 {
            let mut out = Vec::new();
            let value = vec![b'\n'; length];
            put_record(&mut out, b"k", &value);
            put_record(&mut out, b"l", b"=");
            assert_eq!(records(&out).unwrap(), [(&b"k"[..], &value[..]), (b"l", b"=")], "{length}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in ["x", "5 a=b", "7 a=b\n", "0 a=b\n", "4 ab\n", "5 ab\n", "99999999999999999999 a=b\n", "-6 a=b\n"] {
            assert!(records(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_are_decimal_also_before_1970() {
        let times = [
            (0, 0, "0"),
            (5, 1, "5.000000001"),
            (-1, 999_999_999, "-0.000000001"),
            (-1, 0, "-1"),
            (-2, 500_000_000, "-1.500000000"),
            (i64::MIN, 0, "-9223372036854775808"),
            (i64::MIN, 1, "-9223372036854775807.999999999"),
            (i64::MAX, 999_999_999, "9223372036854775807.999999999"),
        ];
        for (seconds, nanos, text) in times {
            let time = FileTime { seconds, nanos };
            assert_eq!(render_time(time), text);
            assert_eq!(parse_time(text.as_bytes()), Some(time), "{text}");
        }
        assert_eq!(parse_time(b"1.5"), Some(FileTime { seconds: 1, nanos: 500_000_000 }));
        for bad in ["", "-", "1.x", "1e3", "9223372036854775808", "+1", "1.0000000001"] {
            assert_eq!(parse_time(bad.as_bytes()), None, "{bad}");
        }
    }
}
