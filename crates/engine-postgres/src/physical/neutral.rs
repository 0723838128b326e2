//! The configuration of a copy: that of the server, without what leads out of the copy. Pure: texts go in, texts come out, and
//! what was left out is told; so a plan can tell it before the first byte is written.
//!
//! Invariant: what comes out includes nothing by an absolute path, and names no other data directory. Settings that lead outside are
//! overridden where the server reads last, or made comments. What was included from elsewhere and saved stands in the place of
//! the line that included it.
//!
//! Source: PostgreSQL manual, "Setting Parameters"; `guc-file.l` and `hba.c` for the form of the files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::lines::{comment, end_line, inclusion, leads_outside, setting};

pub(super) const MAIN: &str = "postgresql.conf";
pub(super) const AUTO: &str = "postgresql.auto.conf";
const HBA: &str = "pg_hba.conf";
const IDENT: &str = "pg_ident.conf";
/// What a server cannot do without, and what stands in it when none was saved.
pub(super) const NEEDED: [(&str, &str); 3] = [
    (MAIN, "# stackward: no postgresql.conf was saved with this cluster\n"),
    (HBA, "# stackward: no pg_hba.conf was saved with this cluster\nlocal all all peer\n"),
    (IDENT, "# stackward: no pg_ident.conf was saved with this cluster\n"),
];
/// The server gives up at the same depth.
const MAX_DEPTH: u32 = 10;

/// Where the server's files are, and where it was once told to stop: the server takes none of it from its last file.
const FOREIGN: [&str; 13] = [
    "data_directory",
    "hba_file",
    "ident_file",
    "config_file",
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

/// Settings that lead to files, libraries and programs, with what they are in a copy: all that the versions 13 to 18 have, but for
/// those that every copy has a line for (`recovery/conf.rs`).
const OUTWARD: [(&str, &str); 18] = [
    ("dynamic_library_path", "$libdir"),
    ("event_source", "PostgreSQL"),
    ("extension_control_path", "$system"),
    ("external_pid_file", ""),
    ("jit_provider", "llvmjit"),
    ("krb_server_keyfile", ""),
    ("log_directory", "log"),
    ("log_filename", "postgresql-%Y-%m-%d_%H%M%S.log"),
    ("oauth_validator_libraries", ""),
    ("promote_trigger_file", ""),
    ("ssl_ca_file", ""),
    ("ssl_cert_file", "server.crt"),
    ("ssl_crl_dir", ""),
    ("ssl_crl_file", ""),
    ("ssl_dh_params_file", ""),
    ("ssl_key_file", "server.key"),
    ("ssl_passphrase_command", ""),
    ("stats_temp_directory", "pg_stat_tmp"),
];
/// Those of them that lead outside whatever they say.
const ALWAYS: [&str; 2] = ["oauth_validator_libraries", "ssl_passphrase_command"];
/// What every copy has a line for, and what may lead outside in it.
const COVERED: [&str; 7] = [
    "archive_command",
    "archive_library",
    "archive_cleanup_command",
    "restore_command",
    "unix_socket_directories",
    "primary_conninfo",
    "unix_socket_group",
];
/// The settings that name libraries.
pub(super) const PRELOADS: [&str; 3] =
    ["shared_preload_libraries", "session_preload_libraries", "local_preload_libraries"];

/// The files of a server's configuration, as they were saved.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Those of the data directory, by their paths in it.
    pub(super) data: BTreeMap<String, String>,
    /// Those that were asked for by name, by their paths on the server.
    pub(super) saved: BTreeMap<PathBuf, String>,
    /// The main file, when it did not lie in the data directory.
    pub(super) main: Option<PathBuf>,
    /// Where the data directory was.
    pub(super) data_directory: Option<PathBuf>,
}

/// The configuration of a copy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Drawn {
    /// Files of the data directory, but for [`AUTO`], and what stands in them: those that are not as they were saved there.
    pub(super) files: BTreeMap<&'static str, String>,
    /// What `ALTER SYSTEM` wrote.
    pub(super) auto: String,
    /// Settings that the copy overrides, and with what.
    pub(super) overridden: BTreeMap<&'static str, &'static str>,
    /// What the server preloads.
    pub(super) preloads: BTreeMap<&'static str, String>,
    /// What is not in force in the copy, each with its place.
    pub(super) told: Vec<String>,
}

/// Draws it.
pub(super) fn draw(sources: &Sources) -> Drawn {
    let mut pen = Pen { sources, drawn: Drawn::default(), access: BTreeMap::new() };
    let inside = |name: &str| Spot::inside(name, sources);
    let (main, spot) = match &sources.main {
        Some(path) => (sources.saved.get(path), Spot::outside(path)),
        None => (sources.data.get(MAIN), inside(MAIN)),
    };
    let main = main.map(|text| pen.flatten(text, &spot, Kind::Settings, 0));
    let auto = sources.data.get(AUTO).map(|text| pen.flatten(text, &inside(AUTO), Kind::Settings, 0));
    pen.drawn.auto = auto.map(|flat| flat.text).unwrap_or_default();
    pen.keep(MAIN, main.map(|flat| flat.text));
    for (name, setting) in [(HBA, "hba_file"), (IDENT, "ident_file")] {
        // Named, else beside the main file.
        let beside = sources.main.as_ref().and_then(|main| main.parent()).map(|folder| folder.join(name));
        let named = pen.access.get(setting).cloned();
        let outside = [named, beside].into_iter().flatten().find(|path| sources.saved.contains_key(path));
        let (text, spot) = match &outside {
            Some(path) => (sources.saved.get(path), Spot::outside(path)),
            None => (sources.data.get(name), inside(name)),
        };
        let flat = text.map(|text| pen.flatten(text, &spot, Kind::Access, 0));
        pen.keep(name, flat.map(|flat| flat.text));
    }
    pen.drawn
}

/// Which rules of form and content a file follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Settings,
    /// `pg_hba.conf`, `pg_ident.conf`: only what they include leads anywhere.
    Access,
}

/// Where a file lay.
#[derive(Debug)]
struct Spot {
    shown: String,
    /// Its folder in the data directory, when it lies there in the copy, too.
    inside: Option<PathBuf>,
    /// Its folder on the server, when that is known.
    folder: Option<PathBuf>,
}

impl Spot {
    /// The file `path` of the data directory.
    fn inside(path: impl AsRef<Path>, sources: &Sources) -> Self {
        let inside = path.as_ref().parent().unwrap_or(Path::new("")).to_owned();
        let folder = sources.data_directory.as_ref().map(|data| data.join(&inside));
        Self { shown: path.as_ref().display().to_string(), inside: Some(inside), folder }
    }

    fn outside(path: &Path) -> Self {
        Self { shown: path.display().to_string(), inside: None, folder: path.parent().map(Path::to_owned) }
    }
}

/// A text, and whether it is another than it was.
struct Flat {
    text: String,
    changed: bool,
}

/// What a line includes.
enum Included<'a> {
    /// Files that the line reaches in the copy, too.
    There(Vec<(String, &'a str)>),
    /// Files that it does not.
    Elsewhere(Vec<(PathBuf, &'a str)>),
    Nothing,
}

struct Pen<'a> {
    sources: &'a Sources,
    drawn: Drawn,
    /// Where the files are that say who may connect.
    access: BTreeMap<&'static str, PathBuf>,
}

impl<'a> Pen<'a> {
    /// Keeps what a file shall have, unless it has that already.
    fn keep(&mut self, name: &'static str, text: Option<String>) {
        let otherwise = NEEDED.iter().find(|(needed, _)| *needed == name).map(|(_, text)| (*text).to_owned());
        if let Some(text) = text.or(otherwise).filter(|text| self.sources.data.get(name) != Some(text)) {
            self.drawn.files.insert(name, text);
        }
    }

    fn flatten(&mut self, text: &str, spot: &Spot, kind: Kind, depth: u32) -> Flat {
        let mut flat = Flat { text: String::with_capacity(text.len()), changed: false };
        for (index, line) in text.split_inclusive('\n').enumerate() {
            let entry = match kind {
                Kind::Settings => setting(line),
                Kind::Access => inclusion(line),
            };
            let place = format!("{}:{}", spot.shown, index + 1);
            let replaced = entry.and_then(|(name, value)| match name.as_str() {
                "include" | "include_if_exists" | "include_dir" => {
                    self.include(line, (&name, &value), (spot, &place), kind, depth)
                }
                _ => self.set(line, &name, value, &place),
            });
            flat.changed |= replaced.is_some();
            flat.text.push_str(replaced.as_deref().unwrap_or(line));
        }
        flat
    }

    /// What stands there instead of a setting; `None` when it stays.
    fn set(&mut self, line: &str, name: &str, value: String, place: &str) -> Option<String> {
        if let Some(name) = PRELOADS.iter().find(|known| **known == name) {
            self.drawn.preloads.insert(name, value);
            return None;
        }
        if COVERED.contains(&name) {
            return None;
        }
        if let Some((name, otherwise)) = OUTWARD.iter().find(|(known, _)| *known == name) {
            if leads_outside(&value) || (ALWAYS.contains(name) && !value.is_empty()) {
                self.drawn.overridden.insert(name, otherwise);
                self.tell(name, &value, place, "");
            }
            return None;
        }
        let is_foreign = FOREIGN.contains(&name);
        if value.is_empty() || (!is_foreign && !leads_outside(&value)) {
            return None;
        }
        for known in ["hba_file", "ident_file"].into_iter().filter(|known| *known == name) {
            self.access.insert(known, PathBuf::from(&value));
        }
        self.tell(name, &value, place, "");
        Some(comment(line))
    }

    fn include(
        &mut self,
        line: &str,
        (name, value): (&str, &str),
        (spot, place): (&Spot, &str),
        kind: Kind,
        depth: u32,
    ) -> Option<String> {
        let found = if depth < MAX_DEPTH {
            self.find(spot, Path::new(value), name == "include_dir")
        } else {
            Included::Nothing
        };
        let mut flats = Vec::new();
        match found {
            Included::There(files) => {
                for (path, text) in files {
                    let spot = Spot::inside(&path, self.sources);
                    flats.push((path, self.flatten(text, &spot, kind, depth + 1)));
                }
                if flats.iter().all(|(_, flat)| !flat.changed) {
                    return None;
                }
            }
            Included::Elsewhere(files) => {
                self.tell(name, value, place, ": what was saved of it stands there instead");
                for (path, text) in files {
                    let spot = Spot::outside(&path);
                    flats.push((path.display().to_string(), self.flatten(text, &spot, kind, depth + 1)));
                }
            }
            Included::Nothing => {
                if name == "include" || leads_outside(value) {
                    self.tell(name, value, place, ": it was not saved");
                }
                return Some(comment(line));
            }
        }
        let mut text = comment(line);
        for (path, flat) in flats {
            end_line(&mut text);
            text.push_str(&flat.text);
            end_line(&mut text);
            text.push_str(&format!("# stackward: end of {}\n", path.escape_debug()));
        }
        Some(text)
    }

    /// The files that a line in a file at `spot` includes.
    fn find(&self, spot: &Spot, path: &Path, is_folder: bool) -> Included<'a> {
        let sources = self.sources;
        if let Some(inside) =
            spot.inside.as_ref().filter(|_| path.is_relative()).and_then(|folder| tidy(&folder.join(path)))
        {
            let there = among(sources.data.iter().map(|(path, text)| (Path::new(path), text)), &inside, is_folder);
            if !there.is_empty() {
                let there = there.into_iter().map(|(path, text)| (path.display().to_string(), text));
                return Included::There(there.collect());
            }
        }
        let Some(path) = spot.folder.as_ref().map_or(Some(path.to_owned()), |folder| tidy(&folder.join(path))) else {
            return Included::Nothing;
        };
        let saved = sources.saved.iter().map(|(path, text)| (path.as_path(), text));
        let mut found = among(saved, &path, is_folder);
        let in_data = sources.data_directory.as_ref().and_then(|data| Some((data, path.strip_prefix(data).ok()?)));
        if let Some((data, inside)) = in_data.filter(|_| found.is_empty()) {
            let files = sources.data.iter().map(|(path, text)| (Path::new(path), text));
            let there = among(files, inside, is_folder).into_iter();
            found = there.map(|(path, text)| (data.join(path), text)).collect();
        }
        if found.is_empty() { Included::Nothing } else { Included::Elsewhere(found) }
    }

    fn tell(&mut self, name: &str, value: &str, place: &str, more: &str) {
        // Whatever it says, it becomes no line of its own, and no password is in it: those stand in `primary_conninfo`.
        self.drawn.told.push(format!("`{name} = '{}'` ({place}){more}", value.escape_debug()));
    }
}

/// Of these files the one at `path`, or those in the folder `path`, as the server takes them.
fn among<'a>(
    files: impl Iterator<Item = (&'a Path, &'a String)>,
    path: &Path,
    is_folder: bool,
) -> Vec<(PathBuf, &'a str)> {
    let is_part = |file: &Path| {
        let is_hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        file.parent() == Some(path) && file.extension().is_some_and(|extension| extension == "conf") && !is_hidden
    };
    let wanted = files.filter(|(file, _)| if is_folder { is_part(file) } else { *file == path });
    // Sorted as they come: by bytes.
    wanted.map(|(file, text)| (file.to_owned(), text.as_str())).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The path without `.` and `..`; `None` when it leads out of where it begins.
fn tidy(path: &Path) -> Option<PathBuf> {
    let mut tidy = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                if !tidy.pop() {
                    return None;
                }
            }
            other => tidy.push(other),
        }
    }
    Some(tidy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(data: &[(&str, &str)], saved: &[(&str, &str)]) -> Sources {
        let texts = |files: &[(&str, &str)]| -> BTreeMap<String, String> {
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
        };
        Sources {
            data: texts(data),
            saved: texts(saved).into_iter().map(|(path, text)| (path.into(), text)).collect(),
            main: None,
            data_directory: Some("/srv/live".into()),
        }
    }

    #[test]
    fn what_leads_outside_is_overridden_or_a_comment_and_told() {
        let main = "port = 5433\n data_directory = '/var/lib/x'\nHBA_FILE '/etc/h'\n# ident_file = 'z'\n\
            external_pid_file='/run/it''s.pid' # now\nlog_directory = pg_log\nssl_cert_file = '/etc/c'\n\
            foo.dir = /srv/foo\nssl_passphrase_command = 'ask'\nunix_socket_directories = '/run'\nlog_line_prefix = '%m '";
        let auto = "Log_Directory = '../log'\nshared_preload_libraries = 'a, b'\n";
        let drawn = draw(&sources(&[(MAIN, main), (AUTO, auto)], &[("/etc/h", "local all all trust\n")]));
        let expected = main
            .replace(" data_directory", "# stackward:  data_directory")
            .replace("HBA_FILE", "# stackward: HBA_FILE")
            .replace("foo.dir", "# stackward: foo.dir");
        assert_eq!(drawn.files[MAIN], expected);
        assert_eq!(drawn.files[HBA], "local all all trust\n", "from where the setting said");
        assert!(drawn.files[IDENT].contains("no pg_ident.conf was saved"));
        assert_eq!(drawn.auto, auto);
        let overridden: Vec<&str> = drawn.overridden.keys().copied().collect();
        assert_eq!(overridden, ["external_pid_file", "log_directory", "ssl_cert_file", "ssl_passphrase_command"]);
        assert_eq!(drawn.preloads["shared_preload_libraries"], "a, b");
        assert_eq!(drawn.told.len(), 7, "{:?}", drawn.told);
        assert!(
            drawn.told[2].starts_with("`external_pid_file = '/run/it\\'s.pid'` (postgresql.conf:5)"),
            "{:?}",
            drawn.told
        );
    }

    #[test]
    fn what_is_included_from_elsewhere_stands_in_its_place() {
        let main = "include 'near.conf'\ninclude_dir = 'conf.d'\ninclude '/srv/live/own.conf'\ninclude = '../shared.conf'\n\
            include_if_exists '/gone'\ninclude '/lost'\nwork_mem = 2MB";
        let data = [
            (MAIN, main),
            ("near.conf", "jit = off\n"),
            ("conf.d/b.conf", "external_pid_file = '/run/b'"),
            ("conf.d/a.conf", "include 'more/x'\n"),
            ("conf.d/more/x", "data_directory = '/srv/live'\n"),
            ("conf.d/.hidden.conf", "data_directory = '/hidden'\n"),
            ("own.conf", "work_mem = 1MB\n"),
            ("pg_hba.conf", "include_dir /etc/hba\nlocal all all peer\n"),
        ];
        let saved = [
            ("/srv/shared.conf", "include_dir 'parts'\n"),
            ("/srv/parts/1.conf", "log_directory = '/var/log/live'\n"),
            ("/etc/hba/z.conf", "local all z trust"),
        ];
        let drawn = draw(&sources(&data, &saved));
        assert_eq!(
            drawn.files[MAIN],
            "include 'near.conf'\n# stackward: include_dir = 'conf.d'\n# stackward: include 'more/x'\n\
             # stackward: data_directory = '/srv/live'\n# stackward: end of conf.d/more/x\n# stackward: end of conf.d/a.conf\n\
             external_pid_file = '/run/b'\n# stackward: end of conf.d/b.conf\n# stackward: include '/srv/live/own.conf'\n\
             work_mem = 1MB\n# stackward: end of /srv/live/own.conf\n# stackward: include = '../shared.conf'\n\
             # stackward: include_dir 'parts'\nlog_directory = '/var/log/live'\n# stackward: end of /srv/parts/1.conf\n\
             # stackward: end of /srv/shared.conf\n# stackward: include_if_exists '/gone'\n# stackward: include '/lost'\n\
             work_mem = 2MB"
        );
        assert_eq!(
            drawn.files[HBA],
            "# stackward: include_dir /etc/hba\nlocal all z trust\n# stackward: end of /etc/hba/z.conf\nlocal all all peer\n"
        );
        assert_eq!(drawn.overridden.keys().copied().collect::<Vec<_>>(), ["external_pid_file", "log_directory"]);
        let told = drawn.told.join("\n");
        for word in
            ["'/lost'` (postgresql.conf:6): it was not saved", "'/gone'", "'/var/log/live'` (/srv/parts/1.conf:1)"]
        {
            assert!(told.contains(word), "{word} in {told}");
        }
    }

    #[test]
    fn files_that_include_each_other_end() {
        let drawn = draw(&sources(&[(MAIN, "include 'a'\n"), ("a", "include 'a'\n")], &[]));
        assert!(drawn.files[MAIN].matches("end of a").count() < 20);
    }

    #[test]
    fn a_main_file_from_elsewhere_is_the_one_that_counts() {
        let saved = [
            ("/etc/pg/postgresql.conf", "include_dir 'conf.d'\nwork_mem = 1MB\n"),
            ("/etc/pg/pg_hba.conf", "local all all trust\n"),
        ];
        let main = Some("/etc/pg/postgresql.conf".into());
        let data = [(MAIN, "work_mem = 9MB\n"), ("pg_hba.conf", "local all all reject\n")];
        let drawn = draw(&Sources { main, ..sources(&data, &saved) });
        assert_eq!(
            drawn.files[MAIN], "# stackward: include_dir 'conf.d'\nwork_mem = 1MB\n",
            "there was no such folder"
        );
        assert_eq!(drawn.files[HBA], "local all all trust\n");
    }
}
