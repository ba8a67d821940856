//! Latencies in a report of loadgen, which `loadgen merge` adds up.

use postanalytics_loadgen::measure::latency_histogram;
use postanalytics_loadgen::report::{decode_histogram, encode_histogram};

/// What is read has the bounds of ours, so that it can be added to them, and is written so that it reads the same.
pub fn histogram(data: &[u8]) {
    let Ok(found) = decode_histogram(&String::from_utf8_lossy(data)) else { return };
    let again = decode_histogram(&encode_histogram(&found)).expect("our own text");
    assert_eq!(again, found);
    let mut sum = latency_histogram();
    sum.add(&found).expect("it has the same bounds");
    assert_eq!(sum, found);
}
