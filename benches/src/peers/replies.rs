//! What servers answer, read just far enough to know what is done. Progress is counted in units that only go up: sequences of
//! ours, answered calls of Tarantool, answered commands of Redis, bytes that the discarding server has read.

use anyhow::{Context, Result, bail, ensure};
use postanalytics_protocol::Assembler;
use postanalytics_protocol::frames::ControlFrame;

/// Bytes of an IPROTO length.
const IPROTO_LENGTH_BYTES: usize = 5;

/// The reader of one connection's answers.
pub enum Replies {
    /// Acks of ours.
    Frames {
        /// From bytes to frames.
        assembler: Box<Assembler>,
        /// The body of the frame that is coming.
        body: Vec<u8>,
    },
    /// Tarantool.
    Iproto(Partial),
    /// Redis.
    Resp(Partial),
    /// The discarding server, when it answers.
    Count(Partial),
    /// The discarding server, when it does not.
    Silent,
}

/// Bytes of an answer that is not whole, and the units done.
#[derive(Debug, Default)]
pub struct Partial {
    bytes: Vec<u8>,
    done: u64,
}

impl Replies {
    /// Takes bytes; returns the units done so far, if there was news.
    pub fn take(&mut self, input: &[u8]) -> Result<Option<u64>> {
        match self {
            Self::Frames { assembler, body } => frames(assembler, body, input),
            Self::Iproto(partial) => partial.take(input, iproto),
            Self::Resp(partial) => partial.take(input, resp),
            Self::Count(partial) => partial.take(input, |bytes| {
                let count = bytes.first_chunk().map(|count| u64::from_le_bytes(*count));
                Ok(count.map(|count| (8, Progress::To(count))))
            }),
            Self::Silent => bail!("a server that discards has answered"),
        }
    }
}

enum Progress {
    By(u64),
    To(u64),
}

impl Partial {
    /// Takes whole answers off the front: `one` says how long the first is and what it brings, or that it is not whole.
    fn take(&mut self, input: &[u8], one: impl Fn(&[u8]) -> Result<Option<(usize, Progress)>>) -> Result<Option<u64>> {
        let held = std::mem::take(&mut self.bytes);
        let joined;
        let mut left = if held.is_empty() {
            input
        } else {
            joined = [held.as_slice(), input].concat();
            &joined[..]
        };
        let before = self.done;
        while let Some((length, progress)) = one(left)? {
            left = &left[length..];
            self.done = match progress {
                Progress::By(units) => self.done + units,
                Progress::To(units) => units,
            };
        }
        self.bytes.extend_from_slice(left);
        Ok((self.done != before).then_some(self.done))
    }
}

fn frames(assembler: &mut Assembler, body: &mut Vec<u8>, mut input: &[u8]) -> Result<Option<u64>> {
    let mut acked = None;
    while let Some(header) = assembler.collect(&mut input, body)? {
        match ControlFrame::decode(&header, body)? {
            ControlFrame::Ack(ack) => acked = Some(ack.sequence),
            ControlFrame::Verdicts(_) => {}
            ControlFrame::Error(error) => bail!("postanalytics refused: {} (code {})", error.text, error.code),
            other => bail!("postanalytics sent {other:?}, which this bench does not expect"),
        }
    }
    Ok(acked)
}

/// One answer of Tarantool: a length, then a map whose first entry is the code, 0 for success.
fn iproto(bytes: &[u8]) -> Result<Option<(usize, Progress)>> {
    let Some(length) = bytes.first_chunk::<IPROTO_LENGTH_BYTES>() else { return Ok(None) };
    ensure!(length[0] == 0xce, "Tarantool's answer begins with {:#04x}", length[0]);
    let length = u32::from_be_bytes([length[1], length[2], length[3], length[4]]) as usize;
    let Some(answer) = bytes.get(IPROTO_LENGTH_BYTES..IPROTO_LENGTH_BYTES + length) else { return Ok(None) };
    let code = answer.get(1..7).context("Tarantool's answer is too short")?;
    ensure!(code[0] == 0 && code[1] == 0xce, "Tarantool's answer does not begin with its code");
    if code[2..] != [0, 0, 0, 0] {
        bail!("Tarantool refused: {}", String::from_utf8_lossy(answer));
    }
    Ok(Some((IPROTO_LENGTH_BYTES + length, Progress::By(1))))
}

/// One answer of Redis: an integer or a short string.
fn resp(bytes: &[u8]) -> Result<Option<(usize, Progress)>> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let length = match bytes[0] {
        b':' | b'+' => end + 1,
        b'$' => {
            let digits = std::str::from_utf8(&bytes[1..end - 1])?;
            end + 1 + digits.parse::<usize>().with_context(|| format!("Redis answered a string of length {digits:?}"))? + 2
        }
        _ => bail!("Redis answered {}", String::from_utf8_lossy(&bytes[..end])),
    };
    Ok((bytes.len() >= length).then_some((length, Progress::By(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds in pieces of each length; the units at the end must be the same.
    fn done(new: impl Fn() -> Replies, bytes: &[u8]) -> Vec<u64> {
        let whole = |piece: usize| {
            let mut replies = new();
            bytes.chunks(piece).fold(0, |done, piece| replies.take(piece).expect("good").unwrap_or(done))
        };
        (1..=bytes.len()).map(whole).collect()
    }

    #[test]
    fn answers_are_counted_however_they_are_cut() {
        let redis = b"$15\r\n1700000000000-0\r\n:1\r\n$15\r\n1700000000000-1\r\n:22\r\n";
        assert!(done(|| Replies::Resp(Partial::default()), redis).iter().all(|done| *done == 4));
        let one = [0xce, 0, 0, 0, 8, 0x82, 0, 0xce, 0, 0, 0, 0, 0x80];
        let tarantool = [one, one, one].concat();
        assert!(done(|| Replies::Iproto(Partial::default()), &tarantool).iter().all(|done| *done == 3));
        let counts = [700u64.to_le_bytes(), 900u64.to_le_bytes()].concat();
        assert!(done(|| Replies::Count(Partial::default()), &counts).iter().all(|done| *done == 900));
    }

    #[test]
    fn refusals_are_errors() {
        assert!(Replies::Resp(Partial::default()).take(b"-ERR no\r\n").is_err());
        let refused = [0xce, 0, 0, 0, 8, 0x82, 0, 0xce, 0, 0, 0x80, 0x20, 0x80];
        assert!(Replies::Iproto(Partial::default()).take(&refused).is_err());
        assert!(Replies::Silent.take(b"x").is_err());
    }
}
