//! Frames that are not messages. They are bounded for every client, and also by the rate limit if
//! there is one.

use super::rig::{Rig, frame, op, pong};
use crate::core::shard::contract::Limits;
use crate::limits::{
    EMPTY_FRAMES_MAX, FRAMES_BURST_MIN, FRAMES_PER_MESSAGE, MESSAGES_PER_TURN_MAX, RATE_BURST_S,
    SECOND_US,
};

/// Returns a frame of a fragmented message, without FIN.
fn fragment(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(opcode, payload);
    bytes[0] &= 0x7F;
    bytes
}

fn rig(ops_per_second: Option<u32>) -> Rig {
    Rig::new(|config| {
        config.ping_interval_us = 1000 * SECOND_US;
        config.limits = Limits {
            ops_per_second,
            ..Limits::default()
        };
    })
}

/// Sends a frame `per_second` times per second until the client is closed, at most `count` times.
/// Returns the number of frames sent, or `None` if the client was not closed.
fn flood(rig: &mut Rig, client: usize, bytes: &[u8], per_second: u64, count: u64) -> Option<u64> {
    const AT_ONCE: u64 = 64;
    let flood = bytes.repeat(usize::try_from(AT_ONCE).unwrap());
    for sent in (0..count).step_by(usize::try_from(AT_ONCE).unwrap()) {
        rig.receive(client, &flood);
        if rig.seen(client).contains(&"close 1008".to_owned()) {
            return Some(sent + AT_ONCE);
        }
        rig.clock.now_us += AT_ONCE * SECOND_US / per_second;
    }
    None
}

/// P75.
#[test]
fn an_endless_run_of_empty_frames_is_stopped() {
    // Each flood runs with and without a rate limit.
    for ops_per_second in [Some(10), None] {
        for (begins, bytes) in [
            (Some(fragment(1, b"")), fragment(0, b"")),
            (Some(fragment(2, b"")), fragment(0, b"")),
            (None, pong()),
            (None, frame(10, b"I am here")),
        ] {
            let mut rig = rig(ops_per_second);
            let (client, other) = (rig.join("w", None), rig.join("w", None));
            rig.seen(client);
            if let Some(begins) = begins {
                rig.receive(client, &begins);
            }
            let sent = flood(&mut rig, client, &bytes, 1_000_000, 1_000_000);
            let sent = sent.expect("the flood is stopped");
            let bound = match ops_per_second {
                None => u64::from(EMPTY_FRAMES_MAX),
                Some(count) => u64::from(count * FRAMES_PER_MESSAGE) * RATE_BURST_S,
            };
            assert!((bound..=bound + 200).contains(&sent), "{bytes:?}: {sent}");
            // Other clients are not affected.
            let writer = rig.join("w", None);
            rig.seen(other);
            rig.op(writer, "k", "1", 1);
            assert_eq!(rig.seen(other), ["k=1@1"]);
        }
    }
}

#[test]
fn heartbeats_and_messages_in_small_pieces_are_allowed() {
    for ops_per_second in [Some(10), None] {
        let mut rig = rig(ops_per_second);
        let client = rig.join("w", None);
        rig.seen(client);
        // Twenty pongs per second for ten minutes.
        assert_eq!(flood(&mut rig, client, &pong(), 20, 12_000), None);
        // A message in almost a thousand fragments of one byte each.
        let text = format!(
            r#"{{"type":"op","payload":{{"key":"k","value":"{}","timestamp":1}}}}"#,
            "x".repeat(900)
        );
        rig.receive(client, &fragment(1, b""));
        for byte in text.as_bytes() {
            rig.receive(client, &fragment(0, &[*byte]));
        }
        rig.receive(client, &frame(0, b""));
        assert_eq!(rig.seen(client), Vec::<String>::new());
        assert_eq!(rig.shard.counters().ops, 1);
    }
}

/// P75.
#[test]
fn repeated_messages_in_tiny_pieces_exceed_the_rate() {
    let message = || {
        let begin = fragment(1, b"");
        begin.into_iter().chain(fragment(0, b"x").repeat(500))
    };
    let mut with = rig(Some(1));
    let client = with.join("w", None);
    with.seen(client);
    let mut sent = 0;
    loop {
        let bytes: Vec<u8> = message().chain(frame(0, b"")).collect();
        with.receive(client, &bytes);
        sent += 502;
        if with.seen(client).contains(&"close 1008".to_owned()) {
            break;
        }
        assert!(sent < 100_000, "the flood is stopped");
    }
    assert!(
        (FRAMES_BURST_MIN..2 * FRAMES_BURST_MIN).contains(&sent),
        "{sent}"
    );
}

/// P75.
#[test]
fn a_pong_that_answers_a_ping_is_free() {
    let mut rig = Rig::new(|config| {
        config.ping_interval_us = SECOND_US;
        config.limits.ops_per_second = Some(1);
    });
    let client = rig.join("w", None);
    // The number of pongs allowed at once. One more closes the client.
    let heartbeats = usize::try_from(FRAMES_BURST_MIN).unwrap();
    for pings in 1..=3_u8 {
        rig.sleep_until(f64::from(pings) * 1.1);
        assert!(rig.session(client).owes_pong);
        rig.receive(client, &pong());
        assert!(!rig.session(client).owes_pong);
    }
    assert!(!rig.seen(client).contains(&"close 1008".to_owned()));
    rig.receive(client, &pong().repeat(heartbeats));
    assert_eq!(rig.seen(client), Vec::<String>::new());
    rig.receive(client, &pong());
    assert_eq!(rig.seen(client), ["close 1008", "gone"]);
}

#[test]
fn a_flood_does_not_starve_other_clients() {
    let mut rig = rig(None);
    let (flooder, writer) = (rig.join("w", None), rig.join("w", None));
    rig.seen(flooder);
    rig.receive_only(flooder, &pong().repeat(10 * MESSAGES_PER_TURN_MAX));
    for turn in 1..10_u64 {
        // One op is applied in each turn, no matter how much of the flood is still unread.
        rig.receive_only(writer, &op("k", "1", turn));
        rig.step();
        assert_eq!(rig.shard.counters().ops, turn);
        let left = rig.session(flooder).unparsed.len() / pong().len();
        assert_eq!(
            left,
            (10 - usize::try_from(turn).unwrap() - 1) * MESSAGES_PER_TURN_MAX
        );
    }
}
