//! node.yaml: the identity of a node and the address of its postanalytics, in the older and the newer layout.

use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where node.yaml is looked for; the first that exists is read.
pub const DEFAULT_PATHS: [&str; 2] = ["/opt/wallarm/etc/wallarm/node.yaml", "/etc/wallarm/node.yaml"];
/// Largest node.yaml read.
pub const BYTES_MAX: u64 = 1 << 20;

/// What a node.yaml says of us. Everything else in it is left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeYaml {
    /// Where it lies.
    pub path: PathBuf,
    /// Name of the node.
    pub hostname: Option<String>,
    /// Id of the node.
    pub uuid: Option<String>,
    /// Whether a secret is in it. The secret itself is not kept: this version has no use for it.
    pub has_secret: bool,
    /// `host` of `wstore:` or `tarantool:`.
    pub host: Option<String>,
    /// `port` of `wstore:` or `tarantool:`.
    pub port: Option<u16>,
    /// Which section host and port came from.
    pub section: &'static str,
}

#[derive(Debug, Default, Deserialize)]
struct Document {
    hostname: Option<String>,
    uuid: Option<String>,
    secret: Option<String>,
    tarantool: Option<Address>,
    wstore: Option<Address>,
    api: Option<Api>,
}

#[derive(Debug, Default, Deserialize)]
struct Address {
    host: Option<String>,
    port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
struct Api {
    hostname: Option<String>,
    uuid: Option<String>,
    secret: Option<String>,
}

impl NodeYaml {
    /// Reads and parses the file at `path`.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = super::read_small_file(path, BYTES_MAX)?;
        let node = parse(&text).map_err(|error| format!("node.yaml {}: {error}", path.display()))?;
        Ok(Self { path: path.to_path_buf(), ..node })
    }
}

/// Parses the text of a node.yaml.
pub fn parse(text: &str) -> Result<NodeYaml, String> {
    // An empty file, or one of comments only, is no mapping but says nothing wrong either.
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim() == "---") {
        return Ok(NodeYaml::default());
    }
    let document: Document = serde_saphyr::from_str(text).map_err(|error| explain(&error, text))?;
    let api = document.api.unwrap_or_default();
    let (section, address) = match (document.wstore, document.tarantool) {
        (Some(wstore), Some(tarantool)) if (&wstore.host, wstore.port) != (&tarantool.host, tarantool.port) => {
            return Err("`wstore:` and `tarantool:` name different addresses: keep one of them".to_owned());
        }
        (Some(wstore), _) => ("wstore", wstore),
        (None, tarantool) => ("tarantool", tarantool.unwrap_or_default()),
    };
    Ok(NodeYaml {
        path: PathBuf::new(),
        hostname: document.hostname.or(api.hostname),
        uuid: document.uuid.or(api.uuid),
        has_secret: document.secret.or(api.secret).is_some(),
        host: address.host,
        port: address.port,
        section,
    })
}

/// Line, column and what is wrong there, without a word of any value: the file holds the secret of the node.
fn explain(error: &serde_saphyr::Error, text: &str) -> String {
    let place = error.location().map(|at| format!("line {}, column {}: ", at.line(), at.column())).unwrap_or_default();
    let options = serde_saphyr::render_options! { snippets: serde_saphyr::SnippetMode::Off };
    let message = error.without_snippet().render_with_options(options).replace('\n', " ");
    let mut words = message.split(|letter: char| !letter.is_alphanumeric()).filter(|word| word.len() >= 3);
    let values = || text.lines().map(|line| line.split_once(':').map_or(line, |(_, value)| value));
    let tells = words.any(|word| values().any(|value| value.contains(word)));
    if tells {
        return format!("{place}this is not what is expected here; see to quotes, colons and indentation");
    }
    // Most messages end with their place.
    if message.contains("line ") { message } else { format!("{place}{message}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_layouts_are_read() {
        let older = "hostname: a\nuuid: u\nsecret: s\ntarantool:\n  host: 10.0.0.1\n  port: 3313\n";
        let node = parse(older).expect("parses");
        assert_eq!((node.hostname.as_deref(), node.uuid.as_deref(), node.has_secret), (Some("a"), Some("u"), true));
        assert_eq!((node.host.as_deref(), node.port, node.section), (Some("10.0.0.1"), Some(3313), "tarantool"));

        let newer = "hostname: a\napi:\n  uuid: u\n  secret: s\n  host: api.example.com\n  port: 443\n  use_ssl: true\n  ca_verify: true\n\
                     wstore:\n  host: '::1'\n  port: 3314\nsomething_else: [1, 2]\n";
        let node = parse(newer).expect("parses");
        assert_eq!((node.uuid.as_deref(), node.has_secret), (Some("u"), true));
        assert_eq!((node.host.as_deref(), node.port, node.section), (Some("::1"), Some(3314), "wstore"));
    }

    #[test]
    fn empty_and_wrong_files() {
        assert_eq!(parse("# nothing\n---\n"), Ok(NodeYaml::default()));
        assert!(parse("tarantool:\n  port: 99999\n").is_err());
        assert!(parse("tarantool: {host: a}\nwstore: {host: b}\n").expect_err("clash").contains("different"));
        assert!(parse("- a\n- b\n").is_err());
    }

    #[test]
    fn no_error_tells_the_secret() {
        for text in [
            "secret: HUSHHUSH\ntarantool:\n  port: many\n",
            "api:\n  secret: HUSHHUSH\n  secret: HUSHHUSH\n",
            "secret: [HUSHHUSH, HUSHHUSH]\n",
            "secret: \"HUSHHUSH\nuuid: u\n",
            "secret: *HUSHHUSH\n",
            "secret: !HUSHHUSH {a: b}\n",
            "secret: {HUSHHUSH: 1}\n",
            "secret: 'HUSHHUSH' HUSHHUSH\n",
            "secret: HUSHHUSH\n\ttarantool: x\n",
            "api: HUSHHUSH\n",
            "api: [secret: HUSHHUSH\n",
            "tarantool:\n  port: HUSHHUSH\n",
            "HUSHHUSH\n",
        ] {
            let error = parse(text).expect_err(text);
            assert!(!error.contains("HUSH"), "{text:?}: {error}");
            assert!(error.contains("line ") && !error.contains('\n'), "{text:?}: {error}");
        }
        let error = parse("hostname: a\nsecret: HUSHHUSH\ntarantool:\n  port: 99999\n").expect_err("no port");
        assert!(error.contains("line 4"), "{error}");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
