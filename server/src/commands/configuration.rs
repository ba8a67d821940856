//! `--check-config` and `--print-config`: what a server would run with.

use crate::config::{Config, ConfigError};
use crate::{logging, serve};
use std::fmt::Write;

/// What to say of a configuration that is right. What is wrong with another is a fault of the command line: exit code 2.
pub(crate) fn check(read: Result<Config, ConfigError>) -> anyhow::Result<String> {
    let config = read.map_err(|error| ConfigError { is_usage: true, ..error })?;
    let wrong = |error: anyhow::Error| ConfigError { text: format!("{error:#}"), is_usage: true };
    logging::check_filter().map_err(wrong)?;
    if let Some(detection) = &config.detection {
        serve::settings_of(detection).map_err(wrong)?;
    }
    Ok(match &config.detection {
        Some(detection) => format!("the configuration is right; {} overrides\n", detection.overrides.len()),
        None => "the configuration is right; no detector runs without --config\n".to_owned(),
    })
}

/// The configuration as a file for `--config`; what else holds stands in comments.
pub(crate) fn print(config: &Config) -> String {
    let mut text = String::new();
    // Writing into a String does not fail.
    for setting in &config.settings {
        let _ = writeln!(text, "# {} = {:?} ({})", setting.key, setting.value, setting.source);
    }
    if config.detection.is_none() {
        text.push_str("# Without --config no detector runs; these are the defaults.\n");
    }
    text.push('\n');
    text.push_str(&config.detection.clone().unwrap_or_default().to_toml());
    text
}
