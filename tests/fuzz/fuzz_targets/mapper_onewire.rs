#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    mapper::polled::onewire::parse(data);
});
