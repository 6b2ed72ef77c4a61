#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire::tunnel::fuzz_tunnel(data));
