#![no_main]

libfuzzer_sys::fuzz_target!(|json: &[u8]| {
    result_cleaner::fuzzing::plain(json);
});
