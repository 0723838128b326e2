//! PostgreSQL: base backups, what a second one costs, restores, and the write-ahead log, beside `pg_basebackup`,
//! `pg_receivewal`, pgBackRest and barman, on one private server filled by pgbench. CPU is that of clients and server together.
//!
//! From version 17 on the server summarizes its log, and increments are measured too; the peers of Debian 12 do not know such
//! servers and are left out.

mod bases;
mod log;
mod server;

use std::path::{Path, PathBuf};

use clap::Parser;

use super::contest::{Contender, Contest, shell};
use super::files::build;
use crate::cache::Cache;
use crate::process::{Result, exists};
use crate::steps::say;
use server::Server;

#[derive(Debug, Parser)]
#[command(name = "postgres", no_binary_name = true)]
struct Options {
    /// pgbench's scale; 130 is about 2 GiB
    #[arg(long, default_value_t = 130)]
    scale: u32,
    /// Transactions before each further backup
    #[arg(long, default_value_t = 10_000)]
    transactions: u32,
    /// How often everything is done
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A folder to work in
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
    /// The folder of the server's programs
    #[arg(long, default_value = "/usr/lib/postgresql/15/bin")]
    bin: PathBuf,
    /// A program that was built already
    #[arg(long)]
    program: Option<PathBuf>,
    /// Only the parts whose names contain this: first, second, restore, push, archiver, receive, start
    #[arg(long, default_value = "")]
    only: String,
}

/// A part: its name, and what runs it.
type Part<'a> = (&'static str, fn(&Bench<'a>) -> Result<String>);

const fn parts<'a>() -> [Part<'a>; 7] {
    [
        ("first", Bench::first),
        ("second", Bench::second),
        ("restore", Bench::restore),
        ("push", Bench::push),
        ("archiver", Bench::archiver),
        ("receive", Bench::receive),
        ("start", Bench::start_up),
    ]
}

pub(super) fn run(cache: &Cache, arguments: &[String]) -> Result {
    let options = Options::try_parse_from(arguments).map_err(|error| error.to_string())?;
    for program in ["pgbackrest", "barman"].into_iter().filter(|program| !exists(program)) {
        shell(Path::new("/"), &format!("apt-get install -y --no-install-recommends {program}"))?;
    }
    let binary = options.program.clone().map_or_else(|| build(cache), Ok)?;
    let work = options.folder.join("stackward-bench-postgres");
    let _old = shell(Path::new("/"), &format!("rm -rf {}", work.display()));
    std::fs::create_dir_all(&work).map_err(|error| error.to_string())?;
    std::fs::copy(&binary, work.join("stackward")).map_err(|error| format!("{}: {error}", binary.display()))?;
    shell(&work, "chmod 755 . stackward && chown postgres:postgres .")?;
    say(&format!("    filling a server: pgbench -s {}", options.scale));
    let server = Server::start(&work, &options.bin, options.scale)?;
    let bench = Bench {
        work: &work,
        bin: options.bin.display().to_string(),
        server: &server,
        rounds: options.rounds,
        transactions: options.transactions,
    };
    bench.prepare()?;
    for (_, part) in parts().into_iter().filter(|(name, _)| name.contains(&options.only)) {
        say(&part(&bench)?);
    }
    drop(server);
    shell(Path::new("/"), &format!("rm -rf {}", work.display())).map(|_| ())
}

/// Words before a command that runs as the server's user.
const AS_SERVER: &str = "runuser -u postgres --";

struct Bench<'a> {
    work: &'a Path,
    bin: String,
    server: &'a Server,
    rounds: usize,
    transactions: u32,
}

/// What is removed and made anew before a first backup.
struct Fresh {
    stackward: String,
    pgbackrest: String,
    barman: String,
}

impl Bench<'_> {
    /// The plans of Stackward and the configurations of its peers.
    fn prepare(&self) -> Result {
        let plan = |repository: &str, more: &str| {
            format!(
                "version: 1\\nname: bench\\nrepository: {{ url: {repository}, recipients: [$r], state: {repository}.state }}\\n\
                 sources: {{ main-db: {{ postgres: {{ socket: $PWD, modes: [physical], wal: stream{more} }} }} }}\\n"
            )
        };
        let (usual, never) = (plan("repository", ""), plan("compared", ", increments: never"));
        let pgbackrest = "[global]\\nrepo1-path=$PWD/pgbackrest\\nrepo1-bundle=y\\ncompress-type=zst\\ncompress-level=1\\nprocess-max=2\\n\
                          log-level-console=off\\nlog-level-file=off\\nlock-path=$PWD/lock\\nspool-path=$PWD/spool\\n\
                          start-fast=y\\narchive-check=n\\n[main]\\npg1-path=$PWD/data\\npg1-socket-path=$PWD\\n";
        let barman = "[barman]\\nbarman_user = postgres\\nconfiguration_files_directory = $PWD/barman.d\\nbarman_home = $PWD/barman\\n\
                      log_file = $PWD/barman.log\\nlog_level = ERROR\\n[main]\\ndescription = main\\nbackup_method = postgres\\n\
                      conninfo = host=$PWD user=postgres dbname=postgres\\nstreaming_conninfo = host=$PWD user=postgres\\n\
                      archiver = on\\npath_prefix = $BIN\\n";
        let prepared = shell(
            self.work,
            &format!(
                "BIN={}; r=$({AS_SERVER} ./stackward key generate -o key)
                 printf \"{usual}\" > plan.yaml; printf \"{never}\" > never.yaml
                 printf \"{pgbackrest}\" > pgbackrest.conf; printf \"{barman}\" > barman.conf; mkdir lock spool barman.d
                 chown -R postgres:postgres *.yaml *.conf lock spool barman.d",
                self.bin
            ),
        );
        prepared.map(|_| ())
    }

    fn stackward(words: &str) -> String {
        Self::stackward_by("plan.yaml", words)
    }

    fn stackward_by(plan: &str, words: &str) -> String {
        format!("{AS_SERVER} ./stackward --plan {plan} {words}")
    }

    fn pgbackrest(words: &str) -> String {
        format!("{AS_SERVER} pgbackrest --config=$PWD/pgbackrest.conf --stanza=main {words}")
    }

    fn barman(words: &str) -> String {
        format!("{AS_SERVER} barman --quiet --config $PWD/barman.conf {words}")
    }

    /// A program of the server, as its user.
    fn program(&self, name: &str) -> String {
        format!("{AS_SERVER} {}/{name} -h $PWD -U postgres", self.bin)
    }

    fn sql(&self, statement: &str) -> String {
        format!("{} -qAtc \"{statement}\" postgres", self.program("psql"))
    }

    fn contest(&self, title: &str, references: &[&'static str], contenders: Vec<Contender>) -> Result<String> {
        let cpu = || self.server.cpu();
        Contest { title, folder: self.work, rounds: self.rounds, references, contenders, server: Some(&cpu) }.run()
    }

    /// Contenders and references without those that do not know this server.
    fn who_can(&self, contenders: Vec<Contender>, references: &[&'static str]) -> (Vec<Contender>, Vec<&'static str>) {
        let can = |name: &str| !self.server.summarizes() || !["pgbackrest", "barman"].contains(&name);
        let contenders = contenders.into_iter().filter(|contender| can(contender.name)).collect();
        (contenders, references.iter().copied().filter(|name| can(name)).collect())
    }

    fn fresh() -> Fresh {
        let init = |plan: &str, name: &str| {
            format!("rm -rf {name} {name}.state; {}", Self::stackward_by(plan, "init --quiet"))
        };
        // It refuses to back up before a first segment came.
        let segment = "$(ls data/pg_wal | grep -E '^[0-9A-F]{24}$' | sed -n '1p')";
        Fresh {
            stackward: init("plan.yaml", "repository"),
            pgbackrest: format!("rm -rf pgbackrest; {}", Self::pgbackrest("stanza-create")),
            barman: format!(
                "rm -rf barman; {} || true; {AS_SERVER} cp data/pg_wal/{segment} barman/main/incoming/; {}",
                Self::barman("check main"),
                Self::barman("archive-wal main")
            ),
        }
    }
}
