//! The parsers of foreign bytes, for the fuzz targets in `fuzz/`: each checks what it decodes against its encoder.
//!
//! Invariant: each returns whether the bytes decoded, and panics only when the parser is wrong.

/// An index object's document, as it is before sealing.
pub fn index(plain: &[u8]) -> bool {
    crate::repository::fuzzing::index(plain)
}

/// A pack whose table of contents is not sealed.
pub fn pack(object: &[u8]) -> bool {
    crate::repository::fuzzing::pack(object)
}

/// The listing of a tree artifact.
pub fn entries(listing: &[u8]) -> bool {
    crate::repository::fuzzing::entries(listing)
}

/// The page map of an artifact.
pub fn page_map(map: &[u8]) -> bool {
    crate::repository::fuzzing::page_map(map)
}

/// The archive of a tree in a plain directory, not compressed.
pub fn directory_tar(archive: &[u8]) -> bool {
    crate::directory::fuzzing::tar(archive)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    /// Compares the committed seeds of `target` with `seeds`, and sees that each decodes; writes them anew when
    /// `STACKWARD_WRITE_SEEDS` is set. Inputs that once failed lie beside them, named `found-…`, and must not again.
    pub(crate) fn assert_seeds(target: &str, seeds: &[(&str, Vec<u8>)], parse: fn(&[u8]) -> bool) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
        if std::env::var_os("STACKWARD_WRITE_SEEDS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            for (name, seed) in seeds {
                std::fs::write(folder.join(name), seed).unwrap();
            }
        }
        for (name, seed) in seeds {
            let kept = std::fs::read(folder.join(name)).unwrap();
            assert!(kept == *seed, "{target}/{name}: repeat the test with STACKWARD_WRITE_SEEDS=1");
            assert!(parse(seed), "{target}/{name} does not decode");
        }
        for item in std::fs::read_dir(&folder).unwrap() {
            parse(&std::fs::read(item.unwrap().path()).unwrap());
        }
    }
}
