//! Takes bodies and queries apart: gives each value with the name of its point.
//!
//! The parsers are lenient: what is broken or cut gives what can be read of it. None copies more than names, none recurses.

use std::ops::ControlFlow;

/// Deepest nesting of JSON whose keys become part of a point's name; what lies deeper is looked at under the last of them.
pub(crate) const DEPTH_MAX: usize = 32;
/// Longest name of a point.
pub(crate) const NAME_BYTES_MAX: usize = 256;
/// Most bytes of the joined keys of JSON: more than a point shows, for the last of them may say that the value is a secret. Joined
/// keys of this length may have been cut.
pub(crate) const JOINED_BYTES_MAX: usize = 4096;

/// Takes each value; breaking ends the parser.
pub(crate) type Take<'t> = dyn FnMut(Part<'_>) -> ControlFlow<()> + 't;

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The value of a parameter.
    Value,
    /// The name of a parameter, which anybody may choose.
    Name,
    /// The name of a file.
    File,
}

/// One value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) role: Role,
    /// The name, not decoded; for JSON the keys joined by `_`.
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// `a=1&b=2`, or cookies with `;` between them.
pub(crate) fn pairs(text: &[u8], separator: u8, take: &mut Take<'_>) -> ControlFlow<()> {
    for pair in text.split(|byte| *byte == separator) {
        let pair = if separator == b';' { pair.trim_ascii() } else { pair };
        let (name, value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        };
        if !name.is_empty() {
            take(Part { role: Role::Name, name, value: name })?;
        }
        if !value.is_empty() {
            take(Part { role: Role::Value, name, value })?;
        }
    }
    ControlFlow::Continue(())
}

/// The boundary that a Content-Type header names.
pub(crate) fn boundary(content_type: &[u8]) -> Option<&[u8]> {
    let at = find_ignoring_case(content_type, b"boundary=")?;
    let rest = &content_type[at + 9..];
    let boundary = match rest.strip_prefix(b"\"") {
        Some(quoted) => quoted.split(|byte| *byte == b'"').next(),
        None => rest.split(|byte| matches!(byte, b';' | b' ' | b',')).next(),
    };
    boundary.filter(|boundary| !boundary.is_empty() && boundary.len() <= 256)
}

/// The parts of a multipart body.
pub(crate) fn multipart(body: &[u8], boundary: &[u8], take: &mut Take<'_>) -> ControlFlow<()> {
    // Within a line a boundary is text: who sends the body chooses it, and might cut his payload by it.
    let delimiter = [b"\n--", boundary].concat();
    let finder = memchr::memmem::Finder::new(&delimiter);
    let first = if body.starts_with(&delimiter[1..]) { Some(delimiter.len() - 1) } else { None };
    let first = first.or_else(|| finder.find(body).map(|at| at + delimiter.len()));
    let mut next = first.map(|start| &body[start..]);
    while let Some(rest) = next {
        let end = finder.find(rest);
        next = end.map(|end| &rest[end + delimiter.len()..]);
        let part = rest[..end.map_or(rest.len(), |end| end + 1)].trim_ascii_start();
        let part = part.strip_suffix(b"\r\n").or_else(|| part.strip_suffix(b"\n")).unwrap_or(part);
        let (headers, value) = match memchr::memmem::find(part, b"\r\n\r\n") {
            Some(at) => (&part[..at], &part[at + 4..]),
            None => match memchr::memmem::find(part, b"\n\n") {
                Some(at) => (&part[..at], &part[at + 2..]),
                // A part without a blank line is read as both: servers differ.
                None => (part, part),
            },
        };
        let name = parameter(headers, b"name=").unwrap_or(b"");
        if !name.is_empty() {
            take(Part { role: Role::Name, name, value: name })?;
        }
        for key in [&b"filename="[..], b"filename*="] {
            if let Some(file) = parameter(headers, key) {
                take(Part { role: Role::File, name, value: file })?;
            }
        }
        if !value.is_empty() && value != b"--" {
            take(Part { role: Role::Value, name, value })?;
        }
    }
    ControlFlow::Continue(())
}

/// A parameter of a Content-Disposition header; `name=` is not the end of `filename=`.
fn parameter<'a>(headers: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut from = 0;
    loop {
        let at = from + find_ignoring_case(&headers[from..], key)?;
        from = at + key.len();
        if at > 0 && !matches!(headers[at - 1], b' ' | b';' | b'\t' | b'\n') {
            continue;
        }
        let rest = &headers[from..];
        return match rest.strip_prefix(b"\"") {
            Some(quoted) => quoted.split(|byte| matches!(byte, b'"' | b'\r' | b'\n')).next(),
            None => rest.split(|byte| matches!(byte, b';' | b'\r' | b'\n')).next(),
        };
    }
}

fn find_ignoring_case(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window.eq_ignore_ascii_case(word))
}

/// Texts and attributes of XML, with the element or attribute as name. References are left to the decoder.
pub(crate) fn xml(text: &[u8], take: &mut Take<'_>) -> ControlFlow<()> {
    let until = |text: &[u8], end: &[u8]| memchr::memmem::find(text, end).map_or(text.len(), |at| at + end.len());
    let (mut rest, mut element) = (text, &b""[..]);
    // The text of an element without the comments and sections that cut it, and its pieces so far.
    let (mut joined, mut pieces) = (Vec::new(), 0);
    while !rest.is_empty() {
        let tag = memchr::memchr(b'<', rest).unwrap_or(rest.len());
        let value = rest[..tag].trim_ascii();
        if !value.is_empty() {
            take(Part { role: Role::Value, name: element, value })?;
            joined.extend_from_slice(&rest[..tag]);
            pieces += 1;
        }
        rest = &rest[tag..];
        if !matches!(rest, [b'<', b'!' | b'?', ..]) {
            if pieces > 1 {
                take(Part { role: Role::Value, name: element, value: &joined })?;
            }
            joined.clear();
            pieces = 0;
        }
        let taken = match rest {
            [] => 0,
            [b'<', b'!', b'[', b'C', b'D', b'A', b'T', b'A', b'[', data @ ..] => {
                let end = memchr::memmem::find(data, b"]]>").unwrap_or(data.len());
                take(Part { role: Role::Value, name: element, value: &data[..end] })?;
                joined.extend_from_slice(&data[..end]);
                pieces += 1;
                9 + end + 3
            }
            [b'<', b'!', b'-', b'-', ..] => until(rest, b"-->"),
            [b'<', b'!' | b'?' | b'/', ..] => until(rest, b">"),
            _ => {
                let name = rest[1..].iter().take_while(|byte| !byte.is_ascii_whitespace() && !b"/>".contains(byte)).count();
                element = &rest[1..=name];
                1 + name + attributes(&rest[1 + name..], take)?
            }
        };
        rest = &rest[taken.min(rest.len())..];
    }
    if pieces > 1 {
        take(Part { role: Role::Value, name: element, value: &joined })?;
    }
    ControlFlow::Continue(())
}

/// The attributes of an element; gives the bytes up to its end.
fn attributes(text: &[u8], take: &mut Take<'_>) -> ControlFlow<(), usize> {
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        if byte == b'>' {
            return ControlFlow::Continue(at + 1);
        }
        let name =
            &text[at..at + text[at..].iter().take_while(|byte| !byte.is_ascii_whitespace() && !b"=>/".contains(byte)).count()];
        if name.is_empty() {
            at += 1;
            continue;
        }
        at += name.len();
        let blanks = |at: usize| at + text[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let equals = blanks(at);
        if text.get(equals) == Some(&b'=') {
            at = blanks(equals + 1) - 1;
        }
        if let [_, quote @ (b'"' | b'\''), value @ ..] = &text[at..]
            && text.get(equals) == Some(&b'=')
        {
            let end = memchr::memchr(*quote, value).unwrap_or(value.len());
            take(Part { role: Role::Value, name, value: &value[..end] })?;
            at += 2 + end;
        }
    }
    ControlFlow::Continue(text.len())
}

/// Buffers of the JSON parser, reused.
#[derive(Debug, Default)]
pub(crate) struct Json {
    /// Keys so far, joined by `_`.
    name: Vec<u8>,
    /// The length of the name outside each open object or array.
    levels: Vec<usize>,
    /// A string with its escapes undone.
    string: Vec<u8>,
}

impl Json {
    /// The values of a text in JSON, its keys as names. `false`: nested too deeply, or no JSON: then what could not be read
    /// was given as one value.
    pub(crate) fn values(&mut self, text: &[u8], take: &mut Take<'_>) -> ControlFlow<(), bool> {
        self.name.clear();
        self.levels.clear();
        let mut is_whole = true;
        let mut at = 0;
        // The length of the name at this level, and whether a string here is a key.
        let (mut base, mut is_key) = (0, false);
        while let Some(&byte) = text.get(at) {
            match byte {
                b'{' | b'[' => {
                    if self.levels.len() < DEPTH_MAX {
                        self.levels.push(base);
                    } else {
                        is_whole = false;
                    }
                    base = self.name.len();
                    is_key = byte == b'{';
                    at += 1;
                }
                b'}' | b']' => {
                    if let Some(outer) = self.levels.pop() {
                        base = outer;
                    }
                    self.name.truncate(base);
                    is_key = false;
                    at += 1;
                }
                b',' => {
                    // In an object the next string is a key; in an array it will be seen not to be one.
                    self.name.truncate(base);
                    is_key = true;
                    at += 1;
                }
                b':' => {
                    is_key = false;
                    at += 1;
                }
                b'"' => {
                    let raw = &text[at + 1..];
                    let length = string_end(raw);
                    at += 1 + length + 1;
                    let value = unescape(&raw[..length], &mut self.string);
                    let colon = text.get(at..).is_some_and(|rest| rest.trim_ascii_start().starts_with(b":"));
                    if is_key && colon {
                        take(Part { role: Role::Name, name: &self.name, value })?;
                        self.name.truncate(base);
                        if !self.name.is_empty() && self.name.len() < JOINED_BYTES_MAX {
                            self.name.push(b'_');
                        }
                        let room = JOINED_BYTES_MAX.saturating_sub(self.name.len());
                        self.name.extend_from_slice(&value[..value.len().min(room)]);
                    } else {
                        take(Part { role: Role::Value, name: &self.name, value })?;
                    }
                }
                byte if byte.is_ascii_whitespace() => at += 1,
                _ => {
                    let word = text[at..].iter().take_while(|byte| !b",]}:\" \t\r\n{[".contains(byte)).count();
                    let value = &text[at..at + word];
                    let is_scalar = value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
                    if !is_scalar {
                        take(Part { role: Role::Value, name: &self.name, value: &text[at..] })?;
                        return ControlFlow::Continue(false);
                    }
                    at += word;
                }
            }
        }
        ControlFlow::Continue(is_whole)
    }

    pub(crate) fn shrink(&mut self, bytes_max: usize) {
        self.string.clear();
        self.string.shrink_to(bytes_max);
    }
}

/// Length of a string up to its closing quote.
fn string_end(raw: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = memchr::memchr2(b'"', b'\\', &raw[at..]) {
        at += found;
        if raw[at] == b'"' {
            return at;
        }
        at = (at + 2).min(raw.len());
    }
    raw.len()
}

/// Undoes the short escapes; `\u0027` is left to the decoder.
fn unescape<'a>(raw: &'a [u8], out: &'a mut Vec<u8>) -> &'a [u8] {
    if memchr::memchr(b'\\', raw).is_none() {
        return raw;
    }
    out.clear();
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let (byte, taken) = match rest.get(at + 1) {
            Some(b'n') => (b'\n', 2),
            Some(b'r') => (b'\r', 2),
            Some(b't') => (b'\t', 2),
            Some(b'b') => (8, 2),
            Some(b'f') => (12, 2),
            Some(byte @ (b'"' | b'/' | b'\\')) => (*byte, 2),
            _ => (b'\\', 1),
        };
        out.push(byte);
        rest = &rest[at + taken..];
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn values<R>(parse: impl FnOnce(&mut Take<'_>) -> R) -> Vec<String> {
        let mut found = Vec::new();
        parse(&mut |part| {
            let role = ["", "name ", "file "][part.role as usize];
            found.push(format!("{role}{}={}", text(part.name), text(part.value)));
            ControlFlow::Continue(())
        });
        found
    }

    fn json(source: &str) -> Vec<String> {
        values(|take| Json::default().values(source.as_bytes(), take))
    }

    #[test]
    fn queries_and_cookies() {
        let found = values(|take| pairs(b"a=1&b&=3&&c==", b'&', take));
        assert_eq!(found, ["name a=a", "a=1", "name b=b", "=3", "name c=c", "c=="]);
        let found = values(|take| pairs(b"a=1; b=2;", b';', take));
        assert_eq!(found, ["name a=a", "a=1", "name b=b", "b=2"]);
    }

    #[test]
    fn json_values_have_their_keys_as_names() {
        let found = json(r#"{"user":{"name":"x","tags":["a",{"b":"c"}],"n":1},"z":"y\n\"q\""}"#);
        let expected = [
            "name =user",
            "name user=name",
            "user_name=x",
            "name user=tags",
            "user_tags=a",
            "name user_tags=b",
            "user_tags_b=c",
            "name user=n",
            "name =z",
            "z=y\n\"q\"",
        ];
        assert_eq!(found, expected);
        assert_eq!(json(r#"["a","b",["c"]]"#), ["=a", "=b", "=c"]);
        assert_eq!(json(r#""a""#), ["=a"]);
    }

    #[test]
    fn broken_json_is_looked_at_all_the_same() {
        assert_eq!(json(r#"{"a":"cut"#), ["name =a", "a=cut"]);
        assert_eq!(json(r#"{"a":"b\"#), ["name =a", "a=b\\"]);
        assert_eq!(json(r#"{"a":1 or 1=1}"#), ["name =a", "a=1=1}"]);
        assert_eq!(json("{a:<script>}"), ["=<script>}"]);
        assert_eq!(json("}}]],,::"), Vec::<String>::new());
    }

    #[test]
    fn joined_keys_are_bounded_and_keep_the_last_one_while_there_is_room() {
        let long = format!(r#"{{"{}":{{"password":"x"}}}}"#, "k".repeat(300));
        assert!(json(&long).contains(&format!("{}_password=x", "k".repeat(300))));
        let text = format!(r#"{{"{}":"#, "k".repeat(3000)).repeat(100);
        let mut parser = Json::default();
        let mut names = Vec::new();
        let _ = parser.values(text.as_bytes(), &mut |part| {
            names.push(part.name.len());
            ControlFlow::Continue(())
        });
        assert_eq!((names.iter().max(), parser.name.len()), (Some(&JOINED_BYTES_MAX), JOINED_BYTES_MAX));
        assert!(parser.name.capacity() <= 2 * JOINED_BYTES_MAX);
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{}\"x\"{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        let mut found = 0;
        let mut take = |_: Part<'_>| {
            found += 1;
            ControlFlow::Continue(())
        };
        let mut json = Json::default();
        assert_eq!(json.values(deep.as_bytes(), &mut take), ControlFlow::Continue(false));
        assert_eq!((found, json.levels.capacity() <= 2 * DEPTH_MAX), (1, true));
    }

    #[test]
    fn xml_bodies() {
        let text = b"<?xml version='1.0'?><!-- <x>no</x> --><a b=\"1\" c = 'x'><d> t </d><e><![CDATA[<f>]]></e>u</a><g h='cut";
        assert_eq!(values(|take| xml(text, take)), ["b=1", "c=x", "d=t", "e=<f>", "e=u", "h=cut"]);
        assert_eq!(values(|take| xml(b"<<<>>", take)), ["<<=>"]);
        let cut = b"<a>1 uni<!-- -->on<![CDATA[ sel]]><?x?>ect</a><b>t<!-- --><![CDATA[u]]>";
        assert_eq!(
            values(|take| xml(cut, take)),
            ["a=1 uni", "a=on", "a= sel", "a=ect", "a=1 union select", "b=t", "b=u", "b=tu"]
        );
    }

    #[test]
    fn multipart_bodies() {
        let body = b"--xx\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n2\r\n--xx\r\nContent-Disposition: form-data; filename=\"p.php\"; name=f\r\nContent-Type: text/plain\r\n\r\n<?php\r\n--xx--\r\n";
        let boundary = boundary(b"multipart/form-data; charset=x; boundary=\"xx\"").expect("a boundary");
        assert_eq!(boundary, b"xx");
        let found = values(|take| multipart(body, boundary, take));
        assert_eq!(found, ["name a=a", "a=1\r\n2", "name f=f", "file f=p.php", "f=<?php"]);
        let body = b"--r\r\nContent-Disposition: form-data; name=\"q\"\r\n\r\n<script>--r\r\n--r--\r\n";
        assert_eq!(values(|take| multipart(body, b"r", take)), ["name q=q", "q=<script>--r"]);
    }
}
