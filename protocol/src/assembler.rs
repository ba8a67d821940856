//! Turns a byte stream into frames, whatever the pieces it arrives in. No I/O, no memory of its own for bodies.

use crate::error::FrameError;
use crate::header::{DEFAULT_MAX_BODY_BYTES, FrameHeader, HEADER_BYTES};

/// Longest piece of a body handed on at a time: what the CRC has read is still in the first cache when it is copied.
const PIECE_BYTES_MAX: usize = 8 << 10;

/// What comes next in the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The input is used up.
    NeedMore,
    /// A header was read and holds; make room for `body_bytes`.
    Header(FrameHeader),
    /// The whole body, and its CRC holds. Comes in the place of `Body` and `End` if the input has it.
    Whole(&'a [u8]),
    /// The next bytes of the body, and how many of it came before.
    Body(usize, &'a [u8]),
    /// The body is complete and its CRC holds. Comes for every frame whose body did not come `Whole`, also for one without a body.
    End,
}

/// The assembler of one connection. After an error the stream is lost: close the connection.
#[derive(Debug)]
pub struct Assembler {
    max_body_bytes: u32,
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    bytes: usize,
    came: usize,
    stated_crc: u32,
    crc: crc32fast::Hasher,
}

impl Default for Assembler {
    fn default() -> Self {
        Self::new(DEFAULT_MAX_BODY_BYTES)
    }
}

impl Assembler {
    /// An assembler at the start of a stream, which refuses bodies longer than `max_body_bytes`.
    pub const fn new(max_body_bytes: u32) -> Self {
        Self { max_body_bytes, header: [0; HEADER_BYTES], header_filled: 0, body: None }
    }

    /// Changes the limit, for bodies whose header comes from now on.
    pub const fn set_max_body_bytes(&mut self, max_body_bytes: u32) {
        self.max_body_bytes = max_body_bytes;
    }

    /// Whether the stream stands between two frames.
    pub const fn is_idle(&self) -> bool {
        self.header_filled == 0 && self.body.is_none()
    }

    /// Takes the next step, moving `input` on by what it used. Call until it says [`Step::NeedMore`].
    pub fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, FrameError> {
        match &mut self.body {
            None => self.step_header(input),
            Some(body) if body.came < body.bytes => {
                if input.is_empty() {
                    return Ok(Step::NeedMore);
                }
                if body.came == 0 && input.len() >= body.bytes {
                    let (whole, rest) = input.split_at(body.bytes);
                    *input = rest;
                    body.crc.update(whole);
                    return self.end().map(|_| Step::Whole(whole));
                }
                let (piece, rest) = input.split_at((body.bytes - body.came).min(input.len()).min(PIECE_BYTES_MAX));
                *input = rest;
                let came = body.came;
                body.came += piece.len();
                body.crc.update(piece);
                Ok(Step::Body(came, piece))
            }
            Some(_) => self.end(),
        }
    }

    /// Collects whole frames for peers that keep the body in memory of their own: returns a header once `body` holds the
    /// frame's whole body, `None` when the input is used up.
    pub fn collect(&mut self, input: &mut &[u8], body: &mut Vec<u8>) -> Result<Option<FrameHeader>, FrameError> {
        loop {
            match self.step(input)? {
                Step::NeedMore => return Ok(None),
                Step::Header(header) => {
                    body.clear();
                    body.reserve(header.body_bytes as usize);
                }
                Step::Body(_, piece) => body.extend_from_slice(piece),
                Step::Whole(whole) => {
                    body.extend_from_slice(whole);
                    return FrameHeader::decode(&self.header, u32::MAX).map(Some);
                }
                // The header bytes are kept until the next frame begins, and they were valid.
                Step::End => return FrameHeader::decode(&self.header, u32::MAX).map(Some),
            }
        }
    }

    fn step_header<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, FrameError> {
        let (piece, rest) = input.split_at((HEADER_BYTES - self.header_filled).min(input.len()));
        self.header[self.header_filled..self.header_filled + piece.len()].copy_from_slice(piece);
        self.header_filled += piece.len();
        *input = rest;
        if self.header_filled < HEADER_BYTES {
            return Ok(Step::NeedMore);
        }
        let header = FrameHeader::decode(&self.header, self.max_body_bytes)?;
        let (bytes, stated_crc) = (header.body_bytes as usize, header.body_crc);
        self.body = Some(Body { bytes, came: 0, stated_crc, crc: crc32fast::Hasher::new() });
        Ok(Step::Header(header))
    }

    fn end<'a>(&mut self) -> Result<Step<'a>, FrameError> {
        self.header_filled = 0;
        let Some(body) = self.body.take() else { return Ok(Step::NeedMore) };
        let computed = body.crc.finalize();
        if computed == body.stated_crc {
            Ok(Step::End)
        } else {
            Err(FrameError::BadBodyCrc { stated: body.stated_crc, computed })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, RecordFields};
    use crate::frames::Ping;
    use proptest::prelude::*;

    fn stream(frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, (kind, path)) in frames.iter().enumerate() {
            if kind % 3 == 0 {
                Ping { token: index as u64 }.encode(7, 0, &mut out);
            } else {
                let mut batch = BatchBuilder::default();
                for _ in 0..kind % 5 {
                    batch.push(&RecordFields { path, ..RecordFields::default() }, 1 << 20).expect("fits");
                }
                batch.encode_frame(7, index as u64, 0, &mut out);
            }
        }
        out
    }

    fn frames_of(assembler: &mut Assembler, pieces: &[&[u8]]) -> Vec<(FrameHeader, Vec<u8>)> {
        let (mut frames, mut body) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut input = *piece;
            while let Some(header) = assembler.collect(&mut input, &mut body).expect("a good stream") {
                frames.push((header, body.to_vec()));
            }
        }
        frames
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames(frames in proptest::collection::vec((0u8..9, proptest::collection::vec(any::<u8>(), 0..300)), 1..8),
                                           cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20)) {
            let bytes = stream(&frames);
            let whole = frames_of(&mut Assembler::default(), &[&bytes]);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(whole.len(), frames.len());
            prop_assert_eq!(whole, frames_of(&mut Assembler::default(), &pieces));
        }

        #[test]
        fn any_bytes_end_in_frames_or_a_named_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut assembler = Assembler::default();
            let mut body = Vec::new();
            let mut input = bytes.as_slice();
            loop {
                match assembler.collect(&mut input, &mut body) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => { prop_assert!(!error.code().name().is_empty()); break }
                }
            }
        }
    }

    #[test]
    fn one_byte_at_a_time() {
        let bytes = stream(&[(1, b"/a".to_vec()), (0, Vec::new()), (4, b"/b".to_vec())]);
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(frames_of(&mut Assembler::default(), &pieces), frames_of(&mut Assembler::default(), &[&bytes]));
    }

    #[test]
    fn a_flipped_body_bit_is_named() {
        let mut bytes = stream(&[(1, b"/path".to_vec())]);
        bytes[HEADER_BYTES + 3] ^= 1;
        let mut input = bytes.as_slice();
        let error = Assembler::default().collect(&mut input, &mut Vec::new());
        assert!(matches!(error, Err(FrameError::BadBodyCrc { .. })), "{error:?}");
    }
}
