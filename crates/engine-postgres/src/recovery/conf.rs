//! What a restored server is told: where the log comes from, where to stop, what to leave alone; and, while it is a copy, what
//! keeps it apart from the living.
//!
//! Sources: PostgreSQL manual, "Archive Recovery", "Recovery Target" and the chapter "Server Configuration"; `guc-file.l` for the form
//! of the files.
//! Invariant: exactly one target, and nothing that leads to the files of the server that was saved. What keeps a copy apart stands
//! in its own configuration, so it holds whoever starts it, and however; it goes when the operator takes it out.

use std::collections::BTreeMap;

use super::hand_over::SCRIPT;
use super::way::{Stop, Way};
use crate::tools::PgVersion;

/// Where the log is staged, seen from the data directory: the server looks at files in `pg_wal` only, not at folders.
pub(crate) const STAGE: &str = "pg_wal/stackward";
/// The folder of the socket of a copy, in its data directory, so that it goes wherever that goes.
pub(crate) const SOCKETS: &str = "stackward-run";
const BEGIN: &str = "# stackward: recovery; these lines can go when it has ended\n";
const END: &str = "# stackward: end\n";
/// The name of the block that keeps a copy apart.
pub(crate) const APART: &str = "# stackward: a copy, kept apart";
const APART_MORE: &str = ": to make it live, stop it, remove all from here to the end of this block, and start it\n";
const APART_END: &str = "# stackward: end of what keeps the copy apart\n";
/// What replay needs for prepared transactions when the server had none yet as it was saved.
const LEAST_PREPARED: u64 = 16;

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

/// What of a copy's configuration depends on its server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Apart {
    /// `server_version_num`: a setting that a server does not know stops it.
    pub(crate) version: u32,
    /// `max_prepared_transactions` of the server.
    pub(crate) prepared: u64,
    /// The settings that name libraries to preload, and those that a copy preloads.
    pub(crate) preloads: BTreeMap<&'static str, String>,
    /// Settings that led outside, and what they are instead.
    pub(crate) overridden: BTreeMap<&'static str, &'static str>,
}

/// The lines for `postgresql.auto.conf`, which the server reads last, that keep a copy apart.
///
/// No worker of a library gets a place (`max_worker_processes`): whatever it would do by itself, it does not do in a copy. Memory
/// is left to the living.
pub(crate) fn apart(of: &Apart, about: &str) -> String {
    let mut lines = format!("{APART}{APART_MORE}# {}\n", about.escape_debug());
    let prepared = of.prepared.max(LEAST_PREPARED).to_string();
    let mut set = |name: &str, value: &str| lines.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
    for (name, value) in [
        ("listen_addresses", ""),
        ("unix_socket_directories", SOCKETS),
        ("unix_socket_group", ""),
        ("archive_mode", "off"),
        ("archive_command", ""),
        ("restore_command", ""),
        ("archive_cleanup_command", ""),
        ("recovery_end_command", ""),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("synchronous_standby_names", ""),
        ("max_logical_replication_workers", "0"),
        ("max_worker_processes", "0"),
        ("max_prepared_transactions", &prepared),
        ("ssl", "off"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("huge_pages", "off"),
        ("shared_buffers", "128MB"),
    ] {
        set(name, value);
    }
    if PgVersion(of.version).major() >= 15 {
        set("archive_library", "");
    }
    for (name, value) in &of.preloads {
        set(name, value);
    }
    for (name, value) in &of.overridden {
        set(name, value);
    }
    lines.push_str(APART_END);
    lines
}

/// The lines for `postgresql.auto.conf` of a recovery. Paths in them are relative: the data directory may be moved before it is started.
pub(crate) fn settings((way, supply): (&Way, Supply), about: &str) -> String {
    let mut lines = BEGIN.to_owned();
    // A name that a user gave must not become a line of its own.
    lines.push_str(&format!("# {}\n", about.escape_debug()));
    lines.push_str(&match supply {
        // The server takes every end up to 125 for "there is none", and would come up with what it has.
        Supply::Staged => format!(
            "restore_command = 'if [ -e \"{STAGE}/%f\" ]; then cp \"{STAGE}/%f\" \"%p\" || exit 200; \
             else [ -d \"{STAGE}\" ] && exit 1; exit 200; fi'\n"
        ),
        // A shell that finds no script ends with 2.
        Supply::HandedOver => {
            format!("restore_command = '[ -r {STAGE}/{SCRIPT} ] || exit 200; sh {STAGE}/{SCRIPT} \"%f\" \"%p\"'\n")
        }
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
    lines.push_str(END);
    lines
}

/// The file without what [`settings`] added to it.
pub(crate) fn without_settings(text: &str) -> String {
    without(text, BEGIN, END)
}

/// The file without what [`apart`] added to it.
pub(crate) fn without_apart(text: &str) -> String {
    without(text, APART, APART_END)
}

fn without(text: &str, from: &str, to: &str) -> String {
    match (text.find(from), text.find(to)) {
        (Some(begin), Some(end)) if begin < end => format!("{}{}", &text[..begin], &text[end + to.len()..]),
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
            let text = settings((&way(stop), Supply::Staged), "a\nfsync = off");
            assert!(text.contains(target), "{text}");
            let targets = ["recovery_target =", "recovery_target_lsn =", "recovery_target_time ="];
            assert_eq!(targets.iter().filter(|each| text.contains(**each)).count(), 1, "{text}");
            assert!(!text.lines().any(|line| line.starts_with("fsync")), "{text}");
            assert!(text.contains("recovery_target_timeline = '3'"));
            let with = format!("work_mem = 1\n{text}jit = on\n");
            assert_eq!(without_settings(&with), "work_mem = 1\njit = on\n");
        }
    }

    #[test]
    fn what_keeps_a_copy_apart_stays_until_it_is_taken_out() {
        let preloads = BTreeMap::from([("shared_preload_libraries", "\"a'b\"".to_owned())]);
        let of = |version| Apart { version, prepared: 50, preloads: preloads.clone(), ..Apart::default() };
        let block = apart(&of(150_004), "a\nfsync = off");
        for line in
            ["archive_library = ''\n", "shared_preload_libraries = '\"a''b\"'\n", "max_prepared_transactions = '50'\n"]
        {
            assert!(block.contains(line), "{line} in {block}");
        }
        assert!(!block.lines().any(|line| line.starts_with("fsync")), "{block}");
        assert!(!apart(&of(140_009), "x").contains("archive_library"), "14 does not know it");
        let recovery = settings((&way(Stop::Consistent), Supply::Staged), "x");
        let text = format!("work_mem = 1\n{block}{recovery}");
        assert_eq!(without_settings(&text), format!("work_mem = 1\n{block}"));
        assert_eq!(without_apart(&without_settings(&text)), "work_mem = 1\n");
    }

    /// To the server 1 means that there is no such file, and it comes up with what it has; above 125 that nobody can tell.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test runs what the server runs")]
    fn a_file_that_cannot_be_copied_is_not_taken_for_absent() {
        for (supply, ending) in [(Supply::Staged, ""), (Supply::HandedOver, ".history")] {
            let text = settings((&way(Stop::Consistent), supply), "x");
            let command = text.lines().find_map(|line| line.strip_prefix("restore_command = '")).unwrap();
            let command = command.strip_suffix('\'').unwrap();
            let data = tempfile::tempdir().unwrap();
            let stage = data.path().join(STAGE);
            let ask = |name: &str| {
                let command = command.replace("%f", &format!("{name}{ending}")).replace("%p", "pg_wal/RECOVERYXLOG");
                let mut sh = std::process::Command::new("sh");
                sh.args(["-c", &command]).current_dir(data.path()).stderr(std::process::Stdio::null());
                sh.status().unwrap().code().unwrap()
            };
            assert!(ask("a") > 125, "{supply:?}: the folder is gone");
            std::fs::create_dir_all(stage.join(format!("c{ending}"))).unwrap();
            std::fs::write(stage.join(SCRIPT), include_str!("hand_over.sh")).unwrap();
            std::fs::write(stage.join(format!("a{ending}")), "a").unwrap();
            assert_eq!((ask("a"), ask("b"), ask("c")), (0, 1, 200), "{supply:?}");
        }
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
