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

/// The byte that two hexadecimal digits write; signs are no digits.
pub(crate) fn hexadecimal(digits: &[u8]) -> Option<u8> {
    let of = |digit: &u8| char::from(*digit).to_digit(16).map(|value| value as u8);
    match digits {
        [high, low] => Some(of(high)? << 4 | of(low)?),
        _ => None,
    }
}

/// Whether a terminal may take a letter for a command, or for a change of direction.
pub(crate) fn steers_terminal(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON, or lines of it, in which no letter of a text steers a terminal: U+007F and above is escaped where JSON need not. What a
/// reader makes of it is the same.
pub(crate) fn plain_json(json: String) -> String {
    // Those below U+0080 but DEL are escaped in texts already; outside of them stand line feeds.
    let is_odd = |letter: char| letter >= '\u{7f}' && steers_terminal(letter);
    if !json.contains(is_odd) {
        return json;
    }
    let mut out = String::with_capacity(json.len() + 64);
    for letter in json.chars() {
        if is_odd(letter) {
            out.push_str(&format!("\\u{:04x}", u32::from(letter)));
        } else {
            out.push(letter);
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
                bytes.push(hexadecimal(after.get(..2)?)?);
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
        assert_eq!((unescape("\\x+f"), unescape("\\xfF")), (None, Some(vec![0xff])));
    }

    #[test]
    fn json_does_not_steer_a_terminal_and_means_the_same() {
        let text = "a\u{7f}\u{9b}31m\u{1b}[2J\u{202e}é\u{2066}\n";
        let json = plain_json(serde_json::to_string_pretty(&[text]).expect("JSON"));
        assert!(!json.chars().any(|letter| letter != '\n' && steers_terminal(letter)), "{json:?}");
        assert!(json.contains("\\u007f\\u009b31m\\u001b[2J\\u202eé"), "{json:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&json).expect("JSON"), [text]);
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
