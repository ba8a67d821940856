//! A small server of two shards in this process, for tests: what it stores, acknowledges or does wrong is known.

use postanalytics_protocol::frames::{Ack, ControlFrame, PackageVersion, Stats, StatsRequest, Welcome};
use postanalytics_protocol::{Assembler, FrameHeader, FrameKind, RecordFields, Source, ValidBatch, shard_of};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const SHARDS: u32 = 2;
const SEED: u64 = 99;

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Says that it stored one record less than it did.
    StoresLess,
    /// Acknowledges what was never sent.
    AcksTooMuch,
    /// Closes after the first batch.
    Closes,
}

/// What a test compares of a record: time, method, path, query, status, user agent, replay.
pub(crate) type Kept = (u64, u8, Vec<u8>, Vec<u8>, u16, Vec<u8>, bool);

/// The server; it serves any number of connections until the test process ends.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    /// The first 10,000 records.
    pub(crate) kept: Arc<Mutex<Vec<Kept>>>,
}

pub(crate) fn serve(fault: Fault) -> TestServer {
    static IDS: AtomicU8 = AtomicU8::new(1);
    let id = IDS.fetch_add(1, Ordering::Relaxed);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let kept = Arc::new(Mutex::new(Vec::new()));
    let for_connections = Arc::clone(&kept);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let kept = Arc::clone(&for_connections);
            std::thread::spawn(move || serve_connection(stream, fault, id, &kept));
        }
    });
    TestServer { address, kept }
}

fn serve_connection(mut stream: TcpStream, fault: Fault, id: u8, kept: &Mutex<Vec<Kept>>) {
    let (mut assembler, mut body, mut buffer) = (Assembler::default(), Vec::new(), vec![0; 1 << 18]);
    let (mut shard, mut replay, mut sequence, mut stored, mut out) = (0, false, 0, 0u64, Vec::new());
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let mut input = &buffer[..length];
        let mut ack_to = None;
        while let Some(header) = assembler.collect(&mut input, &mut body).expect("frames are right") {
            if header.kind == FrameKind::Batch {
                assert_eq!(header.sequence, sequence + 1);
                sequence += 1;
                stored += check_batch(&header, &body, shard, replay, kept);
                ack_to = Some(header.session);
                continue;
            }
            match ControlFrame::decode(&header, &body).expect("control frames are right") {
                ControlFrame::Hello(hello) => {
                    (shard, replay) = (if hello.wanted_shard < SHARDS { hello.wanted_shard } else { 0 }, hello.replay);
                    welcome(id, shard).encode(header.session, 0, &mut out);
                }
                ControlFrame::StatsRequest(StatsRequest { token }) => {
                    let session_records_stored = stored - u64::from(fault == Fault::StoresLess && stored > 0 && shard == 0);
                    let process_cpu_us = stored;
                    let stats =
                        Stats { token, session_records_stored, shard_records_stored: stored, process_cpu_us, ..Stats::default() };
                    stats.encode(header.session, 0, &mut out);
                }
                ControlFrame::Goodbye(_) => return,
                ControlFrame::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
        if let Some(session) = ack_to {
            let sequence = if fault == Fault::AcksTooMuch { sequence + 1000 } else { sequence };
            Ack { sequence }.encode(session, 0, &mut out);
            if fault == Fault::Closes {
                return;
            }
        }
        if stream.write_all(&out).is_err() {
            return;
        }
        out.clear();
    }
}

fn check_batch(header: &FrameHeader, body: &[u8], shard: u32, replay: bool, kept: &Mutex<Vec<Kept>>) -> u64 {
    let batch = ValidBatch::parse(header.schema, header.record_count, body).expect("a valid batch");
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    for record in batch.records() {
        let fields: RecordFields<'_> = record.fields();
        assert_eq!(shard_of(Source::of_bytes(&fields.client_ip), SEED, SHARDS), shard);
        if kept.len() < 10_000 {
            let texts = (fields.path.to_vec(), fields.query.to_vec(), fields.user_agent.to_vec());
            kept.push((fields.event_us, fields.method, texts.0, texts.1, fields.status, texts.2, replay));
        }
    }
    batch.len() as u64
}

fn welcome(id: u8, shard: u32) -> Welcome {
    Welcome {
        package: PackageVersion::default(),
        server_id: [id; 16],
        deployment_id: [2; 16],
        epoch: 3,
        shard_count: SHARDS,
        shard,
        routing_seed: SEED,
        identity_key: [0; 32],
        server_us: 0,
        window_bytes: 200_000,
        max_body_bytes: 1 << 20,
        protocol: 1,
        schema: 1,
        stored: Vec::new(),
    }
}
