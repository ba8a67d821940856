//! Small logs whose findings are known.

use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::os::fd::AsRawFd;
use std::path::Path;

fn line(source: &str, second: u32, request: &str, status: u16) -> String {
    let (minute, second) = (second / 60, second % 60);
    format!("{source} - - [17/May/2015:10:{minute:02}:{second:02} +0000] \"{request} HTTP/1.1\" {status} 5 \"-\" \"agent\"\n")
}

fn flags(files: &[&Path], format: LineFormat) -> AuditFlags {
    let files = files.iter().map(|file| file.to_path_buf()).collect();
    AuditFlags { format, config: None, shards: 1, keys: 1 << 14, json: false, files }
}

/// A visitor, somebody who looks for backups after three ordinary pages, and somebody who guesses passwords.
fn log() -> String {
    let mut text = String::new();
    for second in 0..60 {
        text += &line("192.0.2.1", second, &format!("GET /page-{second}x"), 200);
    }
    for page in 0..3 {
        text += &line("192.0.2.2", 60, &format!("GET /page-{page}x"), 301);
    }
    for path in 0..6 {
        text += &line("192.0.2.2", 62 + path, &format!("GET /backup-{path}x.zip"), 404);
    }
    text += "not a line of a log\n";
    for second in 0..10 {
        text += &line("2001:db8:1:2::7", 70 + second, "POST /login", 401);
    }
    text
}

#[test]
fn attackers_are_found_with_what_they_had_sent() {
    let folder = tempfile::tempdir().expect("a folder");
    let (plain, packed) = (folder.path().join("access.log"), folder.path().join("access.log.1.gz"));
    std::fs::write(&plain, log()).expect("written");
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let with_prefix = |line: &str| format!("May 17 10:00:00 web nginx[28]: {line}\n");
    let text: String = log().lines().map(with_prefix).collect();
    encoder.write_all(text.as_bytes()).expect("packed");
    std::fs::write(&packed, encoder.finish().expect("packed")).expect("written");
    for file in [&plain, &packed] {
        let found = examine(&flags(&[file], LineFormat::Combined)).expect("it runs");
        assert_eq!((found.lines, found.records, found.unreadable, found.ahead, found.sources), (80, 79, 1, 0, 3));
        assert_eq!((found.from.as_str(), found.until.as_str()), ("2015-05-17T10:00:00.000000Z", "2015-05-17T10:01:19.000000Z"));
        // Critical comes first, whoever was found first.
        let summary: Vec<_> = found
            .attackers
            .iter()
            .map(|attacker| (attacker.value.as_str(), attacker.requests, &attacker.alerts[0]))
            .map(|(value, requests, first)| (value, requests, first.detector, first.after_requests, first.after_seconds))
            .collect();
        let wanted = [("2001:db8:1:2::/64", 10, "brute_force", 6, 5.0), ("192.0.2.2", 9, "forced_browsing", 7, 5.0)];
        assert_eq!(summary, wanted);
        assert_eq!(found.attackers[0].alerts[0].endpoint.as_deref(), Some("POST /login"));
        assert_eq!(found.detectors.iter().map(|count| count.detector).collect::<Vec<_>>(), ["brute_force", "forced_browsing"]);
        let speed = found.speed.expect("somebody was found");
        assert_eq!((speed.requests_median, speed.requests_p90, speed.requests_max), (6, 7, 7));
        assert_eq!(found.needs.busiest_records, 79);
        let page = page::render(&found);
        for part in ["192.0.2.2", "forced_browsing", "CAUGHT: 2 alerts on 2 attackers", "--arena 0.04", "no time: 1"] {
            assert!(page.contains(part), "{part:?} is missing:\n{page}");
        }
        assert!(page.lines().all(|line| line.chars().count() <= 170 && !line.ends_with(' ')), "{page}");
    }
}

#[test]
fn a_second_file_goes_on_where_the_first_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let all = log();
    let at = all.match_indices("backup-1x").next().expect("it is there").0;
    let cut = all[..at].rfind('\n').expect("a line") + 1;
    std::fs::write(&one, &all[..cut]).expect("written");
    std::fs::write(&two, &all[cut..]).expect("written");
    let found = examine(&flags(&[&one, &two], LineFormat::Combined)).expect("it runs");
    let second = &found.attackers[1];
    assert_eq!((second.value.as_str(), second.requests, second.alerts[0].after_requests), ("192.0.2.2", 9, 7));
}

#[test]
fn users_and_sessions_of_json_records_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("records.jsonl");
    let mut text = String::new();
    for number in 0..10 {
        let (time_us, source) = (1_700_000_000_000_000u64 + number * 60_000_000, format!("192.0.2.{number}"));
        text += &format!(
            "{{\"event_us\":{time_us},\"ip\":\"{source}\",\"method\":\"POST\",\"path\":\"/login\",\"status\":401,\"user\":\"00000000000000ab\"}}\n"
        );
    }
    for number in 0..31 {
        let time_us = 1_700_000_600_000_000u64 + number * 1_000_000;
        text += &format!(
            "{{\"event_us\":{time_us},\"ip\":\"198.51.100.7\",\"method\":\"GET\",\"path\":\"/o/{number}\",\"status\":200,\"session\":\"00000000000000cd\"}}\n"
        );
    }
    std::fs::write(&file, text).expect("written");
    let found = examine(&flags(&[&file], LineFormat::Jsonl)).expect("it runs");
    let summary: Vec<_> =
        found.attackers.iter().map(|one| (one.kind, one.value.as_str(), one.alerts[0].after_requests)).collect();
    assert_eq!(summary, [("user", "00000000000000ab", 10), ("source", "198.51.100.7", 30)]);
    // Users are attacked, they do not attack.
    assert_eq!(found.speed.map(|speed| speed.requests_max), Some(30));
    assert_eq!(serde_json::to_value(&found).expect("JSON")["attackers"][0]["alerts"][0]["detector"], "user_brute_force");
}

#[test]
fn a_log_without_attackers_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("access.log");
    std::fs::write(&file, line("192.0.2.1", 0, "GET /", 200)).expect("written");
    let found = examine(&flags(&[&file], LineFormat::Combined)).expect("it runs");
    assert!(page::render(&found).contains("CAUGHT: nobody"));
    std::fs::write(&file, "").expect("written");
    let found = examine(&flags(&[&file], LineFormat::Combined)).expect("it runs");
    assert!(page::render(&found).contains("not one request"));
    let missing = examine(&flags(&[&folder.path().join("none")], LineFormat::Combined)).expect_err("there is no such file");
    assert!(format!("{missing:#}").contains("check the name"), "{missing:#}");
}

/// What was read of a pipe does not come again: a replay reads it from its first line, and an audit, which reads twice, says no.
#[test]
fn a_pipe_is_replayed_whole_and_not_audited() {
    let pipe_of = |text: &str| {
        let (pipe, mut end) = std::io::pipe().expect("a pipe");
        end.write_all(text.as_bytes()).expect("written");
        (PathBuf::from(format!("/proc/self/fd/{}", pipe.as_raw_fd())), pipe)
    };
    let (path, _pipe) = pipe_of(&log());
    let replayed = ReplayFlags {
        format: LineFormat::Combined,
        config: None,
        shards: 1,
        keys: 1 << 14,
        no_filter: false,
        files: vec![path.clone()],
        from_server: None,
        last: String::new(),
        status_token_file: None,
    };
    let config = replay::configuration(None).expect("the defaults");
    let (_, found) = replay::find(&replayed, &config).expect("it runs");
    assert_eq!(found.sorted.len(), 2);
    let error = examine(&flags(&[&path], LineFormat::Combined)).expect_err("it cannot be read twice");
    assert!(error.to_string().contains("no regular file"), "{error:#}");
}
