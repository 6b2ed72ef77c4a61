#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgecore::tasks::fuzz_task(data));
