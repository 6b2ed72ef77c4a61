#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgecore::device_folder::fuzz_device_file(data));
