//! Protobuf's wire format: a message is a sequence of fields, `tag value`; a tag is `number << 3 | wire type`.

use crate::validate::Reason;

/// The bytes are not a sequence of fields.
#[derive(Debug)]
pub(super) struct Broken;

impl From<Broken> for Reason {
    fn from(_: Broken) -> Reason {
        Reason::Malformed
    }
}

pub(super) const VARINT: u8 = 0;
pub(super) const FIXED64: u8 = 1;
pub(super) const LEN: u8 = 2;
pub(super) const FIXED32: u8 = 5;

#[derive(Clone, Copy)]
pub(super) struct Walk<'a> {
    pub(super) rest: &'a [u8],
}

/// A field as it stands on the wire.
#[derive(Clone, Copy)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Len(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Walk<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Walk<'a> {
        Walk { rest: bytes }
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Broken> {
        let (first, rest) = self.rest.split_first().ok_or(Broken)?;
        self.rest = rest;
        if *first < 0x80 {
            return Ok(u64::from(*first));
        }
        self.varint_long(*first)
    }

    #[inline(never)]
    pub(super) fn varint_long(&mut self, first: u8) -> Result<u64, Broken> {
        let mut value = u64::from(first & 0x7f);
        for shift in (7..70).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(Broken)?;
            self.rest = rest;
            // The tenth byte has room for one bit.
            if shift == 63 && *byte > 1 {
                return Err(Broken);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Broken)
    }

    #[inline]
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Broken> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(Broken)?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    pub(super) fn len(&mut self) -> Result<&'a [u8], Broken> {
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| Broken)?)
    }

    /// The next field, or `None` at the end.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, Broken> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Broken)?;
        if number == 0 || number >= 1 << 29 {
            return Err(Broken);
        }
        let wire = match (tag & 7) as u8 {
            LEN => Wire::Len(self.len()?),
            VARINT => Wire::Varint(self.varint()?),
            FIXED64 => Wire::Fixed64(u64::from_le_bytes(*self.take(8)?.first_chunk().expect("eight bytes were taken"))),
            FIXED32 => Wire::Fixed32(u32::from_le_bytes(*self.take(4)?.first_chunk().expect("four bytes were taken"))),
            // Groups are long out of use and none of OTLP's messages has one.
            _ => return Err(Broken),
        };
        Ok(Some((number, wire)))
    }
}

impl<'a> Wire<'a> {
    #[inline]
    pub(super) fn bytes(self) -> Result<&'a [u8], Broken> {
        if let Wire::Len(bytes) = self { Ok(bytes) } else { Err(Broken) }
    }
    #[inline]
    pub(super) fn fixed64(self) -> Result<u64, Broken> {
        if let Wire::Fixed64(value) = self { Ok(value) } else { Err(Broken) }
    }
    pub(super) fn fixed32(self) -> Result<u32, Broken> {
        if let Wire::Fixed32(value) = self { Ok(value) } else { Err(Broken) }
    }
    pub(super) fn varint(self) -> Result<u64, Broken> {
        if let Wire::Varint(value) = self { Ok(value) } else { Err(Broken) }
    }
    pub(super) fn int32(self) -> Result<i32, Broken> {
        Ok(self.varint()? as i32)
    }
    pub(super) fn double(self) -> Result<f64, Broken> {
        self.fixed64().map(f64::from_bits)
    }
    pub(super) fn string(self) -> Result<String, Reason> {
        text(self.bytes()?)
    }
}

pub(super) fn text(bytes: &[u8]) -> Result<String, Reason> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Reason::NotUtf8)
}
