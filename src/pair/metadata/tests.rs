use super::*;
use InvalidMetadata::*;
use proptest::prelude::*;

fn read(json: &str) -> Result<String, InvalidMetadata> {
    expires_at(json.as_bytes()).map(|at| at.format("%FT%T%.f").to_string())
}

#[test]
fn finds_the_one_value_in_valid_json() {
    let cases = [
        (r#"{"expires_at":1795468279}"#, "2026-11-23T21:11:19"),
        (r#"{"expires_at":1795468279.4981642}"#, "2026-11-23T21:11:19.498164177"),
        (r#"{"expires_at":1.795468279E+9}"#, "2026-11-23T21:11:19"),
        (r#"{"expires_at":"2026-11-23T21:11:19Z"}"#, "2026-11-23T21:11:19"),
        (r#"{"expires_at":"2026-11-23\u005421:11:19Z"}"#, "2026-11-23T21:11:19"),
        (r#"{"expires\u005fat":1}"#, "1970-01-01T00:00:01"),
        (" \r\n\t{\n \"a\" : 1 ,\n \"expires_at\" : 1\n }\n\n", "1970-01-01T00:00:01"),
        (r#"{"q":{"expires_at":2},"l":[{"expires_at":3}],"expires_at":1}"#, "1970-01-01T00:00:01"),
        (r#"{"a":1,"a":2,"Expires_at":5,"expires_at ":6,"expires_at":1}"#, "1970-01-01T00:00:01"),
        (
            r#"{"n":1e400,"m":-1e999,"big":99999999999999999999,"expires_at":1}"#,
            "1970-01-01T00:00:01",
        ),
        (r#"{"\ud800":"\udfff\ud83d","expires_at":1,"o":{"\udc00":0}}"#, "1970-01-01T00:00:01"),
        (r#"{"\n\u0000\ud800":0,"expires_at":1}"#, "1970-01-01T00:00:01"),
        (r#"{"é":"ü \u0000 😀","expires_at":1}"#, "1970-01-01T00:00:01"),
    ];
    for (json, expected) in cases {
        assert_eq!(read(json).as_deref(), Ok(expected), "{json}");
    }
}

#[test]
fn names_what_is_wrong_with_expires_at() {
    let cases = [
        (r#"{}"#, MissingExpiresAt),
        (r#"{"q":{"expires_at":2}}"#, MissingExpiresAt),
        (r#"{"expires_at":1,"expires_at":1}"#, DuplicateExpiresAt),
        (r#"{"expires_at":null,"expires\u005Fat":1}"#, DuplicateExpiresAt),
        (r#"{"expires_at":null}"#, InvalidExpiry::Null.into()),
        (r#"{"expires_at":true}"#, InvalidExpiry::Boolean.into()),
        (r#"{"expires_at":[1]}"#, InvalidExpiry::Array.into()),
        (r#"{"expires_at":{"expires_at":1}}"#, InvalidExpiry::Object.into()),
        (r#"{"expires_at":""}"#, InvalidExpiry::Empty.into()),
        (r#"{"expires_at":"1795468279"}"#, InvalidExpiry::NumberInQuotes.into()),
        (r#"{"expires_at":0}"#, InvalidExpiry::NotPositive.into()),
        (r#"{"expires_at":-0.5}"#, InvalidExpiry::NotPositive.into()),
        (r#"{"expires_at":-5}"#, InvalidExpiry::NotPositive.into()),
        (r#"{"expires_at":1795468279498}"#, InvalidExpiry::NotSeconds("milliseconds").into()),
        (r#"{"expires_at":18446744073709551616}"#, InvalidExpiry::NotSeconds("nanoseconds").into()),
        (r#"{"expires_at":1000000000000000000000000}"#, InvalidExpiry::TooLarge.into()),
        (r#"{"expires_at":1e400}"#, InvalidExpiry::TooLarge.into()),
    ];
    for (json, expected) in cases {
        assert_eq!(read(json), Err(expected), "{json}");
    }
}

#[test]
fn names_what_is_wrong_with_the_file() {
    let cases: [(&[u8], InvalidMetadata); 12] = [
        (b"", Empty),
        (b"\xEF\xBB\xBF{\"expires_at\":1}", ByteOrderMark),
        (b"\xFF\xFE{\0}\0", Utf16),
        (b"{\0}\0", Utf16),
        (b"{\"a\":\"\xFF\",\"expires_at\":1}", NotUtf8(6)),
        (b"[{\"expires_at\":1}]", NotAnObject),
        (b"\"{}\"", NotAnObject),
        (b"1795468279", NotAnObject),
        (b"1e999", NotAnObject),
        (b"\n-1e999", NotAnObject),
        (b"null", NotAnObject),
        (b"true", NotAnObject),
    ];
    for (json, expected) in cases {
        assert_eq!(expires_at(json), Err(expected), "{json:?}");
    }
    let not_json = [
        "\0\0\0",
        "expires_at: 1",
        "{expires_at: 1}",
        "{'expires_at': 1}",
        r#"{"expires_at":1}}"#,
        r#"{"expires_at":1}{"expires_at":1}"#,
        r#"{"expires_at":1}x"#,
        r#"{"expires_at":1,}"#,
        r#"{"expires_at":01}"#,
        r#"{"expires_at":+1}"#,
        r#"{"expires_at":.5}"#,
        r#"{"expires_at":NaN}"#,
        r#"{"a":Infinity,"expires_at":1}"#,
        r#"{"a":[1,],"expires_at":1}"#,
        r#"{"a":[},"expires_at":1}"#,
        r#"{"a":"\x","expires_at":1}"#,
        "{\"a\":\"\n\",\"expires_at\":1}",
        "{\"a\n\":0,\"expires_at\":1}",
        "{\"\\n\0\":0,\"expires_at\":1}",
        "{\"expires_at\":1} // until then",
    ];
    for json in not_json {
        assert!(matches!(read(json), Err(NotJson(_))), "{json}: {:?}", read(json));
    }
    let whole = r#"{"a":[{"b":"c"},-1.5E-5,true,null],"expires_at":"2025-11-18"}"#;
    for end in 1..whole.len() {
        assert!(matches!(read(&whole[..end]), Err(Truncated(_))), "{}", &whole[..end]);
    }
}

#[test]
fn reasons_are_one_line() {
    for json in ["{\"a\"\n\n:\x1b}", "{", "[\"\n\"]", "{\"expires_at\":\"\\n\\u001b[2J!\"}"] {
        let reason = read(json).unwrap_err().to_string();
        assert!(!reason.contains(char::is_control), "{reason:?}");
    }
}

#[test]
fn nesting_of_any_depth_costs_no_stack() {
    let small_stack = std::thread::Builder::new().stack_size(64 * 1024);
    let nested = || {
        let half = MAX_METADATA_BYTES as usize / 2 - 16;
        let (open, close) = ("[".repeat(half), "]".repeat(half));
        let objects = format!("{}0{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
        assert!(read(&format!(r#"{{"a":{open}{close},"expires_at":1}}"#)).is_ok());
        assert!(read(&format!(r#"{{"a":{objects},"expires_at":1}}"#)).is_ok());
        let array = read(&format!(r#"{{"expires_at":{open}{close}}}"#));
        assert_eq!(array, Err(InvalidExpiry::Array.into()));
        let object = read(&format!(r#"{{"expires_at":{objects}}}"#));
        assert_eq!(object, Err(InvalidExpiry::Object.into()));
        assert!(matches!(read(&format!(r#"{{"a":{open}"#)), Err(Truncated(_))));
        assert!(matches!(read(&open), Err(NotAnObject)));
    };
    small_stack.spawn(nested).unwrap().join().unwrap();
}

#[test]
fn one_mebibyte_is_read_and_a_byte_more_is_not() {
    let mut json = br#"{"expires_at":1}"#.to_vec();
    json.resize(MAX_METADATA_BYTES as usize, b' ');
    assert!(expires_at(&json).is_ok());
    json.push(b' ');
    assert_eq!(expires_at(&json), Err(TooLarge));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, text in "[\\[\\]{}\",:\\\\ud8-f0-9.eE+-]{0,40}") {
        let _ = (expires_at(&bytes), expires_at(text.as_bytes()));
        let _ = read(&format!(r#"{{"expires_at":{text}}}"#));
    }
}
