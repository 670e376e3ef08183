//! A bloom filter of trace ids, one a block: ten bits a trace let one block in a hundred be opened in vain.

const BITS_PER_KEY: usize = 10;
const HASHES: u64 = 6;

#[derive(Clone, Debug)]
pub struct Bloom {
    bits: Vec<u8>,
}

impl Bloom {
    pub fn sized(keys: usize) -> Bloom {
        Bloom { bits: vec![0; (keys * BITS_PER_KEY).div_ceil(8).max(8)] }
    }

    pub fn from_bytes(bits: Vec<u8>) -> Bloom {
        Bloom { bits }
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bits
    }

    pub fn byte_len(&self) -> usize {
        self.bits.len()
    }

    /// Trace ids are random already, but a client may choose them: multiplying spreads what it chose.
    fn places(&self, id: &[u8; 16]) -> impl Iterator<Item = u64> + use<> {
        let id = u128::from_le_bytes(*id);
        let mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let (a, b) = ((mixed >> 64) as u64, mixed as u64 ^ (id >> 64) as u64 | 1);
        let count = self.bits.len() as u64 * 8;
        (0..HASHES).map(move |i| ((u128::from(a.wrapping_add(b.wrapping_mul(i))) * u128::from(count)) >> 64) as u64)
    }

    pub fn insert(&mut self, id: &[u8; 16]) {
        for place in self.places(id) {
            self.bits[place as usize / 8] |= 1 << (place % 8);
        }
    }

    pub fn may_contain(&self, id: &[u8; 16]) -> bool {
        !self.bits.is_empty() && self.places(id).all(|place| self.bits[place as usize / 8] & (1 << (place % 8)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_knows_all_it_was_given_and_little_else() {
        let id = |n: u64| u128::from(n).wrapping_mul(0x2545_f491_4f6c_dd1d_9e37_79b9_7f4a_7c15).to_be_bytes();
        let mut bloom = Bloom::sized(2000);
        (0..2000).for_each(|n| bloom.insert(&id(n)));
        assert!((0..2000).all(|n| bloom.may_contain(&id(n))));
        let wrong = (2000..102_000).filter(|n| bloom.may_contain(&id(*n))).count();
        assert!(wrong < 2_500, "{wrong} of 100,000 strangers were let in");
    }
}
