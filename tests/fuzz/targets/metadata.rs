#![no_main]

use libfuzzer_sys::fuzz_target;
use result_cleaner::fuzzing;

fuzz_target!(
    init: {
        if std::env::var_os("TZ").is_none() {
            // Safety: no other thread runs yet.
            unsafe { std::env::set_var("TZ", fuzzing::SUMMER_TIME) };
        }
    },
    |json: &[u8]| fuzzing::metadata(json)
);
