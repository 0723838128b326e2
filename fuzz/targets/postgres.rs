//! What a PostgreSQL server sends: archives, incremental files, its manifest, bodies of messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    engine_postgres::fuzzing::server_bytes(bytes);
});
