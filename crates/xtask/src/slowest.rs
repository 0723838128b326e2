//! Which tests took longest, from the reports that nextest writes, beside the rule where such a test belongs.
//!
//! Invariant: it informs and never fails: a busy machine is no fault of a change.

use crate::cache::Cache;
use crate::steps::say;

const SHOWN: usize = 10;
/// From here on a test belongs to the profile `slow`.
const SLOW_SECONDS: f64 = 10.0;
/// From here on it belongs to the night.
const NIGHT_SECONDS: f64 = 60.0;
const PROFILES: [&str; 2] = ["default", "slow"];

/// A test that ran.
#[derive(Debug, Clone, PartialEq)]
struct Ran {
    profile: &'static str,
    /// Its package and binary, and its own name.
    name: String,
    seconds: f64,
}

/// Lists the slowest tests of the run that has just ended.
pub(crate) fn show(cache: &Cache) {
    say(&table(PROFILES.into_iter().flat_map(|profile| taken(cache, profile)).collect()));
}

/// What a profile's report says. The report goes: a run that does not come so far must not show an older one's.
fn taken(cache: &Cache, profile: &'static str) -> Vec<Ran> {
    let report = cache.target().join("nextest").join(profile).join("junit.xml");
    let text = std::fs::read_to_string(&report).unwrap_or_default();
    let _gone = std::fs::remove_file(&report);
    ran(profile, &text)
}

/// The tests that a report of nextest's names: each begins with `<testcase name=".." classname=".." … time="..">`.
fn ran(profile: &'static str, report: &str) -> Vec<Ran> {
    let value = |tag: &str, name: &str| -> Option<String> {
        let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let tags = report.split("<testcase").skip(1).filter_map(|rest| Some(rest.split_once('>')?.0));
    tags.filter_map(|tag| {
        let name = format!("{} {}", value(tag, "classname")?, value(tag, "name")?);
        Some(Ran { profile, name, seconds: value(tag, "time")?.parse().ok()? })
    })
    .collect()
}

fn table(mut ran: Vec<Ran>) -> String {
    ran.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let mut lines = vec![format!(
        "    slowest tests (on two idle cores: {SLOW_SECONDS} s and more belong to the profile `slow`, {NIGHT_SECONDS} s and more to the night)"
    )];
    for Ran { profile, name, seconds } in ran.iter().take(SHOWN) {
        let advice = match *seconds {
            long if long >= NIGHT_SECONDS => "  <- shorten it, or give it a name with `nightly`",
            long if long >= SLOW_SECONDS && *profile == "default" => {
                "  <- shorten it, or put it into the profile `slow`"
            }
            _ => "",
        };
        lines.push(format!("    {seconds:>7.1} s  {profile:<7}  {name}{advice}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" failures="1" errors="0" uuid="x" timestamp="2026-01-01T00:00:00+00:00" time="63.2">
    <testsuite name="storage" tests="1" disabled="0" errors="0" failures="0">
        <testcase name="index::tests::round_trip" classname="storage" timestamp="2026-01-01T00:00:00+00:00" time="0.013">
        </testcase>
    </testsuite>
    <testsuite name="stackward::endtoend" tests="2" disabled="0" errors="0" failures="1">
        <testcase name="crash::survives" classname="stackward::endtoend" timestamp="2026-01-01T00:00:00+00:00" time="12.500">
            <failure type="test failure">a &lt;testcase</failure>
        </testcase>
        <testcase name="wal::long" classname="stackward::endtoend" timestamp="2026-01-01T00:00:00+00:00" time="61.000"/>
    </testsuite>
</testsuites>"#;

    #[test]
    fn the_slowest_come_first_and_each_is_told_where_it_belongs() {
        let told = table(ran("default", REPORT));
        let lines: Vec<&str> = told.lines().skip(1).map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "61.0 s  default  stackward::endtoend wal::long  <- shorten it, or give it a name with `nightly`",
                "12.5 s  default  stackward::endtoend crash::survives  <- shorten it, or put it into the profile `slow`",
                "0.0 s  default  storage index::tests::round_trip",
            ]
        );
    }

    #[test]
    fn a_slow_test_is_where_it_belongs_in_its_profile() {
        let told = table(ran("slow", REPORT));
        assert!(told.contains("crash::survives") && !told.contains("put it into"), "{told}");
    }

    #[test]
    fn only_the_slowest_are_shown() {
        let many = vec![Ran { profile: "default", name: "one".to_owned(), seconds: 1.0 }; 30];
        assert_eq!(table(many).lines().count(), 1 + SHOWN);
    }
}
