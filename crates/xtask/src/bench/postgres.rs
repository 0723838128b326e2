//! PostgreSQL: base backups, what a second one costs, restores, and the write-ahead log, beside `pg_basebackup`,
//! `pg_receivewal` and pgBackRest, on one private server filled by pgbench. CPU is that of clients and server together.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::contest::{Contender, Contest, shell};
use super::data;
use super::files::build;
use crate::cache::Cache;
use crate::process::{Result, exists};
use crate::steps::say;

#[derive(Debug, Parser)]
#[command(name = "postgres", no_binary_name = true)]
struct Options {
    /// pgbench's scale; 130 is about 2 GiB
    #[arg(long, default_value_t = 130)]
    scale: u32,
    /// How often everything is done
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A folder to work in
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
    /// The folder of the server's programs
    #[arg(long, default_value = "/usr/lib/postgresql/15/bin")]
    bin: PathBuf,
}

/// Segments that are pushed in one go.
const PUSHED: usize = 20;

pub(super) fn run(cache: &Cache, arguments: &[String]) -> Result {
    let options = Options::try_parse_from(arguments).map_err(|error| error.to_string())?;
    if !exists("pgbackrest") {
        shell(Path::new("/"), "apt-get install -y --no-install-recommends pgbackrest")?;
    }
    let binary = build(cache)?;
    let work = options.folder.join("stackward-bench-postgres");
    let _old = shell(Path::new("/"), &format!("rm -rf {}", work.display()));
    std::fs::create_dir_all(&work).map_err(|error| error.to_string())?;
    std::fs::copy(&binary, work.join("stackward")).map_err(|error| format!("{}: {error}", binary.display()))?;
    shell(&work, "chmod 755 . stackward && chown postgres:postgres .")?;
    say(&format!("    filling a server: pgbench -s {}", options.scale));
    let server = Server::start(&work, &options)?;
    let bench = Bench { work: &work, bin: options.bin.display().to_string(), server: &server, rounds: options.rounds };
    bench.prepare()?;
    say(&bench.first()?);
    say(&bench.second()?);
    say(&bench.restore()?);
    say(&bench.push()?);
    say(&bench.receive()?);
    say(&bench.start_up()?);
    drop(server);
    shell(Path::new("/"), &format!("rm -rf {}", work.display())).map(|_| ())
}

/// Words before a command that runs as the server's user.
const AS_SERVER: &str = "runuser -u postgres --";

/// A private server on a socket; stopped when dropped.
struct Server {
    work: PathBuf,
    bin: String,
}

impl Server {
    fn start(work: &Path, options: &Options) -> Result<Self> {
        let bin = options.bin.display().to_string();
        let settings = "listen_addresses = ''\\nshared_buffers = 256MB\\nmax_wal_size = 2GB\\nwal_level = replica\\n\
                        max_wal_senders = 8\\nmax_replication_slots = 8\\nwal_keep_size = 2GB\\nautovacuum = off\\n\
                        unix_socket_directories = '$PWD'\\narchive_mode = on\\narchive_command = '/bin/true'\\n";
        shell(
            work,
            &format!(
                "{AS_SERVER} {bin}/initdb -D data --data-checksums -A trust -U postgres >/dev/null
                 printf \"{settings}\" >> data/postgresql.conf
                 {AS_SERVER} {bin}/pg_ctl -D data -l server.log -w start >/dev/null
                 {AS_SERVER} {bin}/pgbench -h $PWD -U postgres -i -q -s {} postgres
                 {AS_SERVER} {bin}/psql -h $PWD -U postgres -c checkpoint",
                options.scale
            ),
        )?;
        Ok(Self { work: work.to_owned(), bin })
    }

    /// Seconds of CPU of the server and of those of its processes that have ended.
    fn cpu(&self) -> f64 {
        let pid = std::fs::read_to_string(self.work.join("data/postmaster.pid")).unwrap_or_default();
        let pid = pid.lines().next().unwrap_or_default().trim().to_owned();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // utime, stime, cutime, cstime are fields 14 to 17 of proc(5); two come before the parenthesis. Ticks are hundredths.
        fields.iter().skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = shell(&self.work, &format!("{AS_SERVER} {}/pg_ctl -D data -m immediate -w stop", self.bin));
    }
}

struct Bench<'a> {
    work: &'a Path,
    bin: String,
    server: &'a Server,
    rounds: usize,
}

impl Bench<'_> {
    /// The plan of Stackward and the configuration of pgBackRest.
    fn prepare(&self) -> Result {
        let plan = "version: 1\\nname: bench\\nrepository: { url: repository, recipients: [$r], state: state }\\n\
                    sources: { main-db: { postgres: { socket: $PWD, modes: [physical], wal: stream } } }\\n";
        let pgbackrest = "[global]\\nrepo1-path=$PWD/pgbackrest\\nrepo1-bundle=y\\ncompress-type=zst\\ncompress-level=1\\nprocess-max=2\\n\
                          log-level-console=off\\nlog-level-file=off\\nlock-path=$PWD/lock\\nspool-path=$PWD/spool\\n\
                          start-fast=y\\narchive-check=n\\n[main]\\npg1-path=$PWD/data\\npg1-socket-path=$PWD\\n";
        let prepared = shell(
            self.work,
            &format!(
                "r=$({AS_SERVER} ./stackward key generate -o key)
                 printf \"{plan}\" > plan.yaml; printf \"{pgbackrest}\" > pgbackrest.conf; mkdir lock spool
                 chown -R postgres:postgres plan.yaml pgbackrest.conf lock spool"
            ),
        );
        prepared.map(|_| ())
    }

    fn stackward(words: &str) -> String {
        format!("{AS_SERVER} ./stackward --plan plan.yaml {words}")
    }

    fn pgbackrest(words: &str) -> String {
        format!("{AS_SERVER} pgbackrest --config=$PWD/pgbackrest.conf --stanza=main {words}")
    }

    fn contest(&self, title: &str, references: &[&'static str], contenders: Vec<Contender>) -> Result<String> {
        let cpu = || self.server.cpu();
        Contest { title, folder: self.work, rounds: self.rounds, references, contenders, server: Some(&cpu) }.run()
    }

    fn fresh() -> [String; 2] {
        [
            format!("rm -rf repository state; {}", Self::stackward("init --quiet")),
            format!("rm -rf pgbackrest; {}", Self::pgbackrest("stanza-create")),
        ]
    }

    fn first(&self) -> Result<String> {
        let [ours, theirs] = Self::fresh();
        let contenders = vec![
            Contender { name: "stackward", prepare: ours, script: Self::stackward("backup --quiet") },
            Contender {
                name: "pg_basebackup",
                prepare: "rm -rf base".to_owned(),
                script: format!(
                    "{AS_SERVER} {}/pg_basebackup -h $PWD -U postgres -Ft -X fetch -c fast -D base --compress=client-zstd:1",
                    self.bin
                ),
            },
            Contender { name: "pgbackrest", prepare: theirs, script: Self::pgbackrest("--type=full backup") },
        ];
        self.contest("PostgreSQL: first physical backup", &["pg_basebackup", "pgbackrest"], contenders)
    }

    /// After ten thousand transactions that update rows anywhere; what it had to store.
    fn second(&self) -> Result<String> {
        let load = format!("{AS_SERVER} {}/pgbench -h $PWD -U postgres -n -c 2 -t 5000 postgres", self.bin);
        let checkpoint = format!("{AS_SERVER} {}/psql -h $PWD -U postgres -c checkpoint", self.bin);
        let size = |name: &str| data::size(&self.work.join(name));
        let mut text = "\n## PostgreSQL: second backup after 10,000 transactions\n\n".to_owned();
        let mut stored = Vec::new();
        for _ in 0..self.rounds {
            shell(self.work, &format!("{load} && {checkpoint}"))?;
            let before = (size("repository")?, size("pgbackrest")?);
            shell(self.work, &Self::stackward("backup --quiet"))?;
            shell(self.work, &Self::pgbackrest("--type=diff backup"))?;
            stored.push(((size("repository")? - before.0) >> 20, (size("pgbackrest")? - before.1) >> 20));
        }
        for (ours, theirs) in stored {
            text.push_str(&format!(
                "stored: stackward {ours} MiB, pgbackrest (differential to the full one) {theirs} MiB\n"
            ));
        }
        Ok(text)
    }

    fn restore(&self) -> Result<String> {
        let contenders = vec![
            Contender {
                name: "stackward",
                prepare: "rm -rf restored".to_owned(),
                script: "./stackward --plan plan.yaml --identity key restore --target restored --quiet".to_owned(),
            },
            Contender {
                name: "pgbackrest",
                prepare: format!("rm -rf restored2; {AS_SERVER} mkdir -m 700 restored2"),
                script: Self::pgbackrest("--pg1-path=$PWD/restored2 --type=none restore"),
            },
        ];
        self.contest("PostgreSQL: restore", &["pgbackrest"], contenders)
    }

    /// Segments that the server has, pushed one by one.
    fn push(&self) -> Result<String> {
        let switch = format!(
            "for n in $(seq {PUSHED}); do {AS_SERVER} {}/pgbench -h $PWD -U postgres -n -t 500 postgres >/dev/null 2>&1; \
             {AS_SERVER} {}/psql -h $PWD -U postgres -qAtc 'select pg_switch_wal()' >/dev/null; done",
            self.bin, self.bin
        );
        shell(self.work, &switch)?;
        let segments = format!("ls data/pg_wal | grep -E '^[0-9A-F]{{24}}$' | head -n {PUSHED}");
        let each = |command: &str| {
            format!("cd data; for s in $({}); do {command}; done", segments.replace("data/pg_wal", "pg_wal"))
        };
        let [ours, theirs] = Self::fresh();
        // The first push of all makes the key pair for the log; the ones after it are what is measured.
        let first = "ls data/pg_wal | grep -E '^[0-9A-F]{24}$' | sed -n '1p'";
        let contenders = vec![
            Contender {
                name: "stackward",
                prepare: format!(
                    "{ours}; {}; rm -rf repository/logs",
                    Self::stackward(&format!("wal push --quiet data/pg_wal/$({first})"))
                ),
                script: each(&format!("{AS_SERVER} ../stackward --plan ../plan.yaml --quiet wal push pg_wal/$s")),
            },
            Contender {
                name: "pgbackrest",
                prepare: theirs,
                script: each(&format!(
                    "{AS_SERVER} pgbackrest --config=$(dirname $PWD)/pgbackrest.conf --stanza=main archive-push pg_wal/$s"
                )),
            },
        ];
        let table = self.contest(&format!("PostgreSQL: {PUSHED} segments pushed"), &["pgbackrest"], contenders)?;
        Ok(format!("{table}\n(each push runs under `runuser`, for both alike)\n"))
    }

    /// The same stretch of log, received from its beginning to its end.
    fn receive(&self) -> Result<String> {
        let psql = format!("{AS_SERVER} {}/psql -h $PWD -U postgres -qAtc", self.bin);
        let drop_slots =
            format!("{psql} 'select pg_drop_replication_slot(slot_name) from pg_replication_slots' >/dev/null");
        let load = format!(
            "{AS_SERVER} {}/pgbench -h $PWD -U postgres -n -c 2 -t 20000 postgres >/dev/null 2>&1; \
             {psql} 'select pg_switch_wal()' >/dev/null; {psql} 'select pg_current_wal_flush_lsn()' > end",
            self.bin
        );
        let [ours, _] = Self::fresh();
        let make =
            |slot: &str| format!("{psql} \"select pg_create_physical_replication_slot('{slot}', true)\" >/dev/null");
        let contenders = vec![
            Contender {
                name: "stackward",
                prepare: format!("{ours}; {drop_slots}; {}; {load}", make("stackward_main_db")),
                script: format!(
                    "{AS_SERVER} ./stackward --plan plan.yaml --quiet wal receive & \
                     until [ \"$({psql} \"select restart_lsn >= '$(cat end)' from pg_replication_slots\")\" = t ]; do sleep 0.05; done; \
                     pkill -INT -P $!; wait"
                ),
            },
            Contender {
                name: "pg_receivewal",
                prepare: format!("rm -rf wal; {AS_SERVER} mkdir wal; {drop_slots}; {}; {load}", make("other")),
                script: format!(
                    "{AS_SERVER} {}/pg_receivewal -h $PWD -U postgres -D wal -S other -Z none --endpos=$(cat end) --no-loop",
                    self.bin
                ),
            },
        ];
        let table = self.contest("PostgreSQL: the log received", &["pg_receivewal"], contenders)?;
        shell(self.work, &drop_slots)?;
        Ok(table)
    }

    fn start_up(&self) -> Result<String> {
        let contest = Contest {
            title: "A hundred starts of a program",
            folder: self.work,
            rounds: self.rounds,
            references: &["pgbackrest version"],
            server: None,
            contenders: vec![
                Contender {
                    name: "stackward wal push (refused for its name)",
                    prepare: "true".to_owned(),
                    script: "for n in $(seq 100); do ./stackward wal push nothing 2>/dev/null || true; done".to_owned(),
                },
                Contender {
                    name: "pgbackrest version",
                    prepare: "true".to_owned(),
                    script: "for n in $(seq 100); do pgbackrest version >/dev/null; done".to_owned(),
                },
                Contender {
                    name: "/bin/true",
                    prepare: "true".to_owned(),
                    script: "for n in $(seq 100); do /bin/true; done".to_owned(),
                },
            ],
        };
        contest.run()
    }
}
