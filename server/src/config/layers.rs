//! Which source wins for a value: flag, environment, env file, default. Remembers what was chosen, for the log.

use super::ConfigError;
use super::env_file::EnvFile;
use std::ffi::OsString;
use std::path::PathBuf;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag.
    Flag,
    /// The environment variable of this name.
    Environment(&'static str),
    /// This key of the env file at this path.
    EnvFile(&'static str, PathBuf),
    /// A key of node.yaml, such as `wstore.host`.
    NodeYaml(String),
    /// Nobody said anything.
    Default,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::EnvFile(name, _) => write!(f, "env file {name}"),
            Self::NodeYaml(key) => write!(f, "node.yaml {key}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value that was chosen, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name of the flag, without dashes in front.
    pub key: &'static str,
    /// Its text.
    pub value: String,
    /// Where it comes from.
    pub source: Source,
}

/// Names that the env file and the environment are asked for, beside [`super::OTHER_NAMES`].
pub(super) struct Key {
    pub(super) flag: &'static str,
    pub(super) names: &'static [&'static str],
    pub(super) default: &'static str,
}

/// Environment and env file, read; choices, growing.
pub(super) struct Layers<'a> {
    pub(super) environment: &'a dyn Fn(&str) -> Option<OsString>,
    pub(super) file: Option<EnvFile>,
    pub(super) settings: Vec<Setting>,
}

impl Layers<'_> {
    /// The first that is not empty among environment and env file; all `names` in one before the other.
    pub(super) fn below_flags(&self, names: &'static [&'static str]) -> Result<Option<(String, Source)>, ConfigError> {
        for name in names {
            match (self.environment)(name).map(OsString::into_string) {
                Some(Ok(value)) if !value.trim().is_empty() => {
                    return Ok(Some((value.trim().to_owned(), Source::Environment(name))));
                }
                Some(Err(value)) => {
                    return Err(ConfigError::start(format!(
                        "the environment variable {name} is not UTF-8 ({value:?}): set it anew"
                    )));
                }
                _ => {}
            }
        }
        let Some(file) = &self.file else { return Ok(None) };
        Ok(names.iter().find_map(|name| {
            let value = file.values.get(*name).map(|value| value.trim()).filter(|value| !value.is_empty())?;
            Some((value.to_owned(), Source::EnvFile(name, file.path.clone())))
        }))
    }

    /// The text of a value; the default if nobody said anything.
    pub(super) fn text(&mut self, key: &Key, flag: Option<&str>) -> Result<(String, Source), ConfigError> {
        let found = match flag {
            Some(value) => Some((value.to_owned(), Source::Flag)),
            None => self.below_flags(key.names)?,
        };
        let (value, source) = found.unwrap_or_else(|| (key.default.to_owned(), Source::Default));
        self.note(key.flag, &value, &source);
        Ok((value, source))
    }

    /// A value, parsed.
    pub(super) fn parse<T>(
        &mut self,
        key: &Key,
        flag: Option<&str>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let (value, source) = self.text(key, flag)?;
        parse(&value).map_err(|error| bad_value(key.flag, &value, &source, &error))
    }

    /// A switch: given as a flag it is on.
    pub(super) fn switch(&mut self, key: &Key, flag: bool) -> Result<bool, ConfigError> {
        self.parse(key, flag.then_some("true"), super::values::boolean)
    }

    pub(super) fn note(&mut self, key: &'static str, value: &str, source: &Source) {
        self.settings.push(Setting { key, value: value.to_owned(), source: source.clone() });
    }
}

/// The error of a value that cannot be read, naming where it stands.
pub(super) fn bad_value(flag: &'static str, value: &str, source: &Source, error: &str) -> ConfigError {
    match source {
        Source::Flag => ConfigError::usage(format!("bad --{flag} {value:?}: {error}")),
        Source::Environment(name) => ConfigError::start(format!("bad {name} {value:?} (from the environment): {error}")),
        Source::EnvFile(name, path) => {
            ConfigError::start(format!("bad {name} {value:?} (from the env file {}): {error}", path.display()))
        }
        other => ConfigError::start(format!("bad {flag} {value:?} (from {other}): {error}")),
    }
}
