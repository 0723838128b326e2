//! The page maps of artifacts.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    storage::fuzzing::page_map(bytes);
});
