#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mapper::plan::text::fuzz_text(data));
