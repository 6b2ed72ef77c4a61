#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kapi::selector::fuzz_selectors(data));
