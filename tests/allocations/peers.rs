//! Presence: values arrive, a message goes out at each interval, and nothing is allocated.

use etherply::core::fanout::outbox::OutboxPool;
use etherply::core::fanout::peers::{NewPeer, Peers, PresenceSettings};
use etherply::wire::message::v2::PresenceFrame;

use super::allocations;

const PEERS: u64 = 200;
const MOVING: u64 = 20;
/// The number of updates of each moving peer in an interval.
const UPDATES: usize = 3;
/// A slow peer is sent a message in one of this many intervals.
const SLOW_INTERVALS: u64 = 5;

/// P163, P164.
#[test]
fn presence_allocates_nothing_in_the_steady_state() {
    let mut peers = Peers::new(PresenceSettings {
        interval_us: 50_000,
        bytes_max: 1 << 20,
        shard_bytes_max: 1 << 20,
    });
    let (mut frame, mut pool) = (PresenceFrame::new(), OutboxPool::default());
    for connection in 0..PEERS {
        let new = NewPeer {
            connection,
            slot: u32::try_from(connection).expect("few peers"),
            user: Some(format!("user \"{connection}\"").into()),
            replaces: None,
        };
        peers.join(new, 0);
    }
    let values: Vec<String> = (0..7)
        .map(|length| {
            format!(
                r#"{{"x":{}.5,"name":"{}"}}"#,
                10_u64.pow(length),
                "é".repeat(20)
            )
        })
        .collect();
    let mut values = values.iter().cycle();
    let mut latest_count = 0;
    let mut interval = |number: u64| {
        for _ in 0..UPDATES {
            for connection in 0..MOVING {
                let value = values.next().expect("a cycle has no end");
                let shard_bytes = peers.value_bytes();
                peers
                    .set(connection, value, shard_bytes, 0)
                    .expect("it fits");
            }
        }
        peers
            .announce(&mut frame, &mut pool)
            .expect("it has changed");
        for connection in 0..PEERS {
            let is_slow = connection % 10 == 9;
            if is_slow && !(number + connection).is_multiple_of(SLOW_INTERVALS) {
                continue;
            }
            let message = peers.take_message(connection, &mut frame, &mut pool);
            latest_count += u64::from(!is_slow);
            pool.give(message.expect("it is owed one").chunk);
        }
    };
    // All lengths and all slow peers occur.
    (0..10 * SLOW_INTERVALS).for_each(&mut interval);
    let count = allocations(|| (0..10 * SLOW_INTERVALS).for_each(&mut interval));
    assert_eq!(count, 0);
    assert_eq!(latest_count, 20 * SLOW_INTERVALS * 180);
}
