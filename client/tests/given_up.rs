//! What is logged while no server has ever answered and records grow too old.

#![forbid(unsafe_code)]

use postanalytics_client::{Client, Request};
use std::net::TcpListener;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tracing::field::Field;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

static LINES: Mutex<String> = Mutex::new(String::new());

/// Keeps what the client's thread logs.
struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = event.metadata().level().to_string();
        event.record(&mut |_: &Field, value: &dyn std::fmt::Debug| line += &format!(" {value:?}"));
        *LINES.lock().expect("no panic") += &(line + "\n");
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn lost(client: &Client, records: u64) {
    let begun = Instant::now();
    while client.counters().lost < records {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", client.counters());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn records_that_are_given_up_before_any_server_answered_are_told_once() {
    tracing::subscriber::set_global_default(Lines).expect("there is no other test here");
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("bound").to_string()
    };
    let client = Client::builder().server(address).record_time_limit(Duration::from_millis(20)).build().expect("built");
    for turn in 1..=2 {
        for _ in 0..10 {
            client.try_send(&Request::default()).expect("room");
        }
        lost(&client, 10 * turn);
    }
    let lines = LINES.lock().expect("no panic").clone();
    let told: Vec<&str> = lines.lines().filter(|line| line.contains("given up")).collect();
    assert_eq!(told.len(), 1, "{lines}");
    assert!(told[0].starts_with("ERROR") && told[0].contains("records were over 20ms old and are given up"), "{lines}");
}
