//! Undoes what hides an attack from plain text search: encodings, comments, dots of paths, quotes of a shell.
//!
//! ```text
//! as it came ──decode──▶ decoded ──fold──▶ folded      (comments, blanks, dots and slashes of paths)
//!                           ├────unquote──▶ unquoted    (what a shell takes away before it runs a command)
//!                           └────unpack───▶ unpacked    (base64 of a text)
//! ```
//!
//! Every function takes time in proportion to its input, and makes no more of it than there was.

/// Times that a text is decoded; each undoes one layer of encoding.
const LAYERS_MAX: usize = 5;

/// Classes of bytes. ENCODED: may begin something that [`Decoder::decode`] undoes; PLUS likewise where `+` is a blank.
pub(crate) const ENCODED: u8 = 1;
/// [`fold`] may make words of a text with this byte that it does not have as it is.
pub(crate) const FOLDABLE: u8 = 2;
/// [`unquote`] may do so.
pub(crate) const QUOTING: u8 = 4;
/// [`unquote`] may do so, but JSON is full of these.
pub(crate) const JSON_QUOTING: u8 = 8;
/// See ENCODED.
pub(crate) const PLUS: u8 = 16;

/// No letter of base64: a text without such bytes may be one that [`unpack`] unpacks.
pub(crate) const UNPACKED: u8 = 32;
/// Shortest text in base64 that is unpacked.
const PACKED_BYTES_MIN: usize = 12;

/// The classes of each byte.
pub(crate) const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    // Overlong and full-width forms, quotes of typography begin with one of these; other letters beyond ASCII are left alone.
    mark(&mut classes, b"\xc0\xc1\xca\xe0\xe2\xef\xf0\xf8\xfc%&\\", ENCODED);
    // No text has these.
    mark(
        &mut classes,
        b"\0\x01\x02\x03\x04\x05\x06\x07\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1c\x1d\x1e\x1f",
        ENCODED,
    );
    mark(&mut classes, b"\\\t\n\x0b\x0c\r*\xa0", FOLDABLE);
    mark(&mut classes, b"\\'^$`", QUOTING);
    mark(&mut classes, b"\"{", JSON_QUOTING);
    mark(&mut classes, b"+", PLUS);
    let mut byte = 0;
    while byte < 256 {
        if sextet(byte as u8).is_none() && byte != b'=' as usize {
            classes[byte] |= UNPACKED;
        }
        byte += 1;
    }
    classes
};

const fn mark(classes: &mut [u8; 256], bytes: &[u8], class: u8) {
    let mut at = 0;
    while at < bytes.len() {
        classes[bytes[at] as usize] |= class;
        at += 1;
    }
}

/// Classes of all bytes of a text.
fn classes(text: &[u8]) -> u8 {
    text.iter().fold(0, |all, &byte| all | CLASSES[byte as usize])
}

/// The two buffers that layers of decoding go through.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    pub(crate) text: Vec<u8>,
    other: Vec<u8>,
}

impl Decoder {
    /// Undoes percent-encoding (`%27`, `%u0027`, layer upon layer), overlong UTF-8 (`%c0%ae`), full-width letters, escapes of
    /// JavaScript and of logs (`\x27`, `\u0027`), character references (`&#39;`) and the quotes of typography, which databases
    /// take for plain ones, and leaves out control characters. With `plus`, `+` is a blank. What is no valid encoding stays as it
    /// is.
    pub(crate) fn decode<'a>(&'a mut self, text: &'a [u8], plus: bool) -> &'a [u8] {
        let has_plus = plus && memchr::memchr(b'+', text).is_some();
        if classes(text) & ENCODED == 0 && !has_plus {
            return text;
        }
        self.text.clear();
        let mut changed = decode_layer(text, has_plus, &mut self.text);
        for _ in 1..LAYERS_MAX {
            if !changed || classes(&self.text) & ENCODED == 0 {
                break;
            }
            self.other.clear();
            changed = decode_layer(&self.text, false, &mut self.other);
            std::mem::swap(&mut self.text, &mut self.other);
        }
        &self.text
    }

    /// Gives memory back that one large request took.
    pub(crate) fn shrink(&mut self, bytes_max: usize) {
        self.text.clear();
        self.other.clear();
        self.text.shrink_to(bytes_max);
        self.other.shrink_to(bytes_max);
    }
}

/// One layer; whether anything was changed.
fn decode_layer(text: &[u8], plus: bool, out: &mut Vec<u8>) -> bool {
    let before = out.len();
    let mut rest = text;
    let mut replaced = false;
    while let Some(&first) = rest.first() {
        let is_plain = |byte: &u8| CLASSES[*byte as usize] & ENCODED == 0 && !(plus && *byte == b'+');
        let plain = rest.iter().take_while(|byte| is_plain(byte)).count();
        if plain > 0 {
            out.extend_from_slice(&rest[..plain]);
            rest = &rest[plain..];
            continue;
        }
        let taken = match first {
            b'+' => {
                out.push(b' ');
                replaced = true;
                1
            }
            0..=0x1f => 1,
            b'%' => percent(rest, out),
            b'\\' => escape(rest, out),
            b'&' => reference(rest, out),
            _ => overlong(rest, out),
        };
        if taken == 0 {
            out.push(first);
        }
        rest = &rest[taken.max(1)..];
    }
    replaced || out.len() - before != text.len()
}

/// `%27`, `%u0027`. Gives the bytes it took, 0 if this is no encoding.
fn percent(text: &[u8], out: &mut Vec<u8>) -> usize {
    match *text {
        [_, b'u' | b'U', a, b, c, d, ..] => match hex(&[a, b, c, d]) {
            Some(code) => push_char(code, 6, out),
            None => 0,
        },
        [_, high, low, ..] => match hex(&[high, low]) {
            Some(byte) => {
                out.push(byte as u8);
                3
            }
            None => split_percent(text, out),
        },
        _ => 0,
    }
}

/// `%2%f`, as some decoders take it; and overlong UTF-8 in digits beyond F (`%c0%qf`), whose value old servers took modulo 256.
fn split_percent(text: &[u8], out: &mut Vec<u8>) -> usize {
    match text {
        [_, b'2', b'%', b'e' | b'E', ..] => out.push(b'.'),
        [_, b'2', b'%', b'f' | b'F', ..] => out.push(b'/'),
        [_, b'5', b'%', b'c' | b'C', ..] => out.push(b'\\'),
        [_, a, b, b'%', c, d, ..] => {
            let lenient = |high: u8, low: u8| Some((lenient_digit(high)? * 16 + lenient_digit(low)?) as u8);
            return match (lenient(*a, *b), lenient(*c, *d)) {
                (Some(lead @ (0xc0 | 0xc1)), Some(low @ 0x80..=0xff)) => {
                    out.push((lead & 1) << 6 | low & 0x3f);
                    6
                }
                _ => 0,
            };
        }
        _ => return 0,
    }
    4
}

fn lenient_digit(digit: u8) -> Option<u32> {
    match digit {
        b'0'..=b'9' => Some(u32::from(digit - b'0')),
        b'a'..=b'z' => Some(u32::from(digit - b'a') + 10),
        b'A'..=b'Z' => Some(u32::from(digit - b'A') + 10),
        _ => None,
    }
}

/// `\x27`, `\u0027`, `\u{27}`.
fn escape(text: &[u8], out: &mut Vec<u8>) -> usize {
    match *text {
        [_, b'x' | b'X', high, low, ..] => match hex(&[high, low]) {
            Some(byte) => {
                out.push(byte as u8);
                4
            }
            None => 0,
        },
        [_, b'u', b'{', ..] => {
            let digits = text[3..].iter().take(7).take_while(|byte| byte.is_ascii_hexdigit()).count();
            let code = hex(&text[3..3 + digits]);
            match (text.get(3 + digits), code) {
                (Some(b'}'), Some(code)) => push_char(code, digits + 4, out),
                _ => 0,
            }
        }
        [_, b'u', a, b, c, d, ..] => match hex(&[a, b, c, d]) {
            Some(code) => push_char(code, 6, out),
            None => 0,
        },
        _ => 0,
    }
}

/// Named character references that attacks are written with.
const NAMED: [(&[u8], u8); 24] = [
    (b"lt;", b'<'),
    (b"gt;", b'>'),
    (b"quot;", b'"'),
    (b"apos;", b'\''),
    (b"amp;", b'&'),
    (b"colon;", b':'),
    (b"semi;", b';'),
    (b"lpar;", b'('),
    (b"rpar;", b')'),
    (b"newline;", b'\n'),
    (b"tab;", b'\t'),
    (b"sol;", b'/'),
    (b"bsol;", b'\\'),
    (b"nbsp;", b' '),
    (b"num;", b'#'),
    (b"excl;", b'!'),
    (b"period;", b'.'),
    (b"comma;", b','),
    (b"equals;", b'='),
    (b"grave;", b'`'),
    (b"lsqb;", b'['),
    (b"rsqb;", b']'),
    (b"dollar;", b'$'),
    (b"vert;", b'|'),
];

/// `&#39;`, `&#x27;`, both also without their semicolon, and named ones.
fn reference(text: &[u8], out: &mut Vec<u8>) -> usize {
    let rest = &text[1..];
    if let Some(number) = rest.strip_prefix(b"#") {
        let (digits, radix, prefix) = match number {
            [b'x' | b'X', digits @ ..] => (digits, 16, 3),
            digits => (digits, 10, 2),
        };
        let count = digits.iter().take(9).take_while(|byte| (**byte as char).is_digit(radix)).count();
        let code = std::str::from_utf8(&digits[..count]).ok().and_then(|digits| u32::from_str_radix(digits, radix).ok());
        let semicolon = usize::from(digits.get(count) == Some(&b';'));
        return match code {
            Some(code) if code > 0 => push_char(code, prefix + count + semicolon, out),
            _ => 0,
        };
    }
    let named = NAMED.iter().find(|(name, _)| rest.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)));
    match named {
        Some((name, byte)) => {
            out.push(*byte);
            1 + name.len()
        }
        None => 0,
    }
}

/// UTF-8 that says in two or three bytes what one says, as old servers take it; and full-width forms of ASCII.
fn overlong(text: &[u8], out: &mut Vec<u8>) -> usize {
    match *text {
        // `%c0%qf`, see `split_percent`: the lead is a byte already.
        [lead @ (0xc0 | 0xc1), b'%', c, d, ..] if hex(&[c, d]).is_none() => match (lenient_digit(c), lenient_digit(d)) {
            (Some(high), Some(low)) => {
                out.push((lead & 1) << 6 | ((high * 16 + low) as u8 & 0x3f));
                4
            }
            _ => 0,
        },
        [0xc0, low, ..] if low < 0x80 && low != b'%' && low != 0 => {
            out.push(match low {
                b'^' => b'.',
                low if low.is_ascii_alphabetic() => low & 0x3f,
                low => low,
            });
            2
        }
        // What converters of paths to UTF-8 make of dots and slashes, by mistake.
        [0xc0, 0xfe, ..] => push_byte(b'.', 2, out),
        [0xc1, 0xaf, ..] => push_byte(b'/', 2, out),
        [lead @ (0xc0 | 0xc1), low, ..] if low != b'%' => {
            out.push((lead & 1) << 6 | low & 0x3f);
            2
        }
        [0xe0, 0x80 | 0x81, low @ 0x80..=0xff, ..] => {
            out.push((text[1] & 1) << 6 | low & 0x3f);
            3
        }
        [0xf0, 0x80, 0x80, low @ 0x80..=0xbf, ..] => push_byte(low & 0x3f, 4, out),
        [0xf8, 0x80, 0x80, 0x80, low @ 0x80..=0xbf, ..] => push_byte(low & 0x3f, 5, out),
        [0xfc, 0x80, 0x80, 0x80, 0x80, low @ 0x80..=0xbf, ..] => push_byte(low & 0x3f, 6, out),
        [0xca, 0xb9 | 0xbc, ..] => push_byte(b'\'', 2, out),
        [0xe2, 0x80, 0x98..=0x9b | 0xb2, ..] => push_byte(b'\'', 3, out),
        [0xe2, 0x80, 0x9c..=0x9f | 0xb3, ..] => push_byte(b'"', 3, out),
        // U+2215, U+2216 and U+2044 look like slashes, and some file systems take them for one.
        [0xe2, 0x88, 0x95, ..] | [0xe2, 0x81, 0x84, ..] => push_byte(b'/', 3, out),
        [0xe2, 0x88, 0x96, ..] => push_byte(b'\\', 3, out),
        [0xef, middle @ (0xbc | 0xbd), low @ 0x80..0xc0, ..] => {
            let code = (u32::from(middle & 3) << 6) | u32::from(low & 0x3f);
            match code {
                0x01..=0x5e => {
                    out.push(code as u8 + 0x20);
                    3
                }
                _ => 0,
            }
        }
        _ => 0,
    }
}

fn push_byte(byte: u8, taken: usize, out: &mut Vec<u8>) -> usize {
    out.push(byte);
    taken
}

fn hex(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u32, |number, &digit| Some(number << 4 | (digit as char).to_digit(16)?))
}

/// A character as UTF-8, full-width forms as ASCII; gives `taken`. What takes more room than its encoding cannot occur.
fn push_char(code: u32, taken: usize, out: &mut Vec<u8>) -> usize {
    let code = if (0xff01..=0xff5e).contains(&code) { code - 0xfee0 } else { code };
    let code = match code {
        // Code points that servers mapped to slashes.
        0x2044 | 0x2215 | 0xefc8 | 0xf025 => u32::from(b'/'),
        0x2216 => u32::from(b'\\'),
        code => code,
    };
    match char::from_u32(code) {
        // Left out here as everywhere.
        Some('\0') => taken,
        Some(letter) => {
            out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            taken
        }
        None => 0,
    }
}

/// The text with comments of SQL and runs of blanks as one blank, backslashes as slashes, and without the dots, slashes and
/// path parameters that change nothing (`/./`, `//`, `..;x/`).
pub(crate) fn fold(text: &[u8], out: &mut Vec<u8>) {
    out.clear();
    // Known beforehand: looking for an end behind every beginning would take time by the square of the text.
    let last_comment_end = memchr::memmem::rfind(text, b"*/").unwrap_or(0);
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let rest = &text[at..];
        let slash = matches!(byte, b'/' | b'\\');
        let taken = match rest {
            [b':', b'/', b'/', ..] => {
                out.extend_from_slice(b"://");
                3
            }
            [b'/', b'*', b'!', after @ ..] => {
                // What stands in such a comment is run by MySQL; the version number is not.
                blank(out);
                3 + after.iter().take(5).take_while(|byte| byte.is_ascii_digit()).count()
            }
            [b'/', b'*', after @ ..] if last_comment_end >= at + 2 => {
                blank(out);
                4 + memchr::memmem::find(after, b"*/").unwrap_or(0)
            }
            [b'*', b'/', ..] => {
                blank(out);
                2
            }
            [b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r' | 0xa0, ..] => {
                blank(out);
                1
            }
            [_, b'.', b'/' | b'\\', ..] if slash => 2,
            [_, b'/' | b'\\', ..] if slash => 1,
            [b';', ..] if out.ends_with(b"..") => {
                rest.iter().take(64).take_while(|byte| !matches!(byte, b'/' | b'\\')).count().max(1)
            }
            _ => {
                out.push(if slash { b'/' } else { byte });
                1
            }
        };
        at += taken;
    }
}

fn blank(out: &mut Vec<u8>) {
    if out.last() != Some(&b' ') {
        out.push(b' ');
    }
}

/// The text without what a shell takes away before it runs a command: quotes, backslashes and carets, empty expansions; with
/// blanks for `$IFS`, braces, commas and pluses.
pub(crate) fn unquote(text: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let mut rest = text;
    while let Some(&byte) = rest.first() {
        let taken = match rest {
            [b'\'' | b'"' | b'^', ..] => 1,
            // `${IFS}` first: a brace alone is a blank.
            [b'$', b'{', b'I', b'F', b'S', after @ ..] => {
                blank(out);
                5 + after.iter().take(16).position(|byte| *byte == b'}').map_or(0, |at| at + 1)
            }
            [b'$', b'I', b'F', b'S', b'$', b'0'..=b'9', ..] => {
                blank(out);
                6
            }
            [b'$', b'I', b'F', b'S', ..] => {
                blank(out);
                4
            }
            [b'$', b'@' | b'*' | b'1'..=b'9', ..] => 2,
            [b'$', b'(', b')', ..] => 3,
            [b'`', b'`', ..] => 2,
            // A backslash before a letter is an evasion; in a path of Windows it is a slash, which `fold` makes of it.
            [b'\\', ..] => 1,
            [b'{' | b'}' | b',' | b'+' | b' ', ..] => {
                blank(out);
                1
            }
            _ => {
                out.push(byte);
                1
            }
        };
        rest = &rest[taken..];
    }
}

/// The text that a text in base64 holds, of either alphabet. `false`: it is none, or holds what is no text in ASCII, as the
/// random bytes of a token.
pub(crate) fn unpack(text: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    if text.len() < PACKED_BYTES_MIN {
        return false;
    }
    let (mut bits, mut count) = (0u32, 0);
    for &byte in text {
        // Some decoders end at it, some read on.
        if byte == b'=' {
            continue;
        }
        let Some(sextet) = sextet(byte) else { return false };
        bits = bits << 6 | sextet as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            let letter = (bits >> count) as u8;
            if !matches!(letter, b' '..=b'~' | b'\t' | b'\r' | b'\n') {
                return false;
            }
            out.push(letter);
        }
    }
    true
}

/// Whether a text may be one that [`unpack`] unpacks, once it is decoded. Nearly every other is told by its first letter: a text in
/// ASCII begins with a bit of 0, and its base64 with a letter of the first half.
pub(crate) fn may_be_packed(text: &[u8]) -> bool {
    let begins = matches!(text, [b'A'..=b'Z' | b'a'..=b'f' | b'=' | b'%' | b'\\' | b'&', ..]) && text.len() >= PACKED_BYTES_MIN;
    begins && text.iter().all(|byte| CLASSES[*byte as usize] & UNPACKED == 0 || b"%&#;\\{}".contains(byte))
}

/// Whether a string of a JSON without escapes may be one.
pub(crate) fn may_have_packed(json: &[u8]) -> bool {
    let mut start = 0;
    let is_one = |at| may_be_packed(&json[std::mem::replace(&mut start, at + 1)..at]);
    memchr::memchr_iter(b'"', json).any(is_one) || may_be_packed(&json[start..])
}

const fn sextet(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &[u8]) -> Vec<u8> {
        Decoder::default().decode(text, true).to_vec()
    }

    #[test]
    fn layers_of_encoding_are_undone() {
        for hidden in [
            "../etc",
            "..%2fetc",
            "%2e%2e/etc",
            "%252e%252e%252fetc",
            "%25252e.%2fetc",
            "%u002e%u002e/etc",
            "%c0%ae%c0%ae/etc",
            "%c0%2e./etc",
            "..%c0%afetc",
            "..%e0%80%afetc",
            "&#46;&#x2e;/etc",
            "&#46&#46&sol;etc",
            "\\x2e\\x2e/etc",
            "\\u002e./etc",
            "\\u{2e}./etc",
            "%%32%65./etc",
            ".%00./etc",
            "\u{ff0e}\u{ff0e}/etc",
            "..%c0%qfetc",
            "..%bg%qfetc",
            "..%c0%9vetc",
            "..%f0%80%80%afetc",
            "..%f8%80%80%80%afetc",
            "%c0%6e./etc",
            "..%u2215etc",
            "..\u{2215}etc",
            "..%%32%%66etc",
            "..%uEFC8etc",
            "%ef%bc%8e./etc",
            "..%c1%afetc",
            "%c0%fe%c0%5e/etc",
            "%01..%1f/etc",
        ] {
            assert_eq!(String::from_utf8_lossy(&decoded(hidden.as_bytes())), "../etc", "{hidden}");
        }
    }

    #[test]
    fn what_is_no_encoding_stays() {
        for plain in
            ["100%", "%zz", "%u12", "&copy;", "&#;", "\\q", "\\x1", "a&b=c", "caf\u{e9} \u{4e2d}", "%", "&", "\\", "&#x;"]
        {
            assert_eq!(String::from_utf8_lossy(&decoded(plain.as_bytes())), plain);
        }
        assert_eq!(decoded(b"a+b%2B"), b"a b+");
        assert_eq!(decoded("‘a’ “b” ʼc′ \t\r\n\x0b\x0c\x1b".as_bytes()), b"'a' \"b\" 'c' \t\r\n\x0b\x0c\x1b");
        assert_eq!(Decoder::default().decode(b"a+b", false), b"a+b");
        assert_eq!(decoded(b"\xc0"), b"\xc0");
    }

    #[test]
    fn folding() {
        let folded = |text: &str| {
            let mut out = Vec::new();
            fold(text.as_bytes(), &mut out);
            String::from_utf8_lossy(&out).into_owned()
        };
        assert_eq!(folded("1/**/union\t\n select"), "1 union select");
        assert_eq!(folded("1 /*!50000union*/select"), "1 union select");
        assert_eq!(folded("/etc/.//./passwd"), "/etc/passwd");
        assert_eq!(folded(r"..\..\windows\win.ini"), "../../windows/win.ini");
        assert_eq!(folded("/a/..;x=1/..;/b"), "/a/../../b");
        assert_eq!(folded("a /* b"), "a /* b");
        assert_eq!(folded("a /*/ b */ c /* d */ /*"), "a c /*");
        assert_eq!(folded("http://a//b"), "http://a/b");
    }

    #[test]
    fn unquoting() {
        let unquoted = |text: &str| {
            let mut out = Vec::new();
            unquote(text.as_bytes(), &mut out);
            String::from_utf8_lossy(&out).into_owned()
        };
        assert_eq!(unquoted(r#";c'a't /e"t"c/pa\sswd"#), ";cat /etc/passwd");
        assert_eq!(unquoted("cat${IFS}x cat$IFS$9x {cat,x} ca$@t w``ho^ami cat+x"), "cat x cat x cat x cat whoami cat x");
    }

    #[test]
    fn unpacking() {
        let unpacked = |text: &str| {
            let mut out = Vec::new();
            unpack(text.as_bytes(), &mut out).then(|| String::from_utf8_lossy(&out).into_owned())
        };
        assert_eq!(unpacked("PHNjcmlwdD5mKCk8L3NjcmlwdD4=").as_deref(), Some("<script>f()</script>"));
        assert_eq!(unpacked("Pz8_Pj4-Pz8-Pg==").as_deref(), Some("???>>>??>>"));
        assert_eq!(unpacked("Pz8/Pj4+Pz8+Pg").as_deref(), Some("???>>>??>>"));
        assert_eq!(unpacked("QQ==PHNjcmlwdD5mKCk8L3NjcmlwdD4=").map(|text| text.starts_with('A')), None, "the bits have moved");
        for none in
            ["aWQ=", "running-shoes", "0123456789abcdef0123456789abcdef", "a sentence of words", "PHNjcmlwdD5mKCk8L3\u{e9}"]
        {
            assert_eq!(unpacked(none), None, "{none}");
        }
    }

    #[test]
    fn whatever_is_unpacked_may_be_packed() {
        let texts = ["PHNjcmlwdD5mKCk8L3NjcmlwdD4=", "CQkJCQkJCQkJ", "fn5-fn5-fn5-", "===PHNjcmlwdD5mKCk8", "VXNlcjoxMjM0"];
        for text in texts {
            let mut out = Vec::new();
            assert!(unpack(text.as_bytes(), &mut out) && may_be_packed(text.as_bytes()), "{text}");
            for json in [format!("[\"{text}\"]"), format!("{{\"a\":\"b\",\"c\":\"{text}"), format!("\"{text}\"")] {
                assert!(may_have_packed(json.as_bytes()), "{json}");
            }
        }
        for encoded in ["%50HNjcmlwdD5mKCk8", "\\u0050HNjcmlwdD5mKCk8", "&#80;HNjcmlwdD5mKCk8"] {
            assert!(may_be_packed(encoded.as_bytes()), "{encoded}");
        }
        for none in ["PHNjcmlwdD4", "running-shoes-42", "0123456789abcdef0123456789abcdef", "A sentence of words"] {
            assert!(!may_be_packed(none.as_bytes()), "{none}");
        }
        assert!(!may_have_packed(br#"{"sku":"A-1","name":"first and last name","list":["x",12,null]}"#));
    }

    #[test]
    fn nothing_grows() {
        let texts: [&[u8]; 4] = [b"%u4e2d%u4e2d", b"\\u{10ffff}&#20013;", b"{{{{,,,,", b"/*!/*!*/*/"];
        for text in texts {
            let mut out = Vec::new();
            assert!(decoded(text).len() <= text.len());
            fold(text, &mut out);
            assert!(out.len() <= text.len());
            unquote(text, &mut out);
            assert!(out.len() <= text.len());
        }
    }
}
