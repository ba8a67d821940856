//! Asks a running server over HTTP.

use crate::config::ask_flags::AskFlags;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::time::Duration;

/// Longer than the server takes for its largest answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The server's answers are shorter.
const ANSWER_BYTES_MAX: u64 = 32 << 20;
/// Longest token file.
const TOKEN_BYTES_MAX: u64 = 4096;

/// A server that can be asked.
pub(crate) struct Client {
    url: String,
    token: Option<String>,
    agent: ureq::Agent,
}

impl Client {
    pub(crate) fn new(flags: &AskFlags) -> Result<Self> {
        let read = |path| crate::config::read_small_file(path, TOKEN_BYTES_MAX).map_err(anyhow::Error::msg);
        let token = flags.status_token_file.as_deref().map(read).transpose()?;
        Self::of(&flags.status_url, token.map(|token| token.trim().to_owned()))
    }

    /// A server by its address, with its token if there is one.
    pub(crate) fn of(url: &str, token: Option<String>) -> Result<Self> {
        if !url.starts_with("http://") {
            bail!("{url:?} is no address of a server's pages: write http://HOST:PORT, such as http://127.0.0.1:9001");
        }
        // What the server says of an error is for people: it is read, not thrown away.
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).proxy(None);
        let agent = ureq::Agent::new_with_config(config.build());
        Ok(Self { url: url.trim_end_matches('/').to_owned(), token, agent })
    }

    /// The JSON of a page.
    pub(crate) fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value> {
        let request = self.agent.get(self.address(path, query));
        let request = match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        };
        self.read(request.call())
    }

    pub(crate) fn delete(&self, path: &str, query: &[(&str, String)]) -> Result<Value> {
        let request = self.agent.delete(self.address(path, query));
        let request = match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        };
        self.read(request.call())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(self.address(path, &[])).header("Content-Type", "application/json");
        let request = match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        };
        self.read(request.send(body.to_string()))
    }

    fn address(&self, path: &str, query: &[(&str, String)]) -> String {
        let mut address = format!("{}{path}", self.url);
        for (index, (name, value)) in query.iter().enumerate() {
            address.push(if index == 0 { '?' } else { '&' });
            address.push_str(name);
            address.push('=');
            address.push_str(&encoded(value));
        }
        address
    }

    fn read(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value> {
        let mut answer = answer.with_context(|| {
            format!(
                "no answer from {}: is the server running there (--status), and does its allowlist let this host in?",
                self.url
            )
        })?;
        let code = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        let text = text.with_context(|| format!("the answer of {} broke off", self.url))?;
        let body: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} answered {code}, not with JSON: is it a postanalytics server?", self.url))?;
        if code == 200 {
            return Ok(body);
        }
        let why = body["error"].as_str().unwrap_or("it does not say why");
        let remedy = if code == 401 { " (--status-token-file FILE gives it to this command)" } else { "" };
        bail!("the server refused, {code}: {}{remedy}", super::table::plain(why));
    }
}

/// Percent-encoding of all but unreserved characters (RFC 3986, 2.3).
pub(crate) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_encoded() {
        let client = Client::of("http://127.0.0.1:9001/", None).expect("good");
        let query = [("source", "2001:db8::/64".to_owned()), ("host", "a b&c".to_owned())];
        assert_eq!(client.address("/x", &query), "http://127.0.0.1:9001/x?source=2001%3Adb8%3A%3A%2F64&host=a%20b%26c");
        assert!(Client::of("127.0.0.1:9001", None).is_err());
    }
}
