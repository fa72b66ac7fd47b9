//! The body as a `Read`: it waits for the client as long as it may, counts and hashes what comes, and takes off the content coding.

use std::{
    fmt,
    io::{self, BufRead, Read},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, Bytes};

use super::body::{BodyReceiver, Broken};
use crate::{failure::Failure, wire::Code};

/// Largest window of zstd, as a power of two: that much memory a body may ask for.
const MAX_WINDOW_LOG: u32 = 25;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Not at all.
    Identity,
    /// gzip, of any number of members.
    Gzip,
    /// zstd, of any number of frames.
    Zstd,
}

impl Coding {
    /// From `Content-Encoding`.
    pub fn from_header(text: &str) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Self::Identity),
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Called with each read, and while the client sends nothing with the time that has passed so; an error ends the body.
pub type Watch<'a> = Arc<dyn Fn(Duration) -> Result<(), Failure> + Send + Sync + 'a>;

/// What a body is known by: the hash of its bytes without the content coding, once it was read to its end.
#[derive(Clone, Default)]
pub struct Hash(Option<Arc<Mutex<blake3::Hasher>>>);

impl Hash {
    /// One that is taken, at the cost of a pass over the bytes.
    pub fn taken() -> Self {
        Self(Some(Arc::default()))
    }

    /// As text; empty if it is not taken.
    pub fn text(&self) -> String {
        let hash = |hasher: &Arc<Mutex<blake3::Hasher>>| {
            hasher.lock().unwrap_or_else(PoisonError::into_inner).finalize().to_hex().to_string()
        };
        self.0.as_ref().map(hash).unwrap_or_default()
    }

    fn update(&self, bytes: &[u8]) {
        if let Some(hasher) = &self.0 {
            hasher.lock().unwrap_or_else(PoisonError::into_inner).update(bytes);
        }
    }
}

/// A body without its content coding.
pub struct BodyReader<'a> {
    inner: Box<dyn Read + Send + 'a>,
    hash: Hash,
    watch: Watch<'a>,
}

impl<'a> BodyReader<'a> {
    /// Reads what `receiver` gets.
    pub fn new(receiver: BodyReceiver, coding: Coding, hash: Hash, watch: Watch<'a>) -> io::Result<Self> {
        let raw = Raw { receiver, piece: Bytes::new(), watch: watch.clone() };
        let inner: Box<dyn Read + Send + 'a> = match coding {
            Coding::Identity => Box::new(raw),
            Coding::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
            Coding::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(raw)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Box::new(decoder)
            }
        };
        Ok(Self { inner, hash, watch })
    }

    /// Reads what is left and drops it; the body has to end well. Gives how many bytes it was.
    pub fn drain(&mut self) -> io::Result<u64> {
        io::copy(self, &mut io::sink())
    }
}

impl Read for BodyReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        // A client that sends without a pause is stopped as well, and so is a small body that unpacks to a large one.
        (self.watch)(Duration::ZERO).map_err(Cut)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

struct Raw<'a> {
    receiver: BodyReceiver,
    piece: Bytes,
    watch: Watch<'a>,
}

impl BufRead for Raw<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.receiver.next(|waited| (self.watch)(waited).map_err(Cut))? {
                Some(piece) => self.piece = piece,
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, bytes: usize) {
        self.piece.advance(bytes);
    }
}

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let read = bytes.len().min(buffer.len());
        buffer[..read].copy_from_slice(&bytes[..read]);
        self.consume(read);
        Ok(read)
    }
}

/// A failure on its way through `io::Error`.
#[derive(Debug)]
struct Cut(Failure);

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Cut {}

impl From<Cut> for io::Error {
    fn from(cut: Cut) -> Self {
        io::Error::other(cut)
    }
}

impl From<Broken> for Cut {
    fn from(_: Broken) -> Self {
        Cut(Failure::new(Code::Invalid, "the body stops half way; nothing of it was kept"))
    }
}

/// What went wrong while a body was read.
pub fn read_failure(error: io::Error) -> Failure {
    match error.downcast::<Cut>() {
        Ok(cut) => cut.0,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Failure::new(Code::Invalid, "the body ends too early; nothing of it was kept")
        }
        Err(error) => Failure::new(Code::Invalid, format!("the body can't be decoded: {error}"))
            .hint("`Content-Encoding` is identity, gzip or zstd (with a window of up to 32 MB)"),
    }
}
