//! Whatever stands at a target, a restore loses nothing that it did not bring: random trees, sources that lie in one
//! another, mounts and links; the same ones in every run.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::engine::{Claim, Engine, EngineSetup, Existing, Neighbour, RestoreTarget, Unknown};
use backup_core::error::ErrorKind;
use backup_core::host::{Host, HostCommand, LocalHost};
use backup_core::plan::{Node, OnFailure};
use backup_core::run::{RunOptions, Task, run};
use backup_core::sink::Sink;
use backup_core::{BackupReader, PlanName, RunContext, SourceName};
use backup_testkit::MemorySink;

/// Trees that are tried. Each takes some 50 ms.
const SEEDS: u64 = 60;

/// Numbers that look random and are the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }

    /// A path of one to three names, few enough that the same come again.
    fn path(&mut self) -> PathBuf {
        const FOLDERS: [&str; 4] = ["a", "in", "mnt", "b"];
        let depth = self.below(3);
        let mut path: PathBuf = (0..depth).map(|_| self.pick(&FOLDERS)).collect();
        path.push(self.pick(&["a", "b", "c", "c.x", "in"]));
        path
    }
}

/// What a path is, without what a link leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Is {
    Folder,
    File(Vec<u8>),
    Link(PathBuf),
}

type State = BTreeMap<PathBuf, Is>;

fn state(root: &Path) -> State {
    let mut state = State::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let whole = root.join(&path);
        let kind = fs::symlink_metadata(&whole).unwrap().file_type();
        let is = if kind.is_symlink() {
            Is::Link(fs::read_link(&whole).unwrap())
        } else if kind.is_dir() {
            left.extend(fs::read_dir(&whole).unwrap().map(|item| path.join(item.unwrap().file_name())));
            Is::Folder
        } else {
            Is::File(fs::read(&whole).unwrap())
        };
        state.insert(path, is);
    }
    state
}

/// Changes something somewhere. What does not fit (a folder that is a file now) is left out.
fn disturb(dice: &mut Dice, root: &Path, outside: &Path, content: &str) {
    let (path, other) = (root.join(dice.path()), root.join(dice.path()));
    let through_a_link =
        |path: &Path| path.ancestors().skip(1).take_while(|above| *above != root).any(Path::is_symlink);
    if through_a_link(&path) || through_a_link(&other) {
        return;
    }
    let _does_not_fit = match dice.below(8) {
        0..=3 => fs::create_dir_all(path.parent().unwrap()).and_then(|()| {
            // A new file: one that has other names is left to them.
            let _none_yet = fs::remove_file(&path);
            fs::write(&path, format!("{content} {}", dice.below(1000)))
        }),
        4 => fs::remove_file(&path).and_then(|()| fs::create_dir(&path)),
        5 => fs::create_dir_all(path.parent().unwrap()).and_then(|()| symlink(outside, &path)),
        6 => fs::create_dir_all(path.parent().unwrap()).and_then(|()| fs::hard_link(other, &path)),
        // Never through a mount, never the mount itself.
        _ => match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() && !path.ends_with("mnt") => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        },
    };
}

struct Part {
    name: SourceName,
    engine: Engine,
    place: PathBuf,
}

fn part(name: &str, yaml: &str, place: PathBuf) -> Part {
    let (name, config) = (SourceName::new(name).unwrap(), Node::from_yaml(yaml).unwrap());
    let host = Arc::new(LocalHost);
    let setup = EngineSetup { name: &name, config: &config, folder: Path::new("/"), host };
    let engine = (engine_files::FILES.build)(&setup).unwrap();
    Part { name, engine, place }
}

async fn mount(path: &Path) {
    let arguments = ["-t", "tmpfs", "none", path.to_str().unwrap()].map(str::to_owned);
    let process = LocalHost.spawn(HostCommand::new("mount").args(arguments)).await.unwrap();
    process.finish().await.expect("the tests run as root, and may mount");
}

async fn unmount(path: &Path) {
    let arguments = ["-l", path.to_str().unwrap()].map(str::to_owned);
    LocalHost.spawn(HostCommand::new("umount").args(arguments)).await.unwrap().finish().await.unwrap();
}

/// What is wrong with `after`, when `saved` was restored over `before` and the restore said `outcome`.
fn judge(
    outcome: Result<(), ErrorKind>,
    unknown: Unknown,
    saved: &State,
    before: &State,
    after: &State,
    brings: impl Fn(&Path) -> bool,
    mounted: impl Fn(&Path) -> bool,
) -> Result<(), String> {
    if let Err(kind) = outcome {
        let same = before == after && kind == ErrorKind::AlreadyExists;
        return if same { Ok(()) } else { Err(format!("failed with {kind:?}, and left {after:?}")) };
    }
    for (path, is) in saved.iter().filter(|(path, _)| brings(path)) {
        if after.get(path) != Some(is) {
            return Err(format!("`{}` should be {is:?}, is {:?}", path.display(), after.get(path)));
        }
    }
    for (path, is) in before {
        if saved.contains_key(path) && brings(path) {
            continue;
        }
        let stays = unknown == Unknown::Keep || mounted(path) || !brings(path);
        if stays && after.get(path) != Some(is) {
            return Err(format!("`{}` was {is:?} and is lost: {:?}", path.display(), after.get(path)));
        }
        if !stays && *is != Is::Folder && after.contains_key(path) {
            return Err(format!("`{}` was to be removed", path.display()));
        }
    }
    Ok(())
}

async fn attempt(seed: u64, home: &Path) -> Result<(), String> {
    let mut dice = Dice::new(seed);
    let (root, outside) = (home.join("d"), home.join("outside"));
    fs::create_dir_all(root.join("in")).unwrap();
    fs::create_dir(root.join("mnt")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("a"), "outside").unwrap();
    for _ in 0..dice.below(30) {
        disturb(&mut dice, &root, &outside, "saved");
    }
    let parts = [
        part("inner", &format!("paths: [{}]", root.join("in").display()), root.join("in")),
        part("outer", &format!("{{ paths: [{}], exclude: [c.x] }}", root.display()), root.clone()),
    ];
    if !root.join("in").is_dir() || root.join("in").is_symlink() || !root.join("mnt").is_dir() {
        return Ok(());
    }
    let saved = state(&root);
    let sink = MemorySink::default();
    let task = |part: &Part| Task {
        name: part.name.clone(),
        engine: "files".into(),
        source: Arc::clone(&part.engine.source),
        on_failure: OnFailure::Continue,
    };
    let options = RunOptions::new(PlanName::new("test").unwrap(), "here");
    let manifest = run(parts.iter().map(task).collect(), &sink, &options).await.unwrap();
    let mounted = dice.below(3) == 0 && !root.join("mnt").is_symlink();
    if mounted {
        mount(&root.join("mnt")).await;
    }
    for _ in 0..dice.below(30) {
        disturb(&mut dice, &root, &outside, "mine");
    }
    let mut result = Ok(());
    // Either may come first.
    let first = dice.below(2) as usize;
    for part in [&parts[first], &parts[1 - first]] {
        let unknown = if dice.below(2) == 0 { Unknown::Keep } else { Unknown::Delete };
        let neighbours = parts.iter().filter(|other| other.name != part.name).map(|other| Neighbour {
            path: other.place.clone(),
            owner: other.name.to_string(),
            claim: Claim::LeaveAlone,
        });
        let to = RestoreTarget {
            existing: Existing::Replace,
            unknown,
            neighbours: neighbours.collect(),
            ..RestoreTarget::default()
        };
        let from = BackupReader::new(sink.open(&manifest.id).await.unwrap(), part.name.clone()).unwrap();
        let before = state(&root);
        let cx = RunContext::new(part.name.clone());
        let outcome = async {
            let plan = part.engine.restorer.plan_restore(&cx, &from, &to).await?;
            part.engine.restorer.restore(&cx, &from, plan).await
        };
        let outcome = outcome.await.map(drop).map_err(|error| error.kind());
        let inner = part.place == root.join("in");
        let brings = |path: &Path| {
            let excluded = !inner && path.iter().any(|name| name == "c.x");
            path.starts_with("in") == inner && !excluded
        };
        result = result.and(judge(outcome, unknown, &saved, &before, &state(&root), brings, |path| {
            mounted && path.starts_with("mnt")
        }));
    }
    let outside_is = state(&outside);
    if outside_is.len() != 2 || outside_is.get(Path::new("a")) != Some(&Is::File(b"outside".to_vec())) {
        result = result.and(Err(format!("outside: {outside_is:?}")));
    }
    if mounted {
        let same_device = fs::metadata(root.join("mnt")).unwrap().dev() == fs::metadata(&root).unwrap().dev();
        if same_device {
            result = result.and(Err("the mount was moved".to_owned()));
        }
        unmount(&root.join("mnt")).await;
    }
    let left: Vec<_> = fs::read_dir(home).unwrap().map(|item| item.unwrap().file_name()).collect();
    result.and(if left.len() == 2 { Ok(()) } else { Err(format!("left behind: {left:?}")) })
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_that_a_restore_did_not_bring() {
    for seed in 0..SEEDS {
        let home = tempfile::tempdir().unwrap();
        let home_path = fs::canonicalize(home.path()).unwrap();
        if let Err(problem) = attempt(seed, &home_path).await {
            panic!("seed {seed}: {problem}");
        }
    }
}
