//! The agent: an access log that is written, rotated and truncated, servers that come and go, and an agent that is killed. Every
//! line is stored, and once.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_tests::{Server, ServerOptions, binary, eventually, free_port};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

const LONG: Duration = Duration::from_secs(60);
const SECRET: &str = "hunter2hunter2";

/// A folder with a log, and what an agent has of it.
struct Site {
    folder: tempfile::TempDir,
    written: u32,
}

impl Site {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), written: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes so many requests to a file, each for a path of its own.
    fn visit(&mut self, name: &str, count: u32) {
        let mut file = File::options().create(true).append(true).open(self.path(name)).unwrap();
        for _ in 0..count {
            let n = self.written;
            self.written += 1;
            let now = jiff::Timestamp::try_from(SystemTime::now()).unwrap().strftime("%d/%b/%Y:%H:%M:%S +0000").to_string();
            let address = format!("198.51.{}.{}", n / 250 % 250, n % 250 + 1);
            writeln!(file, "{address} - - [{now}] \"GET /page/{n} HTTP/1.1\" 200 5 \"-\" \"browser\" \"-\" 0.001").unwrap();
        }
    }

    fn agent(&self, server: &str, more: &[&str]) -> Agent {
        let log = File::options().create(true).append(true).open(self.path("agent.log")).unwrap();
        let mut command = Command::new(binary("postanalytics"));
        command.arg("agent").arg("--tail").arg(self.path("access.log")).arg("--state").arg(self.path("state/agent.json"));
        command.args(["--server", server, "--log", "json"]).args(more);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Agent { child }
    }

    /// The lines of the agents' log with this message.
    fn said(&self, message: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("agent.log")).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == message).collect()
    }
}

struct Agent {
    child: Child,
}

impl Agent {
    /// SIGTERM, and a good end.
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.wait().success());
    }

    fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < LONG, "the agent did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The ids of the stored requests of each path.
fn stored(server: &Server) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut page = "/requests?limit=1000".to_owned();
    loop {
        let (code, body) = server.get(&page);
        assert_eq!(code, 200, "{body}");
        assert!(!body.contains(SECRET), "masked before it left the node");
        let body: Value = serde_json::from_str(&body).unwrap();
        for request in body["requests"].as_array().unwrap() {
            let text = |name: &str| request[name].as_str().unwrap().to_owned();
            found.entry(text("path")).or_default().push(text("request_id"));
        }
        match body["next"].as_str() {
            Some(next) => page = format!("/requests?limit=1000&cursor={next}"),
            None => return found,
        }
    }
}

fn pages(numbers: std::ops::Range<u32>) -> Vec<String> {
    let mut pages: Vec<String> = numbers.map(|n| format!("/page/{n}")).collect();
    pages.sort();
    pages
}

/// These pages are stored, each once, and nothing else is.
fn assert_once(server: &Server, numbers: std::ops::Range<u32>) {
    let stored = stored(server);
    assert_eq!(stored.keys().cloned().collect::<Vec<_>>(), pages(numbers));
    assert!(stored.values().all(|ids| ids.len() == 1), "{stored:?}");
}

#[test]
fn every_line_is_stored_once_through_rotation_truncation_and_restart() {
    let (server, mut site) = (ServerOptions::default().shards(2).start(), Site::new());
    let address = server.ingest.to_string();
    site.visit("access.log", 10);
    let agent = site.agent(&address, &[]);
    // It begins at the end.
    eventually("the agent follows the log", LONG, || {
        site.path("state/agent.json").exists() && !site.said("following").is_empty()
    });
    let first = site.written;
    let mut sent = 0;
    let mut arrive = |site: &mut Site, name: &str, count: u32| {
        site.visit(name, count);
        sent += u64::from(count);
        eventually("they are stored", LONG, || server.total("records_stored") >= sent);
    };
    arrive(&mut site, "access.log", 100);
    std::fs::rename(site.path("access.log"), site.path("access.log.1")).unwrap();
    // The web server has the old file open still.
    arrive(&mut site, "access.log.1", 50);
    arrive(&mut site, "access.log", 50);
    arrive(&mut site, "access.log.1", 5);
    std::fs::copy(site.path("access.log"), site.path("access.log.2")).unwrap();
    File::options().write(true).open(site.path("access.log")).unwrap().set_len(0).unwrap();
    arrive(&mut site, "access.log", 100);
    agent.stop();

    // While it does not run.
    site.visit("access.log", 30);
    std::fs::rename(site.path("access.log"), site.path("access.log.3")).unwrap();
    sent += 30;
    let agent = site.agent(&address, &[]);
    eventually("it goes on where it was", LONG, || server.total("records_stored") >= sent);
    site.visit("access.log", 20);
    sent += 20;
    eventually("in the new file, too", LONG, || server.total("records_stored") >= sent);
    agent.stop();
    assert_eq!(server.total("records_stored"), sent);
    assert_once(&server, first..site.written);
    let last = site.said("done").pop().unwrap();
    assert_eq!((&last["tnt_errors"], &last["gaps"], &last["unsettled"]), (&0.into(), &0.into(), &0.into()), "{last}");
    server.assert_laws();
}

#[test]
fn what_is_in_a_line_becomes_an_attack_and_secrets_stay() {
    let (server, mut site) = (Server::new(), Site::new());
    site.visit("access.log", 3);
    let mut file = File::options().append(true).open(site.path("access.log")).unwrap();
    let now = jiff::Timestamp::try_from(SystemTime::now()).unwrap().strftime("%d/%b/%Y:%H:%M:%S +0000").to_string();
    writeln!(file, "10.0.0.7 - - [{now}] \"GET /etc/passwd HTTP/1.1\" 404 5 \"-\" \"curl/8\" \"6.6.6.6, 203.0.113.9\" 0.250")
        .unwrap();
    writeln!(file, "203.0.113.8 - - [{now}] \"GET /login?password={SECRET}&a=b HTTP/1.1\" 200 5 \"-\" \"curl/8\"").unwrap();
    writeln!(
        file,
        "203.0.113.10 - - [{now}] \"GET /page?userpass={SECRET}&card=4111-1111-1111-1111&mark=h4rmless-query HTTP/1.1\" 200 5 \
         \"http://bob:pl4nted-p@ss@a.example/h4rmless-referer?token=r3ferer-pl4nted&q=%3Cscript%3E\" \"h4rmless-agent/1 (token=4gent-pl4nted)\""
    )
    .unwrap();
    writeln!(file, "no line of a log\n").unwrap();
    let arguments = ["--once", "--trusted-proxy", "10.0.0.0/8", "--application", "7", "--node-name", "shop"];
    let status = site.agent(&server.ingest.to_string(), &arguments).wait();
    let log = std::fs::read_to_string(site.path("agent.log")).unwrap();
    assert!(status.success(), "{log}");
    let last = site.said("done").pop().unwrap();
    assert_eq!((&last["lines"], &last["sent"], &last["malformed"]), (&7.into(), &6.into(), &1.into()), "{last}");
    assert_eq!((&last["acked"], &last["with_hits"]), (&6.into(), &2.into()), "{last}");
    assert!(log.contains("no line of a log") && !log.contains(SECRET), "{log}");

    let (_, attacks) = server.get("/attacks");
    let attacks: Value = serde_json::from_str(&attacks).unwrap();
    assert!(attacks.to_string().contains("ptrav") && attacks.to_string().contains("203.0.113.9"), "{attacks}");
    let (_, page) = server.get("/requests?source=203.0.113.9");
    let page: Value = serde_json::from_str(&page).unwrap();
    let request = &page["requests"][0];
    assert_eq!(
        (&request["path"], &request["application"], &request["response_us"]),
        (&"/etc/passwd".into(), &7.into(), &250_000.into())
    );
    assert_eq!(stored(&server).len(), 6);
    // Whatever the pages show: the server has none of it.
    let planted = [SECRET, "4111-1111", "pl4nted-p@ss", "r3ferer-pl4nted", "4gent-pl4nted"];
    let marks = ["h4rmless-query", "h4rmless-referer", "h4rmless-agent"];
    assert_eq!(server.holds(&[&planted[..], &marks].concat()), marks);

    // The next time there is nothing new; then there is.
    assert!(site.agent(&server.ingest.to_string(), &["--once"]).wait().success());
    assert_eq!(server.total("records_stored"), 6);
    site.visit("access.log", 4);
    assert!(site.agent(&server.ingest.to_string(), &["--once"]).wait().success());
    assert_eq!(server.total("records_stored"), 10);
}

#[test]
fn a_server_that_is_away_and_an_agent_that_is_killed_lose_nothing() {
    let mut site = Site::new();
    let port = free_port();
    let options = || ServerOptions { listen: format!("127.0.0.1:{port}"), ..ServerOptions::default() };
    let address = format!("127.0.0.1:{port}");
    site.visit("access.log", 0);
    // Nobody is there yet.
    let agent = site.agent(&address, &["--from-start"]);
    site.visit("access.log", 200);
    std::thread::sleep(Duration::from_secs(2));
    let server = options().start();
    eventually("what was written before is stored", LONG, || server.total("records_stored") >= 200);
    assert_once(&server, 0..200);
    server.stop();

    site.visit("access.log", 150);
    std::thread::sleep(Duration::from_secs(2));
    site.visit("access.log", 150);
    let server = options().start();
    eventually("what was written meanwhile is stored", LONG, || server.total("records_stored") >= 300);
    assert_once(&server, 200..500);

    // Killed at any moment, with the state file up to a second behind.
    let mut agent = agent;
    for turn in 0..4 {
        site.visit("access.log", 100);
        std::thread::sleep(Duration::from_millis(130 * turn));
        agent.kill();
        site.visit("access.log", 50);
        agent = site.agent(&address, &["--from-start"]);
    }
    let all = 500 + 4 * 150;
    eventually("the last line is stored", LONG, || stored(&server).contains_key(&format!("/page/{}", all - 1)));
    agent.stop();
    let stored = stored(&server);
    assert_eq!(stored.keys().cloned().collect::<Vec<_>>(), pages(200..all), "none is missing");
    // What came twice shows it.
    for (path, ids) in &stored {
        assert!(ids.iter().all(|id| *id == ids[0]), "{path}: {ids:?}");
    }
    server.assert_laws();
}

/// A log that somebody writes to all the time does not keep it: it reads what was there when it began.
#[test]
fn once_ends_on_a_busy_log() {
    let (server, mut site) = (ServerOptions::default().start(), Site::new());
    let address = server.ingest.to_string();
    site.visit("access.log", 100);
    let mut agent = site.agent(&address, &["--once"]);
    let begun = Instant::now();
    let status = loop {
        site.visit("access.log", 1);
        if let Some(status) = agent.child.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < LONG, "it reads on and on");
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success() && server.total("records_stored") >= 100);

    // Renamed just now: the old file is left for later, for its last lines may be still to come.
    std::fs::rename(site.path("access.log"), site.path("access.log.1")).unwrap();
    site.visit("access.log", 5);
    assert!(site.agent(&address, &["--once"]).wait().success());
    site.visit("access.log.1", 5);
    assert!(site.agent(&address, &["--once"]).wait().success());
    assert_once(&server, 0..site.written);
    assert!(site.said("done").iter().all(|done| done["gaps"] == 0));
}

/// Lines that are malformed come all the time; that a log cannot be read, or the state not be written, is said all the same.
#[test]
fn no_trouble_keeps_another_from_being_told() {
    let soon = Duration::from_secs(20);
    let site = Site::new();
    let agent = site.agent("127.0.0.1:1", &["--from-start"]);
    let says = |what: &str| {
        let mut log = File::options().create(true).append(true).open(site.path("access.log")).unwrap();
        eventually(what, soon, || {
            writeln!(log, "no line of a log").unwrap();
            std::fs::read_to_string(site.path("agent.log")).unwrap().contains(what)
        });
    };
    says("a line was skipped");
    std::fs::rename(site.path("state"), site.path("away")).unwrap();
    says("the state cannot be written");
    std::fs::rename(site.path("access.log"), site.path("access.log.1")).unwrap();
    std::fs::create_dir(site.path("access.log")).unwrap();
    eventually("the log is told of", soon, || {
        std::fs::read_to_string(site.path("agent.log")).unwrap().contains("the log cannot be read")
    });
    agent.kill();
}

#[test]
fn two_agents_do_not_share_a_state_and_errors_say_what_to_do() {
    let site = Site::new();
    let arguments = ["--once"];
    let mut agent = site.agent("127.0.0.1:1", &arguments);
    assert_eq!(agent.wait().code(), Some(1));
    let log = std::fs::read_to_string(site.path("agent.log")).unwrap();
    assert!(log.contains("cannot read the log") && log.contains("check the name"), "{log}");

    File::create(site.path("access.log")).unwrap();
    let first = site.agent("127.0.0.1:1", &[]);
    eventually("the first runs", LONG, || !site.said("following").is_empty());
    assert_eq!(site.agent("127.0.0.1:1", &[]).wait().code(), Some(1));
    let log = std::fs::read_to_string(site.path("agent.log")).unwrap();
    assert!(log.contains("another agent uses") && log.contains("--state FILE"), "{log}");
    first.stop();

    std::fs::write(site.path("state/agent.json"), "nonsense").unwrap();
    assert_eq!(site.agent("127.0.0.1:1", &[]).wait().code(), Some(1));
    let log = std::fs::read_to_string(site.path("agent.log")).unwrap();
    assert!(log.contains("remove it to begin anew"), "{log}");
}
