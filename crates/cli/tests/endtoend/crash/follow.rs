//! kill -9 of a follower, a hundred times, while the server is under load: no hole, no new snapshot, an equal digest.

use crate::follow::{Followed, wait};

const KILLS: usize = 100;

#[test]
fn a_follower_that_is_killed_a_hundred_times_loses_nothing() {
    let stack = Followed::new("segment_age: 1s, segment_bytes: 65536");
    let load = ["-t", "set,incr,lpush,sadd,hset,zadd", "-r", "20000", "-n", "1000000000", "-c", "2", "-q"];
    let follower = stack.follow();
    wait(|| stack.acknowledged().is_some());
    let benchmark = stack.server.benchmark_in_background(&load);
    wait(|| stack.machine.objects("logs").len() > 2);
    drop(follower);
    for kill in 0..KILLS {
        let before = stack.machine.objects("logs").len();
        let follower = stack.follow();
        // At different points: once it is connected, and after one to six further segments.
        match kill % 7 {
            0 => wait(|| stack.acknowledged().is_some()),
            more => wait(|| stack.machine.objects("logs").len() >= before + more),
        }
        drop(follower);
    }
    drop(benchmark);
    let follower = stack.follow();
    wait(|| stack.acknowledged().is_some());
    stack.archived();
    let status = stack.machine.json("status cache");
    assert_eq!(
        (status["sources"][0]["gaps"].as_array().unwrap().len(), &status["state"]),
        (0, &"ok".into()),
        "{status}"
    );
    assert_eq!(follower.stop().0, 0);
    assert_eq!(stack.machine.snapshots().len(), 1, "every follower went on where the archive ended");
    stack.machine.good("verify");
    let status = stack.machine.json("status cache");
    assert_eq!(status["state"], "warning", "nobody follows any more: {status}");
    assert_eq!(stack.digest_of("--to-latest"), stack.server.digest());
}
