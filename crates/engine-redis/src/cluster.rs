//! The masters of a cluster and their slots, as any node of it tells.
//!
//! Invariant: a map is used only while it stands still: what moves between two masters could be in neither's snapshot.

use std::collections::BTreeMap;

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};

use crate::config::Address;
use crate::connection::{Connection, Reply};
use crate::rdb::{SLOTS, Slots};
use crate::replies::nonsense;
use crate::server::Server;

/// One master.
#[derive(Debug, Clone)]
pub(crate) struct Master {
    /// Its id.
    pub(crate) node: String,
    pub(crate) server: Server,
    pub(crate) slots: Slots,
}

/// All masters that serve slots, in the order of their first slot.
#[derive(Debug, Clone)]
pub(crate) struct Map(pub(crate) Vec<Master>);

impl Map {
    /// Asks the node that `connection` goes to; the others are reached as `server` is.
    pub(crate) async fn ask(connection: &mut Connection, server: &Server) -> Result<Self> {
        let own = connection.ask(&["CLUSTER", "MYID"]).await?.text().unwrap_or_default();
        let reply = connection.call(&["CLUSTER", "SLOTS"]).await?;
        let mut nodes: BTreeMap<String, Told> = BTreeMap::new();
        for entry in reply.items() {
            let (slots, node, address) = range(entry, server)?;
            nodes.entry(node).or_insert(Told { address, slots: Vec::new() }).slots.push(slots);
        }
        let mut masters = Vec::new();
        for (node, Told { address, slots }) in nodes {
            // Ourselves: as we got here, perhaps over a socket.
            let there = match address {
                Some(address) if node != own => server.at(address),
                _ if node == own => server.clone(),
                _ => return Err(unknown_address(&node)),
            };
            masters.push(Master { node, server: there, slots: Slots::of(slots) });
        }
        masters.sort_by_key(|master| master.slots.ranges().first().copied());
        Ok(Self(masters))
    }

    /// Fails while slots move from one master to another.
    pub(crate) async fn refuse_movement(&self, cx: &RunContext) -> Result<()> {
        for master in &self.0 {
            let mut connection = master.server.connect(cx).await?;
            let nodes = connection.call(&["CLUSTER", "NODES"]).await?.text().unwrap_or_default();
            // `[slot->-node]` and `[slot-<-node]` stand behind the slots of the node that is asked.
            let moving = nodes.lines().filter(|line| line.contains("myself")).any(|line| line.contains(" ["));
            if moving {
                return Err(moved(&format!("slots of {} are being moved", master.server.describe())));
            }
        }
        Ok(())
    }

    /// Fails unless the other map says the same.
    pub(crate) fn refuse_change(&self, after: &Self) -> Result<()> {
        let slots =
            |map: &Self| map.0.iter().map(|master| (master.node.clone(), master.slots.clone())).collect::<Vec<_>>();
        if slots(self) == slots(after) { Ok(()) } else { Err(moved("slots were moved while the masters were saved")) }
    }

    /// How many slots nobody serves.
    pub(crate) fn unserved(&self) -> u16 {
        SLOTS - self.0.iter().map(|master| master.slots.count()).sum::<u16>().min(SLOTS)
    }
}

fn moved(what: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("{what}: their keys could be missed"))
        .hint("wait until the cluster is at rest (`redis-cli --cluster check HOST:PORT`), then run it again")
        .retry_later()
}

fn unknown_address(node: &str) -> Error {
    Error::new(ErrorKind::Unreachable, format!("the cluster does not tell the address of its node {node}"))
        .hint("set `cluster-announce-ip` on its nodes, or save each as a source of its own with `cluster: node`")
}

/// What is told of one master.
struct Told {
    address: Option<Address>,
    slots: Vec<(u16, u16)>,
}

/// One entry of `CLUSTER SLOTS`: first slot, last slot, the master, its replicas.
fn range(entry: &Reply, server: &Server) -> Result<((u16, u16), String, Option<Address>)> {
    let wrong = || nonsense("slots that are none");
    let [first, last, master, ..] = entry.items() else { return Err(wrong()) };
    let number = |reply: &Reply| match reply {
        Reply::Integer(number) => u16::try_from(*number).ok().filter(|number| *number < SLOTS),
        _ => None,
    };
    let (first, last) = (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?);
    let [host, Reply::Integer(port), node, ..] = master.items() else { return Err(wrong()) };
    let port = u16::try_from(*port).map_err(|_| wrong())?;
    // A node that knows no address of its own is where we reached it.
    let host = host.text().filter(|host| !host.is_empty() && host != "?").or_else(|| server.host().map(str::to_owned));
    let address = host.map(|host| Address::Tcp { host, port });
    Ok(((first, last), node.text().ok_or_else(wrong)?, address))
}
