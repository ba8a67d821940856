//! Counts what the rules find in labelled lists: one payload a line, or an access log.
//!
//! ```text
//! accuracy [--show] LABEL=FILE…
//! ```
//! LABEL is an attack type (each line is sent as the value of a parameter), `agent` (as the User-Agent header), `benign` (as a
//! value; every hit is a false one) or `log` (an access log in the combined format, whose hits are false ones). Percent signs
//! in a list are left as they are: lists hold encoded payloads. With --show: what was missed, or falsely found; with --types
//! what has only hits of other types, too.
//! Lists hold what is no attack by itself: the last two columns are about the lines that have at least four letters when decoded
//! and no placeholder (`{file}`, `{target}`) that somebody was to fill in.
//! With --requests, lines of the files that follow are whole requests in hexadecimal: target, body, then headers as
//! `name:value`, with tabs between.
#![allow(clippy::print_stdout, reason = "it is a tool of the command line")]

use postanalytics_filter::{Engine, Findings, RawRequest, Scratch};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut shows, mut shows_types, mut are_requests) = (false, false, false);
    let engine = Engine::builtin();
    println!(
        "| list | label | lines | with a hit | with a hit of that type | whole | of these that type |\n|---|---|---|---|---|---|---|"
    );
    for argument in std::env::args().skip(1) {
        if argument == "--show" {
            shows = true;
            continue;
        }
        if argument == "--types" {
            shows_types = true;
            continue;
        }
        if argument == "--requests" {
            are_requests = true;
            continue;
        }
        let (label, file) = argument.split_once('=').ok_or("give LABEL=FILE; see the head of this file")?;
        let text = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        let (mut lines, mut hits, mut right, mut wholes, mut wholes_right) = (0u32, 0u32, 0u32, 0u32, 0u32);
        let mut scratch = Scratch::default();
        for line in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end).filter(|line| !line.is_empty()) {
            let findings =
                if are_requests { whole(&engine, line, &mut scratch) } else { inspect(&engine, label, line, &mut scratch) };
            lines += 1;
            hits += u32::from(!findings.found.is_empty());
            let is_right = findings.found.iter().any(|hit| hit.attack_type.name() == label);
            right += u32::from(is_right);
            if is_whole(line) {
                wholes += 1;
                wholes_right += u32::from(is_right);
            }
            let is_false = matches!(label, "benign" | "log");
            let is_found = !findings.found.is_empty();
            if shows && is_found == is_false || shows_types && is_found && !is_right {
                let rules: Vec<u32> = findings.found.iter().map(|hit| hit.rule_id).collect();
                println!("{rules:?} {}", String::from_utf8_lossy(line));
            }
        }
        let share = |count: u32| 100.0 * f64::from(count) / f64::from(lines.max(1));
        let whole_share = 100.0 * f64::from(wholes_right) / f64::from(wholes.max(1));
        println!(
            "| {file} | {label} | {lines} | {hits} ({:.2} %) | {right} ({:.2} %) | {wholes} | {wholes_right} ({whole_share:.2} %) |",
            share(hits),
            share(right)
        );
    }
    Ok(())
}

/// Whether a line may be an attack by itself.
fn is_whole(line: &[u8]) -> bool {
    let letter = |at: usize| line.get(at).is_some_and(u8::is_ascii_hexdigit);
    let encoded = line.iter().enumerate().filter(|&(at, byte)| *byte == b'%' && letter(at + 1) && letter(at + 2)).count();
    let has_placeholder = [&b"{file}"[..], b"{target}"].iter().any(|word| line.windows(word.len()).any(|window| window == *word));
    line.len() - 2 * encoded >= 4 && !has_placeholder
}

fn whole(engine: &Engine, line: &[u8], scratch: &mut Scratch) -> Findings {
    let bytes = |text: &[u8]| -> Vec<u8> {
        let digit = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
        text.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    };
    let mut fields = line.split(|byte| *byte == b'\t');
    let mut next = || bytes(fields.next().unwrap_or_default());
    let (uri, body) = (next(), next());
    let headers: Vec<(Vec<u8>, Vec<u8>)> = fields
        .filter_map(|field| field.iter().position(|byte| *byte == b':').map(|at| (bytes(&field[..at]), bytes(&field[at + 1..]))))
        .collect();
    let headers: Vec<(&[u8], &[u8])> = headers.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let request = RawRequest { uri: &uri, headers: &headers, body: &body, ..RawRequest::default() };
    engine.inspect(&request, Duration::from_secs(60), scratch)
}

fn inspect(engine: &Engine, label: &str, line: &[u8], scratch: &mut Scratch) -> Findings {
    let limit = Duration::from_secs(60);
    match label {
        "log" => {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b'"').collect();
            let field = |at: usize| fields.get(at).copied().unwrap_or_default();
            let uri = field(1).split(|byte| *byte == b' ').nth(1).unwrap_or(field(1));
            let headers = [(&b"user-agent"[..], field(5)), (b"referer", field(3))];
            engine.inspect(&RawRequest { uri, headers: &headers, ..RawRequest::default() }, limit, scratch)
        }
        "agent" => {
            engine.inspect(&RawRequest { uri: b"/", headers: &[(b"user-agent", line)], ..RawRequest::default() }, limit, scratch)
        }
        "path" | "infoleak" => engine.inspect(&RawRequest { uri: line, ..RawRequest::default() }, limit, scratch),
        _ => {
            let mut uri = b"/index?p=".to_vec();
            for &byte in line {
                match byte {
                    b' ' => uri.push(b'+'),
                    b'&' | b'#' | b'+' | b';' => uri.extend(format!("%{byte:02X}").bytes()),
                    _ => uri.push(byte),
                }
            }
            engine.inspect(&RawRequest { uri: &uri, ..RawRequest::default() }, limit, scratch)
        }
    }
}
