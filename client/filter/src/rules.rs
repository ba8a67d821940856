//! The rules: one TOML text, compiled once.

use thiserror::Error;

/// Why rules cannot be used.
#[derive(Debug, Error)]
pub enum RulesError {
    /// The text is no TOML, or has fields that a rule does not have.
    #[error("the rules cannot be read: {0}")]
    Syntax(String),
}
