//! The engine: the points of a request, normalised, against the rules.
//!
//! ```text
//! request ─▶ sections (path, query, each header, body) ─▶ decoded ─▶ any literal of any rule?  no: done, as nearly always
//!                                                                                │ yes
//!                                    points ─▶ decoded, folded, unquoted, unpacked ─▶ literals ─▶ patterns of those rules
//! ```
//!
//! A section is searched whole first: a literal that lies in a point lies in its section too. Only where one does is the
//! section taken apart. Values of headers without a hit are remembered by their hash (with a seed of the process), for they
//! are the same in most requests of a visitor.

use crate::findings::{Findings, FoundHit, HITS_MAX, SAMPLE_BYTES_MAX};
use crate::inflate::{Coding, End, Inflater, has_text};
use crate::markup::is_formatting;
use crate::mask::{MaskConfig, Masker, masked};
use crate::normalise::{
    Decoder, ENCODED, FOLDABLE, JSON_QUOTING, PLUS, QUOTING, UNPACKED, fold, may_be_packed, may_have_packed, unpack, unquote,
};
use crate::points::{self, Json, Part, Role};
use crate::rules::{Place, RuleSet, Rules, RulesError, Seen};
use foldhash::quality::RandomState;
use postanalytics_protocol::schema::v1::AttackType;
use std::hash::BuildHasher;
use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

/// The rules that come with the crate.
pub(crate) const BUILTIN_RULES: &str = include_str!("../rules.toml");
/// Most bytes of a body that are looked at, as it came and as it was before it was packed. Of what comes after them the findings say that they are incomplete.
pub const BODY_BYTES_MAX: usize = 256 << 10;
/// Most points of a query, of the cookies of a header or of a body that are looked at.
const POINTS_MAX: usize = 4096;
/// Most bytes that patterns are tried on at a time, and what two such pieces share: longer than any payload needs to be.
const PIECE_BYTES: usize = 32 << 10;
const OVERLAP_BYTES: usize = 1 << 10;
/// What a buffer may keep from one request to the next.
const KEPT_BYTES: usize = 64 << 10;
/// Bytes that are looked at between two looks at the clock.
const CLOCK_BYTES: usize = 4 << 10;
/// Header values that are remembered as harmless, a power of two.
const HARMLESS_MAX: usize = 1024;
/// Severity of a section with more points than are looked at: whatever lies behind them was not seen.
const BOMB_SEVERITY: u8 = 100;

/// A request as it came, borrowed. Leave empty what is not known: a log has no body.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawRequest<'a> {
    /// The method, such as `GET`.
    pub method: &'a [u8],
    /// The request target as on the request line: path and query, not decoded; or an absolute URL.
    pub uri: &'a [u8],
    /// Names and values of the headers in any order.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// The body, or its beginning, as it came: what is packed in gzip or deflate by its Content-Encoding is unpacked.
    pub body: &'a [u8],
    /// `body` is only the beginning of the body.
    pub body_truncated: bool,
}

/// Buffers of one thread, reused from request to request. Between requests they hold at most about 600 KiB.
#[derive(Debug)]
pub struct Scratch {
    section: Decoder,
    value: Decoder,
    folded: Vec<u8>,
    unquoted: Vec<u8>,
    json: Json,
    inflater: Inflater,
    point: Vec<u8>,
    /// Hashes of header values in which no literal was found.
    harmless: Vec<u64>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            section: Decoder::default(),
            value: Decoder::default(),
            folded: Vec::new(),
            unquoted: Vec::new(),
            json: Json::default(),
            inflater: Inflater::default(),
            point: Vec::new(),
            harmless: vec![0; HARMLESS_MAX],
        }
    }
}

impl Scratch {
    #[cfg(test)]
    pub(crate) fn inflated_capacity(&self) -> usize {
        self.inflater.text.capacity()
    }

    /// Gives back what one large request took; costs next to nothing otherwise.
    fn shrink(&mut self) {
        self.section.shrink(KEPT_BYTES);
        self.value.shrink(KEPT_BYTES);
        self.json.shrink(KEPT_BYTES);
        self.inflater.shrink(KEPT_BYTES);
        for buffer in [&mut self.folded, &mut self.unquoted, &mut self.point] {
            buffer.clear();
            buffer.shrink_to(KEPT_BYTES);
        }
    }
}

/// Rules, ready to be used by any number of threads.
#[derive(Debug)]
pub struct Engine {
    rules: Rules,
    masker: Masker,
    seed: RandomState,
}

impl Engine {
    /// The rules that come with this crate, and the default masking.
    ///
    /// # Panics
    /// Never: a test compiles them.
    #[expect(clippy::expect_used, reason = "they are part of the program")]
    pub fn builtin() -> Self {
        Self::from_toml(BUILTIN_RULES).expect("the rules of this crate are tested")
    }

    /// Rules of your own in place of the ones that come with this crate.
    ///
    /// # Errors
    /// With the number of the rule and what is wrong with it.
    #[expect(clippy::expect_used, reason = "it is part of the program")]
    pub fn from_toml(text: &str) -> Result<Self, RulesError> {
        let masker = Masker::new(&MaskConfig::default()).expect("the default masking is tested");
        Ok(Self { rules: Rules::parse(text)?, masker, seed: RandomState::default() })
    }

    /// The same rules with another masking.
    #[must_use]
    pub fn with_masker(self, masker: Masker) -> Self {
        Self { masker, ..self }
    }

    /// What masks the samples of hits, for all else that leaves the node too.
    pub const fn masker(&self) -> &Masker {
        &self.masker
    }

    /// Looks for attacks. Gives up at the first point after `limit`: then the findings say `overlimit`. A scratch belongs to
    /// the engine that it was first used with.
    pub fn inspect(&self, request: &RawRequest<'_>, limit: Duration, scratch: &mut Scratch) -> Findings {
        let begun = Instant::now();
        let deadline = begun.checked_add(limit);
        let findings = Findings { incomplete: request.body_truncated, ..Findings::default() };
        let mut inspection =
            Inspection { engine: self, deadline, findings, points: 0, is_bomb: false, suspects: 0, until_clock: CLOCK_BYTES };
        let _ = inspection.request(request, scratch);
        scratch.shrink();
        let mut findings = inspection.findings;
        findings.elapsed = begun.elapsed();
        if findings.elapsed > limit && !findings.overlimit {
            findings.set_overlimit();
        }
        findings
    }
}

/// The inspection of one request.
struct Inspection<'e> {
    engine: &'e Engine,
    /// `None`: a limit so long that no clock reaches it.
    deadline: Option<Instant>,
    findings: Findings,
    /// Points of the section so far.
    points: usize,
    /// The section was given up, but not the request.
    is_bomb: bool,
    /// Hits, and rules that were not tried for there was a hit like theirs.
    suspects: usize,
    until_clock: usize,
}

/// Where a point lies: what its name begins with.
#[derive(Clone, Copy)]
struct Source {
    prefix: &'static [u8],
    /// Where its values are.
    place: Place,
}

/// The buffers for one value.
struct Buffers<'s> {
    value: &'s mut Decoder,
    folded: &'s mut Vec<u8>,
    unquoted: &'s mut Vec<u8>,
    point: &'s mut Vec<u8>,
}

impl Inspection<'_> {
    fn request(&mut self, request: &RawRequest<'_>, scratch: &mut Scratch) -> ControlFlow<()> {
        let (path, query) = match memchr::memchr(b'?', request.uri) {
            Some(at) => (&request.uri[..at], &request.uri[at + 1..]),
            None => (request.uri, &b""[..]),
        };
        self.whole(path, Place::Uri, &Fixed("uri"), scratch)?;
        if !query.is_empty() {
            let ended = self.pairs(query, b'&', Source { prefix: b"get_", place: Place::Get }, scratch);
            self.next_section(ended)?;
        }
        let (mut content_type, mut types, mut coding) = (&b""[..], 0, None);
        for &(name, value) in request.headers {
            if name.eq_ignore_ascii_case(b"content-type") {
                content_type = value;
                types += 1;
            } else if name.eq_ignore_ascii_case(b"content-encoding") {
                coding = Coding::after(coding, value);
            }
            let ended = self.header(name, value, scratch);
            self.next_section(ended)?;
        }
        if !request.body.is_empty() {
            match coding {
                None => {
                    let ended = self.body(content_type, types > 1, request.body, scratch);
                    self.next_section(ended)?;
                }
                Some(coding) => self.packed_body(coding, content_type, types > 1, request, scratch)?,
            }
        }
        ControlFlow::Continue(())
    }

    /// Each section has points of its own: those of one must not hide another.
    fn next_section(&mut self, ended: ControlFlow<()>) -> ControlFlow<()> {
        self.points = 0;
        if std::mem::take(&mut self.is_bomb) { ControlFlow::Continue(()) } else { ended }
    }

    fn header(&mut self, name: &[u8], value: &[u8], scratch: &mut Scratch) -> ControlFlow<()> {
        let place = match name {
            _ if name.eq_ignore_ascii_case(b"cookie") => Place::Cookie,
            _ if name.eq_ignore_ascii_case(b"user-agent") => Place::Agent,
            _ if name.eq_ignore_ascii_case(b"referer") => Place::Referer,
            // Base64 and the like: nothing in it can be read.
            _ if name.eq_ignore_ascii_case(b"authorization") && is_opaque(value) => return ControlFlow::Continue(()),
            _ if says_address(name) => Place::Address,
            _ => Place::Header,
        };
        // 0 is a free slot.
        let hash = self.engine.seed.hash_one((place as u8, value)) | 1;
        let slot = (hash >> 32) as usize & (HARMLESS_MAX - 1);
        if scratch.harmless[slot] == hash {
            return ControlFlow::Continue(());
        }
        let suspects = self.suspects;
        if place == Place::Cookie {
            self.pairs(value, b';', Source { prefix: b"cookie_", place }, scratch)?;
        } else {
            let point = HeaderName(name);
            self.whole(value, place, &point, scratch)?;
        }
        if self.suspects == suspects {
            scratch.harmless[slot] = hash;
        }
        ControlFlow::Continue(())
    }

    /// A body that says that it is packed: what is in it, and where that is not all there may be, itself as well. Many servers do
    /// not know the header, and take what came as it is.
    fn packed_body(
        &mut self,
        coding: Coding,
        content_type: &[u8],
        has_types: bool,
        request: &RawRequest<'_>,
        scratch: &mut Scratch,
    ) -> ControlFlow<()> {
        let packed = &request.body[..request.body.len().min(BODY_BYTES_MAX)];
        let is_cut = request.body_truncated || packed.len() < request.body.len();
        let mut inflater = std::mem::take(&mut scratch.inflater);
        let end = inflater.inflate(coding, packed, BODY_BYTES_MAX);
        self.findings.incomplete |= is_cut || end != End::Whole;
        let ended = self.body(content_type, has_types, &inflater.text, scratch);
        let is_known = matches!(end, End::Whole | End::Full) || end == End::Cut && is_cut;
        let has_more = !is_known || inflater.has_notes || has_text(packed);
        scratch.inflater = inflater;
        self.next_section(ended)?;
        if has_more {
            let ended = self.body(content_type, has_types, packed, scratch);
            self.next_section(ended)?;
        }
        ControlFlow::Continue(())
    }

    fn body(&mut self, content_type: &[u8], has_types: bool, body: &[u8], scratch: &mut Scratch) -> ControlFlow<()> {
        self.findings.incomplete |= body.len() > BODY_BYTES_MAX;
        let body = &body[..body.len().min(BODY_BYTES_MAX)];
        let kind = BodyKind::of(content_type, body);
        let mut json = std::mem::take(&mut scratch.json);
        let mut ended = self.body_of_kind(kind, body, &mut json, scratch);
        scratch.json = json;
        // What another parser than ours might make of it.
        if ended.is_continue() && (has_types || is_doubtful(content_type, body)) {
            ended = self.pairs(body, b'&', Source { prefix: b"post_", place: Place::Post }, scratch);
            if ended.is_continue() {
                ended = self.whole(body, Place::Post, &Fixed("post"), scratch);
            }
        }
        ended
    }

    fn body_of_kind(&mut self, kind: BodyKind<'_>, body: &[u8], json: &mut Json, scratch: &mut Scratch) -> ControlFlow<()> {
        match kind {
            BodyKind::Form => self.pairs(body, b'&', Source { prefix: b"post_", place: Place::Post }, scratch),
            BodyKind::Json => {
                let source = Source { prefix: b"post_json_", place: Place::Post };
                // Escapes hide literals.
                if memchr::memchr(b'\\', body).is_none() && !self.is_suspect(body, QUOTING, scratch) {
                    if may_have_packed(body) {
                        json.values(body, &mut |part| self.part_in_base64(part, source, scratch))?;
                    }
                    return ControlFlow::Continue(());
                }
                let is_whole = json.values(body, &mut |part| self.part(part, source, false, scratch))?;
                self.findings.incomplete |= !is_whole;
                ControlFlow::Continue(())
            }
            BodyKind::JsonOrForm => {
                let source = Source { prefix: b"post_json_", place: Place::Post };
                if json.values(body, &mut |part| self.part(part, source, false, scratch))? {
                    return ControlFlow::Continue(());
                }
                self.body_of_kind(BodyKind::Form, body, json, scratch)
            }
            BodyKind::Multipart(boundary) => {
                let source = Source { prefix: b"post_multipart_", place: Place::Post };
                if !self.is_suspect(body, QUOTING | JSON_QUOTING, scratch) {
                    return points::multipart(body, boundary, &mut |part| self.part_in_base64(part, source, scratch));
                }
                points::multipart(body, boundary, &mut |part| self.part(part, source, false, scratch))
            }
            BodyKind::Xml => {
                self.whole(body, Place::Xml, &Fixed("post_xml"), scratch)?;
                let source = Source { prefix: b"post_xml_", place: Place::Post };
                points::xml(body, &mut |part| self.part(part, source, false, scratch))
            }
            BodyKind::Markup => {
                self.body_of_kind(BodyKind::Xml, body, json, scratch)?;
                self.whole(body, Place::Post, &Fixed("post"), scratch)
            }
            BodyKind::Other => self.whole(body, Place::Post, &Fixed("post"), scratch),
        }
    }

    /// Whether a literal of any rule for bodies and their names lies in a section, or might once it is folded or unquoted (by
    /// what `quoting` says). One that is not suspect has no point with a hit, but for what is in base64.
    fn is_suspect(&self, section: &[u8], quoting: u8, scratch: &mut Scratch) -> bool {
        let rules = &self.engine.rules;
        let asked = rules.of_bodies();
        let (text, seen) = self.decoded(&mut scratch.section, section, false, &asked);
        if !seen.rules.is_empty() {
            return true;
        }
        if seen.classes & FOLDABLE != 0 {
            fold(text, &mut scratch.folded);
            if !rules.scan(&scratch.folded, &asked).rules.is_empty() {
                return true;
            }
        }
        seen.classes & quoting != 0 && {
            unquote(text, &mut scratch.unquoted);
            !rules.scan(&scratch.unquoted, &asked.and(rules.of_shell())).rules.is_empty()
        }
    }

    /// A text decoded, and what was seen in it. Most are not encoded: then the first pass is the only one.
    fn decoded<'a>(&self, decoder: &'a mut Decoder, raw: &'a [u8], plus: bool, asked: &RuleSet) -> (&'a [u8], Seen) {
        let rules = &self.engine.rules;
        let seen = rules.scan(raw, asked);
        let encoded = if plus { ENCODED | PLUS } else { ENCODED };
        if seen.classes & encoded == 0 {
            return (raw, seen);
        }
        let text = decoder.decode(raw, plus);
        (text, rules.scan(text, asked))
    }

    /// Names and values, each looked at by itself: the separators between them are literals of rules.
    fn pairs(&mut self, text: &[u8], separator: u8, source: Source, scratch: &mut Scratch) -> ControlFlow<()> {
        points::pairs(text, separator, &mut |part| self.part(part, source, separator == b'&', scratch))
    }

    /// One value of a section that was taken apart.
    fn part(&mut self, part: Part<'_>, source: Source, plus: bool, scratch: &mut Scratch) -> ControlFlow<()> {
        self.points += 1;
        if self.points > POINTS_MAX {
            self.findings.incomplete = true;
            if !self.findings.found.iter().any(|hit| hit.attack_type == AttackType::DataBomb) {
                self.hit(AttackType::DataBomb, BOMB_SEVERITY, 0, b"request", Vec::new());
            }
            self.is_bomb = self.findings.found.len() < HITS_MAX;
            return ControlFlow::Break(());
        }
        let Scratch { value, folded, unquoted, point, .. } = scratch;
        let place = match (part.role, source.place) {
            (Role::Value, place) => place,
            (Role::Name, _) => Place::Name,
            (Role::File, _) => Place::File,
        };
        let name = Name { source, part: &part };
        self.value(part.value, plus, place, &name, Buffers { value, folded, unquoted, point })
    }

    /// One value of a section that is not suspect, if it is base64 that is.
    fn part_in_base64(&mut self, part: Part<'_>, source: Source, scratch: &mut Scratch) -> ControlFlow<()> {
        self.clock(0)?;
        if !may_be_packed(part.value) {
            return ControlFlow::Continue(());
        }
        let rules = &self.engine.rules;
        self.clock(part.value.len())?;
        let text = scratch.value.decode(part.value, false);
        if !unpack(text, &mut scratch.unquoted) || rules.scan(&scratch.unquoted, &rules.of_bodies()).rules.is_empty() {
            return ControlFlow::Continue(());
        }
        self.part(part, source, false, scratch)
    }

    /// A section that is one value.
    fn whole(&mut self, text: &[u8], place: Place, name: &dyn PointName, scratch: &mut Scratch) -> ControlFlow<()> {
        let Scratch { value, folded, unquoted, point, .. } = scratch;
        self.value(text, false, place, name, Buffers { value, folded, unquoted, point })
    }

    fn value(&mut self, raw: &[u8], plus: bool, place: Place, name: &dyn PointName, buffers: Buffers<'_>) -> ControlFlow<()> {
        let rules = &self.engine.rules;
        let asked = rules.at(place);
        let (text, seen) = self.decoded(buffers.value, raw, plus, asked);
        self.text(text, raw, &seen.rules, name, buffers.point)?;
        let has_path = || memchr::memmem::find(text, b"//").is_some() || memchr::memmem::find(text, b"/.").is_some();
        if seen.classes & FOLDABLE != 0 || !seen.rules.is_empty() && has_path() {
            fold(text, buffers.folded);
            if buffers.folded != text {
                self.text(buffers.folded, raw, &rules.scan(buffers.folded, asked).rules, name, buffers.point)?;
            }
        }
        // A plus that is left was encoded: a blank for whoever decodes twice.
        if seen.classes & (QUOTING | JSON_QUOTING) != 0 || plus && seen.classes & PLUS != 0 {
            unquote(text, buffers.unquoted);
            if buffers.unquoted != text {
                let seen = rules.scan(buffers.unquoted, &asked.and(rules.of_shell()));
                self.text(buffers.unquoted, raw, &seen.rules, name, buffers.point)?;
            }
        }
        if seen.classes & UNPACKED == 0 && unpack(text, buffers.unquoted) {
            self.text(buffers.unquoted, raw, &rules.scan(buffers.unquoted, asked).rules, name, buffers.point)?;
        }
        ControlFlow::Continue(())
    }

    /// One form of one value, which came as `raw`, against the rules whose literals it holds.
    fn text(
        &mut self,
        text: &[u8],
        raw: &[u8],
        candidates: &RuleSet,
        name: &dyn PointName,
        point: &mut Vec<u8>,
    ) -> ControlFlow<()> {
        self.clock(text.len())?;
        if candidates.is_empty() {
            return ControlFlow::Continue(());
        }
        let rules = &self.engine.rules;
        point.clear();
        for index in candidates.iter() {
            let rule = rules.get(index);
            if point.is_empty() {
                name.write(&self.engine.masker, point);
            }
            if self.findings.found.iter().any(|hit| hit.attack_type == rule.attack_type && hit.point == *point) {
                self.suspects += 1;
                continue;
            }
            let mut start = 0;
            while start < text.len() {
                let piece = &text[start..text.len().min(start + PIECE_BYTES)];
                self.clock(piece.len())?;
                if let Some(found) = rule.find(piece) {
                    if rule.unless_formatting && is_formatting(text) {
                        break;
                    }
                    let found = start + found.start..start + found.end;
                    self.hit(rule.attack_type, rule.severity, rule.id, point, self.sample(text, raw, found, name));
                    if self.findings.found.len() >= HITS_MAX {
                        return ControlFlow::Break(());
                    }
                    break;
                }
                if start + PIECE_BYTES >= text.len() {
                    break;
                }
                start += PIECE_BYTES - OVERLAP_BYTES;
            }
        }
        ControlFlow::Continue(())
    }

    /// The payload with a little around it, masked.
    fn sample(&self, text: &[u8], raw: &[u8], found: Range<usize>, name: &dyn PointName) -> Vec<u8> {
        let masker = &self.engine.masker;
        let start = found.start.saturating_sub(32);
        let end = text.len().min(found.end.min(found.start + 160) + 32);
        if name.is_hidden(masker) {
            return masked(text, std::slice::from_ref(&(start..end)), start..end);
        }
        // Secrets may begin well before: the name of a parameter may stand far from the end of its value.
        let from = start.saturating_sub(4096);
        let to = text.len().min(end + 64);
        let around = &text[from..to];
        let secrets = if text == raw { masker.secrets(around) } else { masker.secrets_of_decoded(around, raw) };
        let mut sample = masked(around, &secrets, start - from..end - from);
        sample.truncate(SAMPLE_BYTES_MAX);
        sample
    }

    fn hit(&mut self, attack_type: AttackType, severity: u8, rule_id: u32, point: &[u8], payload: Vec<u8>) {
        self.suspects += 1;
        self.findings.found.push(FoundHit { attack_type, severity, rule_id, point: point.to_vec(), payload });
    }

    /// Looks at the clock every few KiB, and ends the inspection when the time is over.
    fn clock(&mut self, bytes: usize) -> ControlFlow<()> {
        match self.until_clock.checked_sub(bytes + 1) {
            Some(left) => self.until_clock = left,
            None => {
                self.until_clock = CLOCK_BYTES;
                if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    self.findings.set_overlimit();
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// The name of a point, written only when it is needed.
trait PointName {
    fn write(&self, masker: &Masker, out: &mut Vec<u8>);
    fn is_hidden(&self, masker: &Masker) -> bool;
}

/// The name of a section that is one value.
struct Fixed(&'static str);

impl PointName for Fixed {
    fn write(&self, _: &Masker, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0.as_bytes());
    }

    fn is_hidden(&self, _: &Masker) -> bool {
        false
    }
}

/// The name of a header.
struct HeaderName<'a>(&'a [u8]);

impl PointName for HeaderName<'_> {
    fn write(&self, _: &Masker, out: &mut Vec<u8>) {
        out.extend_from_slice(b"header_");
        out.extend(self.0.iter().map(u8::to_ascii_lowercase).take(SAMPLE_BYTES_MAX - out.len()));
    }

    fn is_hidden(&self, masker: &Masker) -> bool {
        masker.hides_header(self.0)
    }
}

/// The name of a value in a query, a body or a cookie.
struct Name<'a> {
    source: Source,
    part: &'a Part<'a>,
}

impl PointName for Name<'_> {
    fn write(&self, masker: &Masker, out: &mut Vec<u8>) {
        out.extend_from_slice(self.source.prefix);
        if self.part.role == Role::Name {
            // The name is the payload: attacks by many names are one.
            out.extend_from_slice(b"[name]");
            return;
        }
        let name = &self.part.name[..self.part.name.len().min(points::NAME_BYTES_MAX)];
        let mut decoder = Decoder::default();
        out.extend_from_slice(&masker.text(decoder.decode(name, true)));
        if self.part.role == Role::File {
            out.extend_from_slice(b"_filename");
        }
        out.truncate(SAMPLE_BYTES_MAX);
    }

    fn is_hidden(&self, masker: &Masker) -> bool {
        let is_cookie = self.source.place == Place::Cookie && masker.hides_header(b"cookie");
        let is_secret =
            |name: &[u8]| masker.hides_parameter(name) || masker.hides_parameter(Decoder::default().decode(name, true));
        // Of joined keys that were cut nobody knows what the last one says.
        let is_cut = || self.part.name.len() >= points::JOINED_BYTES_MAX;
        is_cookie || self.part.role == Role::Value && (is_cut() || is_secret(self.part.name))
    }
}

/// Headers that say where a request comes from or whom it is for, by whole names. Not all that begin so: `X-Forwarded-Uri` is a path.
const ADDRESS_HEADERS: [&[u8]; 10] = [
    b"x-forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-server",
    b"x-forwarded-by",
    b"x-forwarded-proto",
    b"x-forwarded-port",
    b"forwarded",
    b"forwarded-for",
    b"via",
];

/// Whether a header is one of those, or one of their kind: none of them has room for more than addresses and hosts.
fn says_address(name: &[u8]) -> bool {
    let ends = |end: &[u8]| name.len() >= end.len() && name[name.len() - end.len()..].eq_ignore_ascii_case(end);
    let [first, .., last] = name else { return false };
    // Every header of every request comes here.
    let may_be_one = matches!(first, b'x' | b'X' | b'f' | b'F' | b'v' | b'V');
    may_be_one && ADDRESS_HEADERS.iter().any(|one| name.eq_ignore_ascii_case(one))
        || match last {
            b't' | b'T' => ends(b"host"),
            b'p' | b'P' => ends(b"-ip"),
            b'r' | b'R' => ends(b"-addr"),
            _ => false,
        }
}

/// Whether what follows the scheme of an Authorization header is a token without words.
fn is_opaque(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    let token = value.iter().position(|byte| *byte == b' ').map_or(value, |at| value[at..].trim_ascii_start());
    token.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/=._~-".contains(byte))
}

/// Whether servers may differ about where the parts of a multipart body lie.
fn is_doubtful(content_type: &[u8], body: &[u8]) -> bool {
    let count = |word: &[u8]| content_type.windows(word.len()).filter(|window| window.eq_ignore_ascii_case(word)).count();
    let begins = |boundary| body.strip_prefix(b"--").is_some_and(|body| body.starts_with(boundary));
    count(b"multipart/") > 0 && (count(b"boundary") != 1 || !points::boundary(content_type).is_some_and(begins))
}

/// What a body is.
#[derive(Clone, Copy)]
pub(crate) enum BodyKind<'a> {
    Form,
    Json,
    /// Begins as JSON, but says that it is a form.
    JsonOrForm,
    Multipart(&'a [u8]),
    Xml,
    /// Begins as XML, but does not say that it is.
    Markup,
    Other,
}

impl<'a> BodyKind<'a> {
    /// By its type, and where that says nothing, or is not to be believed, by how it begins.
    pub(crate) fn of(content_type: &'a [u8], body: &[u8]) -> Self {
        let is = |word: &[u8]| content_type.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word));
        if is(b"multipart/")
            && let Some(boundary) = points::boundary(content_type)
            && memchr::memmem::find(body, boundary).is_some()
        {
            return Self::Multipart(boundary);
        }
        match body.trim_ascii_start() {
            [b'{' | b'[', ..] => {
                if is(b"urlencoded") {
                    Self::JsonOrForm
                } else {
                    Self::Json
                }
            }
            [b'"', ..] if is(b"json") => Self::Json,
            [b'<', ..] if is(b"xml") => Self::Xml,
            [b'<', ..] if !is(b"urlencoded") => Self::Markup,
            start => {
                let name = start.iter().take(256).take_while(|byte| !byte.is_ascii_whitespace() && **byte != b'=').count();
                let is_form = is(b"urlencoded") || start.get(name) == Some(&b'=');
                if is_form { Self::Form } else { Self::Other }
            }
        }
    }
}
