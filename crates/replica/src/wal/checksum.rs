//! DuckDB's checksum of WAL frames and file blocks: words multiplied and XORed, the rest of 1–7 bytes hashed (a MurmurHash64A).
//!
//! The XOR makes it blind to the order of words: good against torn writes, useless as identity. Identity is blake3's job.

const WORD: u64 = 0xbf58_476d_1ce4_e5b9;
const M: u64 = 0xc6a4_a793_5bd1_e995;
const SEED: u64 = 0xe17a_1465;
const R: u32 = 47;

/// The checksum over bytes that arrive in pieces.
#[derive(Debug, Clone)]
pub struct Checksum {
    sum: u64,
    rest: [u8; 8],
    rest_len: usize,
}

impl Default for Checksum {
    fn default() -> Self {
        Self::new()
    }
}

impl Checksum {
    /// Of nothing, so far.
    pub fn new() -> Self {
        Self { sum: 5381, rest: [0; 8], rest_len: 0 }
    }

    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if self.rest_len > 0 {
            let take = bytes.len().min(8 - self.rest_len);
            self.rest[self.rest_len..self.rest_len + take].copy_from_slice(&bytes[..take]);
            self.rest_len += take;
            bytes = &bytes[take..];
            if self.rest_len < 8 {
                return;
            }
            self.sum ^= u64::from_le_bytes(self.rest).wrapping_mul(WORD);
            self.rest_len = 0;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        self.sum = words.iter().fold(self.sum, |sum, word| sum ^ u64::from_le_bytes(*word).wrapping_mul(WORD));
        self.rest[..rest.len()].copy_from_slice(rest);
        self.rest_len = rest.len();
    }

    /// The checksum of all bytes added.
    pub fn finish(&self) -> u64 {
        if self.rest_len == 0 { self.sum } else { self.sum ^ remainder(&self.rest[..self.rest_len]) }
    }
}

/// The checksum of `bytes`.
pub fn checksum(bytes: &[u8]) -> u64 {
    let mut sum = Checksum::new();
    sum.update(bytes);
    sum.finish()
}

/// Of 1 to 7 bytes.
fn remainder(bytes: &[u8]) -> u64 {
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(M);
    let tail = bytes.iter().rev().fold(0u64, |tail, byte| (tail << 8) | u64::from(*byte));
    hash = (hash ^ tail).wrapping_mul(M);
    hash ^= hash >> R;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> R)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_flush_frame_has_this_checksum() {
        // A FLUSH payload is five bytes; the value is in every WAL that DuckDB 1.5.5 writes (see testdata).
        let bytes = include_bytes!("../../testdata/small.wal");
        let frame = &bytes[bytes.len() - 21..];
        assert_eq!(&frame[16..], [0x64, 0, 0x64, 0xff, 0xff]);
        assert_eq!(checksum(&frame[16..]).to_le_bytes(), frame[8..16]);
    }

    #[test]
    fn pieces_sum_like_the_whole() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7 + i / 13) as u8).collect();
        for cut in 0..40 {
            for second in [0, 1, 7, 8, 9, 500] {
                let mut sum = Checksum::new();
                sum.update(&bytes[..cut]);
                sum.update(&bytes[cut..cut + second]);
                sum.update(&bytes[cut + second..]);
                assert_eq!(sum.finish(), checksum(&bytes), "{cut} {second}");
            }
        }
    }
}
