#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgecore::https::fuzz_response(data));
