//! The data plane allocates nothing once it is warm: counted in the real server, with the real ring, over a million frames.

use postanalytics_protocol::frames::ControlFrame;
use postanalytics_protocol::{BatchBuilder, Hit, RecordFields};
use postanalytics_tests::wire::{SOURCE, batch, restamp};
use postanalytics_tests::{RawConnection, Server, ServerOptions, binary};
use std::io::Write;

/// Frames that are measured.
const FRAMES: u64 = 1_000_000;
/// Frames in one write.
const CHUNK: u64 = 1_000;

/// A frame of one record that carries a hit, so that it is copied to the attack log as well.
fn attack(session: u64) -> Vec<u8> {
    let mut batch = BatchBuilder::default();
    let hits = vec![Hit { attack_type: 1, severity: 200, rule_id: 1, point: b"get_id", payload: b"' or 1=1" }];
    batch.push(&RecordFields { path: b"/attacked", hits, ..RecordFields::default() }, 1 << 20).expect("fits");
    let mut frame = Vec::new();
    batch.encode_frame(session, 1, 0, &mut frame);
    frame
}

/// Sends a frame `frames` times, with sequences from `first` on, while acks are read; returns the sequence after the last.
fn pump(connection: &mut RawConnection, first: u64, frames: u64, frame: Vec<u8>) -> u64 {
    let chunk = CHUNK.min(frames);
    let mut stream = connection.stream.try_clone().expect("a descriptor");
    let last = first + frames - 1;
    let sender = std::thread::spawn(move || {
        let mut bytes = frame.repeat(chunk as usize);
        for start in (first..=last).step_by(chunk as usize) {
            for (sequence, frame) in (start..=last).zip(bytes.chunks_exact_mut(frame.len())) {
                restamp(frame, sequence);
            }
            let count = chunk.min(last + 1 - start) as usize;
            stream.write_all(&bytes[..count * frame.len()]).expect("the server takes it");
        }
    });
    let next_ack = |connection: &mut RawConnection| {
        connection.expect("ack", |frame| match frame {
            ControlFrame::Ack(ack) => Some(ack.sequence),
            ControlFrame::Error(error) => panic!("an error instead of an ack: {error:?}"),
            _ => None,
        })
    };
    while next_ack(connection) < last {}
    sender.join().expect("all was sent");
    last + 1
}

fn allocations(server: &mut Server) -> u64 {
    server.ask("allocations of the shards?").parse().expect("a number")
}

#[test]
fn a_million_frames_are_taken_without_one_allocation() {
    measure(ServerOptions::default(), FRAMES);
}

/// With every detector, hits into attacks, counters of pages, and what the correlator is told.
#[test]
fn neither_do_detectors_nor_what_they_tell_allocate() {
    let config = tempfile::NamedTempFile::new().expect("a file");
    let path = config.path().to_str().expect("it is text");
    measure(ServerOptions::default().arguments(&["--config", path]), FRAMES / 5);
}

/// Warms a server, sends frames, a twentieth of which carry hits, and asserts that nothing was allocated meanwhile.
fn measure(options: ServerOptions, frames: u64) {
    let options = ServerOptions { program: binary("counted_server"), piped: true, ..options };
    let mut server = options.start();
    let at_start = allocations(&mut server);
    let mut connection = RawConnection::open(server.ingest, 1, 1);
    let opened = allocations(&mut server);
    assert!(opened > at_start && at_start > 0, "a new connection allocates, so the count works: {at_start}, {opened}");

    // Warm: every slab used and recycled, small frames and large ones, several connections side by side.
    let mut others: Vec<_> = (2..5).map(|session| RawConnection::open(server.ingest, 1, session)).collect();
    std::thread::scope(|scope| {
        for other in &mut others {
            scope.spawn(|| pump(other, 1, 500, batch(other.session, 1, SOURCE, 300)));
        }
    });
    let mut next = pump(&mut connection, 1, 50_000, batch(1, 1, SOURCE, 1));
    next = pump(&mut connection, next, 50_000, attack(1));
    assert!(server.total("evicted_records") > 0, "the arena was recycled");

    let before = allocations(&mut server);
    let stored = server.total("records_stored");
    next = pump(&mut connection, next, frames - frames / 20, batch(1, 1, SOURCE, 1));
    pump(&mut connection, next, frames / 20, attack(1));
    assert_eq!(server.total("records_stored"), stored + frames);
    assert_eq!(allocations(&mut server) - before, 0, "allocations on the shard's thread over {frames} frames");
    server.assert_laws();
    server.stop();
}
