#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mapper::holder::fuzz_words(data));
