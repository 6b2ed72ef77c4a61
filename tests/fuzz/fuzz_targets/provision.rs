#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| init::provision::fuzz_provision(data));
