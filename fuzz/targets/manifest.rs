//! Manifests: what parses is rendered again and parses to the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = backup_core::manifest::parse(bytes) else { return };
    // What every command asks of a manifest, whatever sizes an enemy wrote into it.
    let summary = backup_core::sink::SnapshotSummary::of(&manifest);
    assert_eq!(summary.sources.len() + summary.failed.len(), manifest.sources.len());
    for source in &manifest.sources {
        assert!(source.bytes() <= manifest.bytes());
        for group in source.fingerprint.0.keys() {
            let _total = source.fingerprint.total(group);
        }
    }
    let rendered = backup_core::manifest::render(&manifest).expect("what was parsed can be written");
    let again = backup_core::manifest::parse(&rendered).expect("what was written parses");
    // Numbers in an engine's details, too, whatever digits they have (`float_roundtrip` of serde_json).
    assert_eq!(backup_core::manifest::render(&again).expect("it can be written"), rendered);
});
