//! The archives of trees in a plain directory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    storage::fuzzing::directory_tar(bytes);
});
