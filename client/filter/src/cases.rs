//! Every rule against the cases of its own.

use crate::rules::{RuleFile, RuleText};
use crate::{Engine, Findings, RawRequest, Scratch};
use std::time::Duration;

/// What a browser would send for a value; percent signs stay, so that cases can be written encoded.
fn encoded(value: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in value.bytes() {
        match byte {
            b' ' => out.push(b'+'),
            b'&' | b'#' | b'+' | b';' => out.extend(format!("%{byte:02X}").bytes()),
            _ => out.push(byte),
        }
    }
    out
}

/// Inspects a case: `place value`.
fn inspect(engine: &Engine, case: &str) -> Findings {
    let (place, value) = case.split_once(' ').expect("a place and a value");
    let mut uri = b"/index".to_vec();
    let (mut name, mut header, mut body) = ("host", b"shop.example".to_vec(), Vec::new());
    match place {
        "uri" => uri = value.as_bytes().to_vec(),
        "get" => uri = [b"/index?p=".to_vec(), encoded(value)].concat(),
        "name" => uri = [b"/index?".to_vec(), encoded(value), b"=1".to_vec()].concat(),
        "post" => body = [b"p=".to_vec(), encoded(value)].concat(),
        "json" => body = format!("{{\"p\":{value:?}}}").replace(r"\\u", r"\u").into_bytes(),
        "xml" => body = value.as_bytes().to_vec(),
        "file" => {
            (name, header) = ("content-type", b"multipart/form-data; boundary=xx".to_vec());
            body = format!("--xx\r\nContent-Disposition: form-data; name=\"f\"; filename=\"{value}\"\r\n\r\nx\r\n--xx--")
                .into_bytes();
        }
        "agent" => (name, header) = ("user-agent", value.as_bytes().to_vec()),
        "referer" => (name, header) = ("referer", value.as_bytes().to_vec()),
        "cookie" => (name, header) = ("cookie", [b"p=".to_vec(), encoded(value)].concat()),
        "header" => (name, header) = ("x-any", value.as_bytes().to_vec()),
        _ => panic!("no such place: {case}"),
    }
    let request =
        RawRequest { method: b"GET", uri: &uri, headers: &[(name.as_bytes(), &header)], body: &body, ..RawRequest::default() };
    engine.inspect(&request, Duration::from_secs(60), &mut Scratch::default())
}

fn rules() -> Vec<RuleText> {
    toml::from_str::<RuleFile>(crate::engine::BUILTIN_RULES).expect("the rules").rule
}

/// An engine with one of the rules only, so that no other rule finds the case for it.
fn alone(rule: &RuleText) -> Engine {
    let start = crate::engine::BUILTIN_RULES.find(&format!("[[rule]]\nid = {}\n", rule.id)).expect("the rule");
    let rest = &crate::engine::BUILTIN_RULES[start..];
    let end = rest[1..].find("[[rule]]").map_or(rest.len(), |end| end + 1);
    Engine::from_toml(&rest[..end]).expect("the rule")
}

#[test]
fn every_rule_finds_its_cases_and_nothing_in_the_others() {
    let mut wrong = Vec::new();
    for rule in rules() {
        let engine = alone(&rule);
        let hits = |case: &str| inspect(&engine, case).found;
        wrong.extend(rule.yes.iter().filter(|case| hits(case).is_empty()).map(|case| format!("{} misses: {case}", rule.id)));
        wrong.extend(rule.no.iter().filter(|case| !hits(case).is_empty()).map(|case| format!("{} finds: {case}", rule.id)));
    }
    assert!(wrong.is_empty(), "{} cases\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_rule_has_cases_of_both_kinds_that_are_not_its_literals() {
    for rule in rules() {
        assert!(rule.yes.len() >= 2 && rule.no.len() >= 2, "{}: too few cases", rule.id);
        for case in rule.yes.iter().chain(&rule.no) {
            let value = case.split_once(' ').map_or("", |(_, value)| value);
            assert!(!rule.literals.iter().any(|literal| literal.eq_ignore_ascii_case(value)), "{}: {case} is a literal", rule.id);
        }
    }
}

#[test]
fn every_type_has_rules() {
    let rules = rules();
    for name in ["sqli", "xss", "rce", "ptrav", "crlf", "nosqli", "ssrf", "ssi", "ldapi", "xxe", "scanner", "redir", "infoleak"] {
        assert!(rules.iter().any(|rule| rule.attack_type == name), "{name}");
    }
}

#[test]
fn nothing_harmless_of_any_rule_is_an_attack_of_another() {
    let engine = Engine::builtin();
    let mut wrong = Vec::new();
    for rule in rules() {
        for case in &rule.no {
            if let Some(hit) = inspect(&engine, case).found.first() {
                wrong.push(format!("{} finds {case} of {}", hit.rule_id, rule.id));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cases\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_value_that_was_seen_twice_in_one_request_is_not_taken_for_harmless() {
    let engine = Engine::builtin();
    let mut scratch = Scratch::default();
    let payload = (&b"cookie"[..], &b"p='+or+1=1--+-;q=<script>alert(1)</script>"[..]);
    for headers in [&[payload, payload][..], &[payload][..], &[payload][..]] {
        let request = RawRequest { method: b"GET", uri: b"/", headers, ..RawRequest::default() };
        assert!(!engine.inspect(&request, Duration::from_secs(60), &mut scratch).hits().is_empty());
    }
}
