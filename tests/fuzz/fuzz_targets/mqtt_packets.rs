#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mqtt::packet::fuzz_decode(data));
