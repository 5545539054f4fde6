//! The protocol's messages in both directions: which ones are refused and how, which are passed on,
//! and in which order.

use crate::support::client::{Client, Op, state_of};
use crate::support::server::{Server, Setup};
use crate::support::{now_us, stamp};
use serde_json::{Value, json};

/// Returns an op message with the three fields given as raw JSON text.
fn op_with(key: &str, value: &str, timestamp: &str) -> String {
    format!(r#"{{"type":"op","payload":{{"key":{key},"value":{value},"timestamp":{timestamp}}}}}"#)
}

/// Returns an op message with the whole payload given as raw JSON text.
fn payload(payload: &str) -> String {
    format!(r#"{{"type":"op","payload":{payload}}}"#)
}

/// Checks that each message is answered with an error 400 that contains the words, that the
/// connection stays open, and that other clients are not affected.
async fn check_refused(cases: &[(&str, String)]) {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    for (words, message) in cases {
        sender.send_text(message).await;
        let text = sender.expect_error(400).await;
        assert!(
            text.contains(words),
            "the error for {message:.200} does not contain {words:?}: {text}"
        );
    }
    let op = sender.write("after all", json!("still open")).await;
    other.expect_op(&op).await;
    assert_eq!(
        json!(state_of(&server, "room").await),
        json!({"after all": "still open"})
    );
}

// ---- client to server: refused ----

/// P48.
#[tokio::test]
async fn an_error_message_has_exactly_the_fields_of_the_contract() {
    let server = Server::start().await;
    let mut client = Client::connect(&server, "room").await;
    client.send_text(&op_with(r#""k""#, "1", r#""now""#)).await;
    let message = "payload.timestamp must be an integer (Unix microseconds)";
    assert_eq!(
        client.next().await,
        json!({"type": "error", "payload": {"code": 400, "message": message}})
    );
}

/// P35.
#[tokio::test]
async fn anything_but_a_json_object_is_refused_with_400_and_the_connection_stays_open() {
    let cases = [
        "",
        " ",
        "hello",
        "{",
        "[]",
        "\"op\"",
        "null",
        "1",
        "{]",
        r#"{"type":"ping"} x"#,
        r#"{"type":"ping"}{}"#,
    ];
    let cases = cases.map(|text| ("", text.to_string()));
    check_refused(&cases).await;
}

/// P35.
#[tokio::test]
async fn a_missing_or_unknown_type_is_refused_and_named() {
    let cases = [
        "{}",
        r#"{"type":"nope"}"#,
        r#"{"type":1}"#,
        r#"{"type":null}"#,
        r#"{"type":"OP"}"#,
        r#"{"type":"init","data":{}}"#,
    ];
    let cases = cases.map(|text| ("type", text.to_string()));
    check_refused(&cases).await;
}

/// P35.
#[tokio::test]
async fn a_payload_that_is_missing_or_not_an_object_is_refused_and_named() {
    let mut cases = vec![("payload", r#"{"type":"op"}"#.to_string())];
    for text in ["null", "[]", "\"x\"", "7"] {
        cases.push(("payload", payload(text)));
    }
    check_refused(&cases).await;
}

/// P31, P35.
#[tokio::test]
async fn a_key_that_is_missing_empty_too_long_or_not_a_string_is_refused_and_named() {
    let mut cases = vec![("payload.key", payload(r#"{"value":1,"timestamp":1}"#))];
    let long = format!("\"{}\"", "k".repeat(1025));
    let long_in_bytes = format!("\"{}é\"", "k".repeat(1023));
    let long_escaped = format!("\"{}\"", r"\u006b".repeat(1025));
    for key in [
        "1",
        "null",
        "true",
        "[]",
        "{}",
        "\"\"",
        &long,
        &long_in_bytes,
        &long_escaped,
    ] {
        cases.push(("payload.key", op_with(key, "1", "1")));
    }
    check_refused(&cases).await;
}

/// P36.
#[tokio::test]
async fn a_field_that_is_nested_too_deeply_is_named() {
    let deep = nested("[", "]", 200);
    let cases = [
        (
            "u must",
            format!(
                r#"{{"type":"op","u":{deep},"payload":{{"key":"k","value":1,"timestamp":1}}}}"#
            ),
        ),
        (
            "payload.u must",
            format!(
                r#"{{"type":"op","payload":{{"u":{deep},"key":"k","value":1,"timestamp":1}}}}"#
            ),
        ),
        ("payload.value", op_with("\"k\"", &deep, "1")),
    ];
    check_refused(&cases).await;
}

/// P31, P35.
#[tokio::test]
async fn a_missing_value_is_refused_and_named() {
    check_refused(&[("payload.value", payload(r#"{"key":"k","timestamp":1}"#))]).await;
}

/// P31, P35.
#[tokio::test]
async fn a_timestamp_that_is_missing_or_not_a_non_negative_i64_is_refused_and_named() {
    let mut cases = vec![("payload.timestamp", payload(r#"{"key":"k","value":1}"#))];
    for timestamp in [
        "\"1\"",
        "1.5",
        "-1",
        "9223372036854775808",
        "18446744073709551615",
        "true",
        "null",
        "[1]",
        "{}",
        "1e3",
        "-0.5",
    ] {
        cases.push(("payload.timestamp", op_with("\"k\"", "1", timestamp)));
    }
    check_refused(&cases).await;
}

/// P33.
#[tokio::test]
async fn a_duplicate_field_is_refused() {
    let cases = [
        r#"{"type":"op","type":"op","payload":{"key":"k","value":1,"timestamp":1}}"#,
        r#"{"type":"ping","type":"ping"}"#,
        r#"{"type":"op","payload":{"key":"k","value":1,"timestamp":1},"payload":{"key":"k","value":1,"timestamp":1}}"#,
        r#"{"type":"op","payload":{"key":"k","key":"k","value":1,"timestamp":1}}"#,
        r#"{"type":"op","payload":{"key":"k","value":1,"timestamp":1,"value":2}}"#,
        r#"{"type":"op","payload":{"timestamp":1,"key":"k","value":1,"timestamp":2}}"#,
        r#"{"type":"op","payload":{"key":"k","\u006bey":"other","value":1,"timestamp":1}}"#,
    ];
    check_refused(&cases.map(|text| ("", text.to_string()))).await;
}

/// P36.
#[tokio::test]
async fn a_number_outside_u64_i64_and_f64_is_refused_with_400() {
    let numbers = [
        "1e999",
        "-1e999",
        "123456789012345678901234567890",
        "-9223372036854775809",
        "18446744073709551616",
    ];
    let cases = numbers.map(|number| ("", op_with("\"k\"", number, "1")));
    check_refused(&cases).await;
    check_refused(
        &numbers.map(|number| ("", op_with("\"k\"", &format!("[{{\"a\":{number}}}]"), "1"))),
    )
    .await;
}

/// P35.
#[tokio::test]
async fn an_invalid_json_number_is_refused_with_400() {
    let numbers = [
        "01", "+1", ".5", "1.", "0x10", "NaN", "Infinity", "1e", "--1", "1_000",
    ];
    check_refused(&numbers.map(|number| ("", op_with("\"k\"", number, "1")))).await;
}

/// P36.
#[tokio::test]
async fn a_lone_surrogate_is_refused_with_400_in_keys_and_values() {
    let mut cases = Vec::new();
    for text in [
        r#""\ud800""#,
        r#""a\udc00b""#,
        r#""\ud83dx""#,
        r#""\ud83d\ud83d""#,
    ] {
        cases.push(("", op_with("\"k\"", text, "1")));
        cases.push(("", op_with("\"k\"", &format!("{{{text}:1}}"), "1")));
        cases.push(("", op_with(text, "1", "1")));
    }
    check_refused(&cases).await;
}

#[tokio::test]
async fn a_bad_escape_or_a_raw_control_character_is_refused_with_400() {
    let values = [
        r#""\x""#,
        r#""\u12""#,
        r#""\u12g4""#,
        "\"a\nb\"",
        "\"\u{1}\"",
        "\"open",
        "[1,]",
        "{\"a\":1,}",
        "tru",
    ];
    check_refused(&values.map(|value| ("", op_with("\"k\"", value, "1")))).await;
}

/// Returns an array, or an object, nested to this depth.
fn nested(open: &str, close: &str, depth: usize) -> String {
    format!("{}{}", open.repeat(depth), close.repeat(depth)).replace(":}", ":0}")
}

/// P36.
#[tokio::test]
async fn a_value_nested_128_deep_is_passed_on_and_a_deeper_one_is_refused_with_400() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deepest = nested(open, close, 128);
        sender.write_spelled("deep", &deepest).await;
        assert!(
            other.next_text().await.contains(&deepest),
            "a value nested 128 deep was not passed on"
        );
        for depth in [129, 200, 20_000] {
            sender
                .write_spelled("deep", &nested(open, close, depth))
                .await;
            sender.expect_error(400).await;
        }
    }
    other.expect_silence(&mut sender).await;
}

// ---- client to server: timestamps ahead of the clock ----

/// P37.
#[tokio::test]
async fn a_timestamp_over_24_h_ahead_is_refused_with_400_naming_the_difference() {
    const HOUR_US: u64 = 3_600_000_000;
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    let mut texts = Vec::new();
    for ahead_h in [25, 48, 1000] {
        sender
            .send_op(&Op::new("k", json!(1), now_us() + ahead_h * HOUR_US))
            .await;
        let text = sender.expect_error(400).await;
        assert!(
            text.contains("payload.timestamp") && text.contains("ahead"),
            "{text}"
        );
        assert!(
            text.contains(|letter: char| letter.is_ascii_digit()),
            "the error does not say by how much: {text}"
        );
        texts.push(text);
    }
    assert!(
        texts[0] != texts[1] && texts[1] != texts[2],
        "the errors do not say by how much: {texts:?}"
    );
    sender
        .send_op(&Op::new("k", json!(1), now_us() * 1000))
        .await;
    sender.expect_error(400).await;

    let allowed = Op::new("k", json!("23 h ahead"), now_us() + 23 * HOUR_US);
    sender.send_op(&allowed).await;
    other.expect_op(&allowed).await;
}

/// P37.
#[tokio::test]
async fn the_allowed_skew_is_configurable() {
    let server = Server::start_with(&["--max-future-skew", "1m"]).await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    sender
        .send_op(&Op::new("k", json!(1), now_us() + 90_000_000))
        .await;
    sender.expect_error(400).await;
    let allowed = Op::new("k", json!(2), now_us() + 30_000_000);
    sender.send_op(&allowed).await;
    other.expect_op(&allowed).await;
}

// ---- client to server: accepted ----

/// P31.
#[tokio::test]
async fn a_timestamp_of_0_is_accepted() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    let op = Op::new("k", json!("the beginning of time"), 0);
    sender.send_op(&op).await;
    other.expect_op(&op).await;
}

/// P31.
#[tokio::test]
async fn keys_of_1_and_1024_unescaped_bytes_are_accepted() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    let long = "k".repeat(1024);
    let multibyte = "é".repeat(512);
    let escaped = (format!("\"{}\"", r"\u006a".repeat(1024)), "j".repeat(1024));
    let spellings = [
        ("\"a\"".into(), "a".into()),
        (format!("\"{long}\""), long),
        (format!("\"{multibyte}\""), multibyte),
        escaped,
    ];
    for (spelling, key) in spellings {
        sender
            .send_text(&op_with(&spelling, "1", &stamp().to_string()))
            .await;
        assert_eq!(other.next_op().await.key, key);
    }
}

/// P34.
#[tokio::test]
async fn a_key_is_its_unescaped_text() {
    let mut server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    let spellings = [
        (r#""caf\u00e9""#, "café"),
        (
            r#""quote\" back\\slash \/ slash""#,
            "quote\" back\\slash / slash",
        ),
        (r#""\b\f\n\r\t""#, "\u{8}\u{c}\n\r\t"),
        (r#""zero\u0000\u001f""#, "zero\0\u{1f}"),
        (r#""\ud83d\ude00""#, "😀"),
        ("\"\u{7f}\u{2028}\"", "\u{7f}\u{2028}"),
    ];
    for (spelling, key) in spellings {
        sender
            .send_text(&op_with(spelling, "1", &stamp().to_string()))
            .await;
        assert_eq!(other.next_op().await.key, key, "spelling {spelling}");
    }
    let expected: Vec<&str> = spellings.map(|(_, key)| key).into();
    let check = |state: serde_json::Map<String, Value>| {
        assert_eq!(state.len(), expected.len());
        assert!(
            expected.iter().all(|key| state.contains_key(*key)),
            "{state:?}"
        );
    };
    check(state_of(&server, "room").await);
    server.kill9();
    server.restart(1).await;
    check(state_of(&server, "room").await);
}

/// P34.
#[tokio::test]
async fn two_spellings_of_a_key_are_the_same_key() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    for (spelling, value) in [
        ("\"café\"", "1"),
        (r#""caf\u00e9""#, "2"),
        (r#""\u0063af\u00E9""#, "3"),
    ] {
        sender
            .send_text(&op_with(spelling, value, &stamp().to_string()))
            .await;
        other.next_op().await;
    }
    assert_eq!(json!(state_of(&server, "room").await), json!({"café": 3}));
}

/// P33.
#[tokio::test]
async fn unknown_fields_are_ignored_and_not_passed_on() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    let now = stamp();
    let text = format!(
        r#"{{"id":7,"payload":{{"userId":"ann","value":{{"kept":1}},"extra":[{{"type":"op"}}],"timestamp":{now},"key":"k","seq":1}},"type":"op","v":{{}}}}"#
    );
    sender.send_text(&text).await;
    let expected =
        json!({"type": "op", "payload": {"key": "k", "value": {"kept": 1}, "timestamp": now}});
    assert_eq!(other.next().await, expected);
}

/// P31.
#[tokio::test]
async fn fields_may_be_in_any_order_with_any_whitespace() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    let now = stamp();
    let text = format!(
        "\r\n\t {{ \"payload\" : {{ \"timestamp\" : {now} ,\n\
         \"value\" : 7 , \"key\" : \"k\" }} , \"type\" : \"op\" }} \n"
    );
    sender.send_text(&text).await;
    other.expect_op(&Op::new("k", json!(7), now)).await;
}

/// P32.
#[tokio::test]
async fn a_ping_message_gets_no_answer() {
    let server = Server::start().await;
    let mut client = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    for text in [
        r#"{"type":"ping"}"#,
        r#"{"type":"ping","payload":{"at":1}}"#,
        r#"{"timestamp":12,"type":"ping"}"#,
        r#"{"type":"ping","payload":null}"#,
    ] {
        client.send_text(text).await;
        client.expect_no_answer().await;
    }
    other.expect_silence(&mut client).await;
}

// ---- the value, byte for byte ----

const SPELLINGS: [&str; 24] = [
    "1.0",
    "12345678901234567890",
    "18446744073709551615",
    "-9223372036854775808",
    "0.1000",
    "-0",
    "-0.0",
    "1E5",
    "1e+05",
    "1.7976931348623157e308",
    "0.30000000000000004441",
    "null",
    "true",
    "\"\"",
    r#""\u00e9""#,
    r#""\ud83d\ude00 and 😀""#,
    r#""a\/b\\c\"d""#,
    "[]",
    "[ 1 ,  [ ] , { } ]",
    "{ \"b\" : 1 ,\t\"a\" :\n2 }",
    r#"{"a":1,"a":2}"#,
    r#"{"":null,"type":"op"}"#,
    r#"[1,2.50,"\u0041",null,true,{"x":[{}]}]"#,
    "\"\u{2028}\u{7f}\"",
];

/// Checks that the text after `"name":` is exactly this spelling, followed by a comma or a closing
/// brace.
fn assert_spelled(message: &str, name: &str, spelling: &str) {
    let field = format!("\"{name}\":{spelling}");
    let goes_on = [",", "}"]
        .iter()
        .any(|end| message.contains(&format!("{field}{end}")));
    assert!(goes_on, "{field:?} is not byte for byte in {message}");
}

fn assert_init_spelled(init_text: &str) {
    for (index, spelling) in SPELLINGS.iter().enumerate() {
        assert_spelled(init_text, &format!("k{index}"), spelling);
    }
}

/// P47.
#[tokio::test]
async fn a_value_is_preserved_byte_for_byte_in_broadcast_init_correction_and_after_a_restart() {
    let mut server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    for (index, spelling) in SPELLINGS.iter().enumerate() {
        sender.write_spelled(&format!("k{index}"), spelling).await;
        assert_spelled(&other.next_text().await, "value", spelling);
        other
            .send_op(&Op::new(&format!("k{index}"), json!("too late"), 1))
            .await;
        assert_spelled(&other.next_text().await, "value", spelling);
    }
    assert_init_spelled(&Client::connect(&server, "room").await.init_text);
    server.kill9();
    server.restart(1).await;
    assert_init_spelled(&Client::connect(&server, "room").await.init_text);
    server.stop().await;
    server.restart(3).await;
    assert_init_spelled(&Client::connect(&server, "room").await.init_text);
}

/// P47.
#[tokio::test]
async fn whitespace_around_a_value_is_not_part_of_it() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    sender.write_spelled("k", " \t\r\n [ 1 ] \n ").await;
    assert_spelled(&other.next_text().await, "value", "[ 1 ]");
}

// ---- sizes ----

/// Returns an op message of exactly this many bytes.
fn op_of_len(len: usize) -> String {
    let empty = op_with("\"big\"", "\"\"", &stamp().to_string());
    let value = format!("\"{}\"", "x".repeat(len - empty.len()));
    op_with("\"big\"", &value, &stamp().to_string())
}

/// P41.
#[tokio::test]
async fn a_message_of_max_message_bytes_is_accepted_and_one_byte_more_closes_1009() {
    for (server, max) in [
        (
            Setup::new()
                .args(&["--max-message-bytes", "5000"])
                .start()
                .await,
            5000,
        ),
        (Server::start().await, 1024 * 1024),
    ] {
        let mut sender = Client::connect(&server, "room").await;
        let mut other = Client::connect(&server, "room").await;
        sender.send_text(&op_of_len(max)).await;
        assert_eq!(other.next_op().await.key, "big");
        sender.send_text(&op_of_len(max + 1)).await;
        assert_eq!(sender.close_code().await, 1009);
        let mut late = Client::connect(&server, "room").await;
        other.expect_silence(&mut late).await;
    }
}
