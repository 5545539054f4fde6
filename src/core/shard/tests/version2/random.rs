//! Random interleavings of writes, deletes, joins, resumes and slow reads: a client that applies
//! the merge rule ends up with the state of the workspace.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Replica, ShownChange, T, entries, generation, join, messages, op, request, told};
use crate::core::fanout::room::RoomId;
use crate::core::shard::tests::rig::Rig;
use crate::core::testing;

/// The keys that clients change. With their long values, they fill several parts of a state.
const KEYS: u64 = 9;
/// The length of a long value.
const VALUE_BYTES: usize = 12_000;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A client joins without a resume point, or resumes where it left off.
    Join { client: usize, resumes: bool },
    /// A client writes a key, or deletes it.
    Change {
        client: usize,
        key: u64,
        is_delete: bool,
        is_long: bool,
        stamp: u64,
    },
    /// A client's socket accepts one send.
    Read { client: usize },
    /// The log operation in flight ends.
    Commit,
}

const CLIENTS: usize = 3;
/// The id of an op that has not been sent on the current connection yet.
const UNSENT: u64 = u64::MAX;

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    prop_oneof![
        2 => (client.clone(), any::<bool>())
            .prop_map(|(client, resumes)| Step::Join { client, resumes }),
        6 => (client.clone(), 0..KEYS, any::<[bool; 2]>(), 0..3_u64).prop_map(
            |(client, key, [is_delete, is_long], stamp)| Step::Change {
                client, key, is_delete, is_long, stamp,
            }
        ),
        6 => client.prop_map(|client| Step::Read { client }),
        3 => Just(Step::Commit),
    ]
}

/// A client with its copy of the state.
#[derive(Default)]
struct Member {
    place: Option<usize>,
    replica: Replica,
    /// The number of ops that had won when its connection joined without a resume point; 0 if it
    /// resumed.
    joined_at: usize,
    last_id: u64,
    /// The ops that no `saved` has covered yet, with their ids.
    unsettled: Vec<(u64, ShownChange)>,
}

struct World {
    rig: Rig,
    members: Vec<Member>,
    /// The naive model: the ops that won, in order. The n-th has the seq n + 1.
    wins: Vec<ShownChange>,
    stamp: u64,
}

impl World {
    fn new() -> Self {
        let mut rig = Rig::new(|config| config.outbox_bytes_max = 40_000);
        let generation = generation(&mut rig);
        let writer = join(&mut rig, "w", "");
        let mut world = Self {
            rig,
            members: (0..CLIENTS).map(|_| Member::default()).collect(),
            wins: Vec::new(),
            stamp: 10,
        };
        world.members[0].place = Some(writer);
        world.members[0].replica.generation = generation;
        world.read(0);
        world.rig.log_hangs = true;
        world
    }

    fn winner(&self, key: &str) -> Option<&ShownChange> {
        self.wins.iter().rev().find(|win| win.key == key)
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Join { client, resumes } => self.join(client, resumes),
            Step::Change {
                client,
                key,
                is_delete,
                is_long,
                stamp,
            } => {
                self.stamp += stamp;
                let value = if is_long {
                    "x".repeat(VALUE_BYTES)
                } else {
                    String::new()
                };
                let value = format!("\"{value}{}\"", self.stamp);
                let change = ShownChange {
                    key: format!("k{key}"),
                    value: (!is_delete).then_some(value),
                    timestamp: T + self.stamp,
                };
                self.change(client, change);
            }
            Step::Read { client } => {
                if let Some(place) = self.members[client].place {
                    self.rig.read_once(place);
                    self.read(client);
                }
            }
            Step::Commit => {
                self.rig.end_log_with(false, |left| left);
                self.rig.run();
            }
        }
    }

    fn join(&mut self, client: usize, resumes: bool) {
        let member = &mut self.members[client];
        if let Some(place) = member.place {
            self.rig.peers[place].client.broken = true;
            self.rig.run();
            // Bytes in transit are lost.
            let _ = told(&mut self.rig, place);
        }
        let resumes = resumes && !member.replica.generation.is_empty();
        member.joined_at = 0;
        let query = if resumes {
            super::since(member.replica.seq, &member.replica.generation)
        } else {
            // A client that does not resume has forgotten everything.
            member.replica = Replica::default();
            member.unsettled.clear();
            member.joined_at = self.wins.len();
            String::new()
        };
        let place = self.rig.accept(false);
        self.rig.peers[place].reads = false;
        self.rig.receive(
            place,
            request("w", &testing::token(None), &query).as_bytes(),
        );
        member.place = Some(place);
        member.last_id = 0;
        // P155: unsettled ops are sent again.
        for (id, _) in &mut member.unsettled {
            *id = UNSENT;
        }
        self.send_unsent(client);
    }

    /// Sends the ops that have not been sent on this connection yet, while the server reads from
    /// it. It does not read from a client that has not read its state yet.
    fn send_unsent(&mut self, client: usize) {
        let Some(place) = self.members[client].place else {
            return;
        };
        while self.rig.peers[place].client.receiving
            && let unsettled = &mut self.members[client].unsettled
            && let Some(next) = unsettled.iter().position(|(id, _)| *id == UNSENT)
        {
            let (_, change) = unsettled.remove(next);
            self.send(client, change);
        }
    }

    fn change(&mut self, client: usize, change: ShownChange) {
        let member = &mut self.members[client];
        if member
            .place
            .is_some_and(|place| self.rig.peers[place].client.receiving)
        {
            // The client applies its own op immediately.
            member.replica.merge(change.clone());
            self.send(client, change);
        }
    }

    fn send(&mut self, client: usize, change: ShownChange) {
        let member = &mut self.members[client];
        member.last_id += 1;
        member.unsettled.push((member.last_id, change.clone()));
        let content = match &change.value {
            Some(value) => format!(r#""value":{value}"#),
            None => r#""deleted":true"#.to_owned(),
        };
        let payload = format!(
            r#""key":"{}",{content},"timestamp":{}"#,
            change.key, change.timestamp
        );
        let place = member.place.expect("it is connected");
        self.rig.receive(place, &op(member.last_id, &payload));
        let held = self.winner(&change.key);
        if held.is_none_or(|held| held.timestamp < change.timestamp) {
            self.wins.push(change);
        }
    }

    /// Applies the messages that a client received, and checks them against the model.
    fn read(&mut self, client: usize) {
        let Some(place) = self.members[client].place else {
            return;
        };
        for message in messages(&mut self.rig, place) {
            let member = &mut self.members[client];
            member.replica.read(&message);
            if message["type"] == "welcome" {
                // The client's own edits are kept (P136).
                for (_, change) in &member.unsettled {
                    member.replica.merge(change.clone());
                }
            }
            let payload = &message["payload"];
            if message["type"] == "state" {
                for change in entries(payload) {
                    self.check_listed(client, &change);
                }
            }
            let member = &self.members[client];
            if message["seq"].is_u64() {
                self.check_known(&member.replica);
            }
            assert!(member.replica.saved <= member.last_id);
            let saved = member.replica.saved;
            self.members[client].unsettled.retain(|(id, _)| *id > saved);
        }
    }

    /// P142: a full state has no tombstones that are older than the join.
    fn check_listed(&self, client: usize, change: &ShownChange) {
        let win = self.wins.iter().position(|win| win == change);
        let win = win.expect("only what has won is listed");
        let joined_at = self.members[client].joined_at;
        assert!(
            change.value.is_some() || win >= joined_at,
            "{} {joined_at}",
            change.brief()
        );
    }

    /// P130: the client knows every change up to its resume point, except those that have been
    /// replaced since: their keys follow later (P133).
    fn check_known(&self, replica: &Replica) {
        let seq = usize::try_from(replica.seq).expect("it is small");
        let mut latest: BTreeMap<&str, &ShownChange> = BTreeMap::new();
        for win in &self.wins[..seq] {
            latest.insert(&win.key, win);
        }
        for win in latest.into_values() {
            let held = replica.held.get(&win.key);
            let mut later = self.wins[seq..].iter();
            let is_replaced = later.any(|later| later.key == win.key);
            let is_known = is_replaced
                || match held {
                    Some(held) => held.timestamp >= win.timestamp,
                    None => win.value.is_none(),
                };
            assert!(is_known, "{} is unknown at {seq}", win.brief().len());
        }
    }

    /// Lets everything finish, and checks that all clients hold the same state.
    fn settle(&mut self) {
        self.rig.log_hangs = false;
        for client in 0..CLIENTS {
            if let Some(place) = self.members[client].place {
                self.rig.peers[place].reads = true;
            }
        }
        self.rig.run();
        for client in 0..CLIENTS {
            self.send_unsent(client);
        }
        self.rig.run();
        for client in 0..CLIENTS {
            self.read(client);
        }
        let mut expected = BTreeMap::new();
        for win in &self.wins {
            expected.insert(win.key.as_str(), win.value.as_deref());
        }
        expected.retain(|_, value| value.is_some());
        for member in self.members.iter().filter(|member| member.place.is_some()) {
            let live = member.replica.live().into_iter();
            let live: BTreeMap<_, _> = live.map(|(key, value)| (key, Some(value))).collect();
            assert_eq!(live, expected);
            assert!(member.replica.is_synced && member.unsettled.is_empty());
        }
        let keys_count = expected.len();
        let room = &self.rig.shard.rooms[RoomId::new(1)];
        assert_eq!(room.workspace.seq().get(), self.wins.len() as u64);
        let old = self.rig.join("w", None);
        let seen = told(&mut self.rig, old);
        assert_eq!(seen, ["101".to_owned(), format!("init {keys_count}")]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// P130, P133, P135, P137, P138, P139, P142, P150: this holds whatever the clients do, and no
    /// matter how slowly they read.
    #[test]
    fn a_client_that_merges_ends_up_with_the_state(steps in prop::collection::vec(step(), 1..70)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.settle();
    }
}
