#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dmi::fuzz_dmi(data));
