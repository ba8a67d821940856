//! Bytes as JSON text, reversibly.
//!
//! Text that is UTF-8 and does not contain `\x` stays as it is. Any other is escaped: each backslash becomes two, each byte
//! that is not UTF-8 becomes `\xHH`. So: a text without `\x` is itself; in one with it, `\\` is a backslash and `\xHH` a byte.

/// Escapes bytes.
pub fn escape(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.contains("\\x")
    {
        return text.to_owned();
    }
    let mut out = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter == '\\' {
                out.push('\\');
            }
            out.push(letter);
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Takes the escapes back; `None` if the text was not made by [`escape`].
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    if !text.contains("\\x") {
        return Some(text.as_bytes().to_vec());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'\\' {
            bytes.push(first);
            continue;
        }
        match after.split_first()? {
            (b'\\', after) => {
                bytes.push(b'\\');
                rest = after;
            }
            (b'x', after) => {
                let digits = std::str::from_utf8(after.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &after[2..];
            }
            _ => return None,
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_text_stays_plain() {
        assert_eq!(escape("/päth?a=\\..\\".as_bytes()), "/päth?a=\\..\\");
        assert_eq!(escape(b"a\xffb"), "a\\xffb");
        assert_eq!(escape(b"a\\b\xff"), "a\\\\b\\xff");
        assert_eq!(escape(b"\\x16\\x03"), "\\\\x16\\\\x03");
        assert_eq!(unescape("\\x1"), None);
        assert_eq!(unescape("\\x41\\q"), None);
    }

    proptest! {
        #[test]
        fn every_byte_string_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(unescape(&escape(&bytes)), Some(bytes));
        }

        #[test]
        fn backslashes_and_escapes_round_trip(text in "[\\\\x0-9a-f\u{e9}]{0,12}", tail in proptest::option::of(0x80u8..0xc0)) {
            let mut bytes = text.into_bytes();
            bytes.extend(tail);
            prop_assert_eq!(unescape(&escape(&bytes)), Some(bytes));
        }

        #[test]
        fn nothing_panics(text in "\\PC*") {
            let _ = unescape(&text);
        }
    }
}
