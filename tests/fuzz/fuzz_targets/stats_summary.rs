#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| apiserver::fuzz_summary(data));
