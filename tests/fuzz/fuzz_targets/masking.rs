//! Feeds libFuzzer's inputs to `postanalytics_tests::fuzz::masking`, where it is told what must hold.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postanalytics_tests::fuzz::masking(data));
