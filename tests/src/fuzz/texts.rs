//! Texts that people and programs write: env files, node.yaml, single values, access logs.

use super::Script;
use postanalytics_client::access_log::{client_ip, parse_line};
use postanalytics_loadgen::assertion::Assertion;
use postanalytics_loadgen::attack::AttackSpec;
use postanalytics_loadgen::plan;
use postanalytics_loadgen::replay::LogClock;
use postanalytics_protocol::frames::PackageVersion;
use postanalytics_server::config::detection::DetectionConfig;
use postanalytics_server::config::{env_file as env, node_yaml as node, values as value};
use postanalytics_server::control::http::{escape, unescape};

/// An env file: keys are keys, and what was read can be written so that it reads the same.
pub fn env_file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let file = env::parse(&text);
    let lines = text.lines().count();
    assert!(file.values.len() + file.lines_skipped.len() <= lines);
    for line in &file.lines_skipped {
        assert!((1..=lines).contains(&line.number) && text.contains(&line.key));
        assert!(line.error.starts_with(&format!("line {}", line.number)), "{:?} names no line", line.error);
    }
    for (key, text) in &file.values {
        assert!(!key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{key:?}");
        assert!(!text.contains('\n'), "a value is within its line");
        let escaped: String =
            text.chars().flat_map(|letter| [matches!(letter, '"' | '\\').then_some('\\'), Some(letter)]).flatten().collect();
        let again = env::parse(&format!("export {key}=\"{escaped}\""));
        assert_eq!(again.values.get(key), Some(text));
    }
}

/// A node.yaml: no error tells a secret, or takes more than a line.
pub fn node_yaml(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = node::parse(&text);
    if text.to_ascii_uppercase().contains("HUSH") {
        return;
    }
    for with_secret in
        [format!("secret: HUSHHUSH\n{text}"), format!("{text}\nsecret: HUSHHUSH"), format!("api:\n  secret: HUSHHUSH\n{text}")]
    {
        match node::parse(&with_secret) {
            Ok(node) => assert!(!format!("{node:?}").contains("HUSH")),
            Err(error) => assert!(!error.contains("HUSH") && !error.contains('\n'), "{error:?}"),
        }
    }
}

/// What detectors count: an error names a line and column that the text has, and what was read can be written so that it reads
/// the same.
pub fn detection(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    let config = match DetectionConfig::parse(text) {
        Ok(config) => config,
        Err(error) => {
            let place = error.strip_prefix("line ").and_then(|rest| rest.split_once(": ")?.0.split_once(", column "));
            let (line, column) = place.unwrap_or_else(|| panic!("{error:?} names no place"));
            let (line, column): (usize, usize) = (line.parse().expect("a number"), column.parse().expect("a number"));
            let there = text.split('\n').nth(line - 1).unwrap_or_else(|| panic!("{error:?}: the text has no such line"));
            return assert!((1..=there.chars().count() + 1).contains(&column), "{error:?}: {there:?} has no such column");
        }
    };
    assert_eq!(DetectionConfig::parse(&config.to_toml()).as_ref(), Ok(&config));
    assert_eq!(config.changed_detectors(&config), [""; 0]);
}

/// Sizes, times, counts, addresses and networks, of the server and of the load generator.
pub fn values(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    if let Ok(bytes) = value::gigabytes(text) {
        assert!(bytes >= 1);
    }
    if let Ok(found) = value::duration(text) {
        assert_eq!(value::duration(&format!("{}ms", found.as_millis())), Ok(found));
    }
    if let Ok(found) = value::duration_of_seconds(text, 1..=60) {
        assert!((1_000..=60_000).contains(&found.as_millis()));
    }
    if let Ok(count) = value::count::<u16>(text) {
        assert!(count > 0);
    }
    let _ = (value::boolean(text), value::group_of_labels(text));
    if let Ok(address) = value::address(text) {
        assert_eq!(value::address(&address.to_string()).as_ref(), Ok(&address));
        assert_eq!(value::address_or_none(text), Ok(Some(address)));
    }
    for network in value::networks(text).unwrap_or_default() {
        assert_eq!(value::network(&network.to_string()), Ok(network), "a network has one form only");
    }
    assert_eq!(unescape(&escape(data)).as_deref(), Some(data));
    let _ = (unescape(text), PackageVersion::parse(text), Assertion::parse(text), plan::parse_count(text));
    let _ = plan::parse_duration(text);
    if let Ok(attack) = AttackSpec::parse(text) {
        assert!(attack.sources >= 1 && attack.records() >= u64::from(attack.sources));
    }
}

/// Lines of an access log: every field lies within its line, and makes a request.
pub fn access_log(data: &[u8]) {
    let mut clock = LogClock::default();
    let mut latest_us = 0;
    for line in data.split(|&byte| byte == b'\n').take(64) {
        let Some(parsed) = parse_line(line) else { continue };
        let fields = [
            parsed.virtual_host,
            parsed.address,
            parsed.user,
            parsed.method,
            parsed.path,
            parsed.query,
            parsed.referer,
            parsed.user_agent,
        ];
        for field in fields.into_iter().filter(|field| !field.is_empty()) {
            assert!(line.as_ptr_range().contains(&field.as_ptr()) && line.as_ptr_range().end >= field.as_ptr_range().end);
        }
        assert!(!parsed.address.is_empty() && !parsed.address.contains(&b' '));
        assert_eq!(client_ip(parsed.address), client_ip(parsed.address));
        let request = parsed.request([7; 16], 1);
        assert_eq!((request.status, request.path, request.query), (parsed.status, parsed.path, parsed.query));
        assert!(request.method == 0 || request.extensions.is_empty());
        let elapsed_us = clock.advance(parsed.time_us);
        assert!(elapsed_us >= latest_us, "the clock of a log never goes back");
        latest_us = elapsed_us;
        assert_eq!(parse_line(line.trim_ascii_end()), Some(parsed), "the line end does not matter");
    }
    // Times of every size, not only those that a log can write.
    let mut script = Script(data);
    let mut clock = LogClock::default();
    while !script.is_over() {
        let time_us = u64::from_le_bytes(std::array::from_fn(|_| script.u8()));
        clock.advance(Some(time_us));
    }
}
