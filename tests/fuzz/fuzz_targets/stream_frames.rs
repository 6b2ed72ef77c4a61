#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire::streams::fuzz_frames(data));
