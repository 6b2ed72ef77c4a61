#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mapper::plan::register::fuzz_registers(data));
