#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| result_cleaner::fuzzing::simulation(bytes));
