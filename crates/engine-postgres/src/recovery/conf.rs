//! What a restored server is told: where the log comes from, where to stop, what to leave alone.
//!
//! Sources: PostgreSQL manual, "Archive Recovery" and "Recovery Target"; `guc-file.l` for the form of the files.
//! Invariant: exactly one target, and nothing that leads to the files of the server that was saved.

use super::hand_over::SCRIPT;
use super::way::{Stop, Way};

/// Where the log is staged, seen from the data directory: the server looks at files in `pg_wal` only, not at folders.
pub(crate) const STAGE: &str = "pg_wal/stackward";
const BEGIN: &str = "# stackward: recovery; these lines can go when it has ended\n";
const END: &str = "# stackward: end\n";

/// Whether what is restored takes the place of the server, or stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copy {
    /// It is the server.
    InPlace,
    /// It is a copy, which must not be mistaken for the server by its archive.
    Beside,
}

/// How a recovering server gets the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Supply {
    /// All of it lies in its data directory: it can be started by anybody at any time.
    Staged,
    /// Whoever started it hands it over piece by piece.
    HandedOver,
}

/// The lines for `postgresql.auto.conf`. Paths in them are relative: the data directory may be moved before it is started.
pub(crate) fn settings(way: Option<(&Way, Supply)>, copy: Copy, about: &str) -> String {
    let mut lines = BEGIN.to_owned();
    // A name that a user gave must not become a line of its own.
    lines.push_str(&format!("# {}\n", about.escape_debug()));
    if copy == Copy::Beside {
        lines.push_str("# a copy must not write into the archive of the server: remove this when it takes its place\n");
        lines.push_str("archive_mode = off\n");
    }
    if let Some((way, supply)) = way {
        lines.push_str(&match supply {
            Supply::Staged => format!("restore_command = 'cp \"{STAGE}/%f\" \"%p\"'\n"),
            Supply::HandedOver => format!("restore_command = 'sh {STAGE}/{SCRIPT} \"%f\" \"%p\"'\n"),
        });
        lines.push_str(&format!("recovery_end_command = 'rm -rf {STAGE}'\n"));
        match way.stop {
            Stop::Consistent => lines.push_str("recovery_target = 'immediate'\n"),
            Stop::After(lsn) => {
                lines.push_str(&format!("recovery_target_lsn = '{lsn}'\nrecovery_target_inclusive = true\n"));
            }
            Stop::Before(lsn) => {
                lines.push_str(&format!("recovery_target_lsn = '{lsn}'\nrecovery_target_inclusive = false\n"));
            }
        }
        lines.push_str("recovery_target_action = 'promote'\n");
        lines.push_str(&format!("recovery_target_timeline = '{}'\n", way.timeline));
        // Smaller settings than the server's would stop a hot standby, and only that.
        lines.push_str("hot_standby = off\n");
    }
    lines.push_str(END);
    lines
}

/// The file without what [`settings`] added to it.
pub(crate) fn without_settings(text: &str) -> String {
    match (text.find(BEGIN), text.find(END)) {
        (Some(begin), Some(end)) if begin < end => format!("{}{}", &text[..begin], &text[end + END.len()..]),
        _ => text.to_owned(),
    }
}

/// Settings that say where the saved server's files are, and where it was once told to stop or to recover from.
const FOREIGN: [&str; 14] = [
    "data_directory",
    "hba_file",
    "ident_file",
    "config_file",
    "external_pid_file",
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
    "recovery_target_timeline",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_end_command",
];

/// A configuration file for a data directory of its own: what leads elsewhere is made a comment; `None` when nothing does.
pub(crate) fn neutral(text: &str) -> Option<String> {
    let mut changed = false;
    let lines = text.split_inclusive('\n').map(|line| {
        let name = line.trim_start().split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or_default();
        if FOREIGN.iter().any(|foreign| foreign.eq_ignore_ascii_case(name)) {
            changed = true;
            return format!("# stackward: {line}");
        }
        line.to_owned()
    });
    let text: String = lines.collect();
    changed.then_some(text)
}

#[cfg(test)]
mod tests {
    use backup_core::position::Lsn;

    use super::*;

    fn way(stop: Stop) -> Way {
        Way {
            timeline: 3,
            stop,
            segments: Vec::new(),
            histories: Vec::new(),
            segment_bytes: 1 << 20,
            reached: jiff::Timestamp::UNIX_EPOCH,
            received: None,
            spaces: crate::recovery::LogSpaces::default(),
        }
    }

    #[test]
    fn there_is_always_one_target_and_a_name_cannot_become_a_line() {
        for (stop, target) in [
            (Stop::Consistent, "recovery_target = 'immediate'\n"),
            (Stop::After(Lsn(0x1_0000_0028)), "recovery_target_lsn = '1/28'\nrecovery_target_inclusive = true\n"),
            (Stop::Before(Lsn(7)), "recovery_target_lsn = '0/7'\nrecovery_target_inclusive = false\n"),
        ] {
            let text = settings(Some((&way(stop), Supply::Staged)), Copy::Beside, "a\nfsync = off");
            assert!(text.contains(target), "{text}");
            let targets = ["recovery_target =", "recovery_target_lsn =", "recovery_target_time ="];
            assert_eq!(targets.iter().filter(|each| text.contains(**each)).count(), 1, "{text}");
            assert!(!text.lines().any(|line| line.starts_with("fsync")), "{text}");
            assert!(text.contains("archive_mode = off") && text.contains("recovery_target_timeline = '3'"));
            let with = format!("work_mem = 1\n{text}jit = on\n");
            assert_eq!(without_settings(&with), "work_mem = 1\njit = on\n");
        }
        assert!(!settings(None, Copy::InPlace, "x").contains("recovery_target"));
    }

    #[test]
    fn what_leads_elsewhere_is_made_a_comment() {
        let text =
            "port = 5433\n data_directory = '/var/lib/x'\nDATA_DIRECTORY='/y'\n# hba_file = 'z'\nhba_file '/etc/h'";
        let neutral_text = neutral(text).unwrap();
        assert_eq!(
            neutral_text,
            "port = 5433\n# stackward:  data_directory = '/var/lib/x'\n# stackward: DATA_DIRECTORY='/y'\n# hba_file = 'z'\n\
             # stackward: hba_file '/etc/h'"
        );
        assert_eq!(neutral("port = 5433\nrecovery_target_times = 1\n"), None);
    }
}
