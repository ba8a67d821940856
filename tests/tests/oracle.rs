//! `postanalytics replay` against the independent oracle: every hand-computed case, and seeded traffic of every kind, in order
//! and shuffled, with one, two and four shards.
//!
//! Cases need no Python: they are expanded here as `tests/oracle/cases.py` says. Generated traffic does, and says SKIPPED
//! without it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_server::config::detection::DetectionConfig;
use postanalytics_server::config::flags::{LineFormat, ReplayFlags};
use postanalytics_server::replay;
use postanalytics_tests::{binary, skipped};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const ORACLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/oracle");
const TOOLS_OF_SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/config/attack_tools.txt");
const BASE_US: i64 = 1_700_000_000_000_000;

/// Runs `replay` as the oracle does: it knows no signatures, so lines of logs have no hits. Returns the alerts.
fn replayed(format: &str, shards: u32, config: Option<&Path>, files: &[&Path]) -> Vec<Value> {
    replay_with(&["--no-filter"], format, shards, config, files)
}

/// Runs `replay`; returns its alerts.
fn replay_with(more: &[&str], format: &str, shards: u32, config: Option<&Path>, files: &[&Path]) -> Vec<Value> {
    let mut command = Command::new(binary("postanalytics"));
    command.args(["replay", "--format", format, "--shards", &shards.to_string(), "--keys", "262144"]).args(more);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    let output = command.args(files).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    alerts_of(output.stdout)
}

/// Lines of JSON.
fn alerts_of(lines: Vec<u8>) -> Vec<Value> {
    String::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `value` with `{i}` and `{i:N}` replaced in every string.
fn filled(value: &Value, index: i64) -> Value {
    match value {
        Value::String(text) => {
            let (mut out, mut rest) = (String::new(), text.as_str());
            while let Some(at) = rest.find("{i") {
                let end = rest[at..].find('}').unwrap() + at;
                let width = rest[at + 2..end].strip_prefix(':').map_or(Some(1), |digits| digits.parse().ok());
                match width {
                    Some(width) if rest[at + 2..end].is_empty() || rest[at + 2..].starts_with(':') => {
                        write!(out, "{}{index:0width$}", &rest[..at]).unwrap();
                    }
                    _ => out.push_str(&rest[..=end]),
                }
                rest = &rest[end + 1..];
            }
            (out + rest).into()
        }
        Value::Array(items) => items.iter().map(|item| filled(item, index)).collect(),
        Value::Object(fields) => fields.iter().map(|(name, field)| (name.clone(), filled(field, index))).collect(),
        other => other.clone(),
    }
}

/// The records of one entry of `events`.
fn expanded(event: &Map<String, Value>) -> Vec<Value> {
    let number = |name: &str| event.get(name).and_then(Value::as_i64).unwrap_or(0);
    let forms = ["at", "every", "repeat", "pattern", "letters", "from"];
    let fields: Map<String, Value> =
        event.iter().filter(|(name, _)| !forms.contains(&name.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect();
    let variants: Vec<Map<String, Value>> = match event.get("pattern").and_then(Value::as_str) {
        Some(pattern) => {
            let laid_over = |letter: char| {
                let mut fields = fields.clone();
                fields.extend(event["letters"][letter.to_string()].as_object().unwrap().clone());
                fields
            };
            pattern.chars().map(laid_over).collect()
        }
        None => vec![fields; usize::try_from(event.get("repeat").map_or(1, |count| count.as_i64().unwrap())).unwrap()],
    };
    let is_single = !event.contains_key("pattern") && !event.contains_key("repeat");
    let at = |position: usize| number("at") + position as i64 * number("every");
    let record = |(position, variant): (usize, Map<String, Value>)| {
        let index = number("from") + position as i64;
        let mut record = if is_single { Value::Object(variant) } else { filled(&Value::Object(variant), index) };
        if record.get("time").is_none() && record.get("event_us").is_none() {
            record["event_us"] = json!(BASE_US + at(position));
        }
        record
    };
    variants.into_iter().enumerate().map(record).collect()
}

/// A JSON value as TOML.
fn toml_of(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields: Vec<String> = fields.iter().map(|(name, field)| format!("{name} = {}", toml_of(field))).collect();
            format!("{{{}}}", fields.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(toml_of).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// µs after the base of a time as written: `2023-11-14T22:13:20.000000Z` is 0. Cases stay within a month of that.
fn offset_us(time: &Value) -> i64 {
    let text = time.as_str().unwrap();
    let part = |range: std::ops::Range<usize>| text[range].parse::<i64>().unwrap();
    // Days before each month of 2023 and 2024, from November 2023 on; other months are not in cases.
    let days = match &text[..7] {
        "2023-11" => 0,
        "2023-12" => 30,
        "2024-01" => 61,
        "2024-11" => 366,
        other => panic!("no case is in {other}"),
    };
    let seconds = ((days + part(8..10) - 14) * 24 + part(11..13)) * 3600 + part(14..16) * 60 + part(17..19);
    (seconds - (22 * 3600 + 13 * 60 + 20)) * 1_000_000 + part(20..26)
}

fn cases() -> Vec<(String, Value)> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(Path::new(ORACLE).join("cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let of_file = |file: PathBuf| {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        cases.into_iter().map(move |case| (name.clone(), case)).collect::<Vec<_>>()
    };
    files.into_iter().flat_map(of_file).collect()
}

/// What a case reads: the format, and the lines.
fn input_of(case: &Value) -> (&'static str, String) {
    if let Some(lines) = case.get("lines") {
        let lines: Vec<&str> = lines.as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
        return ("combined", lines.join("\n"));
    }
    let records = case["events"].as_array().unwrap().iter().flat_map(|event| expanded(event.as_object().unwrap()));
    ("jsonl", records.map(|record| record.to_string()).collect::<Vec<_>>().join("\n"))
}

/// The configuration of a case, with the oracle's names of tools.
fn configuration_of(case: &Value) -> String {
    let tools = std::fs::read_to_string(Path::new(ORACLE).join("tools.txt")).unwrap();
    let tools: Vec<&str> = tools.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let mut settings = case.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    settings.insert("attack_tools".to_owned(), json!(tools));
    settings.iter().map(|(name, value)| format!("{name} = {}\n", toml_of(value))).collect()
}

/// How the alerts of a case's detector differ from what is expected.
fn difference(case: &Value, found: &[Value]) -> Option<String> {
    let found: Vec<&Value> = found.iter().filter(|alert| alert["detector"] == case["detector"]).collect();
    let expected = case["expected"].as_array().unwrap();
    if found.len() != expected.len() {
        return Some(format!("{} alerts, {} expected", found.len(), expected.len()));
    }
    for (found, expected) in found.iter().zip(expected) {
        if let Some(name) = ["key", "scope", "count"].into_iter().find(|name| found[name] != expected[name]) {
            return Some(format!("{name}: {} {}", found[name], expected[name]));
        }
        let times = [offset_us(&found["first"]), offset_us(&found["fired"])];
        if times != ["first", "fired"].map(|name| expected[name].as_i64().unwrap()) {
            return Some(format!("first and fired: {times:?}"));
        }
        // Exact up to 64 different values, an estimate beyond.
        if expected["distinct"].as_i64().is_some_and(|distinct| distinct <= 64) && found["distinct"] != expected["distinct"] {
            return Some(format!("distinct: {} {}", found["distinct"], expected["distinct"]));
        }
    }
    None
}

#[test]
fn every_hand_computed_case_comes_out() {
    let folder = tempfile::tempdir().unwrap();
    let (input, config) = (folder.path().join("input"), folder.path().join("config.toml"));
    let cases = cases();
    assert!(cases.len() > 250, "only {} cases were read", cases.len());
    for (file, case) in &cases {
        let (format, lines) = input_of(case);
        std::fs::write(&input, lines).unwrap();
        std::fs::write(&config, configuration_of(case)).unwrap();
        let found = replayed(format, 2, Some(&config), &[&input]);
        let wrong = difference(case, &found);
        assert_eq!(wrong, None, "{file}: {}: {}\nexpected {}\nfound {found:?}", case["name"], case["why"], case["expected"]);
    }
}

/// A number of the detection configuration, by the names of detector and number.
type Name = (&'static str, &'static str);

/// Changes a number by one, in the file's tables and in its overrides, where it is the default.
fn changed(config: &DetectionConfig, (detector, number): Name, by: i64) -> DetectionConfig {
    let (default, mut config) = (DetectionConfig::default(), config.clone());
    let mut defaults = BTreeMap::new();
    default.clone().numbers.each_mut(|detector, number, value| {
        defaults.insert((detector, number), *value);
    });
    let overrides = config.overrides.iter_mut().map(|one| &mut one.numbers);
    for numbers in overrides.chain([&mut config.numbers]) {
        numbers.each_mut(|of, name, value| {
            if (of, name) == (detector, number) && *value == defaults[&(of, name)] {
                *value += by;
            }
        });
    }
    for (name, value, default) in [
        ("late_us", &mut config.late_us, default.late_us),
        ("ahead_us", &mut config.ahead_us, default.ahead_us),
        ("refusal_us", &mut config.refusal_us, default.refusal_us),
    ] {
        if (detector, number) == ("", name) && *value == default {
            *value = value.saturating_add_signed(by);
        }
    }
    config
}

/// No default of the server can be another one without a hand-computed case that fails.
#[test]
fn a_number_that_is_changed_by_one_is_noticed_by_a_case() {
    let folder = tempfile::tempdir().unwrap();
    let prepared: Vec<(Value, ReplayFlags, DetectionConfig)> = (0..)
        .zip(cases())
        .map(|(number, (_, case))| {
            let input = folder.path().join(format!("input-{number}"));
            let (format, lines) = input_of(&case);
            std::fs::write(&input, lines).unwrap();
            let flags = ReplayFlags {
                format: if format == "jsonl" { LineFormat::Jsonl } else { LineFormat::Combined },
                config: None,
                shards: 1,
                keys: 4096,
                no_filter: true,
                files: vec![input],
                from_server: None,
                last: "15m".to_owned(),
                status_token_file: None,
            };
            let config = DetectionConfig::parse(&configuration_of(&case)).unwrap();
            (case, flags, config)
        })
        .collect();
    let mut names: Vec<Name> = vec![("", "late_us"), ("", "ahead_us"), ("", "refusal_us")];
    DetectionConfig::default().numbers.each_mut(|detector, number, _| names.push((detector, number)));
    assert!(names.len() > 50, "{names:?}");
    let passes = |case: &Value, flags: &ReplayFlags, config: &DetectionConfig| {
        let (_, found) = replay::find(flags, config).unwrap();
        let alerts: Vec<Value> = found.sorted.iter().map(|alert| serde_json::to_value(alert.to_json()).unwrap()).collect();
        difference(case, &alerts).is_none()
    };
    assert!(prepared.iter().all(|(case, flags, config)| passes(case, flags, config)), "as they are, all come out");
    for name in names {
        for by in [-1, 1] {
            let is_noticed = |(case, flags, config): &(Value, ReplayFlags, DetectionConfig)| {
                let changed = changed(config, name, by);
                (name.0.is_empty() || case["detector"] == name.0) && changed != *config && !passes(case, flags, &changed)
            };
            assert!(prepared.iter().any(is_noticed), "no case notices {name:?} changed by {by}");
        }
    }
}

fn python(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("python3").current_dir(ORACLE).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn has_python() -> bool {
    let check = "import sys; sys.exit(sys.version_info < (3, 11))";
    Command::new("python3").args(["-c", check]).status().is_ok_and(|status| status.success())
}

/// What must be equal of alerts, each with how often it comes.
fn identities(alerts: &[Value]) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for alert in alerts {
        let identity = ["detector", "key", "application", "scope", "first", "fired", "count"].map(|name| alert[name].to_string());
        *counted.entry(identity.join(" ")).or_default() += 1;
    }
    counted
}

#[test]
fn seeded_traffic_gives_the_alerts_of_the_oracle() {
    if !has_python() {
        return skipped("seeded_traffic_gives_the_alerts_of_the_oracle", "there is no python3 of version 3.11 or later");
    }
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input");
    let mut alerts_seen = 0;
    for (scenario, seed) in
        [("chaos", 1), ("chaos", 2), ("thresholds", 1), ("mixed", 1), ("distributed", 1), ("too-slow", 1), ("all", 2)]
    {
        for shuffle_us in ["0", "90000000"] {
            let seed = seed.to_string();
            std::fs::write(&input, python(&["generate.py", "--scenario", scenario, "--seed", &seed, "--shuffle", shuffle_us]))
                .unwrap();
            let file = input.to_str().unwrap();
            let expected = alerts_of(python(&["oracle.py", "--format", "jsonl", "--tools", TOOLS_OF_SERVER, file]));
            alerts_seen += expected.len();
            for shards in [1, 2, 4] {
                let found = replayed("jsonl", shards, None, &[&input]);
                let about = format!("{scenario}, seed {seed}, shuffled by {shuffle_us} us, {shards} shards");
                assert_eq!(identities(&found), identities(&expected), "{about}");
                let order = |alerts: &[Value]| alerts.iter().map(|alert| alert["detector"].clone()).collect::<Vec<_>>();
                assert_eq!(order(&found), order(&expected), "the order of the deciding events: {about}");
            }
        }
    }
    assert!(alerts_seen > 1000, "only {alerts_seen} alerts: the generator does not do what it did");
}

/// What a replay with room for so many keys in all shards has found: the alerts, and of the keys that it has forgotten those that
/// yielded for the room of lists and those over half of a threshold.
struct Bounded {
    alerts: Vec<u8>,
    forgotten: u64,
    for_lists: u64,
    hot: u64,
}

fn replay_bounded(keys: u32, shards: u32, file: &Path) -> Bounded {
    let mut command = Command::new(binary("postanalytics"));
    command.args(["replay", "--format", "jsonl", "--shards", &shards.to_string(), "--keys", &keys.to_string()]);
    let output = command.arg(file).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let number_before = |what: &str| {
        let mut words = errors.split(what).next().unwrap().split([' ', '(']);
        words.next_back().unwrap().parse().unwrap_or_else(|_| panic!("no number before {what:?} in {errors}"))
    };
    let [forgotten, for_lists, hot] = [" keys evicted", " for the room of lists", " over half of a threshold"].map(number_before);
    Bounded { alerts: output.stdout, forgotten, for_lists, hot }
}

/// Where there is no room for all keys, or for their lists, which one yields is not defined, but what follows is: it is forgotten
/// whole, and counted. So each alert is the oracle's over some stretch of its key's events, none is made up, and whatever differs
/// from the oracle that forgets nothing costs no more keys than were counted. Nobody innocent is accused, and all is exact with as
/// many shards as have room. If it is the lists that have none, attackers of every kind are found all the same, unchanged as long
/// as nobody else comes near a threshold; if thousands do, some of these are not found.
#[test]
fn without_room_for_all_nothing_is_made_up_and_what_is_missing_was_counted() {
    const NAME: &str = "without_room_for_all_nothing_is_made_up_and_what_is_missing_was_counted";
    if !has_python() {
        return skipped(NAME, "there is no python3 of version 3.11 or later");
    }
    let folder = tempfile::tempdir().unwrap();
    let [input, truth] = ["input", "truth"].map(|name| folder.path().join(name));
    // For the keys of the first two there is room, but not in one or two shards for their lists. For those of the others there
    // is room for few keys, and what it takes of lists.
    for (scenario, keys) in [("crowded", 65_536), ("crowded-attackers", 32_768), ("spoofed10", 1024), ("all", 1024)] {
        std::fs::write(&input, python(&["generate.py", "--scenario", scenario, "--truth", truth.to_str().unwrap()])).unwrap();
        let labels = alerts_of(std::fs::read(&truth).unwrap());
        let runs = [1, 2, 4].map(|shards| replay_bounded(keys, shards, &input));
        let files = [1, 2, 4].map(|shards| folder.path().join(format!("{shards}")));
        files.iter().zip(&runs).for_each(|(file, run)| std::fs::write(file, &run.alerts).unwrap());
        let mut arguments = vec!["forgetting.py", "--tools", TOOLS_OF_SERVER, input.to_str().unwrap()];
        arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
        let explained = alerts_of(python(&arguments));
        for ((shards, run), found) in [1, 2, 4].into_iter().zip(runs).zip(explained) {
            let Bounded { alerts, forgotten, for_lists, hot } = run;
            let about = format!("{scenario}, {shards} shards: {forgotten} forgotten, {for_lists} for lists, {hot} hot; {found}");
            let [differing, needed] = ["differing", "forgotten"].map(|name| found[name].as_u64().unwrap());
            // So many are enough for what differs in these inputs; an analysis that raised nothing would need 68 and 712.
            let most = match scenario {
                "spoofed10" => 20,
                "all" => 10,
                _ => forgotten,
            };
            assert!(needed <= forgotten.min(most) && for_lists <= forgotten, "{about}");
            match (scenario, shards) {
                ("crowded", 1 | 2) => assert!((differing, hot) == (0, 0) && for_lists > 1000, "{about}"),
                ("crowded-attackers", 1) => assert!(differing > 1000 && hot > 1000 && for_lists > 1000, "{about}"),
                ("crowded-attackers", 2) => assert!(for_lists > 1000, "{about}"),
                ("crowded" | "crowded-attackers", _) => assert_eq!(forgotten + differing, 0, "{about}"),
                ("spoofed10", _) => assert!(differing > 0 && for_lists == 0, "{about}"),
                _ => assert!(forgotten > 0 && for_lists == 0, "{about}"),
            }
            let alerts = alerts_of(alerts);
            let raised: BTreeSet<_> =
                alerts.iter().map(|alert| (&alert["detector"], &alert["key"]["value"])).map(texts).collect();
            let accused: BTreeSet<_> = raised.iter().map(|(_, key)| key).collect();
            for label in &labels {
                let (detector, key) = texts((&label["detector"], &label["key"]));
                if detector == "any" {
                    assert!(!accused.contains(&key), "{label} is accused: {about}");
                } else if scenario.starts_with("crowded") {
                    assert!(raised.contains(&(detector, key)), "{label} is missed: {about}");
                }
            }
        }
    }
}

fn texts((one, other): (&Value, &Value)) -> (String, String) {
    (one.as_str().unwrap().to_owned(), other.as_str().unwrap().to_owned())
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let (config, log) = (folder.path().join("config.toml"), folder.path().join("log"));
    std::fs::write(&config, "[detectors.crawl]\nevents = 0\n").unwrap();
    std::fs::write(&log, "").unwrap();
    let output = Command::new(binary("postanalytics")).args(["replay", "--config"]).args([&config, &log]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains("config.toml: line 2, column 10: events = 0 is out of range"),
        "{errors}"
    );
}

#[test]
fn real_logs_alert_as_they_should() {
    let Some(folder) = std::env::var_os("POSTANALYTICS_DATA").map(PathBuf::from) else {
        return skipped("real_logs_alert_as_they_should", "POSTANALYTICS_DATA is not set to a folder of logs");
    };
    for (name, expected) in [
        ("access-elastic-5000.log", &[][..]),
        ("hub/http-wordpress-scan.log", &["forced_browsing"][..]),
        ("hub/http-bf-wordpress-bf.log", &["brute_force"]),
        ("hub/nginx-bad-user-agent.log", &["scanner"]),
        ("hub/http-dos-switching-ua.log", &[]),
    ] {
        let found = replay_with(&[], "combined", 2, None, &[&folder.join(name)]);
        let detectors: Vec<&str> = found.iter().map(|alert| alert["detector"].as_str().unwrap()).collect();
        assert_eq!(detectors, expected, "{name}: {found:?}");
    }
}
