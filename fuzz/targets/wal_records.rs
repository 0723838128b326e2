//! Stretches of a write-ahead log.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    engine_postgres::fuzzing::wal(bytes);
});
