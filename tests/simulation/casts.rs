//! Casts: who hears which, and who must not.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::Home;
use crate::world::World;

/// A cast that a client has sent. Its value names its place in the list of all casts.
#[derive(Debug)]
pub struct CastSent {
    sender: usize,
    /// The id of its message.
    id: u64,
    /// The number of clients that have received it.
    heard_count: usize,
    /// The clients that must receive it unless they fall behind, each with the number of times
    /// that it had been synced.
    owed: Vec<(usize, u64)>,
}

/// The casts that a client has received.
#[derive(Debug, Default)]
pub struct CastsHeard {
    /// The number of times that it was told that it is synced.
    pub synced: u64,
    /// It has received a part of a state since.
    pub is_behind: bool,
    /// The last cast of each sender.
    last: BTreeMap<usize, usize>,
    heard: BTreeSet<usize>,
}

impl World {
    /// Makes a client send casts.
    pub fn cast(&mut self, count: usize) {
        let Some(place) = self.any_peer(|_| true) else {
            return;
        };
        let hangs = self.presence.has_hanging_disk();
        if let Home::At(shard, _) = self.clients[place].home {
            let is_writing = self.seat(shard).operation.is_some();
            self.coverage.casts_while_hanging += u64::from(hangs && is_writing);
        }
        for _ in 0..count {
            let number = self.presence.casts.len();
            let bytes = self.presence.dice.pick(&[0, 10, 1000, 2500]);
            let value = format!(r#"{{"cast":{number},"text":"{}"}}"#, "c".repeat(bytes));
            let id = self.send_message(place, "cast", &value);
            let workspace = self.clients[place].workspace;
            let owed = self.live.iter().filter(|other| {
                let client = &self.clients[**other];
                let is_member = client.is_v2 && client.workspace == workspace && client.is_open();
                let casts = &client.peer.casts;
                **other != place && is_member && casts.synced > 0 && !casts.is_behind
            });
            let owed = owed.map(|place| (*place, self.clients[*place].peer.casts.synced));
            let owed: Vec<(usize, u64)> = owed.collect();
            self.presence.casts.push(CastSent {
                sender: place,
                id,
                heard_count: 0,
                owed,
            });
        }
    }

    /// Makes a client receive a cast.
    pub fn hear_cast(&mut self, place: usize, from: (u64, &Option<String>), value: &str) {
        if self.clients[place].is_cut_off() {
            // Of what it was sent before the failure, it has not read everything.
            return;
        }
        let value: serde_json::Value = serde_json::from_str(value).expect("a value is JSON");
        let number = value["cast"].as_u64().expect("a number");
        let number = usize::try_from(number).expect("the number is small");
        let cast = &mut self.presence.casts[number];
        let (sender, receiver) = (&self.clients[cast.sender], &self.clients[place]);
        assert_ne!(cast.sender, place, "client {place} hears its own cast");
        assert_eq!(sender.workspace, receiver.workspace, "of client {place}");
        assert_eq!(
            (Some(from.0), from.1.as_deref()),
            (sender.peer.connection, sender.peer.user),
            "the sender of a cast to client {place}"
        );
        cast.heard_count += 1;
        self.coverage.casts_heard += 1;
        let (sender, casts) = (cast.sender, &mut self.clients[place].peer.casts);
        assert!(
            casts.synced > 0 && !casts.is_behind,
            "client {place} is behind, and hears a cast"
        );
        let before = casts.last.insert(sender, number);
        assert!(
            before < Some(number),
            "client {place} hears cast {number} of client {sender} after {before:?}"
        );
        casts.heard.insert(number);
    }

    /// Checks that the clients that have not fallen behind have received all casts, once
    /// everything has settled. While the log is slow, those that are too many are dropped, so in a
    /// run with small windows each may be heard by nobody.
    pub fn check_casts(&mut self) {
        let may_drop = self.plan.outbox_bytes_max < 1 << 20 || self.plan.value_bytes > 100_000;
        let mut casts = std::mem::take(&mut self.presence.casts);
        for (number, cast) in casts.iter_mut().enumerate() {
            let sender = &self.clients[cast.sender];
            // Nobody knows what became of the last messages of a connection that is gone.
            let is_refused = sender.peer.has_refused(cast.id);
            assert!(
                !is_refused || cast.heard_count == 0,
                "cast {number} was refused"
            );
            let is_handled = sender.peer.is_accepted(cast.id);
            let is_broadcast = cast.heard_count > 0 || is_handled && !may_drop;
            for (place, synced) in std::mem::take(&mut cast.owed) {
                let client = &self.clients[place];
                let heard = &client.peer.casts;
                if !is_broadcast
                    || !client.is_reached()
                    || heard.synced != synced
                    || heard.is_behind
                {
                    continue;
                }
                assert!(
                    heard.heard.contains(&number),
                    "client {place} has missed cast {number}"
                );
                self.coverage.casts_compared += 1;
            }
        }
        self.presence.casts = casts;
    }
}
