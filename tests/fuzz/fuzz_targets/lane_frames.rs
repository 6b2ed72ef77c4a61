#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire::lane::fuzz_lane(data));
