//! Numbers as people read them: sizes in binary units, spans in one or two units, moments in local time.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A size: `512 B`, `1.4 GiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if tenths >= 1000 {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// A count with separators: `12,345`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A count and what is counted: `1 item`, `12,345 items`.
#[must_use]
pub fn counted(number: u64, what: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {what}{ending}", count(number))
}

/// What a sink calls itself, with an article: `the repository at /srv/backups`.
#[must_use]
pub fn the(description: &str) -> String {
    if description.starts_with("the ") { description.to_owned() } else { format!("the {description}") }
}

/// How long something took: `0.4 s`, `3 min 20 s`, `2 h 5 min`.
#[must_use]
pub fn span(took: Duration) -> String {
    let total = took.as_secs();
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    match (hours, minutes) {
        (0, 0) => format!("{:.1} s", took.as_secs_f64()),
        (0, _) => format!("{minutes} min {seconds} s"),
        (_, _) => format!("{hours} h {minutes} min"),
    }
}

/// Seconds with a tenth, for JSON and tables of numbers.
#[must_use]
pub fn seconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1000.0).round() / 1000.0
}

/// How long ago something was: `20 s`, `3 min`, `5 h`, `12 days`.
#[must_use]
pub fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3_600 => format!("{} min", seconds / 60),
        seconds @ 3_600..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A moment in this machine's time zone: `2026-11-20 06:35:51`.
#[must_use]
pub fn moment(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The same with the zone's offset: as `--to-time` takes it.
#[must_use]
pub fn zoned(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (102_400, "100 KiB"),
            (1_503_238_656, "1.4 GiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (count, expected) in cases {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn counts_and_spans() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        let cases = [(400, "0.4 s"), (59_900, "59.9 s"), (200_000, "3 min 20 s"), (7_500_000, "2 h 5 min")];
        for (millis, expected) in cases {
            assert_eq!(span(Duration::from_millis(millis)), expected);
        }
        for (secs, expected) in [(20, "20 s"), (200, "3 min"), (18_000, "5 h"), (1_100_000, "12 days")] {
            assert_eq!(age(Duration::from_secs(secs)), expected);
        }
    }
}
