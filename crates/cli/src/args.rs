//! The command line as types. Doc comments here are the help texts, the man page and `docs/reference/cli.md`.

mod time;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use backup_core::engine::Moment;
use backup_core::{ArtifactName, PlanName, SnapshotId, SourceName, Timeline};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

pub use time::TimeArg;

/// Backs up whole service stacks, proves that each backup restores, and puts the stack back.
#[derive(Debug, Parser)]
#[command(name = "stackward", version, max_term_width = 100, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "Exit codes: 0 done, 1 failed, 2 usage or plan, 3 partial, 10 no repository, 11 busy, \
    12 wrong key, 20 damage found, 21 drill failed, 22 gap in a log, 130 interrupted.";

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// The plan [default: stackward.yaml here, then /etc/stackward/stackward.yaml]
    #[arg(long, global = true, value_name = "FILE", env = "STACKWARD_PLAN", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub plan: Option<PathBuf>,

    /// The private key that opens backups [default: stackward.key beside the plan, when it exists]
    #[arg(long, global = true, value_name = "FILE", env = "STACKWARD_IDENTITY", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub identity: Option<PathBuf>,

    /// Print JSON lines: events, then one result
    #[arg(long, global = true)]
    pub json: bool,

    /// No progress and no closing summary; warnings and errors remain
    #[arg(long, short, global = true)]
    pub quiet: bool,

    /// When to use colours: auto, always, never
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    pub color: ColorChoice,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ColorChoice {
    /// On terminals, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a plan from what is found on this machine, make a key pair, create the repository
    Init(InitArgs),
    /// Check the plan; with --online also everything it names
    Validate(ValidateArgs),
    /// Back up the plan's sources into a new snapshot
    Backup(BackupArgs),
    /// List snapshots
    List(ListArgs),
    /// Show what a snapshot holds and why it is believed to be whole
    Show(ShowArgs),
    /// List the artifacts of a snapshot, or the files of a tree
    Ls(LsArgs),
    /// Write an artifact, or a file of a tree, to standard output
    Cat(CatArgs),
    /// Check what is stored, without restoring it
    Verify(VerifyArgs),
    /// Put sources back
    Restore(RestoreArgs),
    /// Prove a snapshot: restore it into a scratch place, ask it questions, measure
    Drill(DrillArgs),
    /// Archive the continuous logs of sources, until stopped
    Follow(FollowArgs),
    /// Show what each source can be recovered to now
    Status(StatusArgs),
    /// Commands of Redis sources
    #[cfg(feature = "redis")]
    #[command(subcommand)]
    Redis(RedisCommand),
    /// Archive the write-ahead log of a PostgreSQL server, fetch it back, look at it
    #[cfg(feature = "postgres")]
    #[command(subcommand)]
    Wal(WalCommand),
    /// Commands of continuous logs, whatever server they are of
    #[command(subcommand)]
    Log(LogCommand),
    /// Make key pairs, and say who can read the repository
    #[command(subcommand)]
    Key(KeyCommand),
    /// Print a JSON Schema
    Schema(SchemaArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Show the whole circle on a stack made up for it: back up, destroy, restore, compare, drill
    #[cfg(feature = "demo")]
    Demo(DemoArgs),
    /// Print a page of the reference as Markdown
    #[command(hide = true)]
    Reference(ReferenceArgs),
}

impl Command {
    /// Whether a server asks, which reads the exit code in its own way.
    #[must_use]
    pub fn is_asked_by_a_server(&self) -> bool {
        #[cfg(feature = "postgres")]
        let asked = matches!(self, Self::Wal(WalCommand::Fetch { .. }));
        #[cfg(not(feature = "postgres"))]
        let asked = false;
        asked
    }
}

/// A snapshot as a user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotName {
    /// The newest that serves.
    Latest,
    /// A whole id.
    Id(SnapshotId),
    /// The beginning of an id.
    Prefix(String),
}

impl FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Ok(id) = SnapshotId::new(text) {
            return Ok(Self::Id(id));
        }
        let plain = |c: char| c.is_ascii_digit() || c.is_ascii_lowercase() || c == '-';
        if !text.is_empty() && text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(plain) {
            return Ok(Self::Prefix(text.to_owned()));
        }
        Err("a snapshot is an id such as 20261120-063551-7k3q9xwm, the beginning of one, or `latest`".to_owned())
    }
}

/// Options of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where to keep backups: a folder, or the URL of an object store
    #[arg(long, value_name = "URL")]
    pub repository: Option<String>,
    /// The plan's name [default: this machine's name]
    #[arg(long)]
    pub name: Option<PlanName>,
    /// Show what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Also open the repository and ask every source whether a backup would work
    #[arg(long)]
    pub online: bool,
}

/// Options of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Only these sources
    #[arg(value_name = "SOURCE")]
    pub sources: Vec<SourceName>,
    /// Ask every source whether a backup would work, and store nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Also list the snapshots of other plans in the same repository
    #[arg(long)]
    pub all_plans: bool,
}

/// Options of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The snapshot
    #[arg(default_value = "latest")]
    pub snapshot: SnapshotName,
}

/// Options of `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// The snapshot
    #[arg(default_value = "latest")]
    pub snapshot: SnapshotName,
    /// Only this source
    pub source: Option<SourceName>,
    /// The files of this tree
    pub artifact: Option<ArtifactName>,
    /// Only what is in this folder of the tree
    pub path: Option<OsString>,
    /// Also what is in folders below
    #[arg(long, short = 'R')]
    pub recursive: bool,
}

/// Options of `cat`.
#[derive(Debug, Args)]
pub struct CatArgs {
    /// The snapshot
    pub snapshot: SnapshotName,
    /// The source
    pub source: SourceName,
    /// The artifact
    pub artifact: ArtifactName,
    /// The file, when the artifact is a tree
    pub path: Option<OsString>,
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The snapshots [default: latest]
    #[arg(value_name = "SNAPSHOT", conflicts_with_all = ["all", "latest"])]
    pub snapshots: Vec<SnapshotName>,
    /// Every snapshot of this plan
    #[arg(long, conflicts_with = "latest")]
    pub all: bool,
    /// The newest snapshot (the default)
    #[arg(long)]
    pub latest: bool,
    /// How deep to look
    #[arg(long, default_value = "data")]
    pub depth: DepthArg,
}

/// How deep a verification looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DepthArg {
    /// Manifests parse, and everything that they refer to is there
    Manifest,
    /// Also every stored byte is read and compared with its checksum
    Data,
    /// Also each engine reads its artifacts and checks their structure; needs a private key
    Structure,
}

/// Options of `restore`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct RestoreArgs {
    /// The snapshot; `latest` is the newest in which every chosen source is complete
    #[arg(default_value = "latest")]
    pub snapshot: SnapshotName,
    /// Only this source (may be repeated) [default: all of the plan]
    #[arg(long = "source", value_name = "NAME")]
    pub sources: Vec<SourceName>,
    /// Restore each source below DIR/SOURCE instead of where it came from
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub target: Option<PathBuf>,
    /// Only this item: a path, a database (may be repeated; needs one --source)
    #[arg(long = "select", value_name = "ITEM")]
    pub select: Vec<String>,
    /// Restore under this name instead: a database (needs one --source)
    #[arg(long, value_name = "NAME")]
    pub rename: Option<String>,
    /// Restore over what stands there: files are put in place one by one, and what the snapshot does not have stays;
    /// databases and data directories are replaced as a whole
    #[arg(long)]
    pub force: bool,
    /// As --force, but leave what is the same already (data directories; others refuse)
    #[arg(long, conflicts_with = "force")]
    pub delta: bool,
    /// Also remove files that the snapshot does not have: never across a mount, never another source's, never what the
    /// plan leaves out; --dry-run names them
    #[arg(long, requires = "force", conflicts_with = "select")]
    pub delete: bool,
    /// Put a tablespace elsewhere: NEW instead of the folder OLD that it was in on the server (may be repeated)
    #[arg(long = "tablespace", value_name = "OLD=NEW")]
    pub tablespaces: Vec<Relocation>,
    /// Start the restored server, and wait until it has reached the moment (PostgreSQL data directories)
    #[arg(long)]
    pub start: bool,
    /// Show what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The moment to recover to.
    #[command(flatten)]
    pub moment: MomentArgs,
    /// Along this timeline of the log, by its number, instead of the newest that comes from the snapshot (PostgreSQL;
    /// needs one --source)
    #[arg(long, value_name = "N", requires = "MomentArgs", help_heading = MOMENT_HEADING)]
    pub timeline: Option<Timeline>,
}

const MOMENT_HEADING: &str = "Recovery to a moment, for sources that are followed";

/// A folder that goes to another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relocation {
    /// Where it was.
    pub old: PathBuf,
    /// Where it goes.
    pub new: PathBuf,
}

impl FromStr for Relocation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (old, new) = text.split_once('=').ok_or("write OLD=NEW: two absolute paths")?;
        let (old, new) = (PathBuf::from(old), PathBuf::from(new));
        if !old.is_absolute() || !new.is_absolute() {
            return Err("both paths must be absolute".to_owned());
        }
        Ok(Self { old, new })
    }
}

/// The moment of a `restore`: at most one of them. Without `SNAPSHOT`, the newest that leads there is chosen.
#[derive(Debug, Clone, Default, Args)]
#[group(multiple = false)]
#[command(next_help_heading = MOMENT_HEADING)]
pub struct MomentArgs {
    /// The last state before this time, which needs its zone: '2026-11-20 14:30:00+00', 2026-11-20T14:30:00Z,
    /// '2026-11-20 14:30:00 Europe/Berlin'
    #[arg(long, value_name = "TIME")]
    pub to_time: Option<TimeArg>,
    /// This position of the log: a replication offset, an LSN (also --to-lsn; needs one --source)
    #[arg(long = "to-offset", alias = "to-lsn", value_name = "POSITION")]
    pub to_position: Option<String>,
    /// The end of the archived log
    #[arg(long)]
    pub to_latest: bool,
    /// Just before this transaction took effect (PostgreSQL; needs one --source)
    #[arg(long, value_name = "ID")]
    pub to_xid: Option<u64>,
    /// The point that was given this name on the server (PostgreSQL; needs one --source)
    #[arg(long, value_name = "NAME")]
    pub to_name: Option<String>,
}

impl MomentArgs {
    /// The moment; that of the snapshot when none is named.
    #[must_use]
    pub fn moment(&self) -> Moment {
        if let Some(time) = self.to_time {
            Moment::Time(time.0)
        } else if let Some(position) = &self.to_position {
            Moment::Position(position.clone())
        } else if self.to_latest {
            Moment::Latest
        } else if let Some(id) = self.to_xid {
            Moment::Transaction(id)
        } else if let Some(name) = &self.to_name {
            Moment::Name(name.clone())
        } else {
            Moment::Snapshot
        }
    }
}

/// Options of `follow`.
#[derive(Debug, Clone, Default, Args)]
pub struct FollowArgs {
    /// Only these sources [default: all that the plan says to follow]
    #[arg(value_name = "SOURCE")]
    pub sources: Vec<SourceName>,
}

/// The commands below `redis`.
#[cfg(feature = "redis")]
#[derive(Debug, Subcommand)]
pub enum RedisCommand {
    /// Archive the replication streams of Redis sources, until stopped
    Follow(FollowArgs),
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only these sources
    #[arg(value_name = "SOURCE")]
    pub sources: Vec<SourceName>,
    /// End as monitoring expects it: 0 ok, 1 warning, 2 critical, 3 unknown
    #[arg(long)]
    pub check: bool,
}

/// Options of `drill`.
#[derive(Debug, Args)]
pub struct DrillArgs {
    /// The snapshot; `latest` is the newest in which every chosen source is complete
    #[arg(default_value = "latest")]
    pub snapshot: SnapshotName,
    /// Only this source (may be repeated) [default: all of the plan]
    #[arg(long = "source", value_name = "NAME")]
    pub sources: Vec<SourceName>,
    /// Restore below this folder [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub scratch: Option<PathBuf>,
    /// Replay this timeline of the log, by its number, instead of the newest that comes from the snapshot (PostgreSQL;
    /// needs one --source)
    #[arg(long, value_name = "N")]
    pub timeline: Option<Timeline>,
}

/// The commands below `wal`.
#[cfg(feature = "postgres")]
#[derive(Debug, Subcommand)]
pub enum WalCommand {
    /// Archive one file of the log: `archive_command = 'stackward --plan PLAN wal push %p'`
    Push {
        /// The file, as `%p` names it
        #[arg(value_hint = ValueHint::FilePath)]
        path: PathBuf,
        /// The source [default: the only PostgreSQL server of the plan]
        #[arg(long, value_name = "NAME")]
        source: Option<SourceName>,
    },
    /// Fetch one file of the log: `restore_command = 'stackward --plan PLAN --identity KEY wal fetch %f %p'`. Ends with 1
    /// when the archive has none of this name, and above 125 when it failed, at which a server stops
    Fetch {
        /// The file's name, as `%f` gives it
        name: String,
        /// Where to put it, as `%p` names it
        #[arg(value_hint = ValueHint::FilePath)]
        path: PathBuf,
        /// The source [default: the only PostgreSQL server of the plan]
        #[arg(long, value_name = "NAME")]
        source: Option<SourceName>,
        /// So many of the segments that come next are fetched at the same time and kept beside PATH
        #[arg(long, value_name = "COUNT", default_value = "3")]
        prefetch: u8,
    },
    /// Archive the log as the server writes it, through a replication slot, until interrupted
    Receive {
        /// The source [default: the only PostgreSQL server of the plan]
        source: Option<SourceName>,
    },
    /// Show what is archived, timeline by timeline, and what is missing
    Status {
        /// Only this source
        source: Option<SourceName>,
    },
}

/// The commands below `log`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Say that what is missing in a log is known: `status`, `verify` and `wal status` do not complain of it any more. No
    /// recovery passes it all the same
    AcceptGap {
        /// The source
        source: SourceName,
        /// Only the gap before this segment, `TIMELINE/NAME` as `status` shows it [default: all gaps of the log]
        #[arg(long, value_name = "SEGMENT")]
        before: Option<String>,
    },
}

/// The commands below `key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key pair
    Generate {
        /// Write the private key to this file (mode 0600) instead of standard output
        #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
        output: Option<PathBuf>,
    },
    /// Let a public key read the repository, old backups included; needs a private key that can
    Add {
        /// The public key: age1…
        recipient: String,
    },
    /// Stop a public key from reading the repository; needs a private key that can
    Remove {
        /// The public key: age1…
        recipient: String,
    },
    /// List the public keys that can read the repository
    List,
    /// Let this machine write to the repository; needs a private key
    Enroll,
}

/// Options of `schema`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Of what
    #[arg(default_value = "plan")]
    pub of: SchemaOf,
}

/// What there is a schema of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchemaOf {
    /// The plan
    Plan,
    /// The manifest
    Manifest,
}

/// Options of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Options of `demo`.
#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Keep the folder with the stack, the plan, the key and the repository
    #[arg(long)]
    pub keep: bool,
}

/// Options of `reference`.
#[derive(Debug, Args)]
pub struct ReferenceArgs {
    /// Which page
    pub page: ReferencePage,
}

/// The generated pages of `docs/reference`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReferencePage {
    /// The commands
    Cli,
    /// The exit codes
    ExitCodes,
}
