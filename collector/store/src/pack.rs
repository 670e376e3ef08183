//! Bytes in and out: varints, texts and packed columns of numbers. Shared by the journal's records and the blocks.
//!
//! A packed column is `width(1) base(varint) data(count * width)`: the smallest value is taken off, the rest is
//! kept in 0, 1, 2, 4 or 8 bytes each. In a block the bytes of a column are further laid out in planes (all lowest bytes,
//! then all second bytes, …), since zstd finds far more in them. The reader trusts nothing: every length is checked
//! against what is left before anything is allocated.

use crate::Damaged;

pub fn corrupt(what: &'static str) -> Damaged {
    Damaged(what)
}

/// A zstd frame with its size and a checksum, for what is read without a length beside it: `segment::inflate_sized` turns it back.
pub fn frame(bytes: &[u8]) -> Vec<u8> {
    let compress = || -> std::io::Result<Vec<u8>> {
        let mut compressor = zstd::bulk::Compressor::new(3)?;
        compressor.include_checksum(true)?;
        compressor.compress(bytes)
    };
    compress().expect("zstd compresses into memory")
}

pub trait Writer {
    fn varint(&mut self, value: u64);
    fn zigzag(&mut self, value: i64);
    fn text(&mut self, bytes: &[u8]);
    fn packed(&mut self, values: &[u64]);
    fn packed_u32(&mut self, values: &[u32]);
}

impl Writer for Vec<u8> {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn zigzag(&mut self, value: i64) {
        self.varint(zigzag(value));
    }

    fn text(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.extend_from_slice(bytes);
    }

    fn packed(&mut self, values: &[u64]) {
        let (base, max) = values.iter().fold((u64::MAX, 0), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
        let base = if values.is_empty() { 0 } else { base };
        let width = width_of(max.saturating_sub(base));
        self.push(width);
        self.varint(base);
        match width {
            0 => {}
            1 => self.extend(values.iter().map(|v| (v - base) as u8)),
            2 => extend_le(self, values.iter().map(|v| ((v - base) as u16).to_le_bytes())),
            4 => extend_le(self, values.iter().map(|v| ((v - base) as u32).to_le_bytes())),
            _ => extend_le(self, values.iter().map(|v| (v - base).to_le_bytes())),
        }
    }

    fn packed_u32(&mut self, values: &[u32]) {
        let (base, max) = values.iter().fold((u32::MAX, 0), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
        let base = if values.is_empty() { 0 } else { base };
        let width = width_of(max.saturating_sub(base).into());
        self.push(width);
        self.varint(base.into());
        match width {
            0 => {}
            1 => self.extend(values.iter().map(|v| (v - base) as u8)),
            2 => extend_le(self, values.iter().map(|v| ((v - base) as u16).to_le_bytes())),
            _ => extend_le(self, values.iter().map(|v| (v - base).to_le_bytes())),
        }
    }
}

fn extend_le<const N: usize>(out: &mut Vec<u8>, values: impl ExactSizeIterator<Item = [u8; N]>) {
    let start = out.len();
    out.resize(start + values.len() * N, 0);
    for (to, from) in out[start..].chunks_exact_mut(N).zip(values) {
        to.copy_from_slice(&from);
    }
}

fn width_of(range: u64) -> u8 {
    match range {
        0 => 0,
        1..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    }
}

pub fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

pub fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// As `packed`, with as many byte planes as the largest value needs (three, say), for a column chunk of a block.
pub fn write_planes(out: &mut Vec<u8>, values: &[u64]) {
    let (base, max) = values.iter().fold((u64::MAX, 0), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
    let base = if values.is_empty() { 0 } else { base };
    let range = max.saturating_sub(base);
    let planes = (64 - range.leading_zeros()).div_ceil(8) as usize;
    out.push(planes as u8);
    out.varint(base);
    for plane in 0..planes {
        out.extend(values.iter().map(|v| ((v - base) >> (plane * 8)) as u8));
    }
}

/// A column in planes, as it lies: any value can be taken out without the others.
#[derive(Clone, Copy)]
pub struct Planes<'a> {
    base: u64,
    count: usize,
    /// `count` bytes for each plane, the lowest first.
    bytes: &'a [u8],
}

impl<'a> Planes<'a> {
    pub fn read(reader: &mut Cursor<'a>, count: usize) -> Result<Planes<'a>, Damaged> {
        let planes = reader.byte()? as usize;
        if planes > 8 {
            return Err(corrupt("more than eight byte planes"));
        }
        let base = reader.varint()?;
        let bytes = reader.take(count.checked_mul(planes).ok_or(corrupt("a column too long"))?)?;
        Ok(Planes { base, count, bytes })
    }

    pub fn get(&self, at: usize) -> Option<u64> {
        (at < self.count).then(|| {
            let planes = self.bytes.chunks_exact(self.count).enumerate();
            planes.fold(self.base, |value, (plane, bytes)| value.wrapping_add(u64::from(bytes[at]) << (plane * 8)))
        })
    }

    pub fn to_vec(self) -> Vec<u64> {
        let mut values = vec![self.base; self.count];
        for (plane, bytes) in self.bytes.chunks_exact(self.count.max(1)).enumerate() {
            for (value, byte) in values.iter_mut().zip(bytes) {
                *value = value.wrapping_add(u64::from(*byte) << (plane * 8));
            }
        }
        values
    }

    /// The sum of the values before one, when it fits.
    pub fn sum_before(&self, at: usize) -> Option<u64> {
        let at = at.min(self.count);
        let planes = self.bytes.chunks_exact(self.count.max(1)).enumerate();
        planes
            .map(|(plane, bytes)| (plane, bytes[..at].iter().map(|b| u64::from(*b)).sum::<u64>()))
            .try_fold(self.base.checked_mul(at as u64)?, |sum, (plane, part)| {
                sum.checked_add(part.checked_shl(plane as u32 * 8).filter(|shifted| shifted >> (plane * 8) == part)?)
            })
    }

    /// How many of the values before one are equal to it.
    pub fn rank(&self, at: usize) -> usize {
        let mut planes = self.bytes.chunks_exact(self.count.max(1));
        match (planes.next(), planes.next()) {
            (None, _) => at.min(self.count),
            (Some(bytes), None) => bytes[..at].iter().filter(|b| **b == bytes[at]).count(),
            _ => {
                let planes: Vec<&[u8]> = self.bytes.chunks_exact(self.count.max(1)).collect();
                (0..at).filter(|before| planes.iter().all(|plane| plane[*before] == plane[at])).count()
            }
        }
    }
}

/// Reads what `Writer` wrote, checking every length.
#[derive(Clone, Copy)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { rest: bytes }
    }

    pub fn left(&self) -> usize {
        self.rest.len()
    }

    pub fn byte(&mut self) -> Result<u8, Damaged> {
        let (first, rest) = self.rest.split_first().ok_or(corrupt("an early end"))?;
        self.rest = rest;
        Ok(*first)
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Damaged> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(corrupt("an early end"))?;
        self.rest = rest;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(corrupt("an early end"))?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    pub fn varint(&mut self) -> Result<u64, Damaged> {
        // Most numbers are small.
        match self.rest {
            [byte @ ..0x80, rest @ ..] => {
                self.rest = rest;
                Ok((*byte).into())
            }
            _ => self.long_varint(),
        }
    }

    #[inline(never)]
    fn long_varint(&mut self) -> Result<u64, Damaged> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(corrupt("a number of more than ten bytes"))
    }

    pub fn zigzag(&mut self) -> Result<i64, Damaged> {
        Ok(unzigzag(self.varint()?))
    }

    pub fn u32(&mut self) -> Result<u32, Damaged> {
        u32::try_from(self.varint()?).map_err(|_| corrupt("a number beyond 32 bits"))
    }

    /// A count of things that take at least one byte each: never more than what is left.
    pub fn count(&mut self) -> Result<usize, Damaged> {
        let count = self.varint()? as usize;
        if count > self.rest.len() { Err(corrupt("a count beyond the end")) } else { Ok(count) }
    }

    pub fn text(&mut self) -> Result<&'a [u8], Damaged> {
        let length = self.count()?;
        self.take(length)
    }

    pub fn string(&mut self) -> Result<String, Damaged> {
        let bytes = self.text()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| corrupt("a string that is not UTF-8"))
    }

    pub fn packed(&mut self, count: usize) -> Result<Vec<u64>, Damaged> {
        let width = self.byte()? as usize;
        let base = self.varint()?;
        let bytes = self.take(count.checked_mul(width).ok_or(corrupt("a column too long"))?)?;
        Ok(match width {
            0 => vec![base; count],
            1 => bytes.iter().map(|b| base.wrapping_add((*b).into())).collect(),
            2 => bytes.chunks_exact(2).map(|b| base.wrapping_add(u16::from_le_bytes([b[0], b[1]]).into())).collect(),
            4 => bytes.chunks_exact(4).map(|b| base.wrapping_add(u32::from_le_bytes([b[0], b[1], b[2], b[3]]).into())).collect(),
            8 => bytes.as_chunks::<8>().0.iter().map(|b| base.wrapping_add(u64::from_le_bytes(*b))).collect(),
            _ => return Err(corrupt("a column of unknown width")),
        })
    }

    /// A packed column of 32-bit numbers, each below `bound`.
    pub fn packed_u32(&mut self, count: usize, bound: usize) -> Result<Vec<u32>, Damaged> {
        let values = self.packed(count)?;
        let mut narrow = Vec::with_capacity(count);
        for value in values {
            if value >= bound as u64 {
                return Err(corrupt("a reference to nothing"));
            }
            narrow.push(value as u32);
        }
        Ok(narrow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_columns_are_read_as_written(values in prop::collection::vec(any::<u64>(), 0..50), shift in 0u32..64) {
            let values: Vec<u64> = values.iter().map(|v| v >> shift).collect();
            let narrow: Vec<u32> = values.iter().map(|v| (*v >> 32) as u32).collect();
            let mut bytes = Vec::new();
            bytes.packed(&values);
            write_planes(&mut bytes, &values);
            bytes.packed_u32(&narrow);
            let mut reader = Cursor::new(&bytes);
            prop_assert_eq!(&reader.packed(values.len()).expect("own bytes"), &values);
            prop_assert_eq!(&Planes::read(&mut reader, values.len()).expect("own bytes").to_vec(), &values);
            prop_assert_eq!(reader.packed_u32(narrow.len(), usize::MAX).expect("own bytes"), narrow);
            prop_assert_eq!(reader.left(), 0);
        }

        #[test]
        fn a_value_of_a_column_is_found_without_the_others(
            values in prop::collection::vec(any::<u64>(), 1..50), shift in 0u32..64, at in any::<prop::sample::Index>()
        ) {
            let values: Vec<u64> = values.iter().map(|v| v >> shift).collect();
            let mut bytes = Vec::new();
            write_planes(&mut bytes, &values);
            let planes = Planes::read(&mut Cursor::new(&bytes), values.len()).expect("own bytes");
            let at = at.index(values.len());
            prop_assert_eq!(planes.get(at), Some(values[at]));
            prop_assert_eq!(planes.get(values.len()), None);
            prop_assert_eq!(planes.rank(at), values[..at].iter().filter(|v| **v == values[at]).count());
            let sum = values[..at].iter().try_fold(0u64, |sum, v| sum.checked_add(*v));
            prop_assert_eq!(planes.sum_before(at), sum);
        }

        #[test]
        fn zigzag_turns_back(value in any::<i64>()) {
            prop_assert_eq!(unzigzag(zigzag(value)), value);
        }
    }
}
