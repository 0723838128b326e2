//! Packs: header, footer and table of contents.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    storage::fuzzing::pack(bytes);
});
