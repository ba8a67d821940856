//! The little of MessagePack that Tarantool's protocol needs. Reading is checked: what is cut off or of another type is an
//! error, not a panic.

use anyhow::{Context, Result, bail};

/// Appends an unsigned integer, in its shortest form.
pub fn put_uint(out: &mut Vec<u8>, value: u64) {
    match value {
        0..=0x7f => out.push(value as u8),
        0x80..=0xff => out.extend([0xcc, value as u8]),
        0x100..=0xffff => {
            out.push(0xcd);
            out.extend((value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xce);
            out.extend((value as u32).to_be_bytes());
        }
        _ => {
            out.push(0xcf);
            out.extend(value.to_be_bytes());
        }
    }
}

/// Appends a string of bytes.
pub fn put_str(out: &mut Vec<u8>, bytes: &[u8]) {
    match bytes.len() {
        length @ 0..=31 => out.push(0xa0 | length as u8),
        length @ 32..=0xff => out.extend([0xd9, length as u8]),
        length => {
            out.push(0xda);
            out.extend((length as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

/// Begins an array.
pub fn put_array(out: &mut Vec<u8>, length: usize) {
    match length {
        0..=15 => out.push(0x90 | length as u8),
        _ => {
            out.push(0xdc);
            out.extend((length as u16).to_be_bytes());
        }
    }
}

/// Begins a map of at most 15 entries.
pub fn put_map(out: &mut Vec<u8>, entries: u8) {
    out.push(0x80 | entries & 15);
}

/// Reads values off the front of bytes.
#[derive(Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads these bytes.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// What was not read yet.
    pub const fn left(&self) -> &'a [u8] {
        self.left
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, left) = self.left.split_at_checked(length).context("a MessagePack value is cut off")?;
        self.left = left;
        Ok(taken)
    }

    fn number(&mut self, bytes: usize) -> Result<u64> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn kind(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned integer.
    pub fn uint(&mut self) -> Result<u64> {
        match self.kind()? {
            kind @ 0..=0x7f => Ok(u64::from(kind)),
            kind @ 0xcc..=0xcf => self.number(1 << (kind - 0xcc)),
            kind => bail!("MessagePack type {kind:#04x} came where a number was expected"),
        }
    }

    /// A string.
    pub fn str(&mut self) -> Result<&'a [u8]> {
        let length = match self.kind()? {
            kind @ 0xa0..=0xbf => u64::from(kind & 31),
            kind @ 0xd9..=0xdb => self.number(1 << (kind - 0xd9))?,
            kind @ 0xc4..=0xc6 => self.number(1 << (kind - 0xc4))?,
            kind => bail!("MessagePack type {kind:#04x} came where a string was expected"),
        };
        self.take(usize::try_from(length)?)
    }

    /// The length of an array that begins.
    pub fn array(&mut self) -> Result<u64> {
        match self.kind()? {
            kind @ 0x90..=0x9f => Ok(u64::from(kind & 15)),
            0xdc => self.number(2),
            0xdd => self.number(4),
            kind => bail!("MessagePack type {kind:#04x} came where an array was expected"),
        }
    }

    /// The entries of a map that begins.
    pub fn map(&mut self) -> Result<u64> {
        match self.kind()? {
            kind @ 0x80..=0x8f => Ok(u64::from(kind & 15)),
            0xde => self.number(2),
            0xdf => self.number(4),
            kind => bail!("MessagePack type {kind:#04x} came where a map was expected"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_cut_off_is_not() {
        let mut bytes = Vec::new();
        let numbers = [0, 127, 128, 255, 256, 65_535, 65_536, u64::from(u32::MAX), u64::MAX];
        put_array(&mut bytes, numbers.len() + 60);
        numbers.iter().for_each(|number| put_uint(&mut bytes, *number));
        let texts = [vec![b'a'; 3], vec![b'b'; 40], vec![b'c'; 300]];
        put_map(&mut bytes, 3);
        texts.iter().for_each(|text| put_str(&mut bytes, text));
        let read = |bytes: &[u8]| -> Result<()> {
            let mut reader = Reader::new(bytes);
            assert_eq!(reader.array()?, 69);
            for number in numbers {
                assert_eq!(reader.uint()?, number);
            }
            assert_eq!(reader.map()?, 3);
            for text in &texts {
                assert_eq!(reader.str()?, text);
            }
            assert!(reader.left().is_empty());
            Ok(())
        };
        read(&bytes).expect("whole");
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "{end}");
        }
        assert!(Reader::new(b"\xa1x").uint().is_err() && Reader::new(b"\x01").str().is_err());
    }
}
