//! Sequences of single turns that were once handled incorrectly.

use super::rig::{Rig, frame, head, op};
use crate::core::fanout::window::spans_bytes;
use crate::core::shard::contract::Output;
use crate::log::commit::{Durability, LogStep};

const MS_US: u64 = 1000;

/// Returns a rig for tests that run single turns and end log operations themselves.
fn rig(durability: Durability) -> Rig {
    Rig::new(|config| {
        config.durability = durability;
        config.outbox_bytes_max = 1 << 20;
        config.ping_interval_us = 25_000 * MS_US;
    })
}

fn pass(rig: &mut Rig, us: u64) {
    rig.clock.now_us += us;
    rig.clock.unix_us += us;
}

fn is_sent_to(rig: &Rig, place: usize) -> bool {
    rig.peers[place].client.sending.is_some()
}

fn is_read(rig: &Rig, place: usize) -> bool {
    rig.peers[place].client.receiving
}

#[test]
fn a_join_in_the_same_turn_as_an_op_does_not_hide_it_from_others() {
    for durability in [Durability::Always, Durability::Interval] {
        let mut rig = rig(durability);
        let (writer, reader) = (rig.join("w", None), rig.join("w", None));
        let joiner = rig.accept(false);
        pass(&mut rig, MS_US);
        rig.receive_only(writer, &op("k", "10", 10));
        if durability == Durability::Always {
            rig.turn();
            assert!(rig.end_log(), "the write completes");
            rig.turn();
            assert!(rig.end_log(), "the fdatasync completes");
        }
        rig.receive_only(joiner, head("w", None).as_bytes());
        assert!(!is_sent_to(&rig, reader));
        rig.turn();
        assert!(is_sent_to(&rig, reader), "{durability:?}");
    }
}

#[test]
fn a_disk_slower_than_the_batch_age_leaves_turns_for_sends() {
    let mut rig = rig(Durability::Always);
    let (writer, reader) = (rig.join("w", None), rig.join("w", None));
    let (mut sync_ends_us, mut sends_count) = (None, 0);
    for number in 0..500 {
        pass(&mut rig, MS_US);
        rig.receive_only(writer, &op("k", "1", 10 + number));
        // A write ends in the next turn, and a sync ends 5 ms after it begins.
        if sync_ends_us.is_none_or(|end_us| end_us <= rig.clock.now_us) && rig.end_log() {
            sync_ends_us = None;
        }
        rig.turn();
        if sync_ends_us.is_none() && matches!(rig.log, Some(Output::Log(LogStep::Sync))) {
            sync_ends_us = Some(rig.clock.now_us + 5 * MS_US);
        }
        sends_count += usize::from(is_sent_to(&rig, reader));
        rig.end_send(reader);
        rig.end_send(writer);
    }
    assert!(sends_count > 50, "{sends_count} sends for 500 ops");
}

#[test]
fn short_answers_to_a_client_that_reads_nothing_are_bounded() {
    let mut rig = rig(Durability::Always);
    let id = rig.join("w", None);
    rig.peers[id].reads = false;
    rig.receive_only(id, &frame(9, b"").repeat(2000));
    rig.turn();
    assert!(is_sent_to(&rig, id), "no pongs are in flight");
    for _ in 0..50 {
        rig.turn();
    }
    assert!(
        !is_read(&rig, id),
        "2000 pongs did not exceed the bound of a session"
    );

    // Once it reads, all of its pings are answered.
    rig.peers[id].reads = true;
    let mut bytes = 0;
    for _ in 0..100 {
        let sending = rig.peers[id].client.sending.as_ref();
        bytes += sending.map_or(0, |spans| spans_bytes(spans));
        rig.end_send(id);
        rig.turn();
    }
    assert_eq!((bytes, is_read(&rig, id)), (2 * 2000, true));
}

/// P70.
#[test]
fn reading_slowly_is_a_sign_of_life() {
    let mut rig = rig(Durability::Always);
    let id = rig.accept(false);
    rig.receive_only(id, head("w", None).as_bytes());
    rig.turn();
    for second in 0..120 {
        let spans = rig.peers[id].client.sending.take();
        let spans = spans.unwrap_or_else(|| panic!("a send after {second} bytes"));
        pass(&mut rig, 5000 * MS_US);
        rig.end_send_with(id, spans, Some(1));
        rig.turn();
    }
}
