//! Redis: a snapshot over the replication protocol, beside `redis-cli --rdb` and the script that everybody writes; reading
//! an RDB; memory with a value of half a gigabyte.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Parser;

use super::contest::{Contender, Contest, shell};
use super::data::Noise;
use super::files::build;
use super::measure::measure;
use crate::cache::Cache;
use crate::process::Result;
use crate::steps::say;

#[derive(Debug, Parser)]
#[command(name = "redis", no_binary_name = true)]
struct Options {
    /// Keys
    #[arg(long, default_value_t = 5_000_000)]
    keys: u64,
    /// How often everything is done
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A folder to work in
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
}

pub(super) fn run(cache: &Cache, arguments: &[String]) -> Result {
    let options = Options::try_parse_from(arguments).map_err(|error| error.to_string())?;
    let binary = build(cache)?;
    cache.cargo(["build", "--release", "--package", "engine-redis", "--example", "rdb-speed"]).run()?;
    let speed = cache.target().join("release/examples/rdb-speed");
    let work = options.folder.join("stackward-bench-redis");
    let _old = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).map_err(|error| error.to_string())?;
    let server = Server::start(&work)?;
    say(&format!("    filling {} keys", options.keys));
    fill(&work.join("data.resp"), options.keys).map_err(|error| error.to_string())?;
    shell(&work, "redis-cli -s redis.sock --pipe < data.resp && rm data.resp")?;
    let plan = plan(&binary, &work)?;
    say(&snapshots(&plan, &work, options.rounds)?);
    say(&pauses(&work)?);
    shell(&work, "redis-cli -s redis.sock --rdb mixed.rdb")?;
    say(&reading(&speed, &work, options.rounds)?);
    say(&large_value(&speed, &plan, &work)?);
    drop(server);
    std::fs::remove_dir_all(&work).map_err(|error| error.to_string())
}

/// A private server; shut down when dropped.
struct Server(PathBuf);

impl Server {
    fn start(work: &Path) -> Result<Self> {
        let settings = "--port 0 --unixsocket $PWD/redis.sock --dir $PWD --save '' --appendonly no --daemonize yes \
                        --repl-diskless-sync-delay 0 --latency-monitor-threshold 1 --enable-debug-command local \
                        --proto-max-bulk-len 1gb";
        shell(work, &format!("redis-server {settings} && until redis-cli -s redis.sock ping; do :; done"))?;
        Ok(Self(work.to_owned()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = shell(&self.0, "redis-cli -s redis.sock shutdown nosave");
    }
}

/// Commands for keys of every type, of the sizes that applications have.
fn fill(path: &Path, keys: u64) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    let mut noise = Noise::new(7);
    for number in 0..keys {
        let (a, b) = (noise.next(), noise.next());
        let key = format!("key:{:012}", number.wrapping_mul(2_654_435_761) % 1_000_000_000_000);
        let mut words = match a % 100 {
            0..=69 => vec!["SET".to_owned(), key, format!("{b:016x}").repeat(1 + (a >> 8) as usize % 12)],
            70..=81 => vec!["HSET".to_owned(), key],
            82..=88 => vec!["RPUSH".to_owned(), key],
            89..=93 => vec!["SADD".to_owned(), key],
            94..=98 => vec!["ZADD".to_owned(), key],
            _ => vec!["XADD".to_owned(), key, "*".to_owned()],
        };
        if words.len() != 3 || words[0] == "XADD" {
            let pairs = matches!(words[0].as_str(), "HSET" | "ZADD" | "XADD");
            for element in 0..4 + (a >> 8) % 12 {
                if pairs {
                    let first = if words[0] == "ZADD" { (b >> element).to_string() } else { format!("field{element}") };
                    words.push(first);
                }
                words.push(format!("value-{:x}", b.rotate_left(element as u32)));
            }
        } else if a % 7 == 0 {
            words.extend(["EX".to_owned(), (100_000 + b % 1_000_000).to_string()]);
        }
        write!(out, "*{}\r\n", words.len())?;
        for word in &words {
            write!(out, "${}\r\n{word}\r\n", word.len())?;
        }
    }
    out.flush()
}

/// A plan for the server; returns the words that run the program with it.
fn plan(binary: &Path, work: &Path) -> Result<String> {
    let binary = binary.display();
    let text = "version: 1\nname: bench\nrepository: { url: ./repository, recipients: [RECIPIENT], state: state }\n\
                sources: { cache: { redis: { socket: SOCKET } } }\n";
    let text = text.replace("SOCKET", &work.join("redis.sock").display().to_string());
    std::fs::write(work.join("plan.in"), text).map_err(|error| error.to_string())?;
    shell(work, &format!("r=$({binary} key generate -o key) && sed \"s/RECIPIENT/$r/\" plan.in > plan.yaml"))?;
    Ok(format!("{binary} --plan plan.yaml"))
}

fn snapshots(plan: &str, work: &Path, rounds: usize) -> Result<String> {
    let wait = "until redis-cli -s redis.sock info persistence | grep -q rdb_bgsave_in_progress:0; do sleep 0.1; done";
    let contest = Contest {
        title: "Redis: first snapshot",
        folder: work,
        rounds,
        references: &["redis-cli, zstd -1", "script"],
        server: None,
        contenders: vec![
            Contender {
                name: "stackward",
                prepare: format!("rm -rf repository state && {plan} init --quiet"),
                script: format!("{plan} backup --quiet"),
            },
            Contender {
                name: "redis-cli, zstd -1",
                prepare: "rm -f out.zst".to_owned(),
                script: "redis-cli -s redis.sock --rdb - | zstd -1 -q -o out.zst".to_owned(),
            },
            Contender {
                name: "script",
                // The child that served the one before may not have ended yet.
                prepare: format!("rm -f dump.rdb copy.rdb.gz copy.rdb; {wait}"),
                script: format!(
                    "redis-cli -s redis.sock bgsave; sleep 0.1; {wait}; cp dump.rdb copy.rdb; gzip copy.rdb"
                ),
            },
        ],
    };
    contest.run()
}

/// The longest that the server's main thread stood still.
fn pauses(work: &Path) -> Result<String> {
    let fork = shell(work, "redis-cli -s redis.sock info stats | grep latest_fork_usec")?;
    let events = shell(work, "redis-cli -s redis.sock latency latest")?;
    Ok(format!("\nmain thread: {fork}; longest events (name, when, last ms, longest ms):\n{events}\n"))
}

fn reading(speed: &Path, work: &Path, rounds: usize) -> Result<String> {
    let mut text = "\n## Reading an RDB\n\n".to_owned();
    for what in ["scan", "export"] {
        let mut best: Vec<(f64, String)> = Vec::new();
        for _ in 0..rounds {
            let line = shell(work, &format!("{} {what} mixed.rdb", speed.display()))?;
            let numbers: Vec<f64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
            let [seconds, bytes, keys, written] = numbers[..] else { return Err(line) };
            let told = format!(
                "{what}: {seconds:.2} s, {:.0} MB/s, {:.0} keys/s, {:.0} MB written a second",
                bytes / seconds / 1e6,
                keys / seconds,
                written / seconds / 1e6
            );
            best.push((seconds, told));
        }
        best.sort_by(|a, b| a.0.total_cmp(&b.0));
        text.push_str(&format!("{}\n", best[best.len() / 2].1));
    }
    Ok(text)
}

/// Peaks of memory with a value of 500 MB.
fn large_value(speed: &Path, plan: &str, work: &Path) -> Result<String> {
    shell(work, "redis-cli -s redis.sock flushall && redis-cli -s redis.sock debug populate 1 large 500000000")?;
    shell(work, "redis-cli -s redis.sock config set rdbcompression no && redis-cli -s redis.sock --rdb large.rdb")?;
    shell(work, &format!("rm -rf repository state && {plan} init --quiet"))?;
    let peak = |script: &str| {
        let command = ["sh", "-ec", script].map(str::to_owned);
        measure(&work.join("log"), work, &[], &command).map(|used| used.peak_mib)
    };
    let scan = peak(&format!("exec {} scan large.rdb", speed.display()))?;
    let export = peak(&format!("exec {} export large.rdb", speed.display()))?;
    let backup = peak(&format!("exec {plan} backup --quiet"))?;
    Ok(format!(
        "\na value of 500 MB, peak MiB: scan {scan:.0}, export {export:.0}, backup into the repository {backup:.0}\n"
    ))
}
