#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sqlite::fuzz_database(data));
