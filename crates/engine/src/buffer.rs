//! An answer that has to wait for its commit: in memory up to a limit, then in a temporary file that has no name any more.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::Path,
};

use bytes::Bytes;
use uuid::Uuid;

/// Bytes kept in memory.
const MEMORY_BYTES: usize = 32 << 20;
/// Pieces read back from the file.
const PIECE_BYTES: usize = 1 << 20;

/// A growing answer.
pub struct Buffer<'a> {
    dir: &'a Path,
    pieces: Vec<Bytes>,
    bytes: usize,
    file: Option<File>,
}

/// A complete answer.
pub enum Kept {
    /// All of it.
    Memory(Vec<Bytes>),
    /// From the file's beginning.
    File(File),
}

impl<'a> Buffer<'a> {
    /// Empty; spills into `dir`.
    pub fn new(dir: &'a Path) -> Self {
        Self { dir, pieces: Vec::new(), bytes: 0, file: None }
    }

    /// Appends.
    pub fn push(&mut self, pieces: Vec<Bytes>) -> io::Result<()> {
        self.bytes += pieces.iter().map(Bytes::len).sum::<usize>();
        self.pieces.extend(pieces);
        if self.bytes <= MEMORY_BYTES {
            return Ok(());
        }
        if self.file.is_none() {
            let path = self.dir.join(format!("{}.answer", Uuid::new_v4()));
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            self.file = Some(file);
        }
        let file = self.file.as_mut().expect("made above");
        for piece in self.pieces.drain(..) {
            file.write_all(&piece)?;
        }
        Ok(())
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole answer.
    pub fn finish(self) -> io::Result<Kept> {
        match self.file {
            None => Ok(Kept::Memory(self.pieces)),
            Some(mut file) => {
                file.rewind()?;
                Ok(Kept::File(file))
            }
        }
    }
}

/// The next piece of a kept file, `None` at its end.
pub fn next_piece(file: &mut File) -> io::Result<Option<Bytes>> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    file.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
    Ok((!piece.is_empty()).then(|| piece.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_answer_comes_back_from_its_file_and_leaves_no_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut buffer = Buffer::new(dir.path());
        let piece = Bytes::from(vec![7u8; 3 << 20]);
        for _ in 0..15 {
            buffer.push(vec![piece.clone()]).expect("writes");
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
        let Kept::File(mut file) = buffer.finish().expect("rewinds") else { panic!("45 MB stay in memory") };
        let mut total = 0;
        while let Some(piece) = next_piece(&mut file).expect("reads") {
            assert!(piece.iter().all(|byte| *byte == 7));
            total += piece.len();
        }
        assert_eq!(total, 45 << 20);
    }
}
