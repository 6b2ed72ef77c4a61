#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    cloudcore::fuzz_request(data);
    cloudcore::fuzz_report(data);
});
