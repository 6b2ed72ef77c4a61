#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = kserve::fuzz_token(data);
});
