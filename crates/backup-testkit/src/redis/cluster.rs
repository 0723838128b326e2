//! A private cluster on ports of the loopback interface.
//!
//! Invariant: it is at rest (every node knows every slot's master) when it is handed out.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Listen, PrivateRedis, ports};

const SLOTS: usize = 16_384;
const START_LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);

/// Masters without replicas, with equal shares of the slots.
#[derive(Debug)]
pub struct PrivateCluster {
    nodes: Vec<PrivateRedis>,
    queues: Mutex<Vec<String>>,
}

impl PrivateCluster {
    /// Starts an empty cluster of so many masters.
    ///
    /// # Panics
    /// As [`PrivateRedis::start`].
    #[must_use]
    pub fn start(masters: usize) -> Self {
        let nodes: Vec<PrivateRedis> = (0..masters).map(|_| node()).collect();
        for (number, node) in nodes.iter().enumerate() {
            let (first, last) = share(number, masters);
            node.call(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            node.call(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
        }
        for node in &nodes[1..] {
            nodes[0].call(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), &bus(node)]);
        }
        let cluster = Self { queues: Mutex::new(vec![String::new(); nodes.len()]), nodes };
        cluster.wait_until_at_rest();
        cluster
    }

    /// Its masters, in the order of their slots.
    #[must_use]
    pub fn nodes(&self) -> &[PrivateRedis] {
        &self.nodes
    }

    /// Queues lines, as [`PrivateRedis::pipe`] takes them, for the master of `key`.
    ///
    /// # Panics
    /// When a thread panicked.
    pub fn queue(&self, key: &str, lines: &str) {
        let slot: usize = slot(key.as_bytes());
        let number = (0..self.nodes.len()).find(|number| slot <= share(*number, self.nodes.len()).1);
        self.queues.lock().expect("nobody panicked")[number.unwrap_or(0)].push_str(lines);
    }

    /// Sends what is queued.
    ///
    /// # Panics
    /// When a command fails.
    pub fn send(&self) {
        let mut queues = self.queues.lock().expect("nobody panicked");
        for (node, queue) in self.nodes.iter().zip(queues.iter_mut()) {
            node.pipe(&std::mem::take(queue));
        }
    }

    fn wait_until_at_rest(&self) {
        let started = Instant::now();
        let ready = |node: &PrivateRedis| {
            let slots = node.call(&["CLUSTER", "NODES"]);
            node.call(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
                && slots.lines().filter(|line| line.contains("connected ")).count() == self.nodes.len()
                && slots.lines().all(|line| line.contains('-'))
        };
        while !self.nodes.iter().all(ready) {
            assert!(started.elapsed() < START_LIMIT, "the cluster does not come to rest:\n{}", self.nodes[0].log());
            std::thread::sleep(POLL);
        }
    }
}

fn node() -> PrivateRedis {
    let bus = ports().next().expect("there is always another port").to_string();
    let options = [("cluster-enabled", "yes"), ("cluster-port", bus.as_str()), ("cluster-node-timeout", "15000")];
    PrivateRedis::listening(Listen::Plain, &options)
}

fn bus(node: &PrivateRedis) -> String {
    let reply = node.call(&["CONFIG", "GET", "cluster-port"]);
    reply.lines().nth(1).expect("its bus port").to_owned()
}

fn share(number: usize, of: usize) -> (usize, usize) {
    // As redis-cli --cluster create cuts them.
    let per = SLOTS as f64 / of as f64;
    let first = if number == 0 { 0 } else { share(number - 1, of).1 + 1 };
    let last = if number + 1 == of { SLOTS - 1 } else { (per * (number + 1) as f64 - 1.0).round() as usize };
    (first, last)
}

/// The slot of a key: CRC-16 (XMODEM) of it, or of what stands in its braces.
fn slot(key: &[u8]) -> usize {
    let crc = key.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    });
    usize::from(crc) % SLOTS
}
