//! Manifests: what parses is rendered again and parses to the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = backup_core::manifest::parse(bytes) else { return };
    let rendered = backup_core::manifest::render(&manifest).expect("what was parsed can be written");
    let again = backup_core::manifest::parse(&rendered).expect("what was written parses");
    // Floating-point numbers in an engine's details may lose a last digit in the first reading, not in the second.
    assert_eq!(backup_core::manifest::render(&again).expect("it can be written"), rendered);
});
