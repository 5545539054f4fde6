//! Version 2 clients alongside version 1 clients: ops with ids, `saved`, resends and corrections.

use std::io::Write;

use etherply::core::testing::START_UNIX_S;
use etherply::limits::SECOND_US;

use super::driver::{Driver, head, put_frame};
use super::{DURABILITIES, PERIOD, allocations};

const KEYS: u64 = 12;
const MEMBERS: usize = 6;
/// The first members, which write.
const WRITERS: usize = 3;

/// Returns the request of a version 2 client.
fn head_v2(workspace: &str) -> String {
    let upgrade = "Upgrade: websocket\r\n";
    let offer = format!("{upgrade}Sec-WebSocket-Protocol: etherply.v2\r\n");
    head(workspace).replacen(upgrade, &offer, 1)
}

struct Run {
    driver: Driver,
    /// The id of the last message of every writer.
    id: u64,
    text: Vec<u8>,
}

impl Run {
    fn rounds(&mut self, count: u64) {
        for _ in 0..count {
            self.round();
        }
    }

    /// Each writer sends three ops that win, one that was already sent, and one that loses.
    fn round(&mut self) {
        let first_id = self.id;
        for writer in 0..WRITERS {
            self.id = first_id;
            self.text.clear();
            for op in 0..5 {
                self.id += 1;
                let number = self.id.min(first_id + 3) - u64::from(op == 4);
                let timestamp = match op {
                    4 => (START_UNIX_S - 1) * SECOND_US,
                    _ => START_UNIX_S * SECOND_US + number,
                };
                let (id, key) = (self.id, writer as u64 * KEYS + number % KEYS);
                put_frame(&mut self.text, 1, |out| {
                    write!(
                        out,
                        r#"{{"type":"op","id":{id},"payload":{{"key":"{key}","value":{timestamp},"timestamp":{timestamp}}}}}"#,
                    )
                    .expect("a Vec takes every write");
                });
            }
            let text = &self.text;
            self.driver.send(writer, |out| out.extend_from_slice(text));
        }
        for reader in WRITERS..self.driver.members.len() {
            self.driver.send(reader, |out| put_frame(out, 10, |_| ()));
        }
        self.driver.pass(20_000);
        self.driver.settle();
    }
}

#[test]
fn version_2_clients_alongside_version_1_clients() {
    for durability in DURABILITIES {
        let mut driver = Driver::new(durability, |_| ());
        for _ in 0..MEMBERS {
            // `welcome` and `synced`.
            driver.join_with(head_v2("w"), 2);
        }
        driver.join("w");
        let mut run = Run {
            driver,
            id: 0,
            text: Vec::with_capacity(1 << 16),
        };
        run.rounds(6 * PERIOD);
        let before = run.driver.shard.counters().clone();
        let frames = run.driver.members[MEMBERS - 1].counter.frames;
        let count = allocations(|| run.rounds(PERIOD));
        assert_eq!(count, 0, "{durability:?}: allocations in {PERIOD} rounds");
        let counters = run.driver.shard.counters();
        let winners = 3 * WRITERS as u64 * PERIOD;
        assert_eq!(counters.ops - before.ops, winners);
        assert_eq!(counters.ops_duplicate - before.ops_duplicate, winners / 3);
        assert_eq!(counters.ops_lost - before.ops_lost, winners / 3);
        assert!(counters.saved - before.saved >= WRITERS as u64 * PERIOD);
        let received = run.driver.members[MEMBERS - 1].counter.frames - frames;
        assert!(received >= winners, "{durability:?}: {received} frames");
    }
}
