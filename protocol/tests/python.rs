//! A client in Python, written from PROTOCOL.md alone, agrees with the golden frames byte for byte, both ways.
//!
//! Needs python3. Without it these tests say SKIPPED, or fail if `POSTANALYTICS_TESTS_SKIP=never` is set.

mod common;

use common::{hex_lines, read_hex};
use postanalytics_protocol::frames::{ANY_SHARD, Ack, ControlFrame, ErrorFrame, Ping, Stats, StoredSequence, Verdicts, Welcome};
use postanalytics_protocol::{Assembler, FrameHeader, FrameKind, ValidBatch, shard_of};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(format!("{name}.hex"))
}

/// What the program prints, `None` if there is no python3 here.
fn python(arguments: &[&str]) -> Option<String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/encoder.py");
    let output = match Command::new("python3").arg("-B").arg(&program).args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(
                std::env::var("POSTANALYTICS_TESTS_SKIP").as_deref() != Ok("never"),
                "no python3 here, and nothing may be skipped"
            );
            eprintln!("SKIPPED: no python3 here, so PROTOCOL.md is not proven by {}", program.display());
            return None;
        }
        Err(error) => panic!("python3 does not start: {error}"),
    };
    assert!(output.status.success(), "encoder.py {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn python_writes_the_golden_frames() {
    for name in ["batch-v1", "batch-v1-empty", "hello", "stats-request"] {
        let Some(printed) = python(&["--print-golden", name]) else { return };
        let golden = hex_lines(&read_hex(&golden_path(name)));
        assert_eq!(printed, golden, "{name}");
    }
}

#[test]
fn python_reads_the_golden_frames() {
    let cases = [
        ("ack", &[r#""kind": 6"#, r#""sequence": 42"#][..]),
        ("welcome", &[r#""shard_count": 4"#, r#""routing_seed": 18369614221190020847"#, r#""max_body_bytes": 1048576"#, "41]"]),
        ("stats", &[r#""sequence": 77"#, r#""process_cpu_us": 1,"#, r#""shard_cpu_us": 14"#]),
        ("error", &[r#""code": 19"#, r#""sequence": 42"#, "batch 44 came, 42 was expected"]),
        ("goodbye", &[r#""retry_after_ms": 1500"#]),
        (
            "verdicts",
            &[r#"[2, "192.0.2.1", null, 1700000600000000, 3]"#, r#"[0, "2001:db8:1:2::", 42, 0, 3]"#, r#""end": false"#],
        ),
    ];
    for (name, expected) in cases {
        let path = golden_path(name);
        let Some(printed) = python(&["--decode", &path.to_string_lossy()]) else { return };
        for text in expected {
            assert!(printed.contains(text), "{name}: {text} is not in {printed}");
        }
    }
}

const SEED: u64 = 0xfeed_face_cafe_beef;
const SHARD_COUNT: u32 = 3;
const EPOCH: u64 = 5;

/// Just enough of a server to hold the client to the page: one shard's connection, over a real socket.
struct Peer {
    stream: TcpStream,
    session: u64,
    shard: u32,
    stored: u64,
    sequence: u64,
    pongs: u64,
}

impl Peer {
    /// Serves a connection until the client says Goodbye. What is wrong goes back as an Error, on which the client fails.
    fn serve(stream: TcpStream) {
        let mut peer = Self { stream, session: 0, shard: 0, stored: 0, sequence: 0, pongs: 0 };
        let (mut assembler, mut body, mut buffer) = (Assembler::default(), Vec::new(), [0u8; 700]);
        loop {
            let count = peer.stream.read(&mut buffer).expect("the client sends");
            assert!(count > 0, "the client closed without a Goodbye");
            let mut input = &buffer[..count];
            while let Some(header) = assembler.collect(&mut input, &mut body).expect("good frames") {
                if header.kind == FrameKind::Goodbye {
                    return;
                }
                if let Err(what) = peer.take(&header, &body) {
                    let mut out = Vec::new();
                    ErrorFrame { code: 10, sequence: header.sequence, text: what }.encode(peer.session, 0, &mut out);
                    return peer.stream.write_all(&out).expect("the client reads");
                }
            }
        }
    }

    fn take(&mut self, header: &FrameHeader, body: &[u8]) -> Result<(), String> {
        let mut out = Vec::new();
        if header.kind == FrameKind::Batch {
            self.take_batch(header, body)?;
            Ack { sequence: self.sequence }.encode(self.session, 0, &mut out);
        } else {
            match ControlFrame::decode(header, body).map_err(|error| error.to_string())? {
                ControlFrame::Hello(hello) => {
                    self.session = header.session;
                    self.shard = if hello.wanted_shard == ANY_SHARD { 1 } else { hello.wanted_shard };
                    self.sequence = 7;
                    self.welcome().encode(self.session, 0, &mut out);
                    Verdicts { sequence: 0, begin: true, end: true, verdicts: Vec::new() }.encode(self.session, 0, &mut out);
                    Ping { token: 9 }.encode(self.session, 0, &mut out);
                }
                ControlFrame::StatsRequest(_) if self.pongs != 1 => return Err("the Ping was not answered".to_owned()),
                ControlFrame::StatsRequest(request) => {
                    let stats = Stats { token: request.token, session_records_stored: self.stored, ..Stats::default() };
                    stats.encode(self.session, 0, &mut out);
                }
                ControlFrame::Pong(pong) if pong.token == 9 => self.pongs += 1,
                other => return Err(format!("unexpected {other:?}")),
            }
        }
        self.stream.write_all(&out).map_err(|error| error.to_string())
    }

    fn take_batch(&mut self, header: &FrameHeader, body: &[u8]) -> Result<(), String> {
        let batch = ValidBatch::parse(header.schema, header.record_count, body).map_err(|error| error.to_string())?;
        if header.session != self.session || header.sequence != self.sequence + 1 {
            return Err(format!("session {:#x}, sequence {} after {}", header.session, header.sequence, self.sequence));
        }
        if let Some(record) = batch.records().find(|record| shard_of(record.source(), SEED, SHARD_COUNT) != self.shard) {
            return Err(format!("{} is not of shard {}", record.source().address(), self.shard));
        }
        self.sequence += 1;
        self.stored += batch.len() as u64;
        Ok(())
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            package: Default::default(),
            server_id: [1; 16],
            deployment_id: [2; 16],
            epoch: EPOCH,
            shard_count: SHARD_COUNT,
            shard: self.shard,
            routing_seed: SEED,
            identity_key: [3; 32],
            server_us: 0,
            // Small, so that the client has to wait for acks.
            window_bytes: 16_384,
            max_body_bytes: 1 << 20,
            protocol: 1,
            schema: 1,
            stored: vec![StoredSequence { epoch: EPOCH, shard: self.shard, sequence: self.sequence }],
        }
    }
}

#[test]
fn python_keeps_to_the_page_on_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    // Ends with the test's process: the client opens as many lanes as it needs.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || Peer::serve(stream));
        }
    });
    let Some(printed) = python(&[&address, "--records", "2000", "--timeout", "20"]) else { return };
    assert_eq!(printed.trim(), r#"{"sent": 2000, "acked": 2000, "stored": 2000}"#);
}
