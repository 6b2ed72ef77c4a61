#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kapi::protobuf::fuzz_protobuf(data));
