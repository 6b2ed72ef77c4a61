#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgecore::adopt::fuzz_rows(data));
