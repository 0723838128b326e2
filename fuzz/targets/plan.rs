//! Plans: whatever the text, the answer is a plan whose names are unique, or an error that is a plan's.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use backup_core::engine::EngineDescriptor;
use backup_core::{Error, ErrorKind, plan};

const ENGINES: &[EngineDescriptor] = &[engine("files"), engine("sqlite"), engine("postgres")];

const fn engine(name: &'static str) -> EngineDescriptor {
    EngineDescriptor {
        name,
        summary: "an engine",
        build: |_| Err(Error::new(ErrorKind::Internal, "engines are not built here")),
        schema: || schemars::schema_for!(BTreeMap<String, String>),
        discover: Vec::new,
    }
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    match plan::parse(text, ENGINES) {
        Ok(plan) => {
            let names: BTreeSet<_> = plan.sources.iter().map(|source| &source.name).collect();
            assert_eq!(names.len(), plan.sources.len());
            assert!(!names.is_empty());
            for source in &plan.sources {
                assert!(ENGINES.iter().any(|engine| engine.name == source.engine));
                // Engines read their settings from the same tree.
                let _settings = source.config.parse::<serde_json::Value>();
            }
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Plan, "{error:?}"),
    }
});
