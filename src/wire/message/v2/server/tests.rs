//! Golden frames: every message byte for byte.

use proptest::prelude::*;

use super::*;
use crate::wire::message::v2::testing::payload;

fn check(expected: &str, frame_bytes: Option<usize>, put: impl Fn(&mut Vec<u8>)) {
    let mut out = b"kept".to_vec();
    put(&mut out);
    let frame = out.strip_prefix(b"kept").unwrap();
    assert_eq!(payload(frame), expected);
    match frame_bytes {
        Some(frame_bytes) => assert_eq!(frame.len(), frame_bytes, "{expected}"),
        None => assert!(frame.len() <= SHORT_FRAME_BYTES_MAX, "{expected}"),
    }
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(expected);
    assert!(parsed.is_ok_and(|message| message["payload"].is_object()));
}

/// P122, P123.
#[test]
fn ops() {
    for (key, value, timestamp, seq, expected) in [
        (
            "k",
            Some("1.0"),
            7,
            Some(9),
            r#"{"type":"op","payload":{"key":"k","value":1.0,"timestamp":7},"seq":9}"#,
        ),
        (
            "a\"\n\u{1}é",
            Some(r#"{ "x":null}"#),
            0,
            None,
            r#"{"type":"op","payload":{"key":"a\"\n\u0001é","value":{ "x":null},"timestamp":0}}"#,
        ),
        (
            "k",
            None,
            u64::MAX,
            Some(u64::MAX),
            concat!(
                r#"{"type":"op","payload":{"key":"k","deleted":true,"#,
                r#""timestamp":18446744073709551615},"seq":18446744073709551615}"#,
            ),
        ),
        (
            "k",
            None,
            7,
            None,
            r#"{"type":"op","payload":{"key":"k","deleted":true,"timestamp":7}}"#,
        ),
    ] {
        let envelope = OpEnvelope {
            seq: seq.map(Seq::new),
            id: None,
        };
        let frame_bytes = op_frame_bytes(key, value, timestamp, envelope);
        check(expected, Some(frame_bytes), |out| {
            put_op(out, key, value, timestamp, envelope);
        });
    }
}

/// P156.
#[test]
fn a_correction_has_the_id_of_the_message_that_it_answers() {
    let expected = r#"{"type":"op","id":7,"payload":{"key":"k","value":1,"timestamp":5}}"#;
    let envelope = OpEnvelope {
        id: Some(7),
        seq: None,
    };
    let frame_bytes = op_frame_bytes("k", Some("1"), 5, envelope);
    check(expected, Some(frame_bytes), |out| {
        put_op(out, "k", Some("1"), 5, envelope);
    });
}

/// P131.
#[test]
fn welcomes() {
    let welcome = Welcome {
        connection: 7,
        user: Some("ann"),
        generation: Generation::new(0x9f2c_0000_0000_00ab),
        time_us: 1_700_000_000_000_000,
        reason: WelcomeReason::First,
        durability: "always",
        ping_interval_ms: 25_000,
        limits: WelcomeLimits {
            message_bytes: 1_048_576,
            workspace_bytes: Some(67_108_864),
            ops_per_second: None,
        },
    };
    let expected = concat!(
        r#"{"type":"welcome","payload":{"connection":"7","user":"ann","#,
        r#""generation":"9f2c0000000000ab","time":1700000000000000,"state":"full","#,
        r#""why":"first","durability":"always","ping_interval_ms":25000,"#,
        r#""limits":{"message_bytes":1048576,"key_bytes":1024,"workspace_bytes":67108864,"#,
        r#""ops_per_second":null}}}"#,
    );
    check(expected, Some(welcome.frame_bytes()), |out| {
        welcome.put(out);
    });

    let unlimited = Welcome {
        connection: u64::MAX,
        user: None,
        durability: "none",
        limits: WelcomeLimits {
            workspace_bytes: None,
            ops_per_second: Some(50),
            ..welcome.limits
        },
        ..welcome
    };
    let unlimited_text = expected
        .replace("\"7\"", "\"18446744073709551615\"")
        .replace("\"ann\"", "null")
        .replace("\"always\"", "\"none\"")
        .replace("67108864", "null")
        .replace("second\":null", "second\":50");
    check(&unlimited_text, Some(unlimited.frame_bytes()), |out| {
        unlimited.put(out);
    });

    for (reason, text) in [
        (
            WelcomeReason::Resumed,
            r#""state":"changes","why":"resumed""#,
        ),
        (
            WelcomeReason::OtherGeneration,
            r#""state":"full","why":"other_generation""#,
        ),
        (WelcomeReason::TooOld, r#""state":"full","why":"too_old""#),
    ] {
        let welcome = Welcome { reason, ..welcome };
        let expected = expected.replace(r#""state":"full","why":"first""#, text);
        check(&expected, Some(welcome.frame_bytes()), |out| {
            welcome.put(out);
        });
    }
}

/// P134, P150, P180, P182.
#[test]
fn answers() {
    check(r#"{"type":"synced","payload":{},"seq":812}"#, None, |out| {
        put_synced(out, Seq::new(812));
    });
    check(
        r#"{"type":"saved","payload":{"id":41},"seq":812}"#,
        None,
        |out| {
            put_saved(out, 41, Some(Seq::new(812)));
        },
    );
    check(r#"{"type":"saved","payload":{"id":41}}"#, None, |out| {
        put_saved(out, 41, None);
    });
    check(
        r#"{"type":"pong","id":3,"payload":{"time":17}}"#,
        None,
        |out| {
            put_pong(out, 17, Some(3));
        },
    );
    check(r#"{"type":"pong","payload":{"time":17}}"#, None, |out| {
        put_pong(out, 17, None);
    });
    check(
        r#"{"type":"token","payload":{"expires":1700000000}}"#,
        None,
        |out| {
            put_token(out, Some(1_700_000_000));
        },
    );
    check(
        r#"{"type":"token","payload":{"expires":null}}"#,
        None,
        |out| put_token(out, None),
    );
}

/// P112, P113.
#[test]
fn errors() {
    for (id, key, id_text, key_text) in [
        (Some(40), Some("k\""), r#","id":40"#, r#","key":"k\"""#),
        (Some(40), None, r#","id":40"#, ""),
        (None, Some("k"), "", r#","key":"k""#),
        (None, None, "", ""),
    ] {
        let payload = format!(r#"{{"code":413,"message":"full: \"x\""{key_text}}}"#);
        let expected = format!(r#"{{"type":"error"{id_text},"payload":{payload}}}"#);
        let frame_bytes = error_frame_bytes(413, "full: \"x\"", id, key);
        check(&expected, Some(frame_bytes), |out| {
            put_error(out, 413, "full: \"x\"", id, key);
        });
    }
}

#[test]
fn the_longest_message_of_numbers_is_short() {
    let check_longest = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut out);
        assert!(out.len() <= SHORT_FRAME_BYTES_MAX, "{}", out.len());
    };
    let longest = Seq::new(u64::MAX);
    check_longest(&|out| put_synced(out, longest));
    check_longest(&|out| put_saved(out, u64::MAX, Some(longest)));
    check_longest(&|out| put_pong(out, u64::MAX, Some(u64::MAX)));
    check_longest(&|out| put_token(out, Some(u64::MAX)));
}

/// P167.
#[test]
fn casts() {
    for (user, expected) in [
        (
            Some("a\"b"),
            r#"{"type":"cast","payload":{"from":"7","user":"a\"b","value":[ 1]}}"#,
        ),
        (
            None,
            r#"{"type":"cast","payload":{"from":"7","user":null,"value":[ 1]}}"#,
        ),
    ] {
        let frame_bytes = cast_frame_bytes(7, user, "[ 1]");
        check(expected, Some(frame_bytes), |out| {
            put_cast(out, 7, user, "[ 1]");
        });
    }
}

proptest! {
    /// P131.
    #[test]
    fn a_generation_is_written_as_displayed(id: u64) {
        let mut out = Vec::new();
        write_generation(&mut out, Generation::new(id));
        prop_assert_eq!(String::from_utf8(out).unwrap(), Generation::new(id).to_string());
    }

    /// P122: ops of all lengths, so that all three kinds of frame header occur.
    #[test]
    fn an_op_has_the_announced_length(
        key in ".{1,40}",
        length in prop_oneof![0..200_usize, 65_400..65_600_usize],
        is_write: bool,
        timestamp: u64,
        seq: Option<u64>,
        id: Option<u64>,
    ) {
        let value = format!("\"{}\"", "x".repeat(length));
        let (value, seq) = (is_write.then_some(&*value), seq.map(Seq::new));
        let envelope = OpEnvelope { id, seq };
        let mut out = Vec::new();
        put_op(&mut out, &key, value, timestamp, envelope);
        prop_assert_eq!(out.len(), op_frame_bytes(&key, value, timestamp, envelope));
        // The same frame, of which the end is that of the op without an id.
        if let Some(id) = id {
            let (mut plain, mut joined) = (Vec::new(), Vec::new());
            let envelope = OpEnvelope { id: None, seq };
            put_op(&mut plain, &key, value, timestamp, envelope);
            let rest = put_op_start(&mut joined, id, plain.len());
            joined.extend_from_slice(&plain[rest..]);
            prop_assert_eq!(&joined, &out);
        }
        let message: serde_json::Value = serde_json::from_str(payload(&out)).unwrap();
        prop_assert_eq!(message["payload"]["key"].as_str(), Some(&*key));
        prop_assert_eq!(message["payload"]["deleted"].as_bool(), (!is_write).then_some(true));
        prop_assert_eq!(message["payload"]["timestamp"].as_u64(), Some(timestamp));
        prop_assert_eq!(message["seq"].as_u64(), seq.map(Seq::get));
        prop_assert_eq!(message["id"].as_u64(), id);
    }
}
