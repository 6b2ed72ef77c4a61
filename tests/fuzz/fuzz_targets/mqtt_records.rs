#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mqtt::broker::fuzz_records(data));
