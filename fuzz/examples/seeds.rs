//! Writes the committed seeds of all targets to `corpus/`. To run it:
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`.

use std::fs;
use std::io;
use std::path::Path;

use etherply::generation::Generation;
use etherply::log::record::{
    Change, Compacted, LoggedOp, SegmentHeader, begin_batch, push_op, seal_batch,
};
use etherply::seq::Seq;
use etherply::wire::frame::{Opcode, put_header};
use etherply_fuzz::segment_header;

fn main() -> io::Result<()> {
    for (target, seeds) in [
        ("head", head()),
        ("frames", frames()),
        ("messages", messages()),
        ("messages_v2", messages_v2()),
        ("records", records()),
        ("segments", segments()),
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target);
        fs::create_dir_all(&folder)?;
        for (name, bytes) in seeds {
            fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}

type Seeds = Vec<(&'static str, Vec<u8>)>;

fn head() -> Seeds {
    const UPGRADE: &str = "Host: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                           Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let seed = |name, head: String| {
        (
            name,
            [b"\x05\0\x20\0\x90\0\0\x40", head.as_bytes()].concat(),
        )
    };
    let sync = |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\n{UPGRADE}{more}\r\n");
    vec![
        seed(
            "sync_query_token",
            sync("/v1/sync/w?userId=7&token=a.b.c", ""),
        ),
        seed(
            "sync_bearer",
            sync("/v1/sync/a%2Fb%E2%82%AC", "Authorization: Bearer a.b.c\r\n"),
        ),
        seed(
            "sync_absolute_form",
            sync("ws://h:1/v1/sync/w?token=%41", ""),
        ),
        seed(
            "sync_with_frames_behind",
            sync("/v1/sync/w", "") + "\u{2}\u{3}",
        ),
        seed("sync_bad_escape", sync("/v1/sync/%zz", "")),
        seed(
            "sync_version_2",
            sync(
                "/v1/sync/w?since=7&generation=0123456789abcdef&presence=1&replaces=3",
                "Sec-WebSocket-Protocol: etherply.v2, bearer.a.b.c\r\n",
            ),
        ),
        seed(
            "sync_named_version_1",
            sync("/v1/sync/w?token=a&since=x", "Sec-WebSocket-Protocol: etherply.v1\r\n"),
        ),
        seed(
            "sync_two_tokens",
            sync(
                "/v1/sync/w?token=a",
                "Authorization: Bearer b\r\nSec-WebSocket-Protocol: etherply.v2\r\n",
            ),
        ),
        seed(
            "sync_since_alone",
            sync("/v1/sync/w?since=1", "Sec-WebSocket-Protocol: etherply.v2\r\n"),
        ),
        seed(
            "sync_with_body",
            sync("/v1/sync/w", "Content-Length: 1\r\n"),
        ),
        seed("sync_host_twice", sync("/v1/sync/w", "Host: h\r\n")),
        seed(
            "sync_old_version",
            sync("/v1/sync/w", "").replace(": 13", ": 8"),
        ),
        seed(
            "sync_bare_line_feeds",
            sync("/v1/sync/w", "").replace('\r', ""),
        ),
        seed(
            "sync_key_not_base64",
            sync("/v1/sync/w", "").replace("dGhl", "d-hl"),
        ),
        seed(
            "sync_id_of_257",
            sync(&format!("/v1/sync/{}", "w".repeat(257)), ""),
        ),
        seed("sync_long_id", sync("/v1/sync/\u{1}", "")),
        seed(
            "head_too_long",
            sync("/v1/sync/w", "X: \u{1}\u{1}\u{1}\u{1}\r\n"),
        ),
        seed("many_fields", sync("/v1/sync/w", &"X:\r\n".repeat(60))),
        seed("host_with_path", sync("/v1/sync/w", "").replace("Host: h", "Host: a/b")),
        seed("host_of_ipv6", sync("/v1/sync/w", "").replace("Host: h", "Host: [::1]:80")),
        seed("two_lengths", sync("/v1/sync/w", "Content-Length: 0\r\nContent-Length: 1\r\n")),
        seed("coding", sync("/v1/presence/w", "Transfer-Encoding: gzip\r\n")),
        seed("form_encoded", sync("/v1/sync/a+b?userId=Ann+Lee%2B&token=a", "")),
        seed("page", "GET http://[::1]/metrics HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: a\r\nIf-None-Match: W/\"a,b\", *\r\n\r\n".into()),
        seed("healthz", "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        seed("readyz_head_only", "HEAD /readyz HTTP/1.0\r\n\r\n".into()),
        seed("post", "POST /healthz HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        seed("not_http", "\u{16}\u{3}\u{1}\r\n\r\n".into()),
    ]
}

/// Returns a masked frame. `first` is its first byte: FIN, RSV and opcode.
fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_header(&mut out, Opcode::Text, payload.len());
    out[0] = first;
    out[1] |= 0x80;
    out.extend_from_slice(&mask);
    out.extend(
        payload
            .iter()
            .zip(mask.into_iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    out
}

fn frames() -> Seeds {
    const MASK: [u8; 4] = [0xa5, 0, 0x3c, 0xff];
    let seed = |name, frames: &[(u8, &[u8])]| {
        let stream: Vec<u8> = frames
            .iter()
            .flat_map(|(first, payload)| frame(*first, MASK, payload))
            .collect();
        (
            name,
            [&b"\0\x01\x01\x02\x03\x07\x01\xff\x01\x0d"[..], &stream].concat(),
        )
    };
    let close = |code: u16, reason: &str| [&code.to_be_bytes(), reason.as_bytes()].concat();
    let mut seeds = vec![
        seed(
            "text_and_close",
            &[(0x81, "a€".as_bytes()), (0x88, &close(1000, "bye"))],
        ),
        seed(
            "fragments_cut_in_a_character",
            &[
                (0x01, b"\xe2"),
                (0x89, b"p"),
                (0x00, b"\x82"),
                (0x80, b"\xac"),
            ],
        ),
        seed(
            "binary_fragments",
            &[(0x02, b"\xff"), (0x8a, b""), (0x00, b""), (0x80, b"\x01")],
        ),
        seed("length_of_16_bits", &[(0x82, &[7; 126]), (0x81, b"")]),
        seed("over_the_limit", &[(0x81, &[b'x'; 382])]),
        seed(
            "fragments_over_the_limit",
            &[(0x01, &[b'x'; 300]), (0x80, &[b'x'; 82])],
        ),
        seed("not_utf8", &[(0x81, b"\xed\xa0\x80")]),
        seed("not_utf8_in_a_fragment", &[(0x01, b"a\xff"), (0x80, b"")]),
        seed("start_inside_message", &[(0x01, b"a"), (0x81, b"b")]),
        seed("continuation_alone", &[(0x80, b"a")]),
        seed("control_in_fragments", &[(0x09, b"a")]),
        seed("control_too_long", &[(0x89, &[0; 126])]),
        seed("reserved", &[(0x83, b""), (0xc1, b"")]),
        seed("close_1014", &[(0x88, &close(1014, ""))]),
        seed("close_1005", &[(0x88, &close(1005, ""))]),
        seed("close_of_one_byte", &[(0x88, b"\x03")]),
    ];
    let mut unmasked = seed("unmasked", &[(0x81, b"abcdef")]);
    unmasked.1[11] &= 0x7f;
    let not_minimal = [&[0; 10][..], b"\x81\xfe\0\x01\0\0\0\0a"].concat();
    let too_long = [&[0; 10][..], b"\x81\xff\x80\0\0\0\0\0\0\0\0\0\0\0"].concat();
    seeds.extend([
        unmasked,
        ("length_not_minimal", not_minimal),
        ("length_over_63_bits", too_long),
    ]);
    seeds
}

fn messages() -> Seeds {
    let op = |key: &str, value: &str, timestamp: &str| {
        format!(
            r#"{{"type":"op","payload":{{"key":{key},"value":{value},"timestamp":{timestamp}}}}}"#
        )
        .into_bytes()
    };
    let spaced = b" {\r\n\"payload\" : {\"timestamp\":7 , \"value\" :\t\"}\"\r\t\n , \"key\":\"k\" } ,\"x\":[ ],\"type\":\"op\"} ";
    let escaped = br#"{"\u0074ype":"\u006fp","payload":{"ke\u0079":"\u0000\"\\\b\f\n\r\t\u001f","value":"\ud83d\ude00\/","timestamp":0}}"#;
    let numbers =
        "[-0,1e-400,1.7976931348623157e308,5e-324,18446744073709551615,-9223372036854775808]";
    let twice = br#"{"type":"op","payload":{"key":"k","value":1,"v\u0061lue":1,"timestamp":1}}"#;
    let row = [
        &br#"{"type":"ping","x":[{}]}"#[..],
        &op(r#""k""#, "1", "1"),
        b"[]",
        b"{",
    ];
    let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
    vec![
        (
            "op",
            op(
                r#""k""#,
                r#"{"a":[1, 2.0,{}],"b":null}"#,
                "1700000000000000",
            ),
        ),
        ("op_with_spaces", spaced.to_vec()),
        ("op_with_escapes", escaped.to_vec()),
        ("numbers", op(r#""k""#, numbers, "1")),
        ("number_too_big", op(r#""k""#, "[1e309]", "1")),
        ("integer_too_big", op(r#""k""#, "18446744073709551616", "1")),
        ("lone_surrogate", op(r#""k""#, r#""\udc00""#, "1")),
        ("timestamp_fraction", op(r#""k""#, "true", "1.0")),
        (
            "timestamp_range",
            op(r#""k""#, "false", "9223372036854775808"),
        ),
        ("timestamp_negative", op(r#""k""#, "0", "-1")),
        (
            "key_of_1024",
            op(&format!("\"{}\"", "k".repeat(1024)), "0", "1"),
        ),
        (
            "key_of_1025",
            op(&format!("\"{}\"", "k".repeat(1025)), "0", "1"),
        ),
        ("key_empty", op(r#""""#, "0", "1")),
        ("deepest", op(r#""k""#, &nested(128), "1")),
        ("too_deep", op(r#""k""#, &nested(129), "1")),
        ("field_twice", twice.to_vec()),
        ("one_behind_the_other", row.join(&0x1e)),
    ]
}

fn messages_v2() -> Seeds {
    let message = |kind: &str, payload: &str| {
        format!(r#"{{"type":"{kind}","id":41,"payload":{payload}}}"#).into_bytes()
    };
    let op = |members: &str| message("op", &format!(r#"{{"key":"k",{members}}}"#));
    let write = |members: &str| op(&format!(r#""value":{{"a":[1.0]}},{members}"#));
    let at = r#""timestamp":1700000000000000"#;
    let long = |bytes: usize| format!(r#"{{"value":"{}"}}"#, "x".repeat(bytes - 2));
    let twice = br#"{"type":"op","id":1,"i\u0064":2,"payload":{"key":"k","ke\u0079":"l"}}"#;
    let too_deep = format!(
        r#"{{"key":"k","value":{}{}}}"#,
        "[".repeat(129),
        "]".repeat(129)
    );
    let row = [
        &br#"{"type":"ping","id":9007199254740991}"#[..],
        &write(at),
        br#"{"type":"ping","id":9007199254740992}"#,
        &op(&format!(r#""deleted":true,{at}"#)),
    ];
    vec![
        ("write", write(at)),
        ("delete", op(&format!(r#""deleted":true,{at}"#))),
        ("conditional", write(&format!(r#""if_timestamp":0,{at}"#))),
        ("ttl", write(&format!(r#"{at},"ttl_ms":315360000000"#))),
        (
            "ttl_too_long",
            write(&format!(r#"{at},"ttl_ms":315360000001"#)),
        ),
        (
            "ttl_of_a_delete",
            op(&format!(r#""deleted":true,{at},"ttl_ms":1"#)),
        ),
        ("deleted_false", op(&format!(r#""deleted":false,{at}"#))),
        (
            "write_and_delete",
            write(&format!(r#""deleted":true,{at}"#)),
        ),
        ("neither", op(at)),
        ("milliseconds", write(r#""timestamp":1700000000000"#)),
        ("lone_surrogate", op(&format!(r#""value":"\ud83d",{at}"#))),
        ("number_too_big", op(&format!(r#""value":1e400,{at}"#))),
        ("too_deep", message("op", &too_deep)),
        (
            "presence",
            message("presence", r#"{"value": {"cursor":[1,2]} }"#),
        ),
        ("presence_longest", message("presence", &long(4096))),
        ("presence_too_long", message("presence", &long(4097))),
        ("cast", message("cast", r#"{"value":null}"#)),
        ("cast_too_long", message("cast", &long(16_385))),
        ("token", message("token", r#"{"token":"a.b.c"}"#)),
        ("token_empty", message("token", r#"{"token":""}"#)),
        ("unknown", message("join", "{}")),
        ("twice", twice.to_vec()),
        (
            "id_of_a_refused_text",
            br#"{"type":"ping","id":0,"x":1e400}"#.to_vec(),
        ),
        ("one_after_the_other", row.join(&0x1e)),
    ]
}

fn records() -> Seeds {
    // Two batches of two ops, with the same size (64..167 and 167..270), the first of them synced;
    // a batch of one op (298..363); and an empty batch that seals the segment.
    let batches = |last: u8| {
        let text = |text: &str| {
            [
                &[u8::try_from(text.len()).expect("a short text")],
                text.as_bytes(),
            ]
            .concat()
        };
        let op = |seq: u8, value: &str, times: u8| {
            let mut bytes = [text("w"), text("key"), text(value), vec![times]].concat();
            bytes.extend(
                [
                    u64::from(seq).to_le_bytes(),
                    1_700_000_000_000_000_u64.to_le_bytes(),
                ]
                .concat(),
            );
            bytes
        };
        [
            &[8 | 2][..],
            &op(1, "\"bar\"", 0),
            &op(2, "null", 0),
            &[2],
            &op(3, "\"€\"", 0),
            &op(4, "true", 0),
            &[last | 1],
            &op(5, "{}", 15),
            &[8],
        ]
        .concat()
    };
    // One batch of a delete, an expiring write, a floor, a generation and a write; and the same
    // again.
    let all_kinds = || {
        let op = |place: u8| {
            let seq = u64::from(place + 10);
            let extra = [0x11_u8; 8];
            let extra = if place == 4 { &[][..] } else { &extra };
            [
                &b"\x01w\x03key\x04true\x00"[..],
                &seq.to_le_bytes(),
                &seq.to_le_bytes(),
                extra,
            ]
            .concat()
        };
        let batch = [&[16 | 8 | 5][..], &(0..5).flat_map(op).collect::<Vec<u8>>()].concat();
        batch.repeat(2)
    };
    let seed_of_all_kinds = |name, kind: u8, numbers: [u32; 3]| {
        let numbers = numbers.map(u32::to_le_bytes).concat();
        (name, [&[kind][..], &numbers, &all_kinds()].concat())
    };
    let seed = |name, kind: u8, numbers: [u32; 3], last| {
        let numbers = numbers.map(u32::to_le_bytes).concat();
        (name, [&[kind][..], &numbers, &batches(last)].concat())
    };
    vec![
        seed_of_all_kinds("bit_of_all_kinds", 10, [130, 0, 0]),
        seed_of_all_kinds("cut_in_all_kinds", 1, [250, 0, 0]),
        seed_of_all_kinds("zeros_in_all_kinds", 2, [140, 100, 0]),
        seed_of_all_kinds("stale_all_kinds", 4, [64, 200, 0]),
        seed("bit_of_header", 0, [20, 0, 0], 8),
        seed("bit_of_batch", 5, [70, 0, 0], 8),
        seed("bit_of_record", 10, [100, 0, 0], 8),
        seed("bit_of_last_record", 35, [310, 0, 0], 0),
        seed("cut_in_record", 1, [150, 0, 0], 8),
        seed("cut_in_batch_header", 1, [180, 0, 0], 8),
        seed("cut_between_records", 1, [130, 0, 0], 8),
        seed("cut_in_header", 1, [40, 0, 0], 8),
        seed("zeros", 2, [200, 64, 0], 8),
        seed("zeros_of_many", 2, [90, 200, 0], 8),
        seed("copied_batch", 3, [64, 103, 167], 8),
        seed("copied_record", 3, [92, 38, 195], 8),
        seed("copied_across", 3, [92, 60, 180], 0),
        seed("stale_batch", 4, [167, 103, 0], 8),
        seed("stale_batches", 4, [0, 391, 0], 8),
    ]
}

/// A record of each kind that is not a plain write: its workspace, its key, its change and its seq.
fn other_kinds() -> [(&'static str, &'static str, Change<'static>, u64); 4] {
    let expiring = Change::Write {
        value: "true",
        expires_at_us: Some(1_700_000_000_000_000),
    };
    let floor = Change::Floor {
        dropped_seq: Seq::new(4),
    };
    let generation = Change::Generation {
        id: Generation::new(0x0123_4567_89AB_CDEF),
        shards: 2,
    };
    [
        (
            "w",
            "k",
            Change::Delete {
                deleted_at_us: 1_700_000_000_000_000,
            },
            4,
        ),
        ("w", "l", expiring, 5),
        ("w", "", floor, 5),
        ("", "3", generation, 1),
    ]
}

fn segments() -> Seeds {
    let header = segment_header();
    let ops = [
        ("w", "k", "1", 1),
        ("w", "€", "\"€\"", 2),
        ("workspace", "key", "{\"a\":[]}", 3),
    ];
    let segment = |durable_is_late: bool| {
        let mut bytes = header.encode().to_vec();
        let mut batch = Vec::new();
        let first = header.position(bytes.len() as u64);
        for count in [2, 0, 3] {
            begin_batch(&mut batch);
            for (workspace, key, value, seq) in &ops[..count] {
                let (seq, timestamp) = (*seq, 1_700_000_000_000_000 + *seq);
                push_op(
                    &mut batch,
                    &LoggedOp {
                        workspace,
                        key,
                        change: Change::write(value),
                        seq: Seq::new(seq),
                        timestamp,
                    },
                );
            }
            let position = header.position(bytes.len() as u64);
            let durable_position = if durable_is_late { position } else { first };
            seal_batch(&mut batch, header.salt(), position, durable_position);
            bytes.extend_from_slice(&batch);
        }
        begin_batch(&mut batch);
        for (workspace, key, change, seq) in other_kinds() {
            let timestamp = seq;
            push_op(
                &mut batch,
                &LoggedOp {
                    workspace,
                    key,
                    change,
                    seq: Seq::new(seq),
                    timestamp,
                },
            );
        }
        let position = header.position(bytes.len() as u64);
        seal_batch(&mut batch, header.salt(), position, first);
        bytes.extend_from_slice(&batch);
        bytes
    };
    let (whole, unsynced) = (segment(true), segment(false));
    let replaced = Compacted {
        replaced: 2,
        end_position: header.first_position.advance(1000),
    };
    let compacted = SegmentHeader {
        compacted: Some(replaced),
        ..header
    };
    let compacted = [&compacted.encode(), &whole[64..]].concat();
    let seed = |name, mode: u8, bytes: &[u8]| (name, [&[mode], bytes].concat());
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    vec![
        seed("whole", 0, &whole),
        seed("whole_behind_header", 1, &whole[64..]),
        seed("whole_mended", 7, &whole[64..]),
        seed("never_synced", 0, &unsynced),
        seed("damaged_record", 0, &changed(100)),
        seed("torn_record", 1, &unsynced[64..unsynced.len() - 5]),
        seed("in_small_parts", 8 | 1, &whole[64..]),
        seed("compacted", 2, &compacted),
        seed("bad_header", 0, &changed(9)),
        seed("bad_magic", 0, &changed(1)),
        seed("short", 0, &whole[..30]),
        seed("only_header", 1, b""),
        seed("wrong_place", 3, &whole[64 + 28..]),
        // The key's length exceeds the record; the kind is unknown; a text is not UTF-8.
        seed("content_overrun", 7, &changed(64 + 28 + 27)[64..]),
        seed("content_kind", 7, &changed(64 + 28 + 28)[64..]),
        seed(
            "content_text",
            7,
            &[&whole[64..64 + 28 + 29], b"\xff", &whole[64 + 28 + 30..]].concat(),
        ),
        seed("zeros", 7, &[0; 100]),
    ]
}
