#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mkimage::elf::fuzz_elf(data));
