//! What is answered: status, headers, body.

use crate::control::state::ScanSlot;
use crate::escape::plain_json;
use serde::Serialize;
use serde_json::json;

/// What is answered.
#[derive(Debug)]
pub(super) struct Response<'a> {
    status: u16,
    content_type: &'static str,
    pub(super) body: String,
    /// Methods that would be answered, with a 405.
    allow: String,
    /// An answer with records keeps its slot until it is written.
    _slot: Option<ScanSlot<'a>>,
}

impl<'a> Response<'a> {
    pub(super) const fn new(status: u16, content_type: &'static str, body: String) -> Self {
        Self { status, content_type, body, allow: String::new(), _slot: None }
    }

    pub(super) fn json(status: u16, body: &impl Serialize) -> Self {
        // Plain data with text keys: there is nothing that could fail.
        let mut text = plain_json(serde_json::to_string(body).unwrap_or_default());
        text.push('\n');
        Self::new(status, "application/json", text)
    }

    pub(super) fn error(status: u16, text: &str) -> Self {
        Self::json(status, &json!({ "error": text }))
    }

    /// A method that is not answered, and those that are.
    pub(super) fn not_allowed(allow: String) -> Self {
        Self { allow: allow.clone(), ..Self::error(405, &format!("only {allow} are answered here")) }
    }

    /// An answer that keeps a slot.
    pub(super) fn with_slot(self, slot: ScanSlot<'a>) -> Self {
        Self { _slot: Some(slot), ..self }
    }

    pub(super) fn head(&self, keep_alive: bool) -> String {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            409 => "Conflict",
            411 => "Length Required",
            413 => "Content Too Large",
            421 => "Misdirected Request",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let more = match self.status {
            401 => "WWW-Authenticate: Bearer\r\n".to_owned(),
            405 => format!("Allow: {}\r\n", self.allow),
            _ => String::new(),
        };
        format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n{more}Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len(),
            if keep_alive { "keep-alive" } else { "close" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_whole() {
        let head = Response::not_allowed("GET, HEAD".to_owned()).head(true);
        assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n") && head.contains("Allow: GET, HEAD\r\n"));
        assert!(head.ends_with("\r\n\r\n") && head.contains("Connection: keep-alive"));
        assert!(Response::error(401, "no").head(false).contains("WWW-Authenticate: Bearer\r\n"));
    }
}
