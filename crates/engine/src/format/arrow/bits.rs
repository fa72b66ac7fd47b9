//! Bitmaps, lowest bit first, that grow by words at any bit offset.

/// A growing bitmap. Bits behind the end are zero.
#[derive(Debug, Default)]
pub struct Bits {
    pub bytes: Vec<u8>,
    length: usize,
}

impl Bits {
    /// Appends the lowest `count` (at most 64) bits of `word`.
    pub fn push_word(&mut self, word: u64, count: usize) {
        if count == 0 {
            return;
        }
        let word = if count < 64 { word & ((1 << count) - 1) } else { word };
        let shift = self.length % 8;
        let wide = u128::from(word) << shift;
        let bytes = wide.to_le_bytes();
        let touched = (shift + count).div_ceil(8);
        let mut from = 0;
        if shift > 0 {
            *self.bytes.last_mut().expect("a partial byte is there") |= bytes[0];
            from = 1;
        }
        self.bytes.extend_from_slice(&bytes[from..touched]);
        self.length += count;
    }

    /// Appends `count` times the same bit.
    pub fn push_same(&mut self, bit: bool, count: usize) {
        let word = if bit { u64::MAX } else { 0 };
        for_each_word(count, |_, bits| self.push_word(word, bits));
    }

    /// Appends one bit for each byte: its lowest.
    pub fn push_bools(&mut self, bools: &[u8]) {
        for chunk in bools.chunks(64) {
            let word = chunk.iter().enumerate().fold(0u64, |word, (i, byte)| word | u64::from(byte & 1) << i);
            self.push_word(word, chunk.len());
        }
    }

    /// Starts again with an empty bitmap, whose memory is `bytes`.
    pub fn restart(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        self.length = 0;
        std::mem::replace(&mut self.bytes, bytes)
    }
}

/// Which rows are not NULL. Nothing is stored as long as none is.
#[derive(Debug, Default)]
pub struct Validity {
    bits: Bits,
    rows: usize,
    pub nulls: usize,
}

impl Validity {
    /// Appends rows `start..start + rows` of a mask; no mask means all valid.
    pub fn push(&mut self, mask: Option<&[u64]>, start: usize, rows: usize) {
        let Some(mask) = mask else { return self.push_valid(rows) };
        let mut nulls = 0;
        for_each_word(rows, |at, count| nulls += count - word_at(mask, start + at, count).count_ones() as usize);
        if nulls == 0 {
            return self.push_valid(rows);
        }
        self.store();
        for_each_word(rows, |at, count| self.bits.push_word(word_at(mask, start + at, count), count));
        self.rows += rows;
        self.nulls += nulls;
    }

    /// Appends rows that are all NULL.
    pub fn push_null(&mut self, rows: usize) {
        self.store();
        self.bits.push_same(false, rows);
        self.rows += rows;
        self.nulls += rows;
    }

    fn push_valid(&mut self, rows: usize) {
        if self.nulls > 0 {
            self.bits.push_same(true, rows);
        }
        self.rows += rows;
    }

    /// Writes down the rows so far, which are all valid, before the first NULL.
    fn store(&mut self) {
        if self.nulls == 0 {
            self.bits.push_same(true, self.rows);
        }
    }

    /// The bitmap (empty when no row is NULL) and the number of NULLs; starts again with none.
    pub fn take(&mut self, next: Vec<u8>) -> (Vec<u8>, usize) {
        self.rows = 0;
        (self.bits.restart(next), std::mem::take(&mut self.nulls))
    }

    /// How many bytes are stored.
    pub fn bytes(&self) -> usize {
        self.bits.bytes.len()
    }
}

/// `count` (at most 64) bits of `mask` from bit `start` on.
fn word_at(mask: &[u64], start: usize, count: usize) -> u64 {
    let (word, shift) = (start / 64, start % 64);
    let low = mask[word] >> shift;
    let high = if shift > 0 && shift + count > 64 { mask[word + 1] << (64 - shift) } else { 0 };
    let bits = low | high;
    if count < 64 { bits & ((1 << count) - 1) } else { bits }
}

fn for_each_word(count: usize, mut f: impl FnMut(usize, usize)) {
    for at in (0..count).step_by(64) {
        f(at, (count - at).min(64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bitmap_holds_what_was_pushed(runs in prop::collection::vec((prop::collection::vec(any::<u64>(), 4), 0usize..64, 0usize..180, any::<bool>()), 0..12)) {
            let mut validity = Validity::default();
            let mut expected: Vec<bool> = Vec::new();
            for (mask, start, rows, masked) in &runs {
                validity.push(masked.then_some(&mask[..]), *start, *rows);
                expected.extend((*start..start + rows).map(|i| !masked || mask[i / 64] >> (i % 64) & 1 == 1));
            }
            let (bytes, nulls) = validity.take(Vec::new());
            prop_assert_eq!(nulls, expected.iter().filter(|valid| !**valid).count());
            if nulls > 0 {
                let stored: Vec<bool> = (0..expected.len()).map(|i| bytes[i / 8] >> (i % 8) & 1 == 1).collect();
                prop_assert_eq!(stored, expected);
            }
        }

        #[test]
        fn bools_pack_in_order(bools in prop::collection::vec(any::<bool>(), 0..200), lead in 0usize..9) {
            let mut bits = Bits::default();
            bits.push_same(true, lead);
            bits.push_bools(&bools.iter().map(|b| u8::from(*b)).collect::<Vec<_>>());
            let stored: Vec<bool> = (lead..lead + bools.len()).map(|i| bits.bytes[i / 8] >> (i % 8) & 1 == 1).collect();
            prop_assert_eq!(stored, bools);
        }
    }
}
