#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(wire::Message::decode(data)));
