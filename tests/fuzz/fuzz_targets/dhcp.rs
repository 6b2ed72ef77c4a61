#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| init::dhcp::fuzz_dhcp(data));
