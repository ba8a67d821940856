//! Env files: `KEY=value` lines as shells, systemd and container tools write them.
//!
//! Own parser, because the files of other products are read as they are: `export`, quotes, comments and CRLF are taken,
//! nothing is expanded or executed. Pure: text in, pairs out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where env files are looked for; the first that exists is read.
pub const DEFAULT_PATHS: [&str; 5] = [
    "/etc/postanalytics/env",
    "/etc/wallarm-override/env.list",
    "/opt/wallarm/env.list",
    "/etc/default/wallarm-tarantool",
    "/etc/sysconfig/wallarm-tarantool",
];
/// Largest env file read.
pub const BYTES_MAX: u64 = 1 << 20;

/// A read env file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its keys and values; of a key given twice the last counts.
    pub values: BTreeMap<String, String>,
    /// Numbers of its lines without `=`. They were skipped.
    pub lines_skipped: Vec<usize>,
}

/// Who chose an env file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// The operator, by its name.
    ByName,
    /// This program: it lay in one of the [`DEFAULT_PATHS`]. It was written for somebody else, so it may hold oddities.
    ByItself,
}

impl EnvFile {
    /// Reads and parses the file at `path`.
    pub fn read(path: &Path, chosen: Chosen) -> Result<Self, String> {
        Self::read_strictly(path, chosen == Chosen::ByName).map_err(|error| match chosen {
            Chosen::ByName => error,
            Chosen::ByItself => format!(
                "{error} (the env file {} was found by itself: --env-file FILE reads another, --env-file /dev/null none)",
                path.display()
            ),
        })
    }

    fn read_strictly(path: &Path, strict: bool) -> Result<Self, String> {
        let text = super::read_small_file(path, BYTES_MAX)?;
        let parsed = parse(&text).and_then(|parsed| match parsed.lines_skipped.first() {
            Some(number) if strict => Err(format!("line {number} has no `=`: write KEY=value")),
            _ => Ok(parsed),
        });
        let parsed = parsed.map_err(|error| format!("env file {}: {error}", path.display()))?;
        Ok(Self { path: path.to_path_buf(), ..parsed })
    }

    /// Keys that are none of `known`.
    pub fn unknown_keys(&self, known: &[&str]) -> Vec<&str> {
        self.values.keys().map(String::as_str).filter(|key| !known.contains(key)).collect()
    }
}

/// Parses the text of an env file. The error names the line.
pub fn parse(text: &str) -> Result<EnvFile, String> {
    let mut file = EnvFile::default();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = index + 1;
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let Some((key, value)) = line.split_once('=') else {
            file.lines_skipped.push(number);
            continue;
        };
        let key = key.trim_end();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(format!("line {number}: {key:?} is no key: letters, digits and `_` only"));
        }
        let value = parse_value(value.trim_start()).ok_or_else(|| format!("line {number}: the quote of {key} is not closed"))?;
        file.values.insert(key.to_owned(), value);
    }
    Ok(file)
}

/// A value: quoted and bare pieces side by side, as a shell joins them; ` #` outside of quotes begins a comment.
/// `None`: a quote is open at the end of the line.
fn parse_value(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut letters = text.chars();
    let mut quote = None;
    let mut after_space = true;
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (Some('"'), '\\') => match letters.next()? {
                escaped @ ('"' | '\\' | '$' | '`') => value.push(escaped),
                other => value.extend(['\\', other]),
            },
            (Some(_), letter) => value.push(letter),
            (None, '\'' | '"') => quote = Some(letter),
            (None, '#') if after_space => break,
            (None, letter) => value.push(letter),
        }
        after_space = quote.is_none() && letter.is_whitespace();
    }
    let trailing = value.trim_end().len();
    // Only bare text loses its trailing spaces; a value that ends in a quote keeps them.
    if !text.trim_end().ends_with(['"', '\'']) {
        value.truncate(trailing);
    }
    quote.is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value_of(line: &str) -> String {
        parse(line).expect("parses").values.remove("A").expect("has A")
    }

    #[test]
    fn what_shells_write_is_read() {
        assert_eq!(value_of("A=1.5"), "1.5");
        assert_eq!(value_of("  export A = 1.5  # half\r\n"), "1.5");
        assert_eq!(value_of("A='x y' # c"), "x y");
        assert_eq!(value_of("A=\"x \\\"y\\\" #no\""), "x \"y\" #no");
        assert_eq!(value_of("A="), "");
        assert_eq!(value_of("A=# nothing"), "");
        assert_eq!(value_of("A=a#b"), "a#b");
        assert_eq!(value_of("A='one'two\"three\""), "onetwothree");
        assert_eq!(value_of("A=' '"), " ");
        assert_eq!(value_of("\u{feff}# c\r\n\r\nA=1\r\nA=2\r\n"), "2");
    }

    #[test]
    fn errors_name_the_line() {
        assert!(parse("A B=1").expect_err("bad key").contains("line 1"));
        assert!(parse("A='1").expect_err("open quote").contains("not closed"));
        assert!(parse("A=\"1\\").expect_err("open quote").contains("not closed"));
    }

    #[test]
    fn a_line_without_value_stops_only_a_file_that_was_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("env");
        std::fs::write(&path, "A=1\nB\nC=3\n").expect("written");
        assert!(EnvFile::read(&path, Chosen::ByName).expect_err("no =").contains("line 2 has no `=`"));
        let file = EnvFile::read(&path, Chosen::ByItself).expect("good");
        assert_eq!((file.values.len(), file.lines_skipped), (2, vec![2]));
        let error = EnvFile::read(folder.path(), Chosen::ByItself).expect_err("a folder");
        assert!(error.contains("found by itself") && error.contains("--env-file"), "{error}");
    }

    #[test]
    fn unknown_keys_are_listed() {
        let file = parse("HOST=a\nNGINX_PORT=1").expect("parses");
        assert_eq!(file.unknown_keys(&["HOST"]), ["NGINX_PORT"]);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn single_quotes_keep_everything(value in "[^'\r\n\u{85}\u{2028}\u{2029}\u{b}\u{c}]*") {
            prop_assert_eq!(parse(&format!("A='{value}'")).expect("parses").values["A"].clone(), value);
        }
    }
}
