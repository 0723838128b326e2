//! How the files of a plain directory are compressed.
//!
//! Invariant: whatever is written ends with the format's own checksum; whatever is read is read to the end of the file.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::CompressionConfig;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

/// Standard tools' own defaults: 3 for zstd, 6 for gzip.
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: u32 = 6;
const BUFFER_BYTES: usize = 256 * 1024;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl From<CompressionConfig> for Compression {
    fn from(config: CompressionConfig) -> Self {
        match config {
            CompressionConfig::None => Self::None,
            CompressionConfig::Gzip => Self::Gzip,
            CompressionConfig::Zstd => Self::Zstd,
        }
    }
}

impl Compression {
    /// As manifests call it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The end of a file's name.
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => ".gz",
            Self::Zstd => ".zst",
        }
    }

    /// What a manifest says.
    pub(super) fn parse(name: &str) -> Result<Self> {
        [Self::None, Self::Gzip, Self::Zstd].into_iter().find(|known| known.name() == name).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("the compression `{}` is not known", name.escape_debug()))
                .hint("use a newer stackward")
        })
    }
}

/// Compresses into `W`.
pub(super) enum Encoder<W: Write> {
    None(BufWriter<W>),
    Gzip(BufWriter<GzEncoder<W>>),
    Zstd(BufWriter<zstd::Encoder<'static, W>>),
}

impl<W: Write> Encoder<W> {
    pub(super) fn new(to: W, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(BufWriter::with_capacity(BUFFER_BYTES, to)),
            Compression::Gzip => {
                let encoder = GzEncoder::new(to, flate2::Compression::new(GZIP_LEVEL));
                Self::Gzip(BufWriter::with_capacity(BUFFER_BYTES, encoder))
            }
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(to, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Self::Zstd(BufWriter::with_capacity(BUFFER_BYTES, encoder))
            }
        })
    }

    /// Writes the end and returns what was written into.
    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::None(writer) => writer.into_inner().map_err(io::IntoInnerError::into_error),
            Self::Gzip(writer) => writer.into_inner().map_err(io::IntoInnerError::into_error)?.finish(),
            Self::Zstd(writer) => writer.into_inner().map_err(io::IntoInnerError::into_error)?.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(writer) => writer.write(data),
            Self::Gzip(writer) => writer.write(data),
            Self::Zstd(writer) => writer.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(writer) => writer.flush(),
            Self::Gzip(writer) => writer.flush(),
            Self::Zstd(writer) => writer.flush(),
        }
    }
}

/// Decompresses from `R`; its end is the end of `R`.
pub(super) enum Decoder<R: Read> {
    None(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(from: R, compression: Compression) -> io::Result<Self> {
        let from = BufReader::with_capacity(BUFFER_BYTES, from);
        Ok(match compression {
            Compression::None => Self::None(from),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(from))),
            Compression::Zstd => Self::Zstd(Box::new(zstd::Decoder::with_buffer(from)?)),
        })
    }

    /// Returns what was read from, once the decoder came to its end and nothing follows.
    pub(super) fn finish(self) -> io::Result<R> {
        let mut from = match self {
            Self::None(reader) => reader,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        };
        if from.fill_buf()?.is_empty() {
            return Ok(from.into_inner());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "something follows the end of the compressed data"))
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(reader) => reader.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}
