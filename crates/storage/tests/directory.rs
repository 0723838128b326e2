//! Plain directories with the tools of every system: `sha256sum`, `tar`, `zstd`, `gzip`; and with damage.

mod directory {
    pub(crate) mod support;

    mod damage;
    mod lifecycle;
    mod tools;
}
