//! A moment in time as a user writes it.
//!
//! Invariant: it is exactly one moment. What could be two, or none, or depends on a clock that was not named, is refused with the
//! ways to write it.

use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

const LOOKS_LIKE: &str =
    "a time looks like '2026-11-20 14:30:00+00', 2026-11-20T14:30:00Z or '2026-11-20 14:30:00 Europe/Berlin'";

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeArg(pub Timestamp);

impl FromStr for TimeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self(time));
        }
        if let Some((civil, name)) = zoned(text) {
            let zone = TimeZone::get(name).map_err(|_| format!("there is no time zone `{name}` on this machine (which has those of `tzdata`); an offset needs none: +01:00"))?;
            return in_zone(civil, &zone, name).map(Self);
        }
        let Ok(civil) = text.parse::<DateTime>() else { return Err(LOOKS_LIKE.to_owned()) };
        let local = civil.to_zoned(TimeZone::system()).map(|zoned| zoned.strftime("%Y-%m-%d %H:%M:%S%:z").to_string());
        let local = local.unwrap_or_else(|_| format!("{civil}+00"));
        Err(format!("it does not say in which time zone; on this machine's clock it is '{local}', in UTC '{civil}Z'"))
    }
}

/// A time of a clock with the name of its zone behind it: `2026-11-20 14:30:00 Europe/Berlin`, or in brackets.
fn zoned(text: &str) -> Option<(DateTime, &str)> {
    let (civil, name) = match text.strip_suffix(']') {
        Some(rest) => rest.split_once('[')?,
        None => text.trim_end().rsplit_once(' ')?,
    };
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic());
    // With an offset beside the name, they might contradict each other: one says it all.
    let civil = civil.trim_end().parse().ok().filter(|_| is_name && civil.parse::<Timestamp>().is_err())?;
    Some((civil, name))
}

/// The moment at which the clocks of a zone show a time; there are none or two when they are put forward or back.
fn in_zone(civil: DateTime, zone: &TimeZone, name: &str) -> Result<Timestamp, String> {
    let with = |offset: Offset| format!("'{}{}'", civil.strftime("%Y-%m-%d %H:%M:%S"), shown(offset));
    let ambiguous = zone.to_ambiguous_timestamp(civil);
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => ambiguous.unambiguous().map_err(|error| error.to_string()),
        AmbiguousOffset::Gap { before, after } => Err(format!(
            "the clocks of {name} never showed {civil}: they were put forward; meant is {} or {}",
            with(before),
            with(after)
        )),
        AmbiguousOffset::Fold { before, after } => {
            Err(format!("the clocks of {name} showed {civil} twice: first {}, then {}", with(before), with(after)))
        }
    }
}

fn shown(offset: Offset) -> String {
    let (sign, seconds) = (if offset.seconds() < 0 { '-' } else { '+' }, offset.seconds().abs());
    format!("{sign}{:02}:{:02}", seconds / 3600, seconds / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_zone_however_it_is_written() {
        let at = "2026-11-20T14:30:00Z".parse::<Timestamp>().unwrap();
        for text in [
            "2026-11-20 14:30:00+00",
            "2026-11-20T14:30:00Z",
            "2026-11-20 14:30Z",
            "2026-11-20 15:30:00+01:00",
            "2026-11-20 09:00:00-0530",
            "2026-11-20 15:30:00 Europe/Berlin",
            "2026-11-20T15:30:00[Europe/Berlin]",
            "2026-11-20 15:30 europe/berlin",
            "2026-11-20 20:15:00.000 Asia/Kathmandu",
            "2026-11-20 09:30:00 America/New_York",
            "2026-11-20 14:30:00 UTC",
        ] {
            assert_eq!(text.parse(), Ok(TimeArg(at)), "{text}");
        }
        for text in ["2026-11-20 14:30:00", "2026-11-20"] {
            let error = text.parse::<TimeArg>().unwrap_err();
            assert!(error.contains("time zone") && error.contains("Z'"), "{text}: {error}");
        }
        for text in ["", "yesterday", "now", "5 minutes ago", "14:30:00Z", "2026-13-20 14:30:00Z", "2026-11-20 UTC x"] {
            assert!(text.parse::<TimeArg>().unwrap_err().contains("looks like"), "{text}");
        }
        let nowhere = "2026-11-20 14:30:00 Europe/Atlantis".parse::<TimeArg>().unwrap_err();
        assert!(nowhere.contains("`Europe/Atlantis`"), "{nowhere}");
    }

    #[test]
    fn an_hour_that_is_skipped_or_comes_twice_is_refused_with_both_readings() {
        let refused = |text: &str| text.parse::<TimeArg>().unwrap_err();
        let gap = refused("2026-03-29 02:30:00 Europe/Berlin");
        assert!(gap.contains("never showed") && gap.contains("'2026-03-29 02:30:00+01:00'"), "{gap}");
        let fold = refused("2026-10-25 02:30:00 Europe/Berlin");
        assert!(fold.contains("twice: first '2026-10-25 02:30:00+02:00', then '2026-10-25 02:30:00+01:00'"), "{fold}");
        // What is proposed is accepted, and is what it says.
        for (text, utc) in [
            ("2026-10-25 02:30:00+02:00", "2026-10-25T00:30:00Z"),
            ("2026-10-25 02:30:00+01:00", "2026-10-25T01:30:00Z"),
            ("2026-10-25 01:59:59 Europe/Berlin", "2026-10-24T23:59:59Z"),
            ("2026-10-25 03:00:00 Europe/Berlin", "2026-10-25T02:00:00Z"),
            ("2026-03-29 03:00:00 Europe/Berlin", "2026-03-29T01:00:00Z"),
        ] {
            assert_eq!(text.parse(), Ok(TimeArg(utc.parse().unwrap())), "{text}");
        }
    }
}
