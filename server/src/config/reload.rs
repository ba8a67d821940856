//! What SIGHUP may change: the configuration that was read anew, less what only a restart changes. Pure.
//!
//! Shards, memory and ports stay as they are, and so do the log's form and place, the server's id and what
//! it shares with others. Whether detectors run at
//! all stays too, for their state is mapped at the start.

use super::{Config, Setting};

/// Values that stay until a restart, by their flags: `host` and `port` are those of `--listen`.
const FIXED: [&str; 18] = [
    "listen",
    "host",
    "port",
    "status",
    "shards",
    "no-pin",
    "arena",
    "arena-dir",
    "connections-max",
    "receive-buffers",
    "receive-buffer-bytes",
    "server-id",
    "deployment-id",
    "identity-key-file",
    "log",
    "log-file",
    "events",
    "labels",
];

/// The flag of the file for the detectors.
const CONFIG_KEY: &str = "config";

/// A value that is other now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Name of the flag, or of the value in the file for `--config`.
    pub key: String,
    /// What holds until now.
    pub old: String,
    /// What was read.
    pub new: String,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Reload {
    /// What holds from now on.
    pub config: Config,
    /// What changes.
    pub changed: Vec<Change>,
    /// What would change with a restart only.
    pub kept: Vec<Change>,
    /// Detectors whose numbers change somewhere: what they know of their keys is forgotten.
    pub detectors: Vec<&'static str>,
}

impl Reload {
    /// Puts the running configuration and the one just read together.
    pub fn of(running: &Config, read: Config) -> Self {
        // Then the file is not read anew but kept, or left: a line of its own says so.
        let starts_or_stops = running.detection.is_some() != read.detection.is_some();
        let is_fixed = |key: &str| FIXED.contains(&key) || starts_or_stops && key == CONFIG_KEY;
        let mut changes = changes(&running.settings, &read.settings);
        changes.retain(|change| !starts_or_stops || change.key != CONFIG_KEY);
        let (mut kept, mut changed): (Vec<Change>, Vec<Change>) = changes.into_iter().partition(|change| is_fixed(&change.key));
        let mut config = Config {
            listen: running.listen.clone(),
            status: running.status.clone(),
            shards: running.shards,
            pin: running.pin,
            arena_bytes: running.arena_bytes,
            connections_max: running.connections_max,
            receive_buffers: running.receive_buffers,
            receive_buffer_bytes: running.receive_buffer_bytes,
            server_id: running.server_id,
            deployment: running.deployment.clone(),
            log_format: running.log_format,
            log_file: running.log_file.clone(),
            events: running.events.clone(),
            group: running.group.clone(),
            ..read
        };
        // What was kept keeps its old text, so that the next reload names it again.
        config.settings.retain(|setting| !is_fixed(setting.key));
        config.settings.extend(running.settings.iter().filter(|setting| is_fixed(setting.key)).cloned());
        if starts_or_stops {
            let word = |is_on| if is_on { "on" } else { "off" }.to_owned();
            let (old, new) = (word(running.detection.is_some()), word(config.detection.is_some()));
            kept.push(Change { key: "detectors (--config)".to_owned(), old, new });
            config.detection.clone_from(&running.detection);
        }
        let detectors = match (&running.detection, &config.detection) {
            (Some(old), Some(new)) => {
                changed.extend(new.changed_values(old).into_iter().map(|(key, old, new)| Change { key, old, new }));
                new.changed_detectors(old)
            }
            _ => Vec::new(),
        };
        Self { config, changed, kept, detectors }
    }
}

/// Values that differ, in the order of the new ones; one that stands in one of both only is not given in the other.
fn changes(old: &[Setting], new: &[Setting]) -> Vec<Change> {
    let value =
        |settings: &[Setting], key: &str| settings.iter().find(|setting| setting.key == key).map(|setting| setting.value.clone());
    let only_old = old.iter().filter(|setting| value(new, setting.key).is_none());
    let keys = new.iter().chain(only_old).map(|setting| setting.key);
    let change = |key: &str| Change {
        key: key.to_owned(),
        old: value(old, key).unwrap_or_default(),
        new: value(new, key).unwrap_or_default(),
    };
    keys.map(change).filter(|change| change.old != change.new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::ServeFlags;
    use std::ffi::OsString;

    fn config(environment: &[(&str, &str)]) -> Config {
        let flags = ServeFlags {
            env_file: Some("/dev/null".to_owned()),
            node_yaml: Some("/dev/null".to_owned()),
            ..ServeFlags::default()
        };
        let of = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(*value));
        Config::resolve(&flags, &of).expect("good")
    }

    #[test]
    fn what_only_a_restart_changes_is_kept_and_named() {
        let running = config(&[("SLAB_ALLOC_ARENA", "2"), ("ALLOW", "10.0.0.0/8"), ("PORT", "1")]);
        let read =
            config(&[("SLAB_ALLOC_ARENA", "3"), ("ALLOW", "10.0.0.0/9"), ("PORT", "2"), ("POSTANALYTICS_FRAME_DEADLINE", "3s")]);
        let reload = Reload::of(&running, read.clone());
        assert_eq!((reload.config.arena_bytes, reload.config.listen.port), (2 << 30, 1));
        assert_eq!((reload.config.access.clone(), reload.config.frame_deadline), (read.access.clone(), read.frame_deadline));
        let names = |changes: &[Change]| changes.iter().map(|change| change.key.clone()).collect::<Vec<_>>();
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let expected = (owned(&["port", "arena"]), owned(&["allow", "frame-deadline"]));
        assert_eq!((names(&reload.kept), names(&reload.changed)), expected);
        assert_eq!(reload.kept[1], Change { key: "arena".to_owned(), old: "2".to_owned(), new: "3".to_owned() });
        // The next one says it again, and nothing else.
        let again = Reload::of(&reload.config, read);
        assert_eq!((names(&again.kept), names(&again.changed)), (owned(&["port", "arena"]), owned(&[])));
    }

    #[test]
    fn detectors_whose_numbers_changed_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("rules.toml");
        let read = |text: &str| {
            std::fs::write(&file, text).expect("written");
            config(&[("POSTANALYTICS_CONFIG", file.to_str().expect("text"))])
        };
        let running = read("[[overrides]]\nhost='a'\ndetectors.bola.events=9\n");
        let reload =
            Reload::of(&running, read("[detectors.crawl]\nevents=9\n[[overrides]]\nhost='a'\ndetectors.bola.events=8\n"));
        assert_eq!(reload.detectors, ["bola", "crawl"]);
        assert_eq!(Reload::of(&running, read("[[overrides]]\nhost='b'\ndetectors.bola.events=9\n")).detectors, ["bola"]);
        assert_eq!(
            Reload::of(&running, read("allowlist=['10.0.0.1']\n[[overrides]]\nhost='a'\ndetectors.bola.events=9\n")).detectors,
            [""; 0]
        );
        let off = Reload::of(&running, config(&[]));
        assert!(off.config.detection == running.detection && off.kept[0].key == "detectors (--config)");
        // It is told once, and again by the next reload: not that the file changed, too, for it does not.
        assert_eq!((off.kept.len(), off.changed.len()), (1, 0), "{off:?}");
        let again = Reload::of(&off.config, config(&[]));
        assert_eq!((again.kept, again.changed), (off.kept, off.changed));
    }
}
