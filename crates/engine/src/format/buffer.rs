//! Buffers that come back: memory of pieces that were sent is used again for the next ones.
//!
//! A stream of a gigabyte in pieces of a megabyte would otherwise pay for fresh pages again and again. A pool belongs to one
//! encoder; its memory is bounded by what is in flight.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Spare buffers of one encoder.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

/// Most spare buffers that are kept.
const MAX_SPARE: usize = 64;
/// Buffers below this are cheaper to allocate than to keep.
const MIN_POOLED_BYTES: usize = 16 * 1024;

impl Pool {
    /// An empty buffer with room for about `capacity` bytes.
    pub fn take(&self, capacity: usize) -> Vec<u8> {
        if capacity >= MIN_POOLED_BYTES {
            let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let best =
                (0..spare.len()).filter(|&i| spare[i].capacity() >= capacity).min_by_key(|&i| spare[i].capacity());
            if let Some(i) = best {
                return spare.swap_remove(i);
            }
        }
        Vec::with_capacity(capacity)
    }

    /// Hands `buffer` out for reading; its memory comes back when the last reader drops it.
    pub fn freeze(&self, buffer: Vec<u8>) -> Bytes {
        if buffer.capacity() < MIN_POOLED_BYTES {
            return Bytes::from(buffer);
        }
        Bytes::from_owner(Lent { buffer, pool: self.clone() })
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < MAX_SPARE {
            spare.push(buffer);
        }
    }
}

struct Lent {
    buffer: Vec<u8>,
    pool: Pool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_when_the_last_reader_is_gone() {
        let pool = Pool::default();
        let mut buffer = pool.take(100_000);
        buffer.push(7);
        let address = buffer.as_ptr();
        let piece = pool.freeze(buffer);
        let other = piece.clone();
        drop(piece);
        let meanwhile = pool.take(100_000);
        assert_ne!(meanwhile.as_ptr(), address);
        drop(other);
        let again = pool.take(50_000);
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
    }
}
