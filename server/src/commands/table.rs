//! JSON as tables for people.
//!
//! A row is a line. Texts that peers chose are cut to what the terminal's width leaves, and shown without control characters, so that none of them commands the terminal.

use crate::escape::steers_terminal;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde_json::Value;
use std::fmt::Write;
use std::io::IsTerminal;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Narrowest terminal for which texts are cut.
const WIDTH_MIN: usize = 60;
/// Longest text, however wide the terminal, and where there is none: every row of a table is as wide as its widest.
const TEXT_MAX: usize = 256;
/// What is left of a text however narrow the terminal is.
const TEXT_MIN: usize = 8;
/// Between two columns.
const GAP: usize = 2;

/// A column: its title, and where its value is in a row (RFC 6901).
#[derive(Clone, Copy)]
pub(crate) enum Column {
    /// Stands on one line whole, be the terminal too narrow for it: an id that is cut apart cannot be copied.
    Kept(&'static str, &'static str),
    /// What visitors and nodes chose, of any length: cut to what the others leave.
    Text(&'static str, &'static str),
}

impl Column {
    const fn parts(self) -> (&'static str, &'static str) {
        match self {
            Self::Kept(title, pointer) | Self::Text(title, pointer) => (title, pointer),
        }
    }
}

/// Rows as a table; what to say if there are none.
pub(crate) fn table(rows: &[Value], columns: &[Column], none: &str) -> String {
    let stdout = std::io::stdout();
    let size = stdout.is_terminal().then(terminal_size::terminal_size).flatten();
    table_of_width(rows, columns, none, size.map(|(terminal_size::Width(width), _)| usize::from(width)))
}

/// The same for a terminal of this width, if there is one.
fn table_of_width(rows: &[Value], columns: &[Column], none: &str, width: Option<usize>) -> String {
    if rows.is_empty() {
        return format!("{none}\n");
    }
    let cells = |row: &Value| columns.iter().map(|column| column_cell(*column, row)).collect::<Vec<_>>();
    let mut cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    if let Some(width) = width {
        fit(&mut cells, columns, width.max(WIDTH_MIN));
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(columns.iter().map(|column| column.parts().0)).add_rows(cells);
    for (index, column) in columns.iter().enumerate() {
        let (_, pointer) = column.parts();
        let is_number = rows.iter().all(|row| row.pointer(pointer).is_none_or(|value| value.is_number() || value.is_null()));
        if is_number && let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    // Blanks at the ends of lines are noise in whatever reads them.
    let mut text = String::new();
    for line in table.to_string().lines() {
        let _ = writeln!(text, "{}", line.strip_prefix(' ').unwrap_or(line).trim_end());
    }
    text
}

/// A value as its column shows it before the width is known: a time to the second, no text longer than [`TEXT_MAX`].
fn column_cell(column: Column, row: &Value) -> String {
    let value = row.pointer(column.parts().1).unwrap_or(&Value::Null);
    match (column, value) {
        (Column::Kept(..), Value::String(text)) => match whole_seconds(text) {
            Some(time) => time,
            None => cut(&plain(text), TEXT_MAX),
        },
        (Column::Kept(..), value) => cell(value),
        (Column::Text(..), value) => cut(&cell(value), TEXT_MAX),
    }
}

/// A time in UTC without its fraction of a second; `None` if the text is no time with one.
fn whole_seconds(text: &str) -> Option<String> {
    let (seconds, fraction) = text.strip_suffix('Z')?.split_once('.')?;
    let is_time = fraction.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<jiff::Timestamp>().is_ok();
    is_time.then(|| format!("{seconds}Z"))
}

/// Cuts texts to what the other columns leave of a width; the longest first, each to the same.
fn fit(cells: &mut [Vec<String>], columns: &[Column], width: usize) {
    let width_of = |(index, column): (usize, &Column)| {
        let widest = cells.iter().map(|row| row[index].width()).max().unwrap_or(0);
        (matches!(column, Column::Text(..)), widest.max(column.parts().0.len()))
    };
    let widths: Vec<(bool, usize)> = columns.iter().enumerate().map(width_of).collect();
    let kept: usize = widths.iter().filter(|(is_text, _)| !is_text).map(|(_, width)| width).sum();
    let others = kept + GAP * columns.len().saturating_sub(1);
    // What is wider than the terminal takes another of its lines: then the texts have the rest of that.
    let least = others + TEXT_MIN * widths.iter().filter(|(is_text, _)| *is_text).count();
    let left = width * least.div_ceil(width).max(1) - others;
    let fits =
        |length: &usize| widths.iter().filter(|(is_text, _)| *is_text).map(|(_, width)| width.min(length)).sum::<usize>() <= left;
    let length = (TEXT_MIN..=TEXT_MAX).rev().find(fits).unwrap_or(TEXT_MIN);
    for row in cells {
        for (text, (is_text, _)) in row.iter_mut().zip(&widths) {
            if *is_text {
                *text = cut(text, length);
            }
        }
    }
}

/// A text that takes so many columns of a terminal at most, `…` the last of them if something was cut off.
fn cut(text: &str, length: usize) -> String {
    if text.width() <= length {
        return text.to_owned();
    }
    let mut left = length.saturating_sub(1);
    let fits = |letter: &char| {
        let width = letter.width().unwrap_or(0);
        let fits = width <= left;
        left = left.saturating_sub(width);
        fits
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

/// Names and values, one a line.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in facts {
        let _ = writeln!(text, "{name:width$}  {value}");
    }
    text
}

/// A value as a cell shows it.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(is_so) => if *is_so { "yes" } else { "no" }.to_owned(),
        Value::String(text) => plain(text),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => format!("{float:.1}"),
            _ => number.to_string(),
        },
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{}:{}", plain(name), cell(value)));
            fields.collect::<Vec<_>>().join(" ")
        }
    }
}

/// A text without control characters, and without those that turn the direction of what follows.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if steers_terminal(letter) {
            let _ = write!(out, "\\u{{{:x}}}", letter as u32);
        } else {
            out.push(letter);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::Column::{Kept, Text};
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_lines_and_numbers_stand_at_the_right() {
        let rows = [json!({"a": "x", "b": {"c": 7}}), json!({"a": null, "b": {"c": 1234}})];
        let text = table(&rows, &[Kept("NAME", "/a"), Kept("COUNT", "/b/c")], "nothing");
        assert_eq!(text, "NAME  COUNT\nx         7\n-      1234\n");
        assert_eq!(table(&[], &[Kept("NAME", "/a")], "nothing"), "nothing\n");
    }

    /// As wide as it gets: an IPv6 address, an id of 32 digits, a path that fills a frame.
    fn request(path: &str) -> Value {
        json!({
            "time": "2026-11-28T22:27:01.123456Z", "source": "2001:db8:1234:5678::/64", "host": "shop.example.com", "path": path,
            "id": "000102030405060708090a0b0c0d0e0f",
        })
    }

    const COLUMNS: [Column; 5] =
        [Kept("TIME", "/time"), Kept("SOURCE", "/source"), Text("HOST", "/host"), Text("PATH", "/path"), Kept("ID", "/id")];

    #[test]
    fn a_long_text_is_cut_and_ids_and_times_stay_whole_at_every_width() {
        let rows = [request("/"), request(&"/päth".repeat(16_000)), request("/\u{202e}")];
        for width in [None, Some(1), Some(80), Some(120), Some(200), Some(4000)] {
            let text = table_of_width(&rows, &COLUMNS, "nothing", width);
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 4, "{width:?}:\n{text}");
            for line in &lines[1..] {
                let (start, id) =
                    ("2026-11-28T22:27:01Z  2001:db8:1234:5678::/64  shop.ex", "  000102030405060708090a0b0c0d0e0f");
                assert!(line.starts_with(start) && line.ends_with(id), "{width:?}: {line}");
            }
            let widest = lines.iter().map(|line| line.chars().count()).max();
            // 20 for the time, 23 for the source, 32 for the id, four gaps; what is too narrow takes another line of the terminal.
            let expected = match width {
                Some(1) => 2 * 60,
                Some(80) => 2 * 80,
                Some(width @ 81..300) => width,
                _ => 83 + 16 + 256,
            };
            assert_eq!(widest, Some(expected), "{width:?}:\n{text}");
        }
        let text = table_of_width(&rows, &COLUMNS, "nothing", Some(120));
        assert!(text.contains("  shop.example.com  /päth/päth/päth/päth…  0001"), "{text}");
    }

    /// A letter may take two columns.
    #[test]
    fn wide_letters_count_as_wide_as_they_are() {
        assert_eq!(
            (cut("日本語日本語", 12), cut("日本語日本語", 11), cut("日本", 1)),
            ("日本語日本語".into(), "日本語日本…".into(), "…".into())
        );
        let text = table_of_width(&[request(&"日本".repeat(60))], &COLUMNS, "nothing", Some(120));
        assert!(text.lines().all(|line| line.width() <= 120), "{text}");
    }

    #[test]
    fn a_time_loses_its_fraction_and_nothing_else_does() {
        let row =
            json!({ "a": "2026-11-28T22:27:01.5Z", "b": "2026-11-28T22:27:01Z", "c": "1.5Z", "d": "2026-11-28T22:27:01.5Z" });
        let columns = [Kept("A", "/a"), Kept("B", "/b"), Kept("C", "/c"), Text("D", "/d")];
        let text = table_of_width(&[row], &columns, "nothing", None);
        assert!(text.ends_with("\n2026-11-28T22:27:01Z  2026-11-28T22:27:01Z  1.5Z  2026-11-28T22:27:01.5Z\n"), "{text}");
    }

    #[test]
    fn nothing_that_peers_wrote_commands_the_terminal() {
        assert_eq!(plain("a\x1b[2J\u{9b}1m\u{202e}é\n"), "a\\u{1b}[2J\\u{9b}1m\\u{202e}é\\u{a}");
        assert_eq!(cell(&json!({"a\x07": ["b\r"]})), "a\\u{7}:b\\u{d}");
    }

    #[test]
    fn facts_are_aligned() {
        assert_eq!(facts(&[("a", "1".to_owned()), ("long", "2".to_owned())]), "a     1\nlong  2\n");
    }
}
