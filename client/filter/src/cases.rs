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
        "xml" => {
            (name, header) = ("content-type", b"text/xml".to_vec());
            body = value.as_bytes().to_vec();
        }
        "file" => {
            (name, header) = ("content-type", b"multipart/form-data; boundary=xx".to_vec());
            body = format!("--xx\r\nContent-Disposition: form-data; name=\"f\"; filename=\"{value}\"\r\n\r\nx\r\n--xx--")
                .into_bytes();
        }
        "agent" => (name, header) = ("user-agent", value.as_bytes().to_vec()),
        "referer" => (name, header) = ("referer", value.as_bytes().to_vec()),
        "cookie" => (name, header) = ("cookie", [b"p=".to_vec(), encoded(value)].concat()),
        "header" => (name, header) = ("x-any", value.as_bytes().to_vec()),
        "address" => (name, header) = ("x-forwarded-for", value.as_bytes().to_vec()),
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

/// Type and point of each hit.
fn points(request: &RawRequest<'_>) -> Vec<String> {
    let findings = Engine::builtin().inspect(request, Duration::from_secs(60), &mut Scratch::default());
    findings.found.iter().map(|hit| format!("{} {}", hit.attack_type.name(), String::from_utf8_lossy(&hit.point))).collect()
}

#[test]
fn points_have_names() {
    let body = |content_type: &'static str, body: &'static str| {
        points(&RawRequest {
            uri: b"/",
            headers: &[(b"Content-Type", content_type.as_bytes())],
            body: body.as_bytes(),
            ..RawRequest::default()
        })
    };
    assert_eq!(points(&RawRequest { uri: b"/a?id=1'+or+'1'='1&x=2", ..RawRequest::default() }), ["sqli get_id"]);
    assert_eq!(points(&RawRequest { uri: b"/etc/passwd", ..RawRequest::default() }), ["ptrav uri"]);
    assert_eq!(points(&RawRequest { uri: b"/?<script>=1", ..RawRequest::default() }), ["xss get_[name]"]);
    assert_eq!(points(&RawRequest { headers: &[(b"Cookie", b"a=1; b=<script>")], ..RawRequest::default() }), ["xss cookie_b"]);
    assert_eq!(
        points(&RawRequest { headers: &[(b"X-Api-Version", b"${jndi:ldap://a}")], ..RawRequest::default() }),
        ["rce header_x-api-version"]
    );
    assert_eq!(body("application/json", r#"{"user":{"name":"<script>"}}"#), ["xss post_json_user_name"]);
    assert_eq!(body("", r#"{"a":[{"b":"<script>"}]}"#), ["xss post_json_a_b"]);
    assert_eq!(body("application/x-www-form-urlencoded", "a%5Bb%5D=%3Cscript%3E"), ["xss post_a[b]"]);
    assert_eq!(
        body("text/xml", "<a><b c='&lt;script&gt;'>../../etc/passwd</b></a>"),
        ["ptrav post_xml", "xss post_xml_c", "ptrav post_xml_b"]
    );
    assert_eq!(body("text/plain", "<script>f()</script>"), ["xss post"]);
    assert_eq!(
        body(
            "multipart/form-data; boundary=xx",
            "--xx\r\nContent-Disposition: form-data; name=\"f\"; filename=\"../a\"\r\n\r\n<script>\r\n--xx--"
        ),
        ["ptrav post_multipart_f_filename", "xss post_multipart_f"]
    );
}

#[test]
fn samples_are_masked() {
    let secret = "hunter2-kQ9x";
    let json =
        format!(r#"{{"password":"{secret}' or '1'='1","note":"4111 1111 1111 1111 <script>","raw":"token={secret}&<script>"}}"#);
    let cookie = format!("sid={secret}' or 1=1 --");
    let uri = format!("/a?password={secret}%27+or+%271%27=%271&q=%3Cscript%3E4111111111111111");
    let request = RawRequest {
        uri: uri.as_bytes(),
        headers: &[(b"cookie", cookie.as_bytes())],
        body: json.as_bytes(),
        ..RawRequest::default()
    };
    let found = Engine::builtin().inspect(&request, Duration::from_secs(60), &mut Scratch::default()).found;
    assert!(found.len() >= 5, "{found:?}");
    for hit in found {
        let payload = String::from_utf8_lossy(&hit.payload).into_owned();
        assert!(!["hunter", "kQ9x", "4111"].iter().any(|secret| payload.contains(secret)), "{hit:?}: {payload}");
    }
}

#[test]
fn headers_of_addresses_are_looked_at_as_parameters_are() {
    for name in
        ["X-Forwarded-For", "x-forwarded-host", "Forwarded", "X-Real-IP", "True-Client-IP", "X-Remote-Addr", "Host", "Via"]
    {
        for (value, expected) in [("1' or '1'='1", "sqli"), ("192.0.2.1'--", "sqli"), ("\"><svg/onload=f()>", "xss")] {
            let headers = [(name.as_bytes(), value.as_bytes())];
            let found = points(&RawRequest { headers: &headers, ..RawRequest::default() });
            assert_eq!(found, [format!("{expected} header_{}", name.to_ascii_lowercase())], "{name}: {value}");
        }
    }
    // It is a path, which may hold what no address does.
    let headers = [(&b"X-Forwarded-Uri"[..], &b"192.0.2.1'--"[..])];
    assert_eq!(points(&RawRequest { headers: &headers, ..RawRequest::default() }), [""; 0]);
}

#[test]
fn ordinary_headers_are_harmless() {
    let engine = Engine::builtin();
    for (name, value) in [
        (
            "Accept",
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7",
        ),
        ("Accept-Language", "de-CH,de;q=0.9,en;q=0.8,*;q=0.5"),
        ("Sec-CH-UA", "\"Chromium\";v=\"130\", \"Not?A_Brand\";v=\"99\", \"Not)A;Brand\";v=\"8\""),
        ("Sec-CH-UA-Platform", "\"Windows\""),
        ("If-None-Match", "W/\"5e1-18f2a--gzip\", \"a1;b2\", *"),
        ("If-Modified-Since", "Sat, 17 May 2015 10:05:03 GMT"),
        ("Range", "bytes=0-499, -500"),
        ("Content-Disposition", "attachment; filename=\"a (1).txt\"; filename*=UTF-8''a%20(1).txt"),
        ("Content-Security-Policy-Report-Only", "default-src 'self'; script-src 'nonce-x' 'strict-dynamic' https:"),
        ("Link", "<https://a.example/x?page=2>; rel=\"next\", </style.css>; rel=preload; as=style"),
        ("X-Forwarded-For", "203.0.113.7, 10.0.0.1, [2001:db8::1]:4711, unknown"),
        ("Forwarded", "for=192.0.2.43;proto=https;host=\"a.example:8080\";by=\"[2001:db8:cafe::17]:47011\", for=_hidden"),
        ("X-Forwarded-Host", "shop.example:8080"),
        ("Via", "1.1 vegur, 1.0 fred (Squid/3.1), HTTP/2 p.example.net (Apache/2.4)"),
        ("Host", "xn--caf-dma.example:8080"),
        ("Origin", "https://shop.example"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("X-Amzn-Trace-Id", "Root=1-67891233-abcdef012345678912345678;Parent=463ac35c9f6413ad;Sampled=1"),
        ("DPoP", "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2In0.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIn0.c2lnbmF0dXJl"),
        ("Baggage", "userId=Am%C3%A9lie,serverNode=DF:28,isProduction=false"),
        ("Priority", "u=1, i"),
        ("Prefer", "return=minimal; wait=10, respond-async"),
        ("X-Requested-With", "XMLHttpRequest"),
        ("From", "Bob & Sons <bob@shop.example>"),
        ("Stripe-Signature", "t=1492774577,v1=5257a869e7ecebeda32affa62cdca3fa51cad7e77a0e56ff536d0ce8e108d8bd"),
        ("Cookie", "a=1; prefs={\"size\":\"L\",\"and\":\"more\"}; _ga=GA1.2.3; consent=analytics:yes|ads:no; t=O'Neil"),
    ] {
        let headers = [(name.as_bytes(), value.as_bytes())];
        let request = RawRequest { uri: b"/", headers: &headers, ..RawRequest::default() };
        let found = engine.inspect(&request, Duration::from_secs(60), &mut Scratch::default()).found;
        assert!(found.is_empty(), "{name}: {value}: {found:?}");
    }
}

#[test]
fn a_value_in_base64_is_unpacked() {
    // `<script>f()</script>`, `1' or '1'='1`, `../../etc/passwd`.
    for (value, expected) in [
        ("PHNjcmlwdD5mKCk8L3NjcmlwdD4=", "xss get_p"),
        ("PHNjcmlwdD5mKCk8L3NjcmlwdD4%3D", "xss get_p"),
        ("MScgb3IgJzEnPScx", "sqli get_p"),
        ("Li4vLi4vZXRjL3Bhc3N3ZA", "ptrav get_p"),
    ] {
        let uri = format!("/?p={value}&q=1");
        assert_eq!(points(&RawRequest { uri: uri.as_bytes(), ..RawRequest::default() }), [expected], "{value}");
    }
    // Nothing else in the body needs to be suspicious.
    let part = |name: &str, value: &str| format!("--r\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    for (value, attack) in
        [("PHNjcmlwdD5mKCk8L3NjcmlwdD4=", "xss"), ("MScgb3IgJzEnPScx", "sqli"), ("Li4vLi4vZXRjL3Bhc3N3ZA", "ptrav")]
    {
        let multipart = [part("a", "some words"), part("p", value), "--r--\r\n".to_owned()].concat();
        for (kind, body, expected) in [
            ("application/json", format!(r#"{{"a":["some words",1],"b":{{"p":"{value}"}},"c":null}}"#), "post_json_b_p"),
            ("application/json", format!(r#"["{}","x"]"#, value.replace('P', "\\u0050").replace('c', "%63")), "post_json_"),
            ("application/json", format!("\"{value}\""), "post_json_"),
            ("multipart/form-data; boundary=r", multipart, "post_multipart_p"),
            ("application/x-www-form-urlencoded", format!("a=some+words&p={value}"), "post_p"),
            ("text/xml", format!("<a><b>some words</b><p>{value}</p></a>"), "post_xml_p"),
        ] {
            let headers = [(&b"Content-Type"[..], kind.as_bytes())];
            let found = points(&RawRequest { headers: &headers, body: body.as_bytes(), ..RawRequest::default() });
            assert_eq!(found, [format!("{attack} {expected}")], "{body}");
        }
    }
    // Texts in base64 that are none, however many.
    let ids = (0..5000)
        .map(|id| format!("\"{}\"", if id % 2 == 0 { "VXNlcjoxMjM0NTY3" } else { "T3JkZXI6MTIzNDU2" }))
        .collect::<Vec<_>>();
    let body = format!("[{}]", ids.join(","));
    let request = RawRequest { body: body.as_bytes(), ..RawRequest::default() };
    let findings = Engine::builtin().inspect(&request, Duration::from_secs(60), &mut Scratch::default());
    assert!(findings.found.is_empty() && !findings.incomplete, "{findings:?}");
    let secret = "/?password=MScgb3IgJzEnPScx";
    let request = RawRequest { uri: secret.as_bytes(), ..RawRequest::default() };
    let found = Engine::builtin().inspect(&request, Duration::from_secs(60), &mut Scratch::default()).found;
    assert_eq!(found.iter().map(|hit| &hit.payload[..]).collect::<Vec<_>>(), [b"***"]);
}

#[test]
fn every_type_of_values_is_looked_for_in_every_kind_of_body() {
    for (value, attack) in [
        ("*)(uid=*", "ldapi"),
        ("\\2a\\28", "ldapi"),
        ("cn:caseExactMatch:=x", "ldapi"),
        ("//a.example", "redir"),
        ("/\\a.example", "redir"),
        ("\\\\a.example/x", "redir"),
        ("https:a.example", "redir"),
        ("/\t/a.example", "redir"),
        ("4\torder\tby 12--", "sqli"),
        ("1\tor\n2 in (2)", "sqli"),
        ("x) or (\"y\"=\"y", "sqli"),
    ] {
        let encoded: String = value.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let escaped: String = value.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
        let multipart = format!("--r\r\nContent-Disposition: form-data; name=\"p\"\r\n\r\n{value}\r\n--r--\r\n");
        for (kind, body, point) in [
            ("application/json", format!("{{\"a\":1,\"p\":{value:?}}}"), "post_json_p"),
            ("application/json", format!("{{\"p\":[\"a\",\"{escaped}\"]}}"), "post_json_p"),
            ("multipart/form-data; boundary=r", multipart, "post_multipart_p"),
            ("application/x-www-form-urlencoded", format!("a=1&p={encoded}"), "post_p"),
        ] {
            let headers = [(&b"Content-Type"[..], kind.as_bytes())];
            let found = points(&RawRequest { headers: &headers, body: body.as_bytes(), ..RawRequest::default() });
            assert!(found.contains(&format!("{attack} {point}")), "{body}: {found:?}");
        }
    }
}

#[test]
fn bounds_hold_and_are_told() {
    let engine = Engine::builtin();
    let inspect = |body: &str, limit| {
        engine.inspect(&RawRequest { body: body.as_bytes(), ..RawRequest::default() }, limit, &mut Scratch::default())
    };
    let minute = Duration::from_secs(60);
    // More hits than are kept, more points than are looked at, deeper than is followed, longer than is read.
    let many: String = (0..100).map(|number| format!("p{number}=<script>&")).collect();
    assert_eq!(inspect(&many, minute).found.len(), 16);
    assert!(inspect(&"a=1'&".repeat(5000), minute).incomplete);
    assert!(inspect(&format!("{}\"<script>\"", "[".repeat(1000)), minute).incomplete);
    assert!(inspect(&"a".repeat(1 << 20), minute).incomplete);
    assert!(!inspect("a=1", minute).incomplete);
    assert!(
        engine
            .inspect(&RawRequest { body: b"a=1", body_truncated: true, ..RawRequest::default() }, minute, &mut Scratch::default())
            .incomplete
    );
    let late = inspect(&"a=1'&".repeat(4000), Duration::ZERO);
    assert!(late.overlimit && late.found.last().is_some_and(|hit| hit.attack_type.name() == "overlimit_res"), "{late:?}");
    assert!(!inspect("a=1", minute).overlimit);
    // Small enough to be looked at in whole before the clock is.
    let late = inspect(&many, Duration::ZERO);
    assert!(late.overlimit && late.found.len() == 16 && late.found[15].attack_type.name() == "overlimit_res", "{late:?}");
}

#[test]
fn points_too_many_are_told_and_hide_no_other_section() {
    let engine = Engine::builtin();
    let script = b"q=<script>f()</script>";
    let form = [&b"a&".repeat(4100)[..], script].concat();
    let array = format!("[{}\"<script>\"]", "\"a\",".repeat(4200));
    let (query, cookies) = (format!("/?{}", "a&".repeat(4100)), b"a;".repeat(4100));
    let kind = &b"application/x-www-form-urlencoded"[..];
    for (uri, cookie, kind, body, expected) in [
        (&b"/"[..], &b""[..], kind, &form[..], &["data_bomb"][..]),
        (b"/", b"", b"application/json", array.as_bytes(), &["data_bomb"]),
        (query.as_bytes(), &cookies, kind, script, &["data_bomb", "xss"]),
    ] {
        let request = RawRequest { uri, headers: &[(b"cookie", cookie), (b"content-type", kind)], body, ..RawRequest::default() };
        let findings = engine.inspect(&request, Duration::from_secs(60), &mut Scratch::default());
        let types: Vec<&str> = findings.found.iter().map(|hit| hit.attack_type.name()).collect();
        assert_eq!(types, expected);
        assert!(findings.incomplete && !findings.overlimit && findings.found[0].point == b"request");
    }
}

#[test]
fn a_body_that_can_be_read_in_two_ways_is() {
    let form = "application/x-www-form-urlencoded";
    let multipart = |boundary: &str| format!("multipart/form-data; boundary={boundary}");
    let part = |value: &str, boundary: &str| {
        format!("--{boundary}\r\nContent-Disposition: form-data; name=\"q\"\r\n\r\n{value}\r\n--{boundary}--\r\n")
    };
    for (types, body) in [
        (vec![multipart("r")], part("<script>f()</script>", "r")),
        (vec![multipart("etc")], part("/etc/passwd", "etc")),
        (vec![multipart("n")], part("1 union select 1,2 from users", "n")),
        (vec![multipart("i; boundary=zz")], part("x;id", "zz")),
        (vec![multipart("zz; x=\"boundary=s\"")], part("<script>", "zz")),
        (vec![form.to_owned(), multipart("o")], "q=1'+or+'a'='a".to_owned()),
        (vec![multipart("o")], "q=1'+or+'a'='a".to_owned()),
        (vec![form.to_owned()], "<?xml=1&q=1'+or+'a'='a".to_owned()),
        (vec![form.to_owned()], "<?xml=1&q=x;id".to_owned()),
        (vec![form.to_owned()], "{\"a\":1}&q=1'+or+'a'='a".to_owned()),
        (vec![], "<?xml version=\"1.0\"?><a b = \"1' or '1'='1\"/>".to_owned()),
        (vec![], "<?xml version=\"1.0\"?><a>1 uni<!-- -->on sel<!-- -->ect 1,2</a>".to_owned()),
    ] {
        let headers: Vec<(&[u8], &[u8])> = types.iter().map(|value| (&b"Content-Type"[..], value.as_bytes())).collect();
        let found = points(&RawRequest { headers: &headers, body: body.as_bytes(), ..RawRequest::default() });
        assert!(!found.is_empty(), "{types:?} {body}");
    }
}

#[test]
fn authorization_is_looked_at_unless_it_is_a_token() {
    let found = |value: &'static str| {
        let headers = [(&b"Authorization"[..], value.as_bytes())];
        let request = RawRequest { headers: &headers, ..RawRequest::default() };
        Engine::builtin().inspect(&request, Duration::from_secs(60), &mut Scratch::default()).found
    };
    for value in ["${jndi:ldap://x/a}", "Bearer ${jndi:ldap://x/a}"] {
        assert_eq!(found(value).first().map(|hit| &hit.payload[..]), Some(&b"***"[..]), "{value}");
    }
    assert_eq!(found("Bearer aW5m.b~_-/+=="), []);
}

#[test]
fn a_payload_is_found_across_the_pieces_that_patterns_are_tried_on() {
    for filler in [32 << 10, (32 << 10) - 12, (31 << 10) - 5, 100_000] {
        let body = format!("p={}<script>f()</script>", "a".repeat(filler));
        assert_eq!(points(&RawRequest { body: body.as_bytes(), ..RawRequest::default() }), ["xss post_p"], "{filler}");
    }
}

#[test]
fn wrong_rules_are_refused_with_their_number() {
    let rule = "[[rule]]\nid = 7\ntype = \"sqli\"\nseverity = 1\ntitle = \"t\"\nliterals = [\"ab\"]\npattern = \"a\"\n";
    assert!(Engine::from_toml(rule).is_ok());
    for (from, to, expected) in [
        ("sqli", "sqly", "rule 7: there is no attack type `sqly`"),
        ("[\"ab\"]", "[]", "rule 7: it has no literals"),
        ("\"ab\"", "\"a/b\"", "rule 7: its literal `a/b`"),
        ("\"a\"\n", "\"(\"\n", "rule 7: its pattern (t) is wrong"),
        ("pattern", "detector", "rule 7: give either"),
        ("title", "name", "the rules cannot be read"),
        ("pattern", "where = [\"here\"]\npattern", "rule 7: `where` knows no `here`"),
    ] {
        let error = Engine::from_toml(&rule.replace(from, to)).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let twice = Engine::from_toml(&format!("{rule}{rule}")).expect_err("twice the same number").to_string();
    assert!(twice.contains("rule 7: its number is taken"), "{twice}");
    let many: String = (0..200).map(|number| rule.replace("id = 7", &format!("id = {number}"))).collect();
    assert!(Engine::from_toml(&many).expect_err("too many").to_string().contains("200 rules are more than the 128"));
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

#[test]
fn a_name_that_is_encoded_hides_its_value_in_samples_as_well() {
    let uri = b"/?p%61ssword=hunter2'+union+select+1,2--";
    let request = RawRequest { method: b"GET", uri, ..RawRequest::default() };
    let findings = Engine::builtin().inspect(&request, Duration::from_secs(60), &mut Scratch::default());
    assert!(!findings.hits().is_empty());
    for hit in findings.hits() {
        assert_eq!((hit.point, hit.payload), (&b"get_password"[..], &b"***"[..]));
    }
}

#[test]
fn what_was_encoded_within_a_secret_ends_it_in_no_sample() {
    let deep = format!(r#"{{"{}":{{"password":"hunter2' or '1'='1"}}}}"#, "k".repeat(300));
    let deeper = format!(r#"{{"{}":{{"password":"hunter2' or '1'='1"}}}}"#, "k".repeat(5000));
    for (name, value, body) in [
        ("referer", "http://a/?password=hun%26ter2%27+or+%271%27=%271", ""),
        ("referer", "http://a/?password=hun%2526ter2%27+or+%271%27=%271", ""),
        ("referer", "http://a/?password=hun%22ter2%27+or+%271%27=%271", ""),
        ("referer", "http://a/?password=hun%0ater2%27+or+%271%27=%271", ""),
        ("referer", "http://a/?q=%7b%22password%22:%22hun%5c%22ter2'+or+'1'='1", ""),
        ("referer", "http://bob:hun%2fter2@a/?a=%27+or+%271%27=%271", ""),
        ("x-any", "password=hun%26ter2%27 or %271%27=%271", ""),
        ("content-type", "text/plain", "a\nuserpass=hun%26ter2' or '1'='1\nb"),
        ("content-type", "text/xml", "<a><password>hun&lt;ter2' or '1'='1 <script>alert(1)</script></password></a>"),
        ("content-type", "application/json", &deep),
        ("content-type", "application/json", &deeper),
    ] {
        let headers = [(name.as_bytes(), value.as_bytes())];
        let request = RawRequest { uri: b"/", headers: &headers, body: body.as_bytes(), ..RawRequest::default() };
        let found = Engine::builtin().inspect(&request, Duration::from_secs(60), &mut Scratch::default()).found;
        assert!(!found.is_empty(), "{value}{body}");
        for hit in found {
            let payload = String::from_utf8_lossy(&hit.payload).into_owned();
            assert!(!payload.contains("hun") && !payload.contains("ter2"), "{value}{body}: {payload}");
        }
    }
    // Lines that a body has end a value.
    let body = "some text\npassword=hun%26ter2\nb=%3Cscript%3Ealert(1)%3C/script%3E";
    let request =
        RawRequest { uri: b"/", headers: &[(b"content-type", b"text/plain")], body: body.as_bytes(), ..RawRequest::default() };
    let found = Engine::builtin().inspect(&request, Duration::from_secs(60), &mut Scratch::default()).found;
    let payloads: Vec<_> = found.iter().map(|hit| String::from_utf8_lossy(&hit.payload)).collect();
    assert!(payloads.iter().any(|payload| payload.contains("<script>")), "{payloads:?}");
}
