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
    /// Its lines that say nothing that could be taken.
    pub lines_skipped: Vec<LineSkipped>,
}

/// A line of an env file that is no `KEY=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineSkipped {
    /// Its number, from 1.
    pub number: usize,
    /// The word before its `=`; empty if there is none.
    pub key: String,
    /// What is wrong with it, naming the number.
    pub error: String,
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
    /// Reads and parses the file at `path`. Of a line that is no `KEY=value` the file was asked for in vain; in a file that was
    /// found it may be meant for somebody else, but not if its key is one of `known`: then a value would be missing here.
    pub fn read(path: &Path, chosen: Chosen, known: &[&str]) -> Result<Self, String> {
        let file = super::read_small_file(path, BYTES_MAX).and_then(|text| {
            let file = parse(&text);
            let is_wrong = |line: &&LineSkipped| chosen == Chosen::ByName || known.contains(&line.key.as_str());
            match file.lines_skipped.iter().find(is_wrong) {
                Some(line) => Err(format!("env file {}: {}", path.display(), line.error)),
                None => Ok(Self { path: path.to_path_buf(), ..file }),
            }
        });
        file.map_err(|error| match chosen {
            Chosen::ByName => error,
            Chosen::ByItself => format!(
                "{error} (the env file {} was found by itself: --env-file FILE reads another, --env-file /dev/null none)",
                path.display()
            ),
        })
    }

    /// Keys that are none of `known`.
    pub fn unknown_keys(&self, known: &[&str]) -> Vec<&str> {
        self.values.keys().map(String::as_str).filter(|key| !known.contains(key)).collect()
    }
}

/// Parses the text of an env file.
pub fn parse(text: &str) -> EnvFile {
    let mut file = EnvFile::default();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match parse_line(line) {
            Ok((key, value)) => _ = file.values.insert(key.to_owned(), value),
            Err((key, error)) => {
                let number = index + 1;
                let error = format!("line {number}{error}");
                file.lines_skipped.push(LineSkipped { number, key: key.to_owned(), error });
            }
        }
    }
    file
}

/// Key and value of a line; or the key that it may be about, and what is wrong.
fn parse_line(line: &str) -> Result<(&str, String), (&str, String)> {
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    let Some((key, value)) = line.split_once('=') else {
        return Err(("", " has no `=`: write KEY=value".to_owned()));
    };
    let key = key.trim_end();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        // Of `declare -x HOST=` it is HOST.
        let word = key.split_whitespace().next_back().unwrap_or_default();
        return Err((word, format!(": {key:?} is no key: letters, digits and `_` only")));
    }
    match parse_value(value.trim_start()) {
        Some(value) => Ok((key, value)),
        None => Err((key, format!(": the quote of {key} is not closed"))),
    }
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
        parse(line).values.remove("A").expect("has A")
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
        let error = |text: &str| parse(text).lines_skipped.remove(0).error;
        assert!(error("A B=1").contains("line 1"));
        assert!(error("A='1").contains("not closed"));
        assert!(error("A=\"1\\").contains("not closed"));
    }

    fn numbers(file: &EnvFile) -> Vec<usize> {
        file.lines_skipped.iter().map(|line| line.number).collect()
    }

    #[test]
    fn a_line_without_value_stops_only_a_file_that_was_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("env");
        std::fs::write(&path, "A=1\nB\nC=3\n").expect("written");
        assert!(EnvFile::read(&path, Chosen::ByName, &["HOST"]).expect_err("no =").contains("line 2 has no `=`"));
        let file = EnvFile::read(&path, Chosen::ByItself, &["HOST"]).expect("good");
        assert_eq!((file.values.len(), numbers(&file)), (2, vec![2]));
        let error = EnvFile::read(folder.path(), Chosen::ByItself, &["HOST"]).expect_err("a folder");
        assert!(error.contains("found by itself") && error.contains("--env-file"), "{error}");
    }

    #[test]
    fn lines_of_others_stop_only_a_file_that_was_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("env");
        let read = |text: &str, chosen| {
            std::fs::write(&path, text).expect("written");
            EnvFile::read(&path, chosen, &["HOST", "PORT"])
        };
        let text = "HOST=a\nNGINX_NOTE=it's fine\nsome.key=1\nEXTRA=\"one\ntwo\"\n=1\nPORT=5\n";
        let file = read(text, Chosen::ByItself).expect("good");
        assert_eq!((numbers(&file), file.values.len()), (vec![2, 3, 4, 5, 6], 2));
        assert_eq!((file.values["HOST"].as_str(), file.values["PORT"].as_str()), ("a", "5"));
        for (line, why) in [
            ("NGINX_NOTE=it's fine", "line 2: the quote of NGINX_NOTE is not closed"),
            ("some.key=1", "line 2: \"some.key\" is no key"),
            ("=1", "line 2: \"\" is no key"),
        ] {
            let error = read(&format!("HOST=a\n{line}\n"), Chosen::ByName).expect_err(line);
            assert!(error.contains(why), "{error}");
        }
        // Whoever wrote these meant what the server takes.
        for (line, why) in [
            ("PORT='5", "line 2: the quote of PORT is not closed"),
            ("declare -x PORT=5", "line 2: \"declare -x PORT\" is no key"),
        ] {
            let error = read(&format!("some.key=1\n{line}\n"), Chosen::ByItself).expect_err(line);
            assert!(error.contains(why) && error.contains("found by itself"), "{error}");
        }
    }

    #[test]
    fn unknown_keys_are_listed() {
        let file = parse("HOST=a\nNGINX_PORT=1");
        assert_eq!(file.unknown_keys(&["HOST"]), ["NGINX_PORT"]);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn single_quotes_keep_everything(value in "[^'\r\n\u{85}\u{2028}\u{2029}\u{b}\u{c}]*") {
            prop_assert_eq!(parse(&format!("A='{value}'")).values["A"].clone(), value);
        }
    }
}
