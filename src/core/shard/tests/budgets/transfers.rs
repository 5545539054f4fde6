//! Sending encoded states while the budget for them is exhausted: which clients are closed, and
//! which can join.

use crate::core::shard::session::State;
use crate::core::shard::tests::rig::{Rig, head, look};
use crate::limits::{SNAPSHOT_PATIENCE_US, SNAPSHOT_SMALL_BYTES};

fn is_open(rig: &mut Rig, place: usize) -> bool {
    !rig.peers[place].client.closed && matches!(rig.session(place).state(), State::Open { .. })
}

/// Returns a rig with `count` rooms `r0`, `r1`, …, each with a state of about 100 KB, and a budget
/// for `budget` of those states.
fn rooms(count: usize, budget: f64) -> Rig {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small"
    )]
    let bytes = (budget * 100_100.0) as usize;
    let mut rig = Rig::new(|config| config.snapshot_bytes_max = bytes);
    let value = format!("\"{}\"", "x".repeat(50_000));
    for room in 0..count {
        let writer = rig.join(&format!("r{room}"), None);
        for (key, timestamp) in [("k", 1), ("l", 2)] {
            rig.op(writer, key, &value, timestamp);
        }
    }
    rig
}

fn ask(rig: &mut Rig, request: &str) -> usize {
    let place = rig.accept(false);
    rig.peers[place].reads = false;
    rig.receive(place, request.as_bytes());
    place
}

/// Joins a room, reads everything, and returns the first event.
fn answer(rig: &mut Rig, room: usize) -> String {
    let place = rig.join(&format!("r{room}"), None);
    rig.seen(place)[0].clone()
}

#[test]
fn unread_states_make_room_for_others() {
    // The clients read nothing, or a little at a time.
    for (taken, answers_s) in [(0, [0.0, 1.9, 2.1]), (50, [0.0, 1.9, 2.1])] {
        let mut rig = rooms(4, 3.5);
        let joined = ask(&mut rig, &head("r0", None));
        let http_reader = ask(&mut rig, &look("/v1/workspaces/r1"));
        let other = ask(&mut rig, &head("r2", None));
        let mut statuses = Vec::new();
        for at_s in answers_s {
            rig.sleep_until(at_s);
            if taken > 0 {
                for place in [joined, http_reader, other] {
                    if let Some(spans) = rig.peers[place].client.sending.take() {
                        rig.end_send_with(place, spans, Some(taken));
                    }
                }
            }
            statuses.push(answer(&mut rig, 3));
        }
        assert_eq!(statuses, ["503", "503", "101"], "{taken}");
        let counters = rig.shard.counters();
        assert_eq!(
            (counters.given_up_states, counters.refused_snapshot_bytes),
            (1, 2)
        );
        // Only as many clients are closed as necessary, and they are closed immediately.
        let gone = [joined, http_reader, other].map(|place| rig.peers[place].client.closed);
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 1, "{gone:?}");
        rig.shard.invariants();
        assert!(
            counters.snapshot_bytes <= 350_350,
            "{}",
            counters.snapshot_bytes
        );
    }
}

#[test]
fn a_state_that_one_client_reads_fast_enough_is_kept() {
    let mut rig = rooms(3, 2.5);
    let slow = ask(&mut rig, &head("r0", None));
    let (fast, stale) = (
        ask(&mut rig, &head("r0", None)),
        ask(&mut rig, &head("r1", None)),
    );
    // The fast client reads just over a sixtieth of its state per second.
    for step in 1..=10_u8 {
        rig.sleep_until(f64::from(step) / 2.0);
        let spans = rig.peers[fast].client.sending.take().unwrap();
        rig.end_send_with(fast, spans, Some(900));
        rig.run();
    }
    assert_eq!(answer(&mut rig, 2), "101");
    assert!(
        rig.peers[stale].client.closed,
        "the stale transfer is still open"
    );
    assert!(is_open(&mut rig, slow) && is_open(&mut rig, fast));
    for place in [slow, fast] {
        rig.peers[place].reads = true;
    }
    rig.run();
    assert_eq!(rig.seen(fast), ["101", "init 2"]);
    assert_eq!(rig.seen(slow), ["101", "init 2"]);
}

#[test]
fn an_evicted_state_is_sent_to_no_other_client() {
    let mut rig = rooms(2, 1.5);
    let stale = ask(&mut rig, &head("r0", None));
    let stale_id = rig.peers[stale].client.id;
    rig.clock.now_us += SNAPSHOT_PATIENCE_US;
    // Its send has not ended when another client requests the same state.
    let other = rig.accept(false);
    rig.receive_only(other, head("r1", None).as_bytes());
    assert!(rig.shard.sessions[stale_id].is_aborted());
    let again = rig.accept_only();
    rig.receive_only(again, head("r0", None).as_bytes());
    rig.run();
    assert_eq!(rig.seen(other), ["101", "init 2"]);
    assert_eq!(rig.seen(again), ["503", "gone"]);
    let late = rig.join("r0", None);
    assert_eq!(rig.seen(late), ["101", "init 2"]);
    assert_eq!(rig.shard.counters().snapshot_bytes, 0);
}

#[test]
fn nothing_is_evicted_unnecessarily() {
    // One client is slow, two are not, and there is no room for the states of all three.
    let mut rig = rooms(3, 2.9);
    let slow = ask(&mut rig, &head("r0", None));
    rig.sleep_until(3.0);
    let fresh = ask(&mut rig, &head("r1", None));
    let client = ask(&mut rig, &look("/v1/workspaces/r2"));
    rig.peers[client].reads = true;
    rig.run();
    assert_eq!(
        rig.seen(client),
        ["200", "gone"],
        "more than one transfer was evicted"
    );
    assert!(rig.peers[slow].client.closed && is_open(&mut rig, fresh));
    let again = ask(&mut rig, &head("r0", None));
    let refused = ask(&mut rig, &head("r2", None));
    rig.peers[refused].reads = true;
    rig.run();
    assert_eq!(rig.seen(refused)[0], "503");
    assert!(is_open(&mut rig, fresh) && is_open(&mut rig, again));
}

#[test]
fn large_states_leave_a_reserve_for_small_ones() {
    let large_bytes = SNAPSHOT_SMALL_BYTES + 100_000;
    // This is room for two and a half large states, but the reserve is not available to them.
    let budget = large_bytes * 5 / 2;
    let mut rig = Rig::new(|config| {
        config.snapshot_bytes_max = budget;
        config.message_bytes_max = 8 << 20;
    });
    let value = format!("\"{}\"", "x".repeat(large_bytes));
    for (room, value) in [("a", &value), ("b", &value), ("c", &value)] {
        let writer = rig.join(room, None);
        let text =
            format!(r#"{{"type":"op","payload":{{"key":"k","value":{value},"timestamp":1}}}}"#);
        let mut bytes = vec![0x81, 0xFF];
        bytes.extend((text.len() as u64).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(text.as_bytes());
        for part in bytes.chunks(16 * 1024) {
            rig.receive(writer, part);
        }
    }
    let writer = rig.join("small", None);
    rig.op(writer, "k", "1", 1);
    for room in ["a", "b"] {
        ask(&mut rig, &head(room, None));
    }
    let third = ask(&mut rig, &head("c", None));
    rig.peers[third].reads = true;
    rig.run();
    assert_eq!(rig.seen(third)[0], "503");
    let small = rig.join("small", None);
    assert_eq!(rig.seen(small), ["101", "init 1"]);
}
