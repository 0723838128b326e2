//! Index objects, as they are once their box is open.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    storage::fuzzing::index(bytes);
});
