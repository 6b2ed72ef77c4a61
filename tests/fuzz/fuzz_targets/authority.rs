#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    cloudcore::fuzz_rotation(data);
    cloudcore::fuzz_secret(data);
});
