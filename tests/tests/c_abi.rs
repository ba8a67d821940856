//! The C library as a C program sees it: installed by its script, found by pkg-config or by hand, compiled with every warning
//! an error, run against a real server, and once more under valgrind.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_tests::server::TOKEN;
use postanalytics_tests::{Server, ServerOptions, library_folder, skipped};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

const CRATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../client/c");
/// Records that `abi.c` gets acknowledged.
const RECORDS: u64 = 2 + 4 * 500;

/// The library, installed.
fn installed() -> &'static Path {
    static INSTALLED: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = INSTALLED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let install = Path::new(CRATE).join("install");
        run(Command::new(install).arg("--prefix").arg(folder.path()).arg("--from").arg(library_folder()));
        folder
    });
    folder.path()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Whether a C program can use the library here; says so if not.
fn can_link() -> bool {
    if std::env::var("RUSTFLAGS").is_ok_and(|flags| flags.contains("sanitizer")) {
        skipped("c_abi", "the library is built with a sanitizer, which the C program is not");
        return false;
    }
    if !is_there("cc") {
        skipped("c_abi", "no C compiler (Debian: apt-get install gcc libc6-dev)");
        return false;
    }
    true
}

/// What a compiler needs to find the library: from pkg-config, if it is there.
fn flags() -> Vec<String> {
    let (lib, include) = (installed().join("lib"), installed().join("include"));
    let by_hand = [format!("-I{}", include.display()), format!("-L{}", lib.display()), "-lpostanalytics_client".to_owned()];
    if !is_there("pkg-config") {
        skipped("pkg-config in c_abi", "pkg-config is missing (Debian: apt-get install pkg-config)");
        return by_hand.to_vec();
    }
    let mut ask = Command::new("pkg-config");
    ask.env("PKG_CONFIG_PATH", lib.join("pkgconfig")).args(["--cflags", "--libs", "postanalytics"]);
    let flags: Vec<String> = run(&mut ask).split_whitespace().map(str::to_owned).collect();
    assert_eq!(flags, by_hand);
    flags
}

/// Compiles a program of this folder.
fn compile(source: &str, out: &Path) {
    let mut compile = Command::new("cc");
    compile.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-g", "-O1", "-pthread"]);
    compile.arg(format!("-DPA_TEST_VERSION=\"{}\"", env!("CARGO_PKG_VERSION")));
    run(compile.arg("-o").arg(out).arg(Path::new(CRATE).join(source)).args(flags()));
}

/// Runs a program with the library.
fn started(program: &Path, before: &[&str], arguments: &[&str]) -> Output {
    let mut line: Vec<&str> = before.to_vec();
    line.push(program.to_str().unwrap());
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).args(arguments).env("LD_LIBRARY_PATH", installed().join("lib")).output().unwrap()
}

/// A server that lists three.
fn server() -> Server {
    let server = ServerOptions::default().shards(2).start();
    let until = [("192.0.2.66", "denylist"), ("2001:db8:66::1", "denylist"), ("192.0.2.67", "graylist")];
    for (source, action) in until {
        let body = json!({ "source": source, "duration_s": 600, "action": action }).to_string();
        let mut stream = TcpStream::connect(server.status).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(
            stream,
            "POST /denylist HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    server
}

fn program(name: &str) -> PathBuf {
    installed().join(name)
}

#[test]
fn a_c_program_uses_every_call() {
    if !can_link() {
        return;
    }
    let (server, abi) = (server(), program("abi"));
    compile("tests/c/abi.c", &abi);
    let address = server.ingest.to_string();
    let output = started(&abi, &[], &[&address]);
    assert!(output.status.success() && text(&output.stdout) == "ok\n", "{}", text(&output.stderr));
    assert_eq!(server.total("records_stored"), RECORDS);

    let (code, page) = server.get("/requests?source=2001:db8::7");
    let page: Value = serde_json::from_str(&page).unwrap();
    let request = &page["requests"][0];
    assert_eq!(code, 200, "{page}");
    for (name, wanted) in [
        ("application", json!(7)),
        ("tenant", json!(3)),
        ("status", json!(403)),
        ("method", json!("0")),
        ("scheme", json!("https")),
        ("server_port", json!(8443)),
        ("request_bytes", json!(1001)),
        ("response_bytes", json!(1002)),
        ("response_us", json!(1003)),
        ("detection_us", json!(104)),
        ("host", json!("shop.example")),
        ("path", json!("/all")),
        ("query", json!("id=1")),
        ("user_agent", json!("agent/1")),
        ("referer", json!("https://shop.example/")),
    ] {
        assert_eq!(request[name], wanted, "{name} of {request}");
    }
    let types: Vec<&str> = request["hits"].as_array().unwrap().iter().map(|hit| hit["attack_type"].as_str().unwrap()).collect();
    assert_eq!(types, ["sqli", "xss"], "{request}");
    assert_eq!(request["extensions"], json!([{ "tag": 1, "value": "BREW" }]), "{request}");
    let page = page.to_string();
    assert!(!page.contains("a session") && !page.contains("a user"), "never in clear text: {page}");

    if !is_there("valgrind") {
        return skipped("c_abi under valgrind", "valgrind is missing (Debian: apt-get install valgrind)");
    }
    // Whatever is not freed at the end counts, still reachable or not.
    let valgrind = [
        "valgrind",
        "--quiet",
        "--leak-check=full",
        "--show-leak-kinds=all",
        "--errors-for-leak-kinds=all",
        "--error-exitcode=9",
        "--child-silent-after-fork=yes",
        concat!("--suppressions=", env!("CARGO_MANIFEST_DIR"), "/../client/c/tests/c/valgrind.supp"),
    ];
    let output = started(&abi, &valgrind, &[&address]);
    assert!(output.status.success() && text(&output.stdout) == "ok\n", "{}", text(&output.stderr));
    assert_eq!(server.total("records_stored"), 2 * RECORDS);
    server.assert_laws();
}

#[test]
fn the_example_is_short_and_works() {
    if !can_link() {
        return;
    }
    let (server, send) = (server(), program("send"));
    let source = std::fs::read_to_string(Path::new(CRATE).join("examples/send.c")).unwrap();
    assert!(source.lines().count() <= 60);
    compile("examples/send.c", &send);
    let output = started(&send, &[], &[&server.ingest.to_string()]);
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("serve\nacked 1, tnt_errors 0\n", Some(0)), "{output:?}");
    let (_, attacks) = server.get("/attacks");
    assert!(attacks.contains("ptrav"), "{attacks}");
    // The name that the dynamic linker looks for.
    assert!(installed().join("lib/libpostanalytics_client.so.0").exists());
    let read = Command::new("readelf").arg("-d").arg(installed().join("lib/libpostanalytics_client.so")).output();
    match read {
        Ok(read) => assert!(text(&read.stdout).contains("soname: [libpostanalytics_client.so.0]"), "{}", text(&read.stdout)),
        Err(_) => skipped("the SONAME in c_abi", "readelf is missing (Debian: apt-get install binutils)"),
    }
}

#[test]
fn lua_finds_the_structures_where_the_library_has_them() {
    if !can_link() {
        return;
    }
    if !Command::new("luajit").arg("-v").output().is_ok_and(|output| output.status.success()) {
        return skipped("lua in c_abi", "luajit is missing (Debian: apt-get install luajit)");
    }
    let server = server();
    let script = r#"
        package.path = arg[1] .. "/examples/lua/?.lua;" .. package.path
        local postanalytics = require "postanalytics"
        local client = assert(postanalytics.new { servers = { arg[2] }, node_name = "lua" })
        assert(client:send { ip = "198.51.100.77", method = "GET", path = "/etc/passwd", query = "a=b", status = 404,
            host = "lua.example", user_agent = "agent", response_us = 42, http_version = 11,
            hits = { { type = 4, severity = 200, point = "uri", payload = "/etc/passwd" } } })
        assert(client:send { ip = "\198\51\100\78", method = "GET", path = "/", status = 200 })
        assert(client:flush(20000))
        local ok, why = client:send { ip = "no address", path = "/" }
        assert(not ok and why:find("no address"), why)
        local stats = client:stats()
        assert(stats.acked == 2 and stats.tnt_errors == 0, stats.acked)
        local found
        for _ = 1, 2000 do
            found = client:lookup("192.0.2.66")
            if found then break end
            client:flush(10)
        end
        assert(found == "denylist" and client:lookup("192.0.2.68") == nil, found)
        print("ok")
    "#;
    let mut lua = Command::new("luajit");
    lua.args(["-e", &format!("arg = {{ {CRATE:?}, {:?} }}", server.ingest.to_string()), "-e", script]);
    let output = lua.env("LD_LIBRARY_PATH", installed().join("lib")).output().unwrap();
    assert!(output.status.success() && text(&output.stdout) == "ok\n", "{}", text(&output.stderr));
    assert_eq!(server.total("records_stored"), 2);
    let (_, attacks) = server.get("/attacks");
    assert!(attacks.contains("ptrav"), "{attacks}");
}
