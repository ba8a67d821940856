//! The findings as one page for a terminal.

use super::Findings;
use super::history::Attacker;
use crate::escape::steers_terminal;
use comfy_table::{CellAlignment, Table, presets};
use std::fmt::Write;

/// Attackers that the page shows.
const ATTACKERS_SHOWN: usize = 25;
/// Longest address, path and so on, characters.
const TEXT_CHARS_MAX: usize = 44;

/// The page.
pub fn render(findings: &Findings) -> String {
    let mut page = String::new();
    // Into a string: it cannot fail.
    let _ = head(&mut page, findings).and_then(|()| caught(&mut page, findings)).and_then(|()| needs(&mut page, findings));
    page
}

fn head(page: &mut String, findings: &Findings) -> std::fmt::Result {
    let Findings { files, lines, records, unreadable, first_unreadable, ahead, sources, from, until, .. } = findings;
    let files = if files.len() == 1 { files[0].clone() } else { format!("{} files", files.len()) };
    writeln!(page, "{files}: {} lines, {} requests of {} sources", grouped(*lines), grouped(*records), grouped(*sources))?;
    if !from.is_empty() {
        writeln!(page, "from {} to {} UTC", moment(from), moment(until))?;
    }
    if *unreadable > 0 {
        writeln!(
            page,
            "lines that could not be read, for they are none of this format or have no address or no time: {}",
            grouped(*unreadable)
        )?;
        writeln!(page, "the first: {first_unreadable}")?;
    }
    if *ahead > 0 {
        writeln!(page, "lines left out, for they are more than a day ahead of their file's clock: {}", grouped(*ahead))?;
    }
    writeln!(page)
}

fn caught(page: &mut String, findings: &Findings) -> std::fmt::Result {
    if findings.attackers.is_empty() {
        return writeln!(page, "CAUGHT: nobody\n");
    }
    writeln!(page, "CAUGHT: {} alerts on {} attackers\n", grouped(findings.alerts), grouped(findings.attackers.len() as u64))?;
    let mut table = new_table(["attacker", "level", "by", "where", "first request, UTC", "caught after", "requests", "in all"]);
    for attacker in findings.attackers.iter().take(ATTACKERS_SHOWN) {
        table.add_row(row(attacker));
    }
    for column in table.column_iter_mut().skip(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(page, "{}", trimmed(&table))?;
    if findings.attackers.len() > ATTACKERS_SHOWN {
        writeln!(page, "and {} more; --json has all", findings.attackers.len() - ATTACKERS_SHOWN)?;
    }
    if let Some(speed) = findings.speed {
        let (median, p90, max) = (span(speed.seconds_median), span(speed.seconds_p90), span(speed.seconds_max));
        writeln!(
            page,
            "\nFrom the first request to the first alert: half of them within {} requests and {median}, nine of ten within {} and \
             {p90}, all within {} and {max}.",
            grouped(speed.requests_median),
            grouped(speed.requests_p90),
            grouped(speed.requests_max)
        )?;
    }
    writeln!(page)?;
    let mut table = new_table(["detector", "level", "alerts", "attackers"]);
    for count in &findings.detectors {
        table.add_row([count.detector.to_owned(), count.level.to_owned(), grouped(count.alerts), grouped(count.attackers)]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(page, "{}\n", trimmed(&table))
}

/// One attacker: what his first alert says, and who else found him.
fn row(attacker: &Attacker) -> [String; 8] {
    let first = attacker.alerts.first().cloned().unwrap_or_default();
    let mut names: Vec<(&str, usize)> = Vec::new();
    for caught in &attacker.alerts {
        match names.iter_mut().find(|(name, _)| *name == caught.detector) {
            Some((_, count)) => *count += 1,
            None => names.push((caught.detector, 1)),
        }
    }
    let by = names.iter().map(|&(name, count)| if count > 1 { format!("{name} × {count}") } else { name.to_owned() });
    let place = [first.host.as_deref(), first.endpoint.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let who = if attacker.kind == "user" { format!("user {}", attacker.value) } else { attacker.value.clone() };
    [
        shortened(&who),
        first.level.to_owned(),
        by.collect::<Vec<_>>().join(", "),
        shortened(&place),
        moment(&attacker.first),
        span(first.after_seconds),
        grouped(first.after_requests),
        grouped(attacker.requests),
    ]
}

fn needs(page: &mut String, findings: &Findings) -> std::fmt::Result {
    let needs = &findings.needs;
    writeln!(page, "WHAT THIS TRAFFIC NEEDS\n")?;
    if needs.busiest_records == 0 {
        return writeln!(page, "  nothing: there was not one request");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut row = |name: &str, value: String, remark: String| {
        table.add_row([name.to_owned(), value, remark]);
    };
    row(
        "busiest 15 minutes",
        format!("{} requests/s", rate(needs.busiest_records_per_second)),
        format!("from {} UTC; {}/s in the busiest minute", moment(&needs.busiest_from), rate(needs.peak_records_per_second)),
    );
    row(
        "bytes a stored request",
        format!("{:.0}", needs.bytes_per_stored_record),
        "as this log has them; a filter sends more, about 512".to_owned(),
    );
    row(
        &format!("arena for {} s", needs.timeframe_seconds),
        format!("{} GB", needs.arena_gb),
        format!(
            "--arena {} (SLAB_ALLOC_ARENA); the default of 1 GB covers {}",
            needs.arena_gb,
            span(needs.default_arena_seconds)
        ),
    );
    row("shards", needs.shards.to_string(), format!("--shards {}", needs.shards));
    let keys = format!("the state beside such an arena has room for {}", grouped(needs.keys_max));
    row("keys of detectors", grouped(needs.keys), keys);
    write!(page, "{}", trimmed(&table))?;
    if needs.keys > needs.keys_max / 5 * 4 {
        write!(
            page,
            "\n\nThat is over four fifths: with more keys at a time some are counted late; a larger arena has more room."
        )?;
    }
    writeln!(page)
}

fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table
}

/// Without the blanks that a table leaves at the ends of lines.
fn trimmed(table: &Table) -> String {
    let lines: Vec<String> = table.to_string().lines().map(|line| format!(" {}", line.trim_end())).collect();
    lines.join("\n")
}

/// `2015-05-17 10:05:03` of an RFC 3339 time.
fn moment(time: &str) -> String {
    time.get(..19).unwrap_or(time).replace('T', " ")
}

fn span(seconds: f64) -> String {
    match seconds {
        _ if seconds < 0.001 => "0 s".to_owned(),
        _ if seconds < 10.0 => format!("{seconds:.1} s"),
        _ if seconds < 120.0 => format!("{seconds:.0} s"),
        _ if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        _ if seconds < 172_800.0 => format!("{:.0} h", seconds / 3_600.0),
        _ => format!("{} days", grouped((seconds / 86_400.0) as u64)),
    }
}

fn rate(per_second: f64) -> String {
    if per_second < 100.0 { format!("{per_second:.1}") } else { grouped(per_second as u64) }
}

fn shortened(text: &str) -> String {
    // What a log holds may steer a terminal.
    let clean = |letter: char| if steers_terminal(letter) { '\u{fffd}' } else { letter };
    let mut short: String = text.chars().take(TEXT_CHARS_MAX).map(clean).collect();
    if text.chars().count() > TEXT_CHARS_MAX {
        short.pop();
        short.push('…');
    }
    short
}

/// Digits in groups of three.
fn grouped(value: u64) -> String {
    indicatif::HumanCount(value).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_log_holds_does_not_steer_the_terminal() {
        assert_eq!(shortened("a\u{1b}[2J\u{202e}b"), "a\u{fffd}[2J\u{fffd}b");
        assert_eq!(shortened(&"x".repeat(100)).chars().count(), TEXT_CHARS_MAX);
    }

    #[test]
    fn spans_and_rates_are_for_reading() {
        assert_eq!([0.0, 0.25, 42.0, 600.0, 7_200.0, 1e6].map(span), ["0 s", "0.2 s", "42 s", "10 min", "2 h", "11 days"]);
        assert_eq!((rate(0.26), rate(1234.5), grouped(1_234_567)), ("0.3".into(), "1,234".into(), "1,234,567".into()));
    }
}
