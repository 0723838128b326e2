//! The write-ahead log: pushed, archived by a server, received; and how fast programs start.

use super::super::contest::{Contender, Contest, shell};
use super::{AS_SERVER, Bench};
use crate::process::Result;

/// Segments that are pushed in one go.
const PUSHED: usize = 20;
/// Segments that a server archives in one go.
const ARCHIVED: usize = 40;
/// The names of the segments that the server has, oldest first.
const SEGMENTS: &str = "ls data/pg_wal | grep -E '^[0-9A-F]{24}$'";

impl Bench<'_> {
    /// Makes so many segments, each with the log of some transactions.
    fn fill_segments(&self, count: usize) -> Result {
        let work = format!("{} -n -t 500 postgres >/dev/null 2>&1", self.program("pgbench"));
        let switch = self.sql("select pg_switch_wal()");
        shell(self.work, &format!("for n in $(seq {count}); do {work}; {switch} >/dev/null; done")).map(|_| ())
    }

    /// An empty archive. The first push of all makes the key pair for the log; the ones after it are what is measured.
    fn fresh_log() -> String {
        let first = format!("$({SEGMENTS} | sed -n '1p')");
        let push = Self::stackward(&format!("--quiet wal push data/pg_wal/{first}"));
        format!("{}; {push}; rm -rf repository/logs", Self::fresh().stackward)
    }

    /// Segments that the server has, pushed one by one, by one shell that is the server's user.
    pub(super) fn push(&self) -> Result<String> {
        self.fill_segments(PUSHED)?;
        // pgBackRest insists on the data directory as the current one, as the archiver has it.
        let names = format!("{SEGMENTS} | head -n {PUSHED}").replace("data/", "").replace('\'', "\"");
        let each = |command: &str| {
            format!(
                "work=$PWD; cd data; {AS_SERVER} sh -ec 'for s in $({names}); do \"$@\" pg_wal/$s; done' sh {command}"
            )
        };
        let contenders = vec![
            Contender {
                name: "stackward",
                prepare: Self::fresh_log(),
                script: each("../stackward --plan ../plan.yaml --quiet wal push"),
            },
            Contender {
                name: "pgbackrest",
                prepare: Self::fresh().pgbackrest,
                script: each("pgbackrest --config=$work/pgbackrest.conf --stanza=main archive-push"),
            },
        ];
        let (contenders, references) = self.who_can(contenders, &["pgbackrest"]);
        self.contest(&format!("PostgreSQL: {PUSHED} segments pushed"), &references, contenders)
    }

    /// The same by the server's own archiver, until nothing waits for it. CPU is that of its commands.
    pub(super) fn archiver(&self) -> Result<String> {
        self.fill_segments(ARCHIVED)?;
        let status = "data/pg_wal/archive_status";
        let command = |command: &str| {
            let set = format!("alter system set archive_command = '{command}'");
            format!("{}; {} >/dev/null", self.sql(&set), self.sql("select pg_reload_conf()"))
        };
        let again = format!(
            "{}; for s in $({SEGMENTS} | tail -n {} | head -n {ARCHIVED}); do rm -f {status}/$s.done; \
             {AS_SERVER} touch {status}/$s.ready; done",
            command(""),
            ARCHIVED + 1
        );
        let archived =
            |with: &str| format!("{}; while ls {status} | grep -q ready; do sleep 0.01; done", command(with));
        let contenders = vec![
            Contender {
                name: "stackward",
                prepare: format!("{}; {again}", Self::fresh_log()),
                script: archived("$PWD/stackward --plan $PWD/plan.yaml --quiet wal push %p"),
            },
            Contender {
                name: "pgbackrest",
                prepare: format!("{}; {again}", Self::fresh().pgbackrest),
                script: archived("pgbackrest --config=$PWD/pgbackrest.conf --stanza=main archive-push %p"),
            },
            Contender { name: "/bin/true", prepare: again.clone(), script: archived("/bin/true") },
        ];
        let (contenders, references) = self.who_can(contenders, &["pgbackrest"]);
        let title = format!("PostgreSQL: {ARCHIVED} segments archived by the server");
        let cpu = || self.server.archiver_cpu();
        let contest = Contest {
            title: &title,
            folder: self.work,
            rounds: self.rounds,
            references: &references,
            contenders,
            server: Some(&cpu),
        };
        let table = contest.run()?;
        shell(self.work, &command("/bin/true"))?;
        Ok(table)
    }

    /// The same stretch of log, received from its beginning to its end.
    pub(super) fn receive(&self) -> Result<String> {
        let psql = format!("{AS_SERVER} {}/psql -h $PWD -U postgres -qAtc", self.bin);
        let drop_slots =
            format!("{psql} 'select pg_drop_replication_slot(slot_name) from pg_replication_slots' >/dev/null");
        let load = format!(
            "{AS_SERVER} {}/pgbench -h $PWD -U postgres -n -c 2 -t 20000 postgres >/dev/null 2>&1; \
             {psql} 'select pg_switch_wal()' >/dev/null; {psql} 'select pg_current_wal_flush_lsn()' > end",
            self.bin
        );
        let ours = Self::fresh().stackward;
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

    pub(super) fn start_up(&self) -> Result<String> {
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
