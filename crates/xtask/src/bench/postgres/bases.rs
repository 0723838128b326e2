//! Base backups: the first, those after some work, and restores.

use super::super::contest::{Contender, median, shell};
use super::{AS_SERVER, Bench};
use crate::process::Result;

impl Bench<'_> {
    pub(super) fn first(&self) -> Result<String> {
        let fresh = Self::fresh();
        let contenders = vec![
            Contender { name: "stackward", prepare: fresh.stackward, script: Self::stackward("backup --quiet") },
            Contender {
                name: "pg_basebackup",
                prepare: "rm -rf base".to_owned(),
                script: format!(
                    "{} -Ft -X fetch -c fast -D base --compress=client-zstd:1",
                    self.program("pg_basebackup")
                ),
            },
            Contender { name: "pgbackrest", prepare: fresh.pgbackrest, script: Self::pgbackrest("--type=full backup") },
            Contender {
                name: "barman",
                prepare: fresh.barman,
                script: Self::barman("backup main --immediate-checkpoint"),
            },
        ];
        let (contenders, references) = self.who_can(contenders, &["pg_basebackup", "pgbackrest", "barman"]);
        self.contest("PostgreSQL: first physical backup (barman: not compressed)", &references, contenders)
    }

    /// After transactions that update rows anywhere: the work, and what it had to store.
    pub(super) fn second(&self) -> Result<String> {
        let title = format!("PostgreSQL: a further backup after {} transactions", self.transactions);
        let fresh = Self::fresh();
        shell(self.work, &format!("{}; {}", fresh.stackward, Self::stackward("backup --quiet")))?;
        let init = Self::stackward_by("never.yaml", "init --quiet");
        let load = format!(
            "{} -n -c 2 -t {} postgres; {}",
            self.program("pgbench"),
            self.transactions / 2,
            self.sql("checkpoint")
        );
        let mut contenders = vec![Contender {
            name: "stackward",
            prepare: format!("{load}; {}", grown("repository")),
            script: Self::stackward("backup --quiet"),
        }];
        if self.server.summarizes() {
            let backup = Self::stackward_by("never.yaml", "backup --quiet");
            shell(self.work, &format!("rm -rf compared compared.state; {init}; {backup}"))?;
            contenders[0].name = "stackward, increment";
            contenders.push(Contender {
                name: "stackward, pages compared",
                prepare: grown("compared"),
                script: backup,
            });
            contenders.push(Contender {
                name: "stackward, full",
                prepare: "rm -rf full full.state; sed 's/compared/full/g' never.yaml > full.yaml; chmod a+r full.yaml; "
                    .to_owned() + &Self::stackward_by("full.yaml", "init --quiet"),
                script: Self::stackward_by("full.yaml", "backup --quiet"),
            });
            let table = self.contest(&title, &["stackward, full"], contenders)?;
            return Ok(format!("{table}{}{}", self.stored("repository")?, self.stored("compared")?));
        }
        shell(self.work, &format!("{}; {}", fresh.pgbackrest, Self::pgbackrest("--type=full backup")))?;
        contenders.push(Contender {
            name: "pgbackrest",
            prepare: grown("pgbackrest"),
            script: Self::pgbackrest("--type=diff backup"),
        });
        let table = self.contest(&title, &["pgbackrest"], contenders)?;
        let stored = format!("{}{}", self.stored("repository")?, self.stored("pgbackrest")?);
        Ok(format!("{table}{stored}(pgbackrest: differential to the full one)\n{}", self.log_in_snapshots()?))
    }

    /// What each round added to the folder.
    fn stored(&self, name: &str) -> Result<String> {
        let sizes = shell(self.work, &format!("{}; cat {name}.sizes", grown(name)))?;
        let sizes: Vec<f64> = sizes.lines().filter_map(|line| line.parse().ok()).collect();
        let added: Vec<f64> = sizes.windows(2).map(|pair| (pair[1] - pair[0]) / f64::from(1 << 20)).collect();
        let each: Vec<String> = added.iter().map(|mib| format!("{mib:.1}")).collect();
        Ok(format!("stored in {name}: {} MiB (median {:.1})\n", each.join(", "), median(added)))
    }

    /// How much of each snapshot is log: what the files below `pg_wal` take when they are compressed by themselves.
    fn log_in_snapshots(&self) -> Result<String> {
        let plan = "./stackward --plan plan.yaml --identity key";
        let script = format!(
            "for id in $({plan} list --json | tail -n 1 | jq -r '.snapshots[].id'); do
               for path in $({plan} ls --json -R $id main-db base pg_wal | jq -r 'select(.kind == \"file\") | .path'); do
                 {plan} cat $id main-db base $path | zstd -1 -q -c | wc -c
               done | awk '{{ n++; sum += $1 }} END {{ printf \"%d files, %.1f MiB\\n\", n, sum / 1048576 }}'
             done"
        );
        let each = shell(self.work, &script)?;
        Ok(format!("log in the snapshots, first to last, compressed by itself: {}\n", each.replace('\n', "; ")))
    }

    pub(super) fn restore(&self) -> Result<String> {
        // What the peers need is there when other parts were left out, too.
        let fresh = Self::fresh();
        let mut needed = vec![("repository/snapshots", fresh.stackward, Self::stackward("backup --quiet"))];
        if !self.server.summarizes() {
            needed.push(("pgbackrest/backup", fresh.pgbackrest, Self::pgbackrest("--type=full backup")));
            needed.push(("barman/main/base/*/data", fresh.barman, Self::barman("backup main --immediate-checkpoint")));
        }
        for (made, fresh, backup) in needed {
            shell(self.work, &format!("ls -d {made} >/dev/null 2>&1 || {{ {fresh}; {backup}; }}"))?;
        }
        // barman counts a backup as usable when it has the log until its end.
        let rest = "for s in $(ls data/pg_wal | grep -E '^[0-9A-F]{24}$' | head -n -1); do \
                    $AS cp -n data/pg_wal/$s barman/main/incoming/; done"
            .replace("$AS", AS_SERVER);
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
            Contender {
                name: "barman",
                prepare: format!(
                    "rm -rf restored3; {} >/dev/null; {rest}; {}",
                    self.sql("select pg_switch_wal()"),
                    Self::barman("archive-wal main")
                ),
                script: Self::barman("recover main latest $PWD/restored3"),
            },
        ];
        let (contenders, references) = self.who_can(contenders, &["pgbackrest", "barman"]);
        self.contest("PostgreSQL: restore", &references, contenders)
    }
}

/// Writes down how many bytes a folder has.
fn grown(name: &str) -> String {
    format!("du -sb {name} | cut -f1 >> {name}.sizes")
}
