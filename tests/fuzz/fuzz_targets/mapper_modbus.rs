#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mapper::modbus::fuzz_modbus(data));
