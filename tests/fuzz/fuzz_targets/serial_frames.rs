#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mapper::serial::frames::fuzz_frames(data));
