//! The corpus in the wire form of one system: built once before anything is measured, so that sending costs little.

use crate::peers::records::{Corpus, Record, Stored};
use anyhow::Result;
use postanalytics_protocol::{FrameHeader, HEADER_BYTES};

/// One message of the pool.
#[derive(Clone, Debug)]
pub struct Message {
    start: usize,
    end: usize,
    /// Its first record in the corpus.
    pub first: u32,
    /// Its records.
    pub records: u32,
    /// Our frames get a header stamped in front of each sending; the bytes are then the body.
    pub header: Option<FrameHeader>,
}

/// The messages of one system and workload.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    /// All messages, those of one size together.
    messages: Vec<Message>,
    /// Where the messages of each size begin and end; sizes count from 1.
    by_size: Vec<(usize, usize)>,
}

impl Messages {
    /// Messages of each of these sizes, each size over the whole corpus.
    pub fn build(
        corpus: &Corpus,
        sizes: &[usize],
        mut encode: impl FnMut(&[Record], &mut Vec<u8>) -> Result<Option<FrameHeader>>,
    ) -> Result<Self> {
        let mut built = Self::default();
        built.bytes.reserve(corpus.records.len() * 600 * sizes.len());
        for &size in sizes {
            built.by_size.resize(size + 1, (0, 0));
            let begin = built.messages.len();
            for (number, records) in corpus.records.chunks_exact(size).enumerate() {
                let start = built.bytes.len();
                let header = encode(records, &mut built.bytes)?;
                let (first, records) = ((number * size) as u32, size as u32);
                built.messages.push(Message { start, end: built.bytes.len(), first, records, header });
            }
            built.by_size[size] = (begin, built.messages.len());
        }
        Ok(built)
    }

    /// A message by its number.
    pub fn get(&self, number: usize) -> &Message {
        &self.messages[number]
    }

    /// The bytes of a message.
    pub fn bytes(&self, message: &Message) -> &[u8] {
        &self.bytes[message.start..message.end]
    }

    /// The numbers of the messages with so many records.
    pub fn of_size(&self, size: usize) -> std::ops::Range<usize> {
        let (begin, end) = self.by_size.get(size).copied().unwrap_or_default();
        begin..end
    }

    /// Mean bytes on the wire of a record in messages of this size, our headers included.
    pub fn bytes_per_record(&self, size: usize) -> f64 {
        let all = &self.messages[self.of_size(size)];
        let bytes = |message: &Message| message.end - message.start + message.header.map_or(0, |_| HEADER_BYTES);
        let records: u64 = all.iter().map(|message| u64::from(message.records)).sum();
        all.iter().map(bytes).sum::<usize>() as f64 / records.max(1) as f64
    }

    /// Rows and checksum of the last `rows` records of messages sent in this order.
    pub fn last_of(&self, corpus: &Corpus, sent: &[u32], rows: u64) -> Stored {
        let mut last = Stored::default();
        for &number in sent.iter().rev() {
            let message = self.get(number as usize);
            for record in (message.first..message.first + message.records).rev() {
                if last.rows == rows {
                    return last;
                }
                last.add(corpus.hash(record as usize));
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rows_are_those_sent_last() {
        let corpus = Corpus::new();
        let messages = Messages::build(&corpus, &[1, 64], |records, out| {
            out.push(records.len() as u8);
            Ok(None)
        });
        let messages = messages.expect("builds");
        assert_eq!((messages.of_size(1).len(), messages.of_size(64).len()), (131_072, 2048));
        assert!(messages.of_size(2).is_empty() && messages.of_size(65).is_empty());
        let begin = messages.of_size(64).start as u32;
        let sent = [begin, begin + 1, begin];
        let expected = (60..64).fold(Stored::default(), |mut sum, record| {
            sum.add(corpus.hash(record));
            sum
        });
        assert_eq!(messages.last_of(&corpus, &sent, 4), expected);
        assert_eq!(messages.last_of(&corpus, &sent, 1_000).rows, 192, "there were no more");
    }
}
