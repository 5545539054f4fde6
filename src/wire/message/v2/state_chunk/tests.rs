//! State chunks: golden frames, and random chunks compared with `serde_json`.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::limits::CHUNK_BYTES_MIN;
use crate::wire::message::v2::testing::payload;

/// P132.
#[test]
fn golden_chunks() {
    let mut chunk = StateChunk::new();
    for (entries, deleted, expected) in [
        (
            &[][..],
            &[][..],
            r#"{"type":"state","payload":{"entries":[],"deleted":[]},"seq":9}"#,
        ),
        (
            &[("a\"", "1.0", 7), ("b", r#"{ "c":[]}"#, 0)],
            &[],
            concat!(
                r#"{"type":"state","payload":{"entries":[["a\"",1.0,7],["b",{ "c":[]},0]],"#,
                r#""deleted":[]},"seq":9}"#,
            ),
        ),
        (
            &[],
            &[("x", 5)],
            r#"{"type":"state","payload":{"entries":[],"deleted":[["x",5]]},"seq":9}"#,
        ),
        (
            &[("a", "\",\"", 1)],
            &[("x", 5), ("y,", 6)],
            concat!(
                r#"{"type":"state","payload":{"entries":[["a",",",1]],"#,
                r#""deleted":[["x",5],["y,",6]]},"seq":9}"#,
            ),
        ),
    ] {
        for (key, value, timestamp) in entries {
            chunk.push_entry(key, value, *timestamp);
        }
        for (key, timestamp) in deleted {
            chunk.push_deleted(key, *timestamp);
        }
        assert_eq!(chunk.is_empty(), entries.is_empty() && deleted.is_empty());
        let mut out = Vec::new();
        chunk.finish(&mut out, Seq::new(9));
        assert_eq!(payload(&out), expected);
        assert!(chunk.is_empty());
    }
}

#[test]
fn a_long_entry_leaves_no_memory_behind() {
    let mut chunk = StateChunk::new();
    let long = format!("\"{}\"", "x".repeat(4 * BYTES_KEPT_MAX));
    chunk.push_entry("k", &long, 1);
    let mut out = Vec::new();
    chunk.finish(&mut out, Seq::new(1));
    assert!(chunk.entries.capacity() <= BYTES_KEPT_MAX);

    // Chunks of the usual size reuse their memory.
    chunk.push_entry("k", &"1".repeat(CHUNK_BYTES_MIN), 1);
    let capacity = chunk.entries.capacity();
    chunk.finish(&mut out, Seq::new(1));
    assert_eq!(chunk.entries.capacity(), capacity);
}

proptest! {
    /// P132, P133.
    #[test]
    fn any_chunk_has_the_pushed_content_and_the_announced_length(
        pushed in prop::collection::vec((".{1,8}", any::<Option<i32>>(), any::<u64>()), 0..400),
        seq: u64,
    ) {
        let mut chunk = StateChunk::new();
        let (mut entries, mut deleted) = (Vec::new(), Vec::new());
        for (key, value, timestamp) in &pushed {
            let before = chunk.entries.len() + chunk.deleted.len();
            let bytes = if let Some(value) = value {
                let value = value.to_string();
                chunk.push_entry(key, &value, *timestamp);
                entries.push(json!([key, value.parse::<i32>().unwrap(), timestamp]));
                StateChunk::entry_bytes(key, &value, *timestamp)
            } else {
                chunk.push_deleted(key, *timestamp);
                deleted.push(json!([key, timestamp]));
                StateChunk::deleted_bytes(key, *timestamp)
            };
            prop_assert_eq!(chunk.entries.len() + chunk.deleted.len() - before, bytes);
        }
        let expected = json!({
            "type": "state", "payload": {"entries": entries, "deleted": deleted}, "seq": seq,
        });
        let frame_bytes = chunk.frame_bytes(Seq::new(seq));
        let mut out = Vec::new();
        chunk.finish(&mut out, Seq::new(seq));
        prop_assert_eq!(out.len(), frame_bytes);
        prop_assert_eq!(serde_json::from_str::<Value>(payload(&out)).unwrap(), expected);
    }
}
