#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    edgecore::twin::fuzz_twin(data);
    edgecore::twin::policy::fuzz_policies(data);
    edgecore::twin::push::fuzz_push(data);
    edgecore::twin::history::fuzz_query(data);
});
