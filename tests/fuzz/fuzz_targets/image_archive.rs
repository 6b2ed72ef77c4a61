#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgecore::edged::fuzz::fuzz_image_archive(data));
