//! JSON as tables for people.
//!
//! Texts that peers chose are shown without control characters, so that none of them commands the terminal.

use crate::escape::steers_terminal;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde_json::Value;
use std::fmt::Write;
use std::io::IsTerminal;

/// Narrowest terminal for which columns are fitted.
const WIDTH_MIN: u16 = 60;

/// A column: its title, and where its value is in a row (RFC 6901).
pub(crate) type Column = (&'static str, &'static str);

/// Rows as a table; what to say if there are none.
pub(crate) fn table(rows: &[Value], columns: &[Column], none: &str) -> String {
    if rows.is_empty() {
        return format!("{none}\n");
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(columns.iter().map(|(title, _)| *title));
    if std::io::stdout().is_terminal()
        && let Some((terminal_size::Width(width), _)) = terminal_size::terminal_size()
    {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width.max(WIDTH_MIN));
    }
    for row in rows {
        table.add_row(columns.iter().map(|(_, pointer)| cell(row.pointer(pointer).unwrap_or(&Value::Null))));
    }
    for (index, (_, pointer)) in columns.iter().enumerate() {
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
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_lines_and_numbers_stand_at_the_right() {
        let rows = [json!({"a": "x", "b": {"c": 7}}), json!({"a": null, "b": {"c": 1234}})];
        let text = table(&rows, &[("NAME", "/a"), ("COUNT", "/b/c")], "nothing");
        assert_eq!(text, "NAME  COUNT\nx         7\n-      1234\n");
        assert_eq!(table(&[], &[("NAME", "/a")], "nothing"), "nothing\n");
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
