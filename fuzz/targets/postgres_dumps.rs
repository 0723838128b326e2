//! What is read of dumps: archives of `pg_dump`, scripts of `pg_dumpall`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    engine_postgres::fuzzing::dump_bytes(bytes);
});
