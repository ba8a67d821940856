//! The rules: one TOML text, compiled once.
//!
//! ```toml
//! [[rule]]
//! id = 4001
//! type = "ptrav"
//! severity = 200
//! title = "File of the operating system"
//! where = ["uri", "get", "post"]     # default: everywhere but in headers
//! shell = true                       # looks at what a shell would make of the value, too
//! unless_formatting = true           # not in HTML that only formats, as editors of rich text make it
//! literals = ["passwd", "win.ini"]   # one of these must be there, in any case, before the pattern is tried
//! pattern = '(?:^|/)etc/passwd\b'    # case-insensitive, on bytes
//! yes = ["uri /etc/passwd"]          # cases of its own: found in these,
//! no = ["uri /docs/passwd-guide"]    # and not in these
//! ```

use crate::normalise::CLASSES;
use aho_corasick::Anchored;
use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::dfa::DFA;
use postanalytics_protocol::schema::v1::AttackType;
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;
use std::ops::Range;
use thiserror::Error;

/// Most rules.
pub(crate) const RULES_MAX: usize = 128;
/// Most bytes of a compiled pattern.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// Most bytes of the tables that a pattern's search builds as it goes, for each thread.
const SEARCH_BYTES_MAX: usize = 512 << 10;

/// Why rules cannot be used.
#[derive(Debug, Error)]
pub enum RulesError {
    /// The text is no TOML, or has fields that a rule does not have.
    #[error("the rules cannot be read: {0}")]
    Syntax(String),
    /// There are too many.
    #[error("{found} rules are more than the {RULES_MAX} that the engine takes: leave out those of products that you do not run")]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// A rule is wrong.
    #[error("rule {id}: {why}")]
    Rule {
        /// Its number.
        id: u32,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The literals cannot be searched for.
    #[error("the literals of the rules cannot be searched for: {0}")]
    Literals(String),
}

/// The rules as text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleFile {
    pub(crate) rule: Vec<RuleText>,
}

/// One rule as text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleText {
    pub(crate) id: u32,
    #[serde(rename = "type")]
    pub(crate) attack_type: String,
    pub(crate) severity: u8,
    pub(crate) title: String,
    #[serde(rename = "where", default)]
    pub(crate) places: Vec<String>,
    pub(crate) literals: Vec<String>,
    /// Whether it looks at texts too from which the quotes of a shell were taken.
    #[serde(default)]
    pub(crate) shell: bool,
    /// Whether what it finds means nothing in HTML that only formats.
    #[serde(default)]
    pub(crate) unless_formatting: bool,
    pub(crate) pattern: Option<String>,
    pub(crate) detector: Option<String>,
    #[serde(default)]
    #[cfg_attr(not(test), expect(dead_code, reason = "checked by the tests only"))]
    pub(crate) yes: Vec<String>,
    #[serde(default)]
    #[cfg_attr(not(test), expect(dead_code, reason = "checked by the tests only"))]
    pub(crate) no: Vec<String>,
}

/// Kinds of points; the numbers index [`Rules::of_place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Place {
    /// The path.
    Uri,
    /// The value of a parameter of the query.
    Get,
    /// A value in the body.
    Post,
    /// The name of a parameter, in the query or the body.
    Name,
    /// The name of an uploaded file.
    File,
    /// A whole body of XML.
    Xml,
    /// The value of a cookie.
    Cookie,
    /// The User-Agent header.
    Agent,
    /// The Referer header.
    Referer,
    /// Any other header. A rule for these looks at those of addresses as well.
    Header,
    /// A header that says addresses or hosts, such as X-Forwarded-For.
    Address,
}

impl Place {
    pub(crate) const ALL: [(&'static str, Self); 11] = [
        ("uri", Self::Uri),
        ("get", Self::Get),
        ("post", Self::Post),
        ("name", Self::Name),
        ("file", Self::File),
        ("xml", Self::Xml),
        ("cookie", Self::Cookie),
        ("agent", Self::Agent),
        ("referer", Self::Referer),
        ("header", Self::Header),
        ("address", Self::Address),
    ];
    /// Where a rule looks that does not say where: a referer is often a foreign address with a query that is none of ours.
    const USUAL: [Self; 6] = [Self::Uri, Self::Get, Self::Post, Self::Name, Self::File, Self::Cookie];
}

/// A set of rules, by their position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RuleSet([u64; RULES_MAX / 64]);

impl RuleSet {
    pub(crate) fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; RULES_MAX / 64]
    }

    pub(crate) fn and(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    pub(crate) fn or(mut self, other: &Self) -> Self {
        self.add(other);
        self
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(word, mut bits)| {
            std::iter::from_fn(move || {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
                (bit < 64).then_some(word * 64 + bit)
            })
        })
    }
}

/// How a rule decides.
#[derive(Debug)]
enum Test {
    Pattern(Regex),
    Sqli,
    Xss,
}

/// A rule, compiled.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) id: u32,
    pub(crate) attack_type: AttackType,
    pub(crate) severity: u8,
    pub(crate) unless_formatting: bool,
    test: Test,
}

impl Rule {
    /// Where the payload lies in a text, if there is one.
    pub(crate) fn find(&self, text: &[u8]) -> Option<Range<usize>> {
        match &self.test {
            Test::Pattern(pattern) => pattern.find(text).map(|found| found.range()),
            Test::Sqli => libinjectionrs::detect_sqli(text).is_injection().then_some(0..text.len()),
            Test::Xss => libinjectionrs::detect_xss(text).is_injection().then_some(0..text.len()),
        }
    }
}

/// What one pass over a text has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) rules: RuleSet,
    pub(crate) classes: u8,
}

/// All rules, compiled.
#[derive(Debug)]
pub(crate) struct Rules {
    literals: DFA,
    start: StateID,
    /// The rules that a literal belongs to.
    of_literal: Vec<RuleSet>,
    /// The rules that look at a kind of point.
    of_place: [RuleSet; Place::ALL.len()],
    /// The rules that look at texts from which a shell's quotes were taken.
    of_shell: RuleSet,
    rules: Vec<Rule>,
}

impl Rules {
    pub(crate) fn parse(text: &str) -> Result<Self, RulesError> {
        let file: RuleFile = toml::from_str(text).map_err(|error| RulesError::Syntax(error.to_string()))?;
        Self::compile(&file.rule)
    }

    fn compile(texts: &[RuleText]) -> Result<Self, RulesError> {
        if texts.len() > RULES_MAX {
            return Err(RulesError::TooMany { found: texts.len() });
        }
        let mut names: Vec<&str> = Vec::new();
        let mut of_literal: Vec<RuleSet> = Vec::new();
        let mut of_place = [RuleSet::default(); Place::ALL.len()];
        let mut of_shell = RuleSet::default();
        let mut rules = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let wrong = |why: String| RulesError::Rule { id: text.id, why };
            if texts[..index].iter().any(|other| other.id == text.id) {
                return Err(wrong("its number is taken: give every rule one of its own".to_owned()));
            }
            for literal in text.literals.iter().map(|literal| literal_of(literal)) {
                let literal = literal.map_err(wrong)?;
                let at = names.iter().position(|known| known.eq_ignore_ascii_case(literal));
                let at = at.unwrap_or_else(|| {
                    names.push(literal);
                    of_literal.push(RuleSet::default());
                    names.len() - 1
                });
                of_literal[at].insert(index);
            }
            for place in text.places().map_err(wrong)? {
                of_place[place as usize].insert(index);
                if place == Place::Header {
                    of_place[Place::Address as usize].insert(index);
                }
            }
            let rule = text.compile().map_err(wrong)?;
            if text.shell {
                of_shell.insert(index);
            }
            rules.push(rule);
        }
        // Without its own prefilter: so many literals begin with so many bytes that it would only be in the way.
        let literals = DFA::builder().ascii_case_insensitive(true).prefilter(false).build(&names);
        let literals = literals.map_err(|error| RulesError::Literals(error.to_string()))?;
        let start = literals.start_state(Anchored::No).map_err(|error| RulesError::Literals(error.to_string()))?;
        Ok(Self { literals, start, of_literal, of_place, of_shell, rules })
    }

    /// One pass over a text: those of `asked` whose literals lie in it, and the classes of its bytes.
    pub(crate) fn scan(&self, text: &[u8], asked: &RuleSet) -> Seen {
        let mut seen = Seen::default();
        let mut state = self.start;
        for &byte in text {
            // Each state waits for the one before; the classes come for nothing beside that.
            seen.classes |= CLASSES[byte as usize];
            state = self.literals.next_state(Anchored::No, state, byte);
            if self.literals.is_special(state) && self.literals.is_match(state) {
                for index in 0..self.literals.match_len(state) {
                    seen.rules.add(&self.of_literal[self.literals.match_pattern(state, index).as_usize()]);
                }
            }
        }
        seen.rules = seen.rules.and(asked);
        seen
    }

    /// The rules that look at a kind of point.
    pub(crate) const fn at(&self, place: Place) -> &RuleSet {
        &self.of_place[place as usize]
    }

    /// The rules that look at the values of a body, their names, or the names of files.
    pub(crate) fn of_bodies(&self) -> RuleSet {
        self.at(Place::Post).or(self.at(Place::Name)).or(self.at(Place::File))
    }

    /// The rules that look at texts from which the quotes of a shell were taken.
    pub(crate) const fn of_shell(&self) -> &RuleSet {
        &self.of_shell
    }

    pub(crate) fn get(&self, index: usize) -> &Rule {
        &self.rules[index]
    }
}

/// Folding makes one slash of many, so a section that was not folded may lack a literal with a slash inside.
fn literal_of(literal: &str) -> Result<&str, String> {
    let is_right = !literal.is_empty() && !literal.trim_matches('/').contains('/');
    is_right.then_some(literal).ok_or_else(|| {
        format!("its literal `{literal}` cannot be looked for: slashes may stand at the beginning and the end only")
    })
}

impl RuleText {
    fn places(&self) -> Result<Vec<Place>, String> {
        if self.places.is_empty() {
            return Ok(Place::USUAL.to_vec());
        }
        let place = |name: &String| {
            let found = Place::ALL.iter().find(|(known, _)| known == name).map(|(_, place)| *place);
            let names = Place::ALL.map(|(name, _)| name).join(", ");
            found.ok_or_else(|| format!("`where` knows no `{name}`: give some of {names}"))
        };
        self.places.iter().map(place).collect()
    }

    fn compile(&self) -> Result<Rule, String> {
        if self.literals.is_empty() {
            return Err("it has no literals: name words of which one must be there".to_owned());
        }
        let attack_type = AttackType::from_name(&self.attack_type);
        let attack_type = attack_type.ok_or_else(|| format!("there is no attack type `{}`", self.attack_type))?;
        let test = match (&self.pattern, self.detector.as_deref()) {
            (Some(pattern), None) => Test::Pattern(self.regex(pattern)?),
            (None, Some("sqli")) => Test::Sqli,
            (None, Some("xss")) => Test::Xss,
            _ => return Err("give either a `pattern`, or as `detector` one of sqli, xss".to_owned()),
        };
        Ok(Rule { id: self.id, attack_type, severity: self.severity, unless_formatting: self.unless_formatting, test })
    }

    fn regex(&self, pattern: &str) -> Result<Regex, String> {
        RegexBuilder::new(pattern)
            .unicode(false)
            .case_insensitive(true)
            .dot_matches_new_line(true)
            .ignore_whitespace(true)
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(SEARCH_BYTES_MAX)
            .build()
            .map_err(|error| format!("its pattern ({}) is wrong: {error}", self.title))
    }
}
