//! Memory is bounded: it does not grow with the data.

use std::os::unix::fs::FileExt;

use crate::support::{Machine, Readers, write_random};

/// What a backup may take, in KiB: the pipeline's queues, two packs being filled, and the program itself unoptimised.
const LIMIT_KIB: i64 = 300 * 1024;
const GIB: u64 = 1 << 30;

/// A file of 1.5 GiB: 300 MiB of noise in two stretches, holes around them.
#[test]
fn a_large_file_takes_no_more_memory_than_a_small_one() {
    let machine = Machine::with_sources("  tree:\n    files: { paths: [tree] }\n", Readers::Everybody);
    std::fs::create_dir(machine.path("tree")).unwrap();
    let large = machine.path("tree/large");
    write_random(&large, 150 << 20);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&large).unwrap();
    file.set_len(3 * GIB / 2).unwrap();
    write_random(&machine.path("noise"), 150 << 20);
    let noise = std::fs::read(machine.path("noise")).unwrap();
    file.write_all_at(&noise, GIB).unwrap();
    drop(noise);
    machine.good("init");
    machine.good("backup");
    // The largest of all children that were waited for, which are this test's own: nextest runs it in a process alone.
    let peak = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).unwrap().max_rss();
    assert!(peak < LIMIT_KIB, "{peak} KiB");
}

/// A string of 330 MiB and collections of 60, over the replication protocol and key by key, checked and exported again.
#[test]
fn a_large_key_takes_no_more_memory_than_a_small_one() {
    let server = backup_testkit::PrivateRedis::start();
    // Noise, so that nothing compresses it; a megabyte of it over and over, so that little is stored.
    let script = "local noise = {} math.randomseed(7) \
        for n = 1, 1048576 do noise[n] = string.char(math.random(0, 255)) end \
        noise = table.concat(noise) \
        redis.call('SET', 'string', string.rep(noise, 330)) \
        for n = 1, 60 do redis.call('RPUSH', 'list', noise) redis.call('HSET', 'hash', n, noise) end";
    server.call(&["EVAL", script, "0"]);
    for modes in ["[rdb]", "[export]"] {
        let source = format!("  cache:\n    redis: {{ socket: {}, modes: {modes} }}\n", server.socket().display());
        let machine = Machine::with_sources(&source, Readers::Everybody);
        machine.good("init");
        machine.good("backup");
        machine.good("verify --depth structure");
        machine.good("restore --target out --select commands");
        assert!(machine.path("out/cache/commands.resp").metadata().unwrap().len() > 400 << 20, "{modes}");
    }
    let peak = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).unwrap().max_rss();
    assert!(peak < LIMIT_KIB, "{peak} KiB");
}
