//! An answer that has to wait for its commit: in memory up to a limit, then in a temporary file that has no name any more, whose bytes
//! count against the engine's temporary space as those of the spool do.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    sync::Arc,
};

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    failure::Failure,
    load::spool::{Room, Spool, full},
};

/// Bytes kept in memory: of each answer, for as long as its client takes to read it.
const MEMORY_BYTES: usize = 4 << 20;
/// Pieces read back from the file.
const PIECE_BYTES: usize = 1 << 20;

/// A growing answer.
pub struct Buffer {
    spool: Arc<Spool>,
    pieces: Vec<Bytes>,
    bytes: usize,
    file: Option<(File, Room)>,
}

/// A complete answer.
pub enum Kept {
    /// All of it.
    Memory(Vec<Bytes>),
    /// From the file's beginning.
    File(File, Room),
}

impl Buffer {
    /// Empty; spills where `spool` is.
    pub fn new(spool: Arc<Spool>) -> Self {
        Self { spool, pieces: Vec::new(), bytes: 0, file: None }
    }

    /// Appends; fails if the temporary space is used up.
    pub fn push(&mut self, pieces: Vec<Bytes>) -> Result<(), Failure> {
        self.bytes += pieces.iter().map(Bytes::len).sum::<usize>();
        self.pieces.extend(pieces);
        if self.bytes <= MEMORY_BYTES {
            return Ok(());
        }
        if self.file.is_none() {
            let path = self.spool.path(&format!("{}.answer", Uuid::new_v4().simple()));
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(full)?;
            std::fs::remove_file(&path).map_err(full)?;
            self.file = Some((file, self.spool.room()));
        }
        let (file, room) = self.file.as_mut().expect("made above");
        for piece in self.pieces.drain(..) {
            room.take(piece.len() as u64)?;
            file.write_all(&piece).map_err(full)?;
        }
        Ok(())
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole answer.
    pub fn finish(self) -> Result<Kept, Failure> {
        match self.file {
            None => Ok(Kept::Memory(self.pieces)),
            Some((mut file, room)) => {
                file.rewind().map_err(full)?;
                Ok(Kept::File(file, room))
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
        let spool = Spool::open(dir.path(), 50 << 20).expect("opens");
        let mut buffer = Buffer::new(spool.clone());
        let piece = Bytes::from(vec![7u8; 3 << 20]);
        for _ in 0..15 {
            buffer.push(vec![piece.clone()]).expect("writes");
        }
        assert_eq!(std::fs::read_dir(Spool::dir(dir.path())).expect("lists").count(), 0);
        let mut second = Buffer::new(spool.clone());
        second.push(vec![piece.clone()]).expect("is in memory");
        assert_eq!(second.push(vec![piece]).expect_err("the space is used up").code, crate::wire::Code::Limited);
        drop(second);
        let Kept::File(mut file, room) = buffer.finish().expect("rewinds") else { panic!("45 MB stay in memory") };
        let mut total = 0;
        while let Some(piece) = next_piece(&mut file).expect("reads") {
            assert!(piece.iter().all(|byte| *byte == 7));
            total += piece.len();
        }
        assert_eq!((total, spool.used_bytes()), (45 << 20, 45 << 20));
        drop(room);
        assert_eq!(spool.used_bytes(), 0);
    }
}
