//! What the client has to say goes to NGINX's error log, in the words that operators search it for.
//!
//! The client speaks on its own thread, and NGINX's logger is for one thread (`error_log syslog:` keeps its state). So lines wait in
//! a queue until the worker's timer writes them.

use crate::nginx::{self, Level};
use std::collections::VecDeque;
use std::fmt::{Debug, Write};
use std::sync::{Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// What the client's line begins with when a server is away.
const AWAY: &str = "not connected to postanalytics";
const SELINUX: &str = "; the system forbids NGINX this connection: if that is SELinux (ausearch -m avc -c nginx), allow it by \
                       setsebool -P httpd_can_network_connect 1; else look at AppArmor, seccomp and firewall rules";

/// Most lines that wait. The client tells a few in a second at most.
const LINES_MAX: usize = 256;

/// Lines that wait to be written.
struct Queue {
    lines: VecDeque<(Level, String)>,
    dropped: u64,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue { lines: VecDeque::new(), dropped: 0 });

impl Queue {
    fn push(&mut self, line: (Level, String)) {
        if self.lines.len() < LINES_MAX {
            self.lines.push_back(line);
        } else {
            self.dropped += 1;
        }
    }

    fn take(&mut self) -> Vec<(Level, String)> {
        let mut lines: Vec<_> = self.lines.drain(..).collect();
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            lines.push((Level::Warn, format!("wallarm: {dropped} more lines were dropped")));
        }
        lines
    }
}

/// Writes the lines that wait. On the thread of NGINX.
pub fn write() {
    // What a panic left behind is whole lines.
    let lines = QUEUE.lock().unwrap_or_else(PoisonError::into_inner).take();
    for (level, line) in lines {
        nginx::log(level, &line);
    }
}

/// Sends the events of this process to the error log. Once is enough; more does nothing.
pub fn start() {
    // Fails if it was done before, as when a worker is its own master and reads its configuration again.
    let _ = tracing::subscriber::set_global_default(ErrorLog);
}

struct ErrorLog;

impl Subscriber for ErrorLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO && metadata.is_event()
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (level, line) = line(*event.metadata().level(), &fields);
        QUEUE.lock().unwrap_or_else(PoisonError::into_inner).push((level, line));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    server: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "server" => write!(self.server, "{value:?}"),
            name => write!(self.others, " {name}={value:?}"),
        };
    }
}

fn line(level: tracing::Level, fields: &Fields) -> (Level, String) {
    let Fields { message, server, others } = fields;
    if let Some(why) = message.strip_prefix(AWAY) {
        let denied = ["(os error 1)", "(os error 13)"].iter().any(|code| why.contains(code));
        let remedy = if denied { SELINUX } else { "" };
        return (Level::Error, format!("wallarm: {server} connect() failed{why}{remedy}"));
    }
    let level = match level {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warn,
        _ => Level::Notice,
    };
    let server = if server.is_empty() { String::new() } else { format!(" server={server}") };
    (level, format!("wallarm: {message}{server}{others}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away(why: &str) -> (Level, String) {
        let message = format!("{AWAY}: cannot connect: {why}; records are queued, trying again");
        line(tracing::Level::WARN, &Fields { message, server: "192.0.2.1:3313".into(), others: " lane=0".into() })
    }

    #[test]
    fn a_server_that_is_away_is_told_in_the_words_that_operators_know() {
        let (level, text) = away("Connection refused (os error 111)");
        assert_eq!(level, Level::Error);
        assert!(text.starts_with("wallarm: 192.0.2.1:3313 connect() failed: cannot connect: Connection refused"), "{text}");
        assert!(!text.contains("SELinux"), "{text}");
    }

    #[test]
    fn a_denial_of_selinux_is_recognised() {
        for why in ["Permission denied (os error 13)", "Operation not permitted (os error 1)"] {
            let (_, text) = away(why);
            assert!(text.contains("connect() failed") && text.contains("setsebool -P httpd_can_network_connect 1"), "{text}");
        }
    }

    #[test]
    fn the_queue_has_a_bound_and_says_what_it_dropped() {
        let mut queue = Queue { lines: VecDeque::new(), dropped: 0 };
        for n in 0..LINES_MAX + 3 {
            queue.push((Level::Notice, n.to_string()));
        }
        let lines = queue.take();
        assert_eq!((lines.len(), lines[LINES_MAX].1.as_str()), (LINES_MAX + 1, "wallarm: 3 more lines were dropped"));
        assert!(queue.take().is_empty());
    }

    #[test]
    fn all_else_keeps_its_words() {
        let fields = Fields { message: "connected".into(), server: "a:1".into(), others: " lanes=2".into() };
        assert_eq!(line(tracing::Level::INFO, &fields), (Level::Notice, "wallarm: connected server=a:1 lanes=2".into()));
    }
}
