//! How long the engine looks at a request: quantiles of single requests, each different from the others.
//!
//! `cargo bench -p postanalytics-filter`. The clock is read before and after each request, which is part of every figure (some
//! 25 ns each).
#![allow(clippy::print_stdout, reason = "it is a bench")]

use postanalytics_filter::{Engine, RawRequest, Scratch};
use std::time::{Duration, Instant};

/// One request, owned.
struct Sample {
    uri: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

/// Makes the next request of a kind.
type Make = fn(&mut u64) -> Sample;

const AGENTS: [&str; 6] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "okhttp/4.12.0",
];

/// A repeatable sequence of numbers that look random (SplitMix64).
fn number(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Headers as a browser sends them; the cookie differs from visitor to visitor.
fn headers(seed: &mut u64, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let agent = AGENTS[number(seed) as usize % AGENTS.len()];
    let mut headers: Vec<(&'static str, String)> = [
        ("Host", "shop.example.com"),
        ("User-Agent", agent),
        ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
        ("Accept-Language", "en-US,en;q=0.5"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Upgrade-Insecure-Requests", "1"),
    ]
    .into_iter()
    .chain(more.iter().copied())
    .map(|(name, value)| (name, value.to_owned()))
    .collect();
    headers.push(("Referer", format!("https://shop.example.com/catalogue/{}?page={}", number(seed) % 500, number(seed) % 9)));
    headers.push((
        "Cookie",
        format!(
            "sid={:016x}{:016x}; consent=yes; _ga=GA1.2.{}.{}",
            number(seed),
            number(seed),
            number(seed) % 1_000_000_000,
            number(seed) % 2_000_000_000
        ),
    ));
    headers
}

/// Fills the cookie up to 1 KiB in all.
fn filled(mut sample: Sample, seed: &mut u64) -> Sample {
    let bytes = |sample: &Sample| {
        sample.uri.len()
            + sample.body.len()
            + sample.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>()
    };
    while bytes(&sample) < 1024 {
        let cookie = sample.headers.last_mut().expect("the cookie");
        cookie.1.push_str(&format!("; pref{}={:x}", number(seed) % 100, number(seed)));
    }
    sample
}

fn page(seed: &mut u64) -> Sample {
    let uri = format!(
        "/catalogue/shoes/{}?page={}&sort=price&size={}&q=running+shoes%20{}",
        number(seed) % 100_000,
        number(seed) % 9,
        number(seed) % 50,
        number(seed) % 100
    );
    let headers = headers(seed, &[]);
    filled(Sample { uri, headers, body: String::new() }, seed)
}

fn form(seed: &mut u64) -> Sample {
    let body = format!(
        "name=Ann+Smith&street=Main+Street+{}&city=Springfield&zip={:05}&mail=ann{}%40example.com&note=Please+ring+twice%2C+thanks&csrf={:016x}",
        number(seed) % 300,
        number(seed) % 100_000,
        number(seed) % 10_000,
        number(seed)
    );
    let headers = headers(seed, &[("Content-Type", "application/x-www-form-urlencoded")]);
    filled(Sample { uri: "/checkout/address".to_owned(), headers, body }, seed)
}

fn json(seed: &mut u64) -> Sample {
    let items: Vec<String> = (0..4)
        .map(|_| {
            format!(
                "{{\"sku\":\"A-{}\",\"count\":{},\"price\":\"{}.95\",\"gift\":false}}",
                number(seed) % 100_000,
                number(seed) % 9,
                number(seed) % 200
            )
        })
        .collect();
    let body = format!(
        "{{\"cart\":{{\"items\":[{}],\"currency\":\"EUR\",\"note\":\"deliver after 5 pm, please\"}},\"customer\":{{\"first_name\":\"Ann\",\"last_name\":\"Smith\"}}}}",
        items.join(",")
    );
    let headers = headers(seed, &[("Content-Type", "application/json")]);
    filled(Sample { uri: format!("/api/v2/carts/{}", number(seed) % 100_000), headers, body }, seed)
}

/// What an access log tells of a request.
fn log_line(seed: &mut u64) -> Sample {
    let agent = AGENTS[number(seed) as usize % AGENTS.len()].to_owned();
    let referer = format!("https://shop.example.com/catalogue/{}", number(seed) % 500);
    Sample {
        uri: format!("/catalogue/shoes/{}?page={}", number(seed) % 100_000, number(seed) % 9),
        headers: vec![("user-agent", agent), ("referer", referer)],
        body: String::new(),
    }
}

fn attack(seed: &mut u64) -> Sample {
    let mut sample = page(seed);
    sample.uri.push_str(&format!("&id={}%27%20UNION%20SELECT%201,2,@@version--", number(seed) % 100));
    sample
}

fn main() {
    let engine = Engine::builtin();
    let kinds: [(&str, Make, bool); 5] = [
        ("page, 1 KiB", page, true),
        ("form, 1 KiB", form, true),
        ("JSON, 1 KiB", json, true),
        ("line of an access log", log_line, true),
        ("SQL injection, 1 KiB", attack, false),
    ];
    println!("{:<24}{:>10}{:>10}{:>10}{:>10}{:>10}", "µs", "mean", "p50", "p99", "p99.9", "bytes");
    for (name, make, is_harmless) in kinds {
        let mut seed = 42;
        let samples: Vec<Sample> = (0..20_000).map(|_| make(&mut seed)).collect();
        let mut scratch = Scratch::default();
        let mut times = Vec::with_capacity(samples.len());
        let mut bytes = 0;
        // The first round warms caches and the tables of patterns up.
        for round in 0..2 {
            for sample in &samples {
                let headers: Vec<(&[u8], &[u8])> =
                    sample.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
                let request = RawRequest {
                    method: b"GET",
                    uri: sample.uri.as_bytes(),
                    headers: &headers,
                    body: sample.body.as_bytes(),
                    body_truncated: false,
                };
                let begun = Instant::now();
                let findings = engine.inspect(&request, Duration::from_secs(1), &mut scratch);
                let took = begun.elapsed();
                assert_eq!(findings.found.is_empty(), is_harmless, "{}: {:?}", sample.uri, findings.found);
                if round == 1 {
                    times.push(took.as_nanos() as u64);
                    bytes += sample.uri.len()
                        + sample.body.len()
                        + headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
                }
            }
        }
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
        let mean = times.iter().sum::<u64>() as f64 / times.len() as f64 / 1000.0;
        println!("{name:<24}{mean:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10}", at(0.5), at(0.99), at(0.999), bytes / times.len());
    }
}
