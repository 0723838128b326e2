//! The listings of tree artifacts.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    storage::fuzzing::entries(bytes);
});
