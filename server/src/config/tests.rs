//! Precedence and errors of the configuration as a whole.

use super::*;
use std::collections::HashMap;
use std::io::Write;

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn put(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::File::create(&path).and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
        path.display().to_string()
    }

    /// Flags that keep files of this machine out.
    fn flags(&self, env_file: &str, node_yaml: &str) -> ServeFlags {
        ServeFlags {
            env_file: Some(self.put("env", env_file)),
            node_yaml: Some(self.put("node.yaml", node_yaml)),
            ..ServeFlags::default()
        }
    }
}

fn resolve(flags: &ServeFlags, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment: HashMap<String, String> =
        environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Config::resolve(flags, &|name| environment.get(name).map(OsString::from))
}

fn source_of(config: &Config, key: &str) -> String {
    config.settings.iter().find(|setting| setting.key == key).expect("noted").source.to_string()
}

#[test]
fn defaults() {
    let config = resolve(&Files::new().flags("", ""), &[]).expect("good");
    assert_eq!(config.listen.to_string(), "127.0.0.1:3313");
    assert_eq!(config.status.as_ref().expect("on").to_string(), "127.0.0.1:9001");
    assert_eq!((config.arena_bytes, config.shards, config.pin), (1 << 30, None, true));
    assert_eq!((config.connections_max, config.access.networks.len(), config.access.insecure), (10_000, 0, false));
    assert_eq!(config.log_format, LogFormat::Text);
    assert!(config.settings.iter().filter(|setting| setting.key != "host").all(|setting| setting.source == Source::Default));
}

#[test]
fn flags_win_over_environment_over_file_over_default() {
    let files = Files::new();
    let mut flags = files.flags("SLAB_ALLOC_ARENA=2\nALLOW='10.0.0.0/8'\nUNKNOWN=1\nPOSTANALYTICS_LOG=json", "");
    let config = resolve(&flags, &[]).expect("good");
    assert_eq!((config.arena_bytes >> 30, source_of(&config, "arena").as_str()), (2, "env file SLAB_ALLOC_ARENA"));
    assert_eq!((config.log_format, config.access.networks.len()), (LogFormat::Json, 1));
    assert_eq!(config.env_file_unknown_keys, ["UNKNOWN"]);

    let config = resolve(&flags, &[("SLAB_ALLOC_ARENA", "3"), ("ALLOW", "192.0.2.1 192.0.2.2,192.0.2.3")]).expect("good");
    assert_eq!((config.arena_bytes >> 30, source_of(&config, "arena").as_str()), (3, "environment SLAB_ALLOC_ARENA"));
    assert_eq!(config.access.networks.len(), 3);

    flags.arena = Some("4".to_owned());
    flags.allow = vec!["::1".to_owned(), "2001:db8::/32".to_owned()];
    let config = resolve(&flags, &[("SLAB_ALLOC_ARENA", "3"), ("ALLOW", "192.0.2.1")]).expect("good");
    assert_eq!((config.arena_bytes >> 30, source_of(&config, "arena").as_str()), (4, "flag"));
    assert_eq!(config.access.networks.len(), 2);
}

#[test]
fn the_alias_counts_only_when_the_first_is_empty() {
    let files = Files::new();
    let flags = files.flags("SLAB_ALLOC_ARENA=2", "");
    assert_eq!(resolve(&flags, &[("TARANTOOL_MEMORY_GB", "5")]).expect("good").arena_bytes >> 30, 2);
    let flags = files.flags("SLAB_ALLOC_ARENA=", "");
    let config = resolve(&flags, &[("SLAB_ALLOC_ARENA", ""), ("TARANTOOL_MEMORY_GB", "5")]).expect("good");
    assert_eq!((config.arena_bytes >> 30, source_of(&config, "arena").as_str()), (5, "environment TARANTOOL_MEMORY_GB"));
}

#[test]
fn host_and_port_come_one_by_one() {
    let files = Files::new();
    let flags = files.flags("PORT=4000", "");
    assert_eq!(resolve(&flags, &[("HOST", "0.0.0.0")]).expect("good").listen.to_string(), "0.0.0.0:4000");
    let flags = files.flags("HOST='[::]'", "");
    assert_eq!(resolve(&flags, &[]).expect("good").listen.to_string(), "[::]:3313");
    let error = resolve(&flags, &[("PORT", "http")]).expect_err("no port");
    assert!(error.text.contains("PORT \"http\"") && !error.is_usage, "{error}");
}

#[test]
fn node_yaml_gives_the_address_and_may_not_contradict() {
    let files = Files::new();
    let yaml = "hostname: n1\ntarantool:\n  host: 10.0.0.9\n  port: 3313\n";
    let config = resolve(&files.flags("", yaml), &[]).expect("good");
    assert_eq!(config.listen.to_string(), "10.0.0.9:3313");
    assert!(source_of(&config, "host").starts_with("node.yaml tarantool.host"));

    let error = resolve(&files.flags("", yaml), &[("HOST", "0.0.0.0")]).expect_err("clash");
    assert!(error.text.contains("environment HOST") && error.text.contains("tarantool.host of"), "{error}");
    resolve(&files.flags("HOST=10.0.0.9", yaml), &[]).expect("equal is no clash");
    let mut flags = files.flags("HOST=0.0.0.0", yaml);
    flags.listen = Some("127.0.0.1:0".to_owned());
    assert_eq!(resolve(&flags, &[]).expect("the flag wins").listen.to_string(), "127.0.0.1:0");
}

#[test]
fn errors_name_source_and_remedy() {
    let files = Files::new();
    let error = resolve(&files.flags("SLAB_ALLOC_ARENA=1,5", ""), &[]).expect_err("a comma");
    assert!(
        error.text.contains("bad SLAB_ALLOC_ARENA \"1,5\" (from the env file /")
            && error.text.contains("/env): ")
            && !error.is_usage,
        "{error}"
    );
    let flags = ServeFlags { arena_dir: Some("/var/lib".to_owned()), ..files.flags("", "") };
    let error = resolve(&flags, &[]).expect_err("no folder");
    assert!(error.is_usage && error.text.contains("only none"), "{error}");
    let flags = ServeFlags { env_file: Some("/nowhere/env".to_owned()), ..ServeFlags::default() };
    assert!(resolve(&flags, &[]).expect_err("no file").text.contains("/nowhere/env"));
    let flags = ServeFlags { status_token_file: Some(files.put("token", "short\n")), ..files.flags("", "") };
    assert!(resolve(&flags, &[]).expect_err("short").text.contains("at least 16"));
    let flags = ServeFlags { receive_buffers: Some("3".to_owned()), ..files.flags("", "") };
    assert!(resolve(&flags, &[]).expect_err("no power").text.contains("power of two"));
    let flags = ServeFlags { frame_deadline: Some("2m".to_owned()), ..files.flags("", "") };
    assert!(resolve(&flags, &[]).expect_err("too long").text.contains("bad --frame-deadline \"2m\": it must be 1 s to 60 s"));
    let flags = ServeFlags { drain_deadline: Some("1h".to_owned()), ..files.flags("", "") };
    assert!(resolve(&flags, &[]).expect_err("too long").text.contains("0 s to 600 s"));
}

#[test]
fn servers_of_a_deployment_share_two_values_or_none() {
    let files = Files::new();
    let key = files.put("key", &format!("{}\n", "0aF1".repeat(16)));
    let id = "00112233-4455-6677-8899-aabbccddeeff";
    let of = |id: Option<&str>, key: Option<&str>| ServeFlags {
        deployment_id: id.map(str::to_owned),
        identity_key_file: key.map(str::to_owned),
        ..files.flags("", "")
    };
    assert_eq!(resolve(&of(None, None), &[]).expect("good").deployment, None);
    let deployment = resolve(&of(Some(id), Some(&key)), &[]).expect("good").deployment.expect("given");
    assert_eq!((deployment.id[0], deployment.id[15], &deployment.identity_key[..3]), (0, 0xff, &[0x0a, 0xf1, 0x0a][..]));
    assert!(!format!("{deployment:?}").contains("241"), "the key is not shown");
    for (flags, words) in [
        (of(Some(id), None), ["identity-key-file is not", "openssl rand -hex 32"]),
        (of(None, Some(&key)), ["deployment-id is not", "uuidgen"]),
        (of(Some("x"), Some(&key)), ["bad --deployment-id", "UUID"]),
        (of(Some(id), Some(&files.put("short", "0aF1"))), ["has 4 characters", "64 hexadecimal digits"]),
        (of(Some(id), Some(&files.put("odd", &"é".repeat(32)))), ["64 hexadecimal digits", "openssl"]),
        (of(Some(id), Some("/nowhere/key")), ["/nowhere/key", "readable"]),
    ] {
        let error = resolve(&flags, &[]).expect_err("wrong").text;
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn the_command_line_takes_flags_in_both_places() {
    use clap::Parser;
    let bare =
        flags::CommandLine::try_parse_from(["postanalytics", "--shards", "2", "--allow", "a", "--allow", "b"]).expect("good");
    assert_eq!((bare.run.serve.shards.as_deref(), bare.run.serve.allow.len()), (Some("2"), 2));
    let named = flags::CommandLine::try_parse_from(["postanalytics", "serve", "--shards", "2"]).expect("good");
    assert!(matches!(named.command, Some(flags::Command::Serve(flags)) if flags.serve.shards.as_deref() == Some("2")));
    for without_effect in [
        "attacks 00f1e2d3c4b5a697 --type sqli",
        "attacks 00f1e2d3c4b5a697 --since 1h",
        "requests 000102030405060708090a0b0c0d0e0f --source 192.0.2.7",
        "replay --from-server http://127.0.0.1:9001 --format jsonl",
        "replay --last 5m access.log",
    ] {
        let arguments = ["postanalytics"].into_iter().chain(without_effect.split(' '));
        assert!(flags::CommandLine::try_parse_from(arguments).is_err(), "{without_effect}");
    }
    for good in ["attacks 00f1e2d3c4b5a697", "replay --from-server http://127.0.0.1:9001", "requests --source 192.0.2.7"] {
        let arguments = ["postanalytics"].into_iter().chain(good.split(' '));
        assert!(flags::CommandLine::try_parse_from(arguments).is_ok(), "{good}");
    }
    assert!(flags::CommandLine::try_parse_from(["postanalytics", "replay", "access.log"]).is_ok(), "a default is not given");
    <flags::CommandLine as clap::CommandFactory>::command().debug_assert();
}

#[test]
fn an_empty_variable_is_not_given() {
    use clap::CommandFactory;
    fn variables(command: &clap::Command) -> Vec<String> {
        let own = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned));
        own.chain(command.get_subcommands().flat_map(variables)).collect()
    }
    let command = flags::CommandLine::command();
    let (all, url) = (variables(&command), "POSTANALYTICS_STATUS_URL");
    assert!(all.iter().any(|name| name == url) && all.iter().any(|name| name != url), "{all:?}");
    let left = variables(&flags::without_empty_variables(command, &|name| name == url));
    assert_eq!(left, all.into_iter().filter(|name| name != url).collect::<Vec<_>>());
}

#[test]
fn the_events_and_the_log_have_files_of_their_own() {
    let files = Files::new();
    let log = files.folder.path().join("a.log").display().to_string();
    let with_events = |events: &str| {
        let mut flags = files.flags("", "");
        (flags.log_file, flags.events) = (Some(log.clone()), Some(events.to_owned()));
        resolve(&flags, &[])
    };
    let beside = files.folder.path().join("./b.log").display().to_string();
    let same = files.folder.path().join("./a.log").display().to_string();
    // Whether it is there or not.
    for _ in 0..2 {
        let error = with_events(&same).expect_err("one file");
        assert!(
            error.is_usage && error.text.contains("bad --events") && error.text.contains("give another file"),
            "{}",
            error.text
        );
        assert!(with_events(&beside).is_ok());
        files.put("a.log", "");
        files.put("b.log", "");
    }
    let link = files.folder.path().join("link");
    std::os::unix::fs::symlink(&log, &link).expect("linked");
    assert!(with_events(&link.display().to_string()).is_err());
    let mut flags = files.flags("", "");
    (flags.log_file, flags.events) = (Some("/dev/null".to_owned()), Some("/dev/null".to_owned()));
    assert!(resolve(&flags, &[]).is_ok());
}
