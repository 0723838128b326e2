//! The server that is measured: private, on a socket, filled by pgbench.

use std::path::{Path, PathBuf};

use super::super::contest::shell;
use super::AS_SERVER;
use crate::process::Result;

/// From this version on a server can tell which pages changed.
const SUMMARIZES: u32 = 17;

/// See the module. Stopped when dropped.
pub(super) struct Server {
    work: PathBuf,
    bin: String,
    version: u32,
}

impl Server {
    pub(super) fn start(work: &Path, bin: &Path, scale: u32) -> Result<Self> {
        let bin = bin.display().to_string();
        // postgres (PostgreSQL) 15.18 (Debian …)
        let said = shell(work, &format!("{AS_SERVER} {bin}/postgres --version"))?;
        let number = said.split(' ').nth(2).unwrap_or_default();
        let version =
            number.split('.').next().unwrap_or_default().parse().map_err(|error| format!("{said}: {error}"))?;
        let more = if version >= SUMMARIZES { "summarize_wal = on\\n" } else { "" };
        let settings = "listen_addresses = ''\\nshared_buffers = 256MB\\nmax_wal_size = 2GB\\nwal_level = replica\\n\
                        max_wal_senders = 8\\nmax_replication_slots = 8\\nwal_keep_size = 2GB\\nautovacuum = off\\n\
                        unix_socket_directories = '$PWD'\\narchive_mode = on\\narchive_command = '/bin/true'\\n";
        shell(
            work,
            &format!(
                "{AS_SERVER} {bin}/initdb -D data --data-checksums -A trust -U postgres >/dev/null
                 printf \"{settings}{more}\" >> data/postgresql.conf
                 {AS_SERVER} {bin}/pg_ctl -D data -l server.log -w start >/dev/null
                 {AS_SERVER} {bin}/pgbench -h $PWD -U postgres -i -q -s {scale} postgres
                 {AS_SERVER} {bin}/psql -h $PWD -U postgres -c checkpoint"
            ),
        )?;
        Ok(Self { work: work.to_owned(), bin, version })
    }

    /// Whether it can tell which pages changed.
    pub(super) fn summarizes(&self) -> bool {
        self.version >= SUMMARIZES
    }

    /// Seconds of CPU of the server and of its processes, also of those that have ended: one that served a client may end
    /// some time after the client.
    pub(super) fn cpu(&self) -> f64 {
        cpu(&self.pid()) + self.children().iter().map(|child| cpu(child)).sum::<f64>()
    }

    /// Seconds of CPU of the archiver's commands.
    pub(super) fn archiver_cpu(&self) -> f64 {
        let is_archiver = |pid: &&String| {
            let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&title).contains("archiver")
        };
        self.children().iter().find(is_archiver).map_or(0.0, |pid| cpu(pid))
    }

    fn children(&self) -> Vec<String> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().map(str::to_owned).collect()
    }

    fn pid(&self) -> String {
        let pid = std::fs::read_to_string(self.work.join("data/postmaster.pid")).unwrap_or_default();
        pid.lines().next().unwrap_or_default().trim().to_owned()
    }
}

/// Seconds of CPU of a process and of its children that have ended.
fn cpu(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // utime, stime, cutime, cstime are fields 14 to 17 of proc(5); two come before the parenthesis. Ticks are hundredths.
    fields.iter().skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = shell(&self.work, &format!("{AS_SERVER} {}/pg_ctl -D data -m immediate -w stop", self.bin));
    }
}
