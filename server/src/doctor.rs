//! `postanalytics doctor`: would the server start on this machine as configured, and if not, what to do?
//!
//! Three steps, apart so that each can be tested: [`facts`] reads the machine and takes the ports for a moment, [`judge`] turns
//! facts and configuration into findings (pure), and this file prints them. It judges by the same code that starts the server:
//! the same configuration, the same self-test of the ring, the same plan, the same limits.
//!
//! A finding is *not fine* if the server would not start, or would start other than configured; a *warning* is what costs speed
//! or will surprise somebody. What it does not do: take the arena's memory, change a setting, talk to a running server.

pub mod facts;
pub mod judge;

use crate::config::Config;
use crate::config::flags::ServeFlags;
use crate::escape::plain_json;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::process::ExitCode;

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// As it should be.
    Fine,
    /// The server starts as configured, but somebody should know.
    Warning,
    /// The server would not start, or not as configured.
    NotFine,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, such as `kernel`.
    pub check: String,
    /// How it stands.
    pub judgement: Judgement,
    /// The live value, in words.
    pub value: String,
    /// What to do; empty if nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// All findings, in the order in which the server would meet them.
#[derive(Clone, Debug, Serialize)]
pub struct DoctorReport {
    /// The worst of all findings.
    pub judgement: Judgement,
    /// Version of this program.
    pub version: &'static str,
    /// See the type.
    pub findings: Vec<Finding>,
}

/// Looks at everything.
pub fn examine(flags: &ServeFlags) -> DoctorReport {
    let config = Config::resolve(flags, &|name| std::env::var_os(name));
    let facts = facts::Facts::read(config.as_ref().ok());
    DoctorReport::new(judge::findings(config.as_ref(), &facts))
}

impl DoctorReport {
    fn new(findings: Vec<Finding>) -> Self {
        let judgement = findings.iter().map(|finding| finding.judgement).max().unwrap_or(Judgement::Fine);
        Self { judgement, version: env!("CARGO_PKG_VERSION"), findings }
    }

    /// 1 if anything is not fine, else 0.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::from(self.judgement == Judgement::NotFine))
    }

    /// The whole text for standard output: coloured on a terminal, plain in a pipe.
    pub fn render(&self, json: bool) -> String {
        if json {
            let json = serde_json::to_string_pretty(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
            return plain_json(json) + "\n";
        }
        let colored = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        self.text(colored)
    }

    fn text(&self, colored: bool) -> String {
        let width = self.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Finding { check, judgement, value, remedy } in &self.findings {
            let (word, color) = match judgement {
                Judgement::Fine => ("fine", "32"),
                Judgement::Warning => ("warning", "33"),
                Judgement::NotFine => ("NOT FINE", "1;31"),
            };
            let padded = format!("{word:<8}");
            let word = if colored { format!("\x1b[{color}m{padded}\x1b[0m") } else { padded };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{word}  {check:<width$}  {value}");
            if !remedy.is_empty() {
                let _ = writeln!(text, "{:8}  {:width$}  → {remedy}", "", "");
            }
        }
        let count = |judgement| self.findings.iter().filter(|finding| finding.judgement == judgement).count();
        let (warnings, wrong) = (count(Judgement::Warning), count(Judgement::NotFine));
        let verdict = match wrong {
            0 => "the server would start as configured",
            _ => "the server would not start, or not as configured",
        };
        let _ = writeln!(text, "\n{} fine, {warnings} to know, {wrong} not fine: {verdict}", count(Judgement::Fine));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(judgement: Judgement, remedy: &str) -> Finding {
        Finding { check: "kernel".to_owned(), judgement, value: "Linux 6.8".to_owned(), remedy: remedy.to_owned() }
    }

    #[test]
    fn the_worst_finding_is_the_exit_code() {
        let code = |findings: &[Finding]| DoctorReport::new(findings.to_vec()).exit_code();
        let (fine, warning, wrong) =
            (finding(Judgement::Fine, ""), finding(Judgement::Warning, "do"), finding(Judgement::NotFine, "do"));
        assert_eq!(code(&[fine.clone(), warning.clone()]), ExitCode::SUCCESS);
        assert_eq!(code(&[wrong, warning, fine]), ExitCode::from(1));
    }

    #[test]
    fn lines_are_plain_in_a_pipe_and_coloured_on_a_terminal() {
        let report = DoctorReport::new(vec![finding(Judgement::Fine, ""), finding(Judgement::NotFine, "update it")]);
        let plain = report.text(false);
        assert!(plain.starts_with("fine      kernel  Linux 6.8\nNOT FINE  kernel  Linux 6.8\n"), "{plain}");
        assert!(plain.contains("→ update it\n") && plain.contains("1 fine, 0 to know, 1 not fine") && !plain.contains('\x1b'));
        assert!(report.text(true).contains("\x1b[1;31mNOT FINE\x1b[0m"));
        let json: serde_json::Value = serde_json::from_str(&report.render(true)).expect("JSON");
        assert_eq!(json["judgement"], "not_fine");
        assert_eq!((json["findings"][1]["remedy"].as_str(), json["findings"][0].get("remedy")), (Some("update it"), None));
    }
}
