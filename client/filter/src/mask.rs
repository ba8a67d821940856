//! Masks what may not leave the node: values of headers, values of parameters with telling names, passwords of addresses,
//! numbers of payment cards.
//!
//! Names of parameters are found in any text by what follows them: `name=value`, `"name": "value"`, `name="x"` of a multipart
//! body, `<name>value</name>`, each also percent-encoded or with escapes of JSON, in the name as well (`p%61ssword`,
//! `"pass\u0077ord"`). So no text needs to be parsed, and one that is broken or cut is masked as well. Masking a little too much
//! is better here than too little.

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use serde::Deserialize;
use std::borrow::Cow;
use std::ops::Range;
use thiserror::Error;

/// What stands in place of what was masked.
const MASK: &[u8] = b"***";
/// Digits of a card number.
const CARD_DIGITS: Range<usize> = 13..20;
/// Shortest name that is found anywhere in the name of a parameter.
const ANYWHERE_BYTES_MIN: usize = 5;
/// Shorter ones that are found so as well: no word holds them.
const ANYWHERE: [&str; 1] = ["pwd"];
/// Shorter ones that are found at the end of a word, too (`userpass`, `USERPASS`), and words that end so all the same.
const ENDINGS: [&str; 3] = ["pass", "psw", "mdp"];
const ENDING_WORDS: [&str; 8] = ["bypass", "compass", "encompass", "outpass", "overpass", "surpass", "trespass", "underpass"];
/// Bytes behind a part of a text in which is looked for what identifies a secret that begins in the part.
const MARGIN_BYTES: usize = 4096;
/// How far the end of an element of XML is looked for.
const ELEMENT_BYTES_MAX: usize = 4096;
/// Shortest user of an address that is taken for a key: `https://3f0c…@host/`.
const KEY_BYTES_MIN: usize = 20;
/// Longest host of an address with user and password.
const AUTHORITY_LETTERS_MAX: usize = 1024;

/// What is masked. In TOML, any part may be left out:
///
/// ```
/// # let text = r#"
/// headers = ["authorization", "cookie", "x-internal-key"]
/// parameters = ["password", "pin"]
/// card_numbers = true
/// # "#;
/// # assert!(toml::from_str::<postanalytics_filter::MaskConfig>(text).is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskConfig {
    /// Names of headers whose values are masked whole, in any case.
    pub headers: Vec<String>,
    /// Names of parameters whose values are masked, in any case. One of five letters or more is found anywhere in a name
    /// (`password` in `newPassword2`), as is `pwd`; a shorter one only as a word of it (`pin` in `card[pin]`, not in `shipping`), `pass`,
    /// `psw` and `mdp` also at the end of one (`userpass`, not `bypass` or `compass`).
    pub parameters: Vec<String>,
    /// Whether numbers of 13 to 19 digits are masked that have the check digit of a payment card (Luhn) and begin like one.
    pub card_numbers: bool,
}

impl Default for MaskConfig {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            headers: names(&[
                "authorization",
                "proxy-authorization",
                "cookie",
                "set-cookie",
                "x-api-key",
                "api-key",
                "apikey",
                "x-auth-token",
                "x-access-token",
                "x-csrf-token",
                "x-xsrf-token",
                "x-amz-security-token",
                "x-vault-token",
                "private-token",
            ]),
            parameters: names(&[
                "password",
                "passwd",
                "passphrase",
                "passcode",
                "passwort",
                "kennwort",
                "senha",
                "contrase",
                "motdepasse",
                "mot_de_passe",
                "mdp",
                "pass",
                "pwd",
                "psw",
                "pw",
                "secret",
                "token",
                "apikey",
                "api_key",
                "api-key",
                "accesskey",
                "access_key",
                "privatekey",
                "private_key",
                "credential",
                "session",
                "sessid",
                "sid",
                "authorization",
                "auth",
                "jwt",
                "pin",
                "otp",
                "cvv",
                "cvv2",
                "cvc",
                "cvc2",
                "ssn",
                "iban",
                "cardnumber",
                "card_number",
                "creditcard",
                "credit_card",
                "signature",
            ]),
            card_numbers: true,
        }
    }
}

/// Why a configuration of masking cannot be used.
#[derive(Debug, Error)]
pub enum MaskError {
    /// A name is empty, or holds what no name may.
    #[error("masking: `{0}` is no name of a parameter or header: give letters, digits, `-`, `_` or `.` only")]
    Name(String),
    /// The names cannot be searched for.
    #[error("masking: the names of parameters cannot be searched for ({0}): give fewer")]
    Names(String),
}

/// Where in a name one of the configuration is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Anywhere,
    EndOfWord,
    Word,
}

impl Fit {
    fn of(name: &str) -> Self {
        let is_one_of = |names: &[&str]| names.iter().any(|one| one.eq_ignore_ascii_case(name));
        match name.len() {
            ANYWHERE_BYTES_MIN.. => Self::Anywhere,
            _ if is_one_of(&ANYWHERE) => Self::Anywhere,
            _ if is_one_of(&ENDINGS) => Self::EndOfWord,
            _ => Self::Word,
        }
    }
}

/// Masks texts. What it gives may leave the node. Allocates only where something is encoded or masked.
#[derive(Clone, Debug)]
pub struct Masker {
    headers: Vec<String>,
    names: AhoCorasick,
    fits: Vec<Fit>,
    card_numbers: bool,
}

impl Masker {
    /// A masker.
    pub fn new(config: &MaskConfig) -> Result<Self, MaskError> {
        let is_name = |name: &&String| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        };
        if let Some(name) = config.headers.iter().chain(&config.parameters).find(|name| !is_name(name)) {
            return Err(MaskError::Name(name.clone()));
        }
        let names = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .kind(Some(AhoCorasickKind::DFA))
            .build(&config.parameters)
            .map_err(|error| MaskError::Names(error.to_string()))?;
        Ok(Self {
            headers: config.headers.clone(),
            names,
            fits: config.parameters.iter().map(|name| Fit::of(name)).collect(),
            card_numbers: config.card_numbers,
        })
    }

    /// A text that may hold parameters or card numbers: a path, a query, a URL, a user agent, a referer, a body (form, JSON,
    /// multipart, XML or anything else).
    pub fn text<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let secrets = self.secrets(text);
        if secrets.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(masked(text, &secrets, 0..text.len())) }
    }

    /// The first `most` bytes of a text, masked as they would be in the text: a card number that lies across the cut is one, and so
    /// is a password whose `@` comes behind it. Looks at no more than 4 KiB behind the cut.
    pub fn start_of_text<'a>(&self, text: &'a [u8], most: usize) -> Cow<'a, [u8]> {
        let end = text.len().min(most);
        let secrets = self.secrets(&text[..text.len().min(most.saturating_add(MARGIN_BYTES))]);
        if secrets.first().is_none_or(|first| first.start >= end) {
            return Cow::Borrowed(&text[..end]);
        }
        let mut start = masked(text, &secrets, 0..end);
        start.truncate(most);
        Cow::Owned(start)
    }

    /// The value of a header.
    pub fn header<'a>(&self, name: &[u8], value: &'a [u8]) -> Cow<'a, [u8]> {
        if self.hides_header(name) && !value.is_empty() { Cow::Borrowed(MASK) } else { self.text(value) }
    }

    /// Whether values of this header are masked whole: those that are named, and those whose name is that of a secret parameter
    /// (`X-Auth-Key`, `X-Secret`).
    pub(crate) fn hides_header(&self, name: &[u8]) -> bool {
        self.headers.iter().any(|header| name.eq_ignore_ascii_case(header.as_bytes())) || self.hides_parameter(name)
    }

    /// Whether values of a parameter of this name are masked whole.
    pub(crate) fn hides_parameter(&self, name: &[u8]) -> bool {
        self.names.find_overlapping_iter(name).any(|found| self.is_telling(name, found.range(), found.pattern().as_usize()))
    }

    /// Whether a name that was found in a text is one: long enough, or a word of its own or the end of one.
    fn is_telling(&self, text: &[u8], at: Range<usize>, pattern: usize) -> bool {
        match self.fits[pattern] {
            Fit::Anywhere => true,
            Fit::EndOfWord => ends_word(text, at.end) && (begins_word(text, at.start) || !is_other_word(text, at.end)),
            Fit::Word => begins_word(text, at.start) && ends_word(text, at.end),
        }
    }

    /// Where secrets lie in a text, in order, without overlap.
    pub(crate) fn secrets(&self, text: &[u8]) -> Vec<Range<usize>> {
        self.secrets_ending(text, |value| value.end)
    }

    /// The same in a text that was decoded from `raw`. There a quote or an ampersand of a value can no longer be told from one
    /// that ends it: values with names go on to the end of the line, or of the text if `raw` has no lines.
    pub(crate) fn secrets_of_decoded(&self, text: &[u8], raw: &[u8]) -> Vec<Range<usize>> {
        let has_lines = memchr::memchr2(b'\r', b'\n', raw).is_some();
        let line_end = |at: usize| memchr::memchr2(b'\r', b'\n', &text[at..]).map_or(text.len(), |end| at + end);
        self.secrets_ending(text, |value| if has_lines { line_end(value.end) } else { text.len() })
    }

    /// Where secrets lie; `end` says where a value with a name ends.
    fn secrets_ending(&self, text: &[u8], end: impl Fn(&Range<usize>) -> usize) -> Vec<Range<usize>> {
        let mut secrets: Vec<Range<usize>> = Vec::new();
        match Readable::of(text) {
            Some(Readable { letters, begins }) => self.named(&letters, |at| begins[at], text, end, &mut secrets),
            None => self.named(text, |at| at, text, end, &mut secrets),
        }
        passwords(text, &mut secrets);
        if self.card_numbers {
            cards(text, &mut secrets);
        }
        merge(&mut secrets);
        secrets
    }

    /// Adds where values lie in `text` whose names are in `letters`; `begins` says where a letter of these begins in the text.
    fn named(
        &self,
        letters: &[u8],
        begins: impl Fn(usize) -> usize,
        text: &[u8],
        end: impl Fn(&Range<usize>) -> usize,
        secrets: &mut Vec<Range<usize>>,
    ) {
        let mut from = 0;
        for found in self.names.find_overlapping_iter(letters) {
            if begins(found.start()) < from || !self.is_telling(letters, found.range(), found.pattern().as_usize()) {
                continue;
            }
            if let Some(value) = value_after(text, begins(found.end())) {
                from = end(&value);
                secrets.push(value.start..from);
            }
        }
    }
}

/// A part of a text with `***` for each secret that it holds or is a part of.
pub(crate) fn masked(text: &[u8], secrets: &[Range<usize>], part: Range<usize>) -> Vec<u8> {
    let mut out = Vec::with_capacity(part.len());
    let mut at = part.start;
    for secret in secrets.iter().filter(|secret| secret.start < part.end && secret.end > part.start) {
        out.extend_from_slice(&text[at..secret.start.max(at)]);
        out.extend_from_slice(MASK);
        at = secret.end.min(part.end);
    }
    out.extend_from_slice(&text[at..part.end]);
    out
}

fn merge(secrets: &mut Vec<Range<usize>>) {
    secrets.sort_unstable_by_key(|range| range.start);
    secrets.dedup_by(|later, earlier| {
        let overlaps = later.start < earlier.end;
        if overlaps {
            earlier.end = earlier.end.max(later.end);
        }
        overlaps
    });
}

/// Not within a word: `pin` in `card[pin]`, `card%5Bpin`, `oldPin`.
fn begins_word(text: &[u8], at: usize) -> bool {
    let Some(&before) = at.checked_sub(1).and_then(|before| text.get(before)) else { return true };
    !before.is_ascii_alphanumeric() || ends_encoded(&text[..at]) || before.is_ascii_lowercase() && text[at].is_ascii_uppercase()
}

/// Whether one of the words that are no passwords ends here.
fn is_other_word(text: &[u8], end: usize) -> bool {
    ENDING_WORDS.iter().any(|word| {
        let begin = end.checked_sub(word.len());
        begin.is_some_and(|begin| text[begin..end].eq_ignore_ascii_case(word.as_bytes()) && begins_word(text, begin))
    })
}

/// Whether a text ends in `%3F`, `%253F` and so on, or in `\u0022` or `\x22`.
fn ends_encoded(text: &[u8]) -> bool {
    let [before @ .., high, low] = text else { return false };
    let is_escape = before.ends_with(b"\\u00") || before.ends_with(b"\\x");
    let mut before = before;
    while let Some(shorter) = before.strip_suffix(b"25") {
        before = shorter;
    }
    (is_escape || before.ends_with(b"%")) && high.is_ascii_hexdigit() && low.is_ascii_hexdigit()
}

fn ends_word(text: &[u8], at: usize) -> bool {
    text.get(at)
        .is_none_or(|after| !after.is_ascii_alphabetic() || after.is_ascii_uppercase() && text[at - 1].is_ascii_lowercase())
}

/// A text in which the letters of names are as they would be read.
struct Readable {
    letters: Vec<u8>,
    /// Where each letter begins in the text, and where the text ends.
    begins: Vec<usize>,
}

impl Readable {
    /// `None`, as nearly always: it can be read as it is.
    fn of(text: &[u8]) -> Option<Self> {
        let encoded = |at: usize| letter(text, at).filter(|&(byte, next)| next > at + 1 && is_of_name(byte));
        memchr::memchr2_iter(b'%', b'\\', text).find(|&at| encoded(at).is_some())?;
        let (mut letters, mut begins) = (Vec::with_capacity(text.len()), Vec::with_capacity(text.len() + 1));
        let mut at = 0;
        while at < text.len() {
            let (byte, next) = encoded(at).unwrap_or((text[at], at + 1));
            letters.push(byte);
            begins.push(at);
            at = next;
        }
        begins.push(text.len());
        Some(Self { letters, begins })
    }
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// A letter, or what stands for it percent-encoded any number of times or as an escape of JSON (`\u0070`) or JavaScript
/// (`\x70`); and where the next begins.
fn letter(text: &[u8], at: usize) -> Option<(u8, usize)> {
    let first = *text.get(at)?;
    let digits = match first {
        b'%' => {
            let mut digits = at + 1;
            while text.get(digits..digits + 2) == Some(b"25") && text.len() > digits + 3 && digits < at + 9 {
                digits += 2;
            }
            digits
        }
        b'\\' => {
            let kind = at + text[at..].iter().take(4).take_while(|byte| **byte == b'\\').count();
            match &text[kind..] {
                [b'u', b'0', b'0', ..] => kind + 3,
                [b'x' | b'X', ..] => kind + 1,
                _ => return Some((first, at + 1)),
            }
        }
        _ => return Some((first, at + 1)),
    };
    let digit = |at: usize| text.get(at).and_then(|digit| (*digit as char).to_digit(16));
    match (digit(digits), digit(digits + 1)) {
        (Some(high), Some(low)) => Some(((high << 4 | low) as u8, digits + 2)),
        _ => Some((first, at + 1)),
    }
}

/// Adds where passwords lie in addresses (`scheme://user:password@host`), and users that are so long that they are keys.
fn passwords(text: &[u8], secrets: &mut Vec<Range<usize>>) {
    // An encoded `@` ends in these digits.
    if memchr::memchr(b'@', text).is_none() && memchr::memmem::find(text, b"40").is_none() {
        return;
    }
    let (mut at, mut slashes) = (0, 0);
    while let Some((byte, next)) = letter(text, at) {
        match byte {
            b'/' => slashes += 1,
            // JSON may escape a slash.
            b'\\' => {}
            _ if slashes >= 2 => {
                slashes = 0;
                let (secret, end) = password(text, at);
                secrets.extend(secret);
                at = end.max(next);
                continue;
            }
            _ => slashes = 0,
        }
        at = next;
    }
}

/// The password in an address whose user would begin here, and where its host ends.
fn password(text: &[u8], start: usize) -> (Option<Range<usize>>, usize) {
    let (mut end, mut colon, mut host) = (start, None, None);
    // `[::1]` has colons of its own.
    let is_ipv6 = text.get(start) == Some(&b'[');
    for _ in 0..AUTHORITY_LETTERS_MAX {
        let Some((byte, next)) = letter(text, end) else { break };
        // What is encoded is the password's own, unless the slashes are encoded as well.
        let is_own = next > end + 1 && start > 0 && text[start - 1] == b'/';
        match byte {
            b'/' | b'?' | b'#'
                if is_own || host.is_none() && !is_ipv6 && colon.is_some_and(|colon| !is_port(&text[colon..end])) => {}
            b'"' | b'\'' | b'<' | b'>' | b'\\' if is_own => {}
            b'/' | b'?' | b'#' | b'"' | b'\'' | b'<' | b'>' | b'\\' => break,
            byte if byte.is_ascii_whitespace() => break,
            // A password may have one, but not before what looks like the next parameter.
            b'&' if text[end] == b'&' && begins_parameter(&text[next..]) => break,
            // The last one counts: passwords may have them.
            b'@' => host = Some(end),
            b':' if colon.is_none() && host.is_none() => colon = Some(next),
            _ => {}
        }
        end = next;
    }
    let secret = host.and_then(|host| match colon {
        Some(colon) => Some(colon..host),
        None => (host - start >= KEY_BYTES_MIN).then_some(start..host),
    });
    (secret.filter(|secret| !secret.is_empty()), end)
}

/// What an address may have between a colon and a slash: nothing but the digits of a port. Else a slash there is a password's.
fn is_port(text: &[u8]) -> bool {
    text.iter().take(6).all(u8::is_ascii_digit) && text.len() <= 5
}

/// Whether a text begins with a name and `=`.
fn begins_parameter(text: &[u8]) -> bool {
    let name = text.iter().take(64).take_while(|byte| byte.is_ascii_alphanumeric() || b"_-.[]%".contains(byte)).count();
    name > 0 && text.get(name) == Some(&b'=')
}

/// Goes over at most `most` letters of a kind.
fn skip(text: &[u8], mut at: usize, most: usize, is_skipped: impl Fn(u8) -> bool) -> usize {
    for _ in 0..most {
        match letter(text, at) {
            Some((byte, next)) if is_skipped(byte) => at = next,
            _ => break,
        }
    }
    at
}

/// The value that follows a name, if what follows is a value.
fn value_after(text: &[u8], at: usize) -> Option<Range<usize>> {
    let at = skip(text, at, 48, |byte| byte.is_ascii_alphanumeric() || !byte.is_ascii() || b"_-.[]".contains(&byte));
    let (mut at, is_quoted) = match closing_quote(text, at) {
        Some(next) => (next, true),
        None => (at, false),
    };
    if is_quoted && matches!(text.get(at), Some(b'\r' | b'\n' | b';')) {
        return part_body(text, at);
    }
    at = skip(text, at, 16, |byte| byte.is_ascii_whitespace());
    let (separator, mut at) = letter(text, at)?;
    if separator == b'=' && text.get(at) == Some(&b'>') {
        at += 1;
    }
    let value = match separator {
        b'>' if !is_quoted => element(text, at)?,
        b'=' | b':' => {
            // `a=b c` begins at once; JSON and its like may have blanks.
            let at = if separator == b':' || is_quoted { skip(text, at, 16, |byte| byte.is_ascii_whitespace()) } else { at };
            scalar(text, at, separator)
        }
        // `<password type="text">`
        _ if !is_quoted => {
            let inside = &text[at..text.len().min(at + 1024)];
            element(text, at + memchr::memchr(b'>', inside)? + 1)?
        }
        _ => return None,
    };
    (!value.is_empty()).then_some(value)
}

/// Where text goes on after a quote, plain, encoded or escaped as in JSON within JSON.
fn closing_quote(text: &[u8], at: usize) -> Option<usize> {
    let at = skip(text, at, 3, |byte| byte == b'\\');
    letter(text, at).and_then(|(byte, next)| matches!(byte, b'"' | b'\'').then_some(next))
}

/// The body of a part of a multipart body whose headers end behind `at`.
fn part_body(text: &[u8], at: usize) -> Option<Range<usize>> {
    let headers = &text[at..text.len().min(at + 1024)];
    let blank = memchr::memmem::find(headers, b"\r\n\r\n").map(|blank| blank + 4);
    let blank = blank.or_else(|| memchr::memmem::find(headers, b"\n\n").map(|blank| blank + 2))?;
    let start = at + blank;
    let end = memchr::memmem::find(&text[start..], b"\n--").map_or(text.len(), |end| start + end);
    let end = if end > start && text[end - 1] == b'\r' { end - 1 } else { end };
    (start < end).then_some(start..end)
}

/// What is in an element of XML whose tag ends before `at`, other elements too; `None` if no element begins there.
fn element(text: &[u8], at: usize) -> Option<Range<usize>> {
    let from = at.saturating_sub(1024 + 64);
    let tag = from + memchr::memrchr(b'<', &text[from..at])?;
    let inside = &text[tag + 1..at - 1];
    let name = inside.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(byte)).count();
    let is_tag = name > 0 && !inside.ends_with(b"/") && inside.get(name).is_none_or(u8::is_ascii_whitespace);
    if !is_tag {
        // `</password>`, or no tag.
        return None;
    }
    let rest = &text[at..];
    let end = if rest.starts_with(b"<![CDATA[") {
        memchr::memmem::find(rest, b"]]>")
    } else {
        let near = &rest[..rest.len().min(ELEMENT_BYTES_MAX)];
        let own = memchr::memmem::find(near, &[b"</", &inside[..name]].concat());
        // Where its end is far or missing: of an element that has others in it all, of another its text.
        own.or_else(|| memchr::memchr(b'<', rest).filter(|&end| !rest[..end].trim_ascii().is_empty()))
    };
    Some(at..end.map_or(text.len(), |end| at + end))
}

/// A value after `=` or `:`: in quotes, in brackets, or bare.
fn scalar(text: &[u8], at: usize, separator: u8) -> Range<usize> {
    let escapes = skip(text, at, 3, |byte| byte == b'\\') - at;
    match letter(text, at + escapes) {
        Some((quote @ (b'"' | b'\''), start)) => start..quoted_end(text, start, quote, escapes > 0),
        Some((b'[' | b'{', _)) => at..brackets_end(text, at),
        _ => {
            // With `=` a blank, a comma or a semicolon may be part of it.
            let ends = |byte: u8| match separator {
                b'=' => b"&\r\n\"".contains(&byte),
                _ => b"&\r\n\",}]".contains(&byte),
            };
            let mut end = at;
            while let Some((byte, next)) = letter(text, end) {
                // An encoded ampersand or quote ends a value only where the separator was encoded as well.
                let is_plain = next == end + 1;
                if ends(byte) && (is_plain || text[at - 1] != separator) {
                    break;
                }
                end = next;
            }
            at..end
        }
    }
}

/// Where a value in quotes ends: at the next quote of its kind; in JSON within JSON, quotes are escaped.
fn quoted_end(text: &[u8], start: usize, quote: u8, is_escaped: bool) -> usize {
    let is_encoded = text[start - 1] != quote;
    let mut at = start;
    while let Some((byte, next)) = letter(text, at) {
        if byte == b'\\' {
            match letter(text, next) {
                Some((after, _)) if is_escaped && after == quote => return at,
                after => at = after.map_or(text.len(), |(_, next)| next),
            }
            continue;
        }
        if byte == quote && (is_encoded || next == at + 1) {
            return at;
        }
        at = next;
    }
    text.len()
}

/// Where an object or array ends. Brackets within its strings count too: that masks too much at worst, or up to the end.
fn brackets_end(text: &[u8], start: usize) -> usize {
    let mut depth = 0usize;
    let mut at = start;
    while let Some((byte, next)) = letter(text, at) {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at = next;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Adds where numbers of payment cards lie: 13 to 19 digits, in groups of four and more with one blank, dash, plus or dot between
/// (or `%20`, `%2520`, `\u0020` and so on), with a right check digit and a beginning that cards have.
fn cards(text: &[u8], secrets: &mut Vec<Range<usize>>) {
    if text.iter().filter(|byte| byte.is_ascii_digit()).count() < CARD_DIGITS.start {
        return;
    }
    let mut at = 0;
    while let Some(start) = text[at..].iter().position(u8::is_ascii_digit).map(|digit| at + digit) {
        let start = after_escape(text, start);
        match card_at(text, start) {
            Some(end) => {
                secrets.push(start..end);
                at = end;
            }
            None => at = start + text[start..].iter().take_while(|byte| byte.is_ascii_digit()).count().max(1),
        }
        if at >= text.len() {
            break;
        }
    }
}

/// Where digits begin that are no part of an encoding: behind the `%20` before a card.
fn after_escape(text: &[u8], digit: usize) -> usize {
    let begin = match &text[..digit] {
        [.., b'%'] => digit - 1,
        [.., b'\\', b'u' | b'x' | b'X'] => digit - 2,
        _ => return digit,
    };
    letter(text, begin).map_or(digit, |(_, next)| next.max(digit))
}

/// Where the card number that begins here ends.
fn card_at(text: &[u8], start: usize) -> Option<usize> {
    let mut digits = [0u8; CARD_DIGITS.end];
    let (mut count, mut at, mut found) = (0, start, None);
    loop {
        let group = text[at..].iter().take(CARD_DIGITS.end).take_while(|byte| byte.is_ascii_digit()).count();
        if group == 0 || count + group >= CARD_DIGITS.end {
            return found;
        }
        for (digit, byte) in digits[count..].iter_mut().zip(&text[at..at + group]) {
            *digit = byte - b'0';
        }
        count += group;
        at += group;
        if CARD_DIGITS.contains(&count) && is_card(&digits[..count]) {
            found = Some(at);
        }
        if group < 4 {
            return found;
        }
        at = match letter(text, at) {
            Some((b' ' | b'-' | b'+' | b'.', next)) if text.get(next).is_some_and(u8::is_ascii_digit) => next,
            _ => return found,
        };
    }
}

fn is_card(digits: &[u8]) -> bool {
    let begins = matches!(digits, [3..=6, ..]) || digits.len() == 16 && matches!(digits, [2, 2..=7, ..]);
    let sum: u32 = digits.iter().rev().enumerate().map(|(place, &digit)| luhn_share(place, digit)).sum();
    begins && sum.is_multiple_of(10)
}

fn luhn_share(place: usize, digit: u8) -> u32 {
    let doubled = u32::from(digit) << (place % 2);
    if doubled > 9 { doubled - 9 } else { doubled }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masker() -> Masker {
        Masker::new(&MaskConfig::default()).expect("the default")
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let masker = masker();
        let found = masker.text(text.as_bytes());
        assert_eq!(String::from_utf8_lossy(&found), expected);
        assert_eq!(matches!(found, Cow::Owned(_)), text != expected, "allocates only where it masks");
    }

    #[test]
    fn headers() {
        let masker = masker();
        for name in ["Authorization", "COOKIE", "set-cookie", "X-Api-Key", "Proxy-Authorization", "X-Auth-Key", "X-Secret"] {
            assert_eq!(&*masker.header(name.as_bytes(), b"Basic dTpw"), b"***", "{name}");
        }
        assert_eq!(&*masker.header(b"Accept", b"text/html"), b"text/html");
        assert_eq!(&*masker.header(b"Referer", b"/a?token=7f"), b"/a?token=***");
        assert_eq!(&*masker.header(b"Cookie", b""), b"");
    }

    #[test]
    fn queries_and_forms() {
        check("/login?user=bob&password=hunter2&next=/", "/login?user=bob&password=***&next=/");
        check("PassWord=a;b c,d", "PassWord=***");
        check("user%5Bpassword%5D=x%26y&z=1", "user%5Bpassword%5D=***&z=1");
        check("user[password_confirmation]=x&z=1", "user[password_confirmation]=***&z=1");
        check("newPassword2=x&z=1", "newPassword2=***&z=1");
        check("next=%2Flogin%3Fpwd%3Dhunter2%26a%3D1&z=1", "next=%2Flogin%3Fpwd%3D***%26a%3D1&z=1");
        check("next=%252Flogin%253Fpwd%253Dhunter2%2526a&z=1", "next=%252Flogin%253Fpwd%253D***%2526a&z=1");
        check("oldPin=1234&pin=5678&shipping=post&pinned=1", "oldPin=***&pin=***&shipping=post&pinned=1");
        check("sid=7f&PHPSESSID=7f&session_id=7f&side=left", "sid=***&PHPSESSID=***&session_id=***&side=left");
        check("password=&a=1", "password=&a=1");
        check("the password is lost", "the password is lost");
        check("/author/authority?author=x&bypass=1&passage=2", "/author/authority?author=x&bypass=1&passage=2");
        check(
            "compass=n&cache_bypass=1&noBypass=1&over-pass=x&underpass=2",
            "compass=n&cache_bypass=1&noBypass=1&over-pass=***&underpass=2",
        );
    }

    #[test]
    fn names_of_passwords() {
        for name in [
            "userpass",
            "newpass",
            "oldpwd",
            "dbpass",
            "loginpwd",
            "txtpwd",
            "pwdnew",
            "USERPASS",
            "userPass2",
            "user[loginpass]",
            "mypsw",
            "passwort",
            "neuesPasswort",
            "kennwort",
            "senha",
            "novasenha",
            "contrasena",
            "contrase%C3%B1a",
            "contrase\u{f1}aNueva",
            "mdp",
            "usermdp",
            "motdepasse",
            "mot_de_passe",
        ] {
            check(&format!("a=1&{name}=hunter2&b=2"), &format!("a=1&{name}=***&b=2"));
            check(&format!(r#"{{"{name}":"hunter2"}}"#), &format!(r#"{{"{name}":"***"}}"#));
            assert!(masker().hides_parameter(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn whatever_counts_as_a_password_of_a_login_is_hidden() {
        for word in crate::login::PASSWORD_WORDS {
            for name in [
                word.to_owned(),
                word.to_uppercase(),
                format!("user{word}"),
                format!("USER{}", word.to_uppercase()),
                format!("j_{word}"),
                format!("user[{word}]"),
                format!("{word}2"),
                format!("{word}_confirmation"),
                format!("txt{word}"),
            ] {
                assert!(masker().hides_parameter(name.as_bytes()), "{name}");
                check(&format!("{name}=hunter2&b=2"), &format!("{name}=***&b=2"));
            }
        }
    }

    #[test]
    fn json() {
        check(r#"{"user":"bob","password":"a\"b,c","x":1}"#, r#"{"user":"bob","password":"***","x":1}"#);
        check(r#"{"token" : 12345, "x":1}"#, r#"{"token" : ***, "x":1}"#);
        check(r#"{"secrets":["a","b"],"x":1}"#, r#"{"secrets":***,"x":1}"#);
        check(r#"{"credentials":{"id":"a"},"x":1}"#, r#"{"credentials":***,"x":1}"#);
        check(r#"{"body":"{\"password\":\"abc\",\"x\":1}"}"#, r#"{"body":"{\"password\":\"***\",\"x\":1}"}"#);
        check(r#"{"password":"cut of"#, r#"{"password":"***"#);
        check("d=%7B%22password%22%3A%22abc%22%2C%22x%22%3A1%7D", "d=%7B%22password%22%3A%22***%22%2C%22x%22%3A1%7D");
    }

    #[test]
    fn names_that_are_encoded() {
        check("/a?p%61ssword=hunter2&a=1", "/a?p%61ssword=***&a=1");
        check("%70%61%73%73%77%6Frd%32=hunter2&a=%41", "%70%61%73%73%77%6Frd%32=***&a=%41");
        check("next=%2Flogin%3Fp%2577d%3Dhunter2%26a%3D1&z=1", "next=%2Flogin%3Fp%2577d%3D***%26a%3D1&z=1");
        check(r#"{"pass\u0077ord":"hunter2","x":1}"#, r#"{"pass\u0077ord":"***","x":1}"#);
        check(r#"{"\u0074oken\u005fid" : 7, "x":1}"#, r#"{"\u0074oken\u005fid" : ***, "x":1}"#);
        check(r#"{"b":"{\"p\\u0061ss\":\"abc\",\"x\":1}"}"#, r#"{"b":"{\"p\\u0061ss\":\"***\",\"x\":1}"}"#);
        check(r#"{\u0022password\u0022:\u0022abc\u0022,"x":1}"#, r#"{\u0022password\u0022:\u0022***\u0022,"x":1}"#);
        check(r#"{\u0022pin\u0022:\u0022abc\u0022,"x":1}"#, r#"{\u0022pin\u0022:\u0022***\u0022,"x":1}"#);
        check(r#"{"password":"a\u0022b","x":1}"#, r#"{"password":"***","x":1}"#);
        check(r"{pass\x77ord:'abc',x:1}", r"{pass\x77ord:'***',x:1}");
        // A blank before a name is none of its letters, and other letters are no name.
        check("a%20pinned=1&b=%41uthor%3D2&c=100%&d=\\u00zz", "a%20pinned=1&b=%41uthor%3D2&c=100%&d=\\u00zz");
    }

    #[test]
    fn addresses_with_passwords() {
        check("get http://bob:hunter2@shop.example/a?b=c", "get http://bob:***@shop.example/a?b=c");
        check("u=http%3A%2F%2Fbob%3Ahun%40ter2%40shop.example%2F&a=1", "u=http%3A%2F%2Fbob%3A***%40shop.example%2F&a=1");
        check("u=http%253A%252F%252Fbob%253Ahunter2%2540shop.example", "u=http%253A%252F%252Fbob%253A***%2540shop.example");
        check(r#"{"u":"ftp:\/\/bob:hun@ter2@a.example\/"}"#, r#"{"u":"ftp:\/\/bob:***@a.example\/"}"#);
        check("//:hunter2@a.example", "//:***@a.example");
        check("u=http://bob:hun&ter2@a.example", "u=http://bob:***@a.example");
        check("u=http://bob:hun%2Fter2@a.example/", "u=http://bob:***@a.example/");
        check("u=http://bob:1%2f2%22@a.example/", "u=http://bob:***@a.example/");
        check("u=http://bob:hun/ter?2@a.example/x@y", "u=http://bob:***@a.example/x@y");
        for neighbour in
            ["return=https://www.shop-example.com&email=anna@example.org", "url=http://shop.example:8080&mail=bob@x.example&a=b"]
        {
            check(neighbour, neighbour);
        }
        check("git clone https://0123456789abcdef0123@git.example/x", "git clone https://***@git.example/x");
        for plain in [
            "http://a.example:8080/x:y@z",
            "http://[::1]:8080/x:y@z",
            "http://a.example/?mail=b:c@d.example",
            "http://shop.example@a.example/",
            "http://bob:@a.example/",
            "mail bob@a.example // see: b:c",
            "a//b c:d@e",
            "https://a.example/40%2F",
        ] {
            check(plain, plain);
        }
    }

    #[test]
    fn other_bodies() {
        check(
            "--b\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\nhun\r\nter2\r\n--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b--",
            "--b\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\n***\r\n--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b--",
        );
        check("<a><password>x</password><b>1</b></a>", "<a><password>***</password><b>1</b></a>");
        check("<password><![CDATA[a<b]]></password>", "<password>***]]></password>");
        check("<password><value>x</value></password><b>1</b>", "<password>***</password><b>1</b>");
        check("<a:password>\n <value type=\"t\">x</value> y</a:password><b>1</b>", "<a:password>***</a:password><b>1</b>");
        check("<password type=\"text\" >x</password><b>1</b>", "<password type=\"text\" >***</password><b>1</b>");
        check("<password><value>cut of", "<password>***");
        check("<password></password><b>1</b> <password/><b>2</b>", "<password></password><b>1</b> <password/><b>2</b>");
        check("<password>x</password>text<b>1</b>", "<password>***</password>text<b>1</b>");
        check("password: hunter2\nuser: bob", "password: ***\nuser: bob");
    }

    #[test]
    fn card_numbers() {
        check("/pay/4111111111111111/x", "/pay/***/x");
        check("n=4111+1111+1111+1111&a=1", "n=***&a=1");
        check("n=4111%201111%201111%201111", "n=***");
        check("Agent 3782-822463-10005 (x)", "Agent *** (x)");
        check("n=%204111111111111111", "n=%20***");
        check("n=%25204111111111111111", "n=%2520***");
        check("n=4111%25201111%25201111%25201111&a=1", "n=***&a=1");
        check("n=4111.1111.1111.1111.", "n=***.");
        check(r"n=\u00204111\u00201111\u00201111\x201111", r"n=\u0020***");
        check("see 1234 4111 1111 1111 1111", "see 1234 ***");
        check("n=6011000990139424,5500000000000004", "n=***,***");
        // Wrong check digit, too short, too long, begins like a time.
        check("4111111111111112 411111111111 41111111111111111111", "4111111111111112 411111111111 41111111111111111111");
        check("t=1431857103000", "t=1431857103000");
        let off = MaskConfig { card_numbers: false, ..MaskConfig::default() };
        let masker = Masker::new(&off).expect("a masker");
        assert_eq!(&*masker.text(b"4111111111111111"), b"4111111111111111");
    }

    #[test]
    fn a_part_shows_nothing_of_a_secret_it_cuts() {
        let masker = masker();
        let text = b"a=1&password=hunter2&b=2";
        let secrets = masker.secrets(text);
        for start in 0..text.len() {
            for end in start..=text.len() {
                let part = masked(text, &secrets, start..end);
                for piece in [&b"hun"[..], b"nte", b"er2"] {
                    assert!(memchr::memmem::find(&part, piece).is_none(), "{}", String::from_utf8_lossy(&part));
                }
            }
        }
    }

    #[test]
    fn a_text_that_is_cut_shows_nothing_of_a_secret_that_the_cut_lies_in() {
        let masker = masker();
        for (secret, pieces) in [
            ("4111111111111111", &["411", "111"][..]),
            ("4111 1111 1111 1111", &["411", "111"]),
            ("http://bob:hunter2-and-more@a.example/", &["hun", "ter", "2-and", "more"]),
            ("password=hunter2-and-more", &["hun", "ter", "2-and", "more"]),
        ] {
            let text = format!("/a/{secret} end");
            for most in 0..=text.len() + 1 {
                let start = masker.start_of_text(text.as_bytes(), most);
                assert!(start.len() <= most);
                let found = String::from_utf8_lossy(&start);
                assert!(pieces.iter().all(|piece| !found.contains(piece)), "{found}");
            }
            let far = format!("{secret}{}", "x".repeat(100_000));
            let start = masker.start_of_text(far.as_bytes(), 64);
            assert!(pieces.iter().all(|piece| !String::from_utf8_lossy(&start).contains(piece)));
        }
        // What is masked makes no room for more.
        let text = format!("pin={}&a=4111111111111111", "7".repeat(50));
        assert_eq!(&*masker.start_of_text(text.as_bytes(), 62), b"pin=***&a=***");
        assert!(matches!(masker.start_of_text(b"/plain/text", 6), Cow::Borrowed(b"/plain")));
        assert!(matches!(masker.start_of_text(b"/plain?pin=1234", 6), Cow::Borrowed(b"/plain")));
    }

    #[test]
    fn secrets_lie_in_order_in_any_text() {
        const PIECES: [&str; 32] = [
            "password",
            "pin",
            "=",
            ":",
            "//",
            "/",
            "@",
            "%40",
            "%",
            "25",
            "%2525",
            "70",
            "%70",
            "\\",
            "u00",
            "\\u0070",
            "\\x70",
            "x",
            "\"",
            "'",
            "{",
            "[",
            "}",
            ">",
            "<",
            "&",
            "4111111111111111",
            " ",
            "\r\n\r\n",
            "\n--",
            "%2f%2f",
            "\u{e9}",
        ];
        let masker = masker();
        let mut seed = 7u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(PIECES[(seed >> 59) as usize]);
            }
            let decoded = masker.secrets_of_decoded(text.as_bytes(), b"");
            assert!(decoded.iter().all(|secret| secret.start < secret.end && secret.end <= text.len()), "{text}: {decoded:?}");
            let secrets = masker.secrets(text.as_bytes());
            assert!(secrets.iter().all(|secret| secret.start < secret.end && secret.end <= text.len()), "{text}: {secrets:?}");
            assert!(secrets.is_sorted_by(|one, next| one.end <= next.start), "{text}: {secrets:?}");
        }
    }

    #[test]
    fn names_are_configured() {
        let config: MaskConfig = toml::from_str("headers = [\"x-mine\"]\nparameters = [\"geheim\"]").expect("a configuration");
        assert!(config.card_numbers);
        let masker = Masker::new(&config).expect("a masker");
        assert_eq!(&*masker.text(b"geheim=1&password=2"), b"geheim=***&password=2");
        assert_eq!(&*masker.header(b"X-Mine", b"1"), b"***");
        assert!(toml::from_str::<MaskConfig>("header = []").is_err());
        let error = Masker::new(&MaskConfig { parameters: vec!["a b".to_owned()], ..config }).expect_err("a blank");
        assert!(error.to_string().contains("`a b`"), "{error}");
    }
}
