//! Bodies that came packed, as their Content-Encoding says.
//!
//! gzip and deflate are inflated, no further than what is looked at of a body. Other codings are not, and neither are several
//! on top of each other.

use flate2::{Crc, Decompress, FlushDecompress, Status};

/// Most times its size that a packed body is inflated to. Texts have 10, logs and tables 50, and a bomb 1,000.
const EXPANSION_MAX: usize = 200;
/// Bytes that are inflated at a time: the window of deflate, so that what was read before an error is not lost.
const PIECE_BYTES: usize = 32 << 10;
/// Most members that a body of gzip is read as.
const MEMBERS_MAX: usize = 16;
/// In packed bytes so many of a text stand next to each other once in a hundred bodies.
const RUN_BYTES: usize = 16;

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Deflate,
    /// One that is not unpacked, or several.
    Other,
}

impl Coding {
    /// What a Content-Encoding header adds to those before it; `None`: not packed.
    pub(crate) fn after(before: Option<Self>, value: &[u8]) -> Option<Self> {
        let names = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let names = names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
        names.fold(before, |before, name| {
            let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
            Some(match before {
                Some(_) => Self::Other,
                None if is(b"gzip") || is(b"x-gzip") => Self::Gzip,
                None if is(b"deflate") => Self::Deflate,
                None => Self::Other,
            })
        })
    }
}

/// How far a body could be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Whole,
    /// There is more of it than is looked at.
    Full,
    /// It ends too early.
    Cut,
    /// It is not what it is said to be, or has something behind it.
    Broken,
}

/// Unpacks bodies. Has no memory before the first.
#[derive(Debug, Default)]
pub(crate) struct Inflater {
    stream: Option<Decompress>,
    /// What was in the body, as far as it could be unpacked.
    pub(crate) text: Vec<u8>,
    /// Beside what is packed there is room for a text: names and comments of gzip, members after the first.
    pub(crate) has_notes: bool,
}

impl Inflater {
    pub(crate) fn inflate(&mut self, coding: Coding, packed: &[u8], bytes_max: usize) -> End {
        self.text.clear();
        self.has_notes = false;
        let bytes_max = bytes_max.min(packed.len().saturating_mul(EXPANSION_MAX));
        match coding {
            Coding::Gzip => self.gzip(packed, bytes_max),
            Coding::Deflate => {
                // With the header of zlib, as it should be, or without, as many send it.
                let has_header = matches!(*packed, [method, flags, ..] if method & 15 == 8 && (u16::from(method) << 8 | u16::from(flags)) % 31 == 0);
                match self.stream(packed, has_header, bytes_max) {
                    (End::Whole, taken) if taken < packed.len() => End::Broken,
                    (end, _) => end,
                }
            }
            Coding::Other => End::Broken,
        }
    }

    fn gzip(&mut self, mut packed: &[u8], bytes_max: usize) -> End {
        for _ in 0..MEMBERS_MAX {
            let Some(header) = self.gzip_header(packed) else { return End::Broken };
            let start = self.text.len();
            let (end, taken) = self.stream(&packed[header..], false, bytes_max);
            if end != End::Whole {
                return end;
            }
            let Some((trailer, rest)) = packed[header + taken..].split_at_checked(8) else { return End::Cut };
            let mut sum = Crc::new();
            sum.update(&self.text[start..]);
            let length = (self.text.len() - start) as u32;
            if trailer[..4] != sum.sum().to_le_bytes() || trailer[4..] != length.to_le_bytes() {
                return End::Broken;
            }
            if rest.is_empty() {
                return End::Whole;
            }
            self.has_notes = true;
            packed = rest;
        }
        End::Broken
    }

    /// Length of the header of a member (RFC 1952), if it is one.
    fn gzip_header(&mut self, packed: &[u8]) -> Option<usize> {
        let [0x1f, 0x8b, 8, flags @ 0..0x20, _, _, _, _, _, _, rest @ ..] = packed else { return None };
        self.has_notes |= flags & 0x1c != 0;
        let mut rest = rest;
        if flags & 4 != 0 {
            let (length, after) = rest.split_first_chunk::<2>()?;
            rest = after.get(usize::from(u16::from_le_bytes(*length))..)?;
        }
        for note in [8, 0x10] {
            if flags & note != 0 {
                rest = &rest[memchr::memchr(0, rest)? + 1..];
            }
        }
        if flags & 2 != 0 {
            rest = rest.get(2..)?;
        }
        Some(packed.len() - rest.len())
    }

    /// Adds what one stream of deflate holds; and how many bytes it took.
    fn stream(&mut self, packed: &[u8], has_header: bool, bytes_max: usize) -> (End, usize) {
        let stream = self.stream.get_or_insert_with(|| Decompress::new(has_header));
        stream.reset(has_header);
        let (mut taken, mut given) = (0, 0);
        loop {
            let start = self.text.len();
            // One more than wanted tells whether there is more.
            self.text.resize(start + PIECE_BYTES.min(bytes_max + 1 - start), 0);
            let result = stream.decompress(&packed[taken..], &mut self.text[start..], FlushDecompress::None);
            let (read, written) = (stream.total_in() as usize - taken, stream.total_out() as usize - given);
            (taken, given) = (taken + read, given + written);
            self.text.truncate(start + written);
            if self.text.len() > bytes_max {
                self.text.truncate(bytes_max);
                return (End::Full, taken);
            }
            match result {
                Err(_) => return (End::Broken, taken),
                Ok(Status::StreamEnd) => return (End::Whole, taken),
                Ok(_) if read == 0 && written == 0 => return (End::Cut, taken),
                Ok(_) => {}
            }
        }
    }

    /// Gives memory back that one large body took.
    pub(crate) fn shrink(&mut self, bytes_max: usize) {
        self.text.clear();
        self.text.shrink_to(bytes_max);
    }
}

/// Whether a text may stand in bytes that are packed, for a server that takes them as they come.
pub(crate) fn has_text(packed: &[u8]) -> bool {
    let mut run = 0;
    packed.iter().any(|byte| {
        let is_text = matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n');
        run = if is_text { run + 1 } else { 0 };
        run >= RUN_BYTES
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BODY_BYTES_MAX, Engine, Findings, RawRequest, Scratch};
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use flate2::{Compression, GzBuilder};
    use std::io::Write;
    use std::time::Duration;

    const FORM: &str = "application/x-www-form-urlencoded";

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zlib(text: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).expect("memory");
        encoder.finish().expect("memory")
    }

    fn deflate(text: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).expect("memory");
        encoder.finish().expect("memory")
    }

    /// One engine: they take long to make.
    fn inspect(codings: &[&str], content_type: &str, body: &[u8], scratch: &mut Scratch) -> Findings {
        static ENGINE: std::sync::OnceLock<Engine> = std::sync::OnceLock::new();
        let mut headers: Vec<(&[u8], &[u8])> = vec![(b"Content-Type", content_type.as_bytes())];
        headers.extend(codings.iter().map(|coding| (&b"Content-Encoding"[..], coding.as_bytes())));
        let request = RawRequest { method: b"POST", uri: b"/", headers: &headers, body, ..RawRequest::default() };
        ENGINE.get_or_init(Engine::builtin).inspect(&request, Duration::from_secs(60), scratch)
    }

    fn points(findings: &Findings) -> Vec<String> {
        let name = |hit: &crate::FoundHit| format!("{} {}", hit.attack_type.name(), String::from_utf8_lossy(&hit.point));
        findings.found.iter().map(name).collect()
    }

    #[test]
    fn a_packed_body_has_the_hits_of_what_is_in_it() {
        let mut scratch = Scratch::default();
        let multipart = "--r\r\nContent-Disposition: form-data; name=\"q\"\r\n\r\n<script>f()</script>\r\n--r--\r\n";
        for (content_type, body, expected) in [
            (FORM, "a=b&q=1'+or+'a'='a&c=d", "sqli post_q"),
            ("application/json", r#"{"user":{"name":"<script>f()</script>"}}"#, "xss post_json_user_name"),
            ("multipart/form-data; boundary=r", multipart, "xss post_multipart_q"),
            ("text/plain", "x=/etc/passwd", "ptrav post_x"),
        ] {
            let body = body.as_bytes();
            for (coding, packed) in [
                (&["gzip"][..], gzip(body)),
                (&["X-GZip"], gzip(body)),
                (&["identity, gzip,"], gzip(body)),
                (&["identity", " GZIP "], gzip(body)),
                (&["gzip"], [gzip(&body[..5]), gzip(&body[5..])].concat()),
                (&["deflate"], zlib(body)),
                (&["Deflate"], deflate(body)),
            ] {
                let findings = inspect(coding, content_type, &packed, &mut scratch);
                assert_eq!(
                    (points(&findings), findings.incomplete),
                    (vec![expected.to_owned()], false),
                    "{coding:?} {content_type}"
                );
            }
            assert_eq!(points(&inspect(&["identity"], content_type, body, &mut scratch)), [expected]);
        }
        let harmless = gzip(b"a=b&text=nothing+to+see+here");
        let findings = inspect(&["gzip"], FORM, &harmless, &mut scratch);
        assert_eq!((points(&findings), findings.incomplete), (vec![], false));
    }

    #[test]
    fn what_is_not_unpacked_is_told_and_looked_at_as_it_came() {
        let mut scratch = Scratch::default();
        let plain = b"q=1'+or+'a'='a";
        for (codings, body) in [
            (&["br"][..], &plain[..]),
            (&["zstd"], plain),
            (&["compress"], plain),
            (&["gzip"], plain),
            (&["deflate"], plain),
            (&["gzip, gzip"], plain),
            (&["gzip", "br"], plain),
            (&["gzip"], &[gzip(b"a=b"), plain.to_vec()].concat()),
            (&["deflate"], &[zlib(b"a=b"), b"&".to_vec(), plain.to_vec()].concat()),
            (&["gzip"], &gzip(b"a=b&q=1'+or+'a'='a&c=d")[..30]),
        ] {
            let findings = inspect(codings, FORM, body, &mut scratch);
            assert!(findings.incomplete, "{codings:?}");
            let is_cut = body.len() == 30;
            assert!(is_cut || points(&findings).iter().any(|point| point.starts_with("sqli post")), "{codings:?} {findings:?}");
        }
        for codings in [&[][..], &["identity"], &["identity, identity"], &["identity", ""]] {
            assert!(!inspect(codings, FORM, plain, &mut scratch).incomplete, "{codings:?}");
        }
    }

    #[test]
    fn text_beside_what_is_packed_is_looked_at() {
        let mut scratch = Scratch::default();
        let mut encoder = GzBuilder::new().filename(&b"&q=x;id&"[..]).write(Vec::new(), Compression::default());
        encoder.write_all(b"a=b").expect("memory");
        let body = encoder.finish().expect("memory");
        let findings = inspect(&["gzip"], FORM, &body, &mut scratch);
        assert_eq!((points(&findings), findings.incomplete), (vec!["rce post_q".to_owned()], false));
        // Another sum than that of the text.
        let mut body = gzip(b"a=b");
        let sum = body.len() - 8;
        body[sum..].copy_from_slice(b"&q=x;id&");
        let findings = inspect(&["gzip"], FORM, &body, &mut scratch);
        assert_eq!((points(&findings), findings.incomplete), (vec!["rce post_q".to_owned()], true));
    }

    #[test]
    fn a_bomb_takes_no_more_than_a_body() {
        let zeros = vec![b'0'; 64 << 20];
        let mut scratch = Scratch::default();
        let empty = gzip(b"");
        let stored = [[0, 0, 0, 0xff, 0xff].repeat(BODY_BYTES_MAX / 5), vec![1, 0, 0, 0xff, 0xff]].concat();
        for (coding, body) in [
            ("gzip", gzip(&zeros)),
            ("gzip", gzip(&gzip(&zeros))),
            ("gzip", gzip(&zeros[..20_000])),
            ("gzip", empty.repeat(10_000)),
            ("gzip", empty.repeat(MEMBERS_MAX + 1)),
            ("deflate", zlib(&zeros)),
            ("deflate", stored),
            ("gzip", [&b"\x1f\x8b\x08\x1c\0\0\0\0\0\0\xff\xff"[..], &zeros].concat()),
        ] {
            let mut inflater = Inflater::default();
            let coding_kind = Coding::after(None, coding.as_bytes()).expect("a coding");
            let end = inflater.inflate(coding_kind, &body, BODY_BYTES_MAX);
            let bytes_max = BODY_BYTES_MAX.min(body.len() * EXPANSION_MAX);
            assert!(inflater.text.len() <= bytes_max && inflater.text.capacity() <= 2 * BODY_BYTES_MAX + PIECE_BYTES, "{end:?}");
            let findings = inspect(&[coding], FORM, &body, &mut scratch);
            // What is packed twice holds what is packed once, and is read no further.
            assert!(findings.incomplete || end == End::Whole && inflater.text.starts_with(&[0x1f, 0x8b]), "{end:?}");
            assert!(!findings.overlimit);
        }
        assert!(scratch.inflated_capacity() <= 64 << 10);
        let mut inflater = Inflater::default();
        assert_eq!(inflater.inflate(Coding::Gzip, &gzip(&zeros[..5000]), BODY_BYTES_MAX), End::Whole);
        assert_eq!(inflater.inflate(Coding::Gzip, &gzip(&zeros[..5000]), 4999), End::Full);
        assert_eq!((inflater.inflate(Coding::Gzip, &gzip(&zeros[..5000]), 5000), inflater.text.len()), (End::Whole, 5000));
    }

    #[test]
    fn cut_and_broken_streams_harm_nothing() {
        let text = b"a=b&c=d&q=1'+or+'a'='a&".repeat(20);
        let mut inflater = Inflater::default();
        for (coding, packed) in [(Coding::Gzip, gzip(&text)), (Coding::Deflate, zlib(&text)), (Coding::Deflate, deflate(&text))] {
            assert_eq!((inflater.inflate(coding, &packed, 1 << 20), &inflater.text), (End::Whole, &text));
            for length in 0..packed.len() {
                assert!(matches!(inflater.inflate(coding, &packed[..length], 1 << 20), End::Cut | End::Broken), "{length}");
                assert!(text.starts_with(&inflater.text), "{length}");
            }
            for at in 0..packed.len() {
                for bit in 0..8 {
                    let mut broken = packed.clone();
                    broken[at] ^= 1 << bit;
                    inflater.inflate(coding, &broken, 1 << 20);
                    assert!(inflater.text.len() <= broken.len() * EXPANSION_MAX);
                }
            }
        }
        // What was read before an error is kept, however long.
        let long: Vec<u8> = (0..40_000u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut packed = zlib(&long);
        let end = packed.len() - 1;
        packed[end] ^= 1;
        assert_eq!((inflater.inflate(Coding::Deflate, &packed, 1 << 20), inflater.text == long), (End::Broken, true));
    }

    #[test]
    fn packed_bytes_hold_no_text() {
        let words: Vec<u8> =
            (0..20_000u32).flat_map(|number| format!("{:x} ", number.wrapping_mul(40_503)).into_bytes()).collect();
        let packed = gzip(&words);
        assert!(packed.len() > 30_000 && !has_text(&packed));
        assert!(has_text(b"\x1f\x8b\x08\0<script>f()</script>\0") && !has_text(b"<script>f()</sc\x01ript>"));
    }
}
