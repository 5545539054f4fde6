//! Random interleavings of joins, values, ends, intervals and slow receivers, compared with a naive
//! model.

use proptest::prelude::*;

use super::*;

/// A step. Numbers choose among the connections that there are.
#[derive(Debug, Clone)]
enum PeersStep {
    /// A new peer of this user, which replaces the chosen connection if there is one.
    Join(Option<u8>, Option<usize>),
    /// A value of this length. The connection may have ended.
    Set(usize, usize),
    Leave(usize),
    /// The interval ends.
    Announce,
    /// The socket of a peer drains.
    Take(usize),
}

fn step() -> impl Strategy<Value = PeersStep> {
    prop_oneof![
        2 => (prop::option::of(0..3_u8), prop::option::of(any::<usize>()))
            .prop_map(|(user, replaces)| PeersStep::Join(user, replaces)),
        4 => (any::<usize>(), 1..60_usize).prop_map(|(at, bytes)| PeersStep::Set(at, bytes)),
        1 => any::<usize>().prop_map(PeersStep::Leave),
        3 => Just(PeersStep::Announce),
        6 => any::<usize>().prop_map(PeersStep::Take),
    ]
}

/// A connection, as a naive model and its client know it.
struct Connection {
    user: Option<String>,
    value: Value,
    is_peer: bool,
    is_listed: bool,
    /// The connection that it replaced.
    replaced: Option<usize>,
    replica: Replica,
    has_all: bool,
}

#[derive(Default)]
struct PeersModel {
    connections: Vec<Connection>,
    bytes_max: usize,
    /// The connections that joined or whose values changed since the last message.
    changed: BTreeSet<String>,
    /// The contents of the latest message.
    announced: BTreeSet<String>,
    /// The connections that were listed at the latest message.
    listed_then: BTreeSet<String>,
    counter: usize,
}

impl PeersModel {
    fn entry_bytes(id: usize, peer: &Connection) -> usize {
        let entry = json!({ id.to_string(): {"user": peer.user, "value": peer.value} });
        entry.to_string().len() - 2
    }

    fn listed_bytes(&self) -> usize {
        let listed = self.connections.iter().enumerate();
        let listed = listed.filter(|(_, peer)| peer.is_listed);
        listed.map(|(id, peer)| Self::entry_bytes(id, peer)).sum()
    }

    fn list_what_fits(&mut self) {
        let waiting = self.connections.iter().enumerate();
        let waiting = waiting.filter(|(_, peer)| peer.is_peer && !peer.is_listed);
        let waiting = waiting.map(|(id, peer)| (Self::entry_bytes(id, peer), id));
        // The shortest entry comes first.
        for (entry_bytes, id) in waiting.collect::<BTreeSet<_>>() {
            if self.listed_bytes() + entry_bytes > self.bytes_max {
                break;
            }
            self.connections[id].is_listed = true;
            self.changed.insert(id.to_string());
        }
    }

    fn end(&mut self, id: usize) {
        let peer = &mut self.connections[id];
        (peer.is_peer, peer.is_listed) = (false, false);
    }

    fn listed(&self) -> Replica {
        let listed = self.connections.iter().enumerate();
        let listed = listed.filter(|(_, peer)| peer.is_listed);
        let entry = |peer: &Connection| json!({"user": peer.user, "value": peer.value});
        listed
            .map(|(id, peer)| (id.to_string(), entry(peer)))
            .collect()
    }

    fn join(&mut self, user: Option<u8>, replaces: Option<usize>, room: &mut PeersRig) {
        let user = user.map(|user| "x".repeat(1 + 20 * usize::from(user)));
        let old = replaces.map(|at| at % (self.connections.len() + 1));
        let is_replaced = |old: &usize| {
            let old = self.connections.get(*old);
            old.is_some_and(|old| old.is_peer && user.is_some() && old.user == user)
        };
        let removed = old.filter(is_replaced);
        if let Some(old) = removed {
            self.end(old);
        }
        let id = self.connections.len();
        room.join(id as u64, user.as_deref(), old.map(|old| old as u64));
        self.connections.push(Connection {
            user,
            value: Value::Null,
            is_peer: true,
            is_listed: false,
            replaced: removed,
            replica: Replica::new(),
            has_all: false,
        });
        self.list_what_fits();
    }

    fn set(&mut self, id: usize, bytes: usize, room: &mut PeersRig) {
        self.counter += 1;
        let value = json!(format!("{:>bytes$}", self.counter));
        let listed_bytes = self.listed_bytes();
        let peer = &mut self.connections[id];
        let grown = value.to_string().len();
        let fits = || listed_bytes + grown - peer.value.to_string().len() <= self.bytes_max;
        let expected = if !peer.is_peer {
            Ok(())
        } else if !peer.is_listed || !fits() {
            Err(PresenceFull::Workspace)
        } else {
            self.changed.insert(id.to_string());
            peer.value.clone_from(&value);
            Ok(())
        };
        assert_eq!(room.set(id as u64, &value.to_string()), expected);
        self.list_what_fits();
    }

    fn announce(&mut self, room: &mut PeersRig) {
        if room.announce() {
            self.announced = std::mem::take(&mut self.changed);
            self.listed_then = self.listed().into_keys().collect();
        }
    }

    /// Delivers the pending message of a connection, and checks it.
    fn take(&mut self, id: usize, room: &mut PeersRig) {
        let Some(message) = room.take(id as u64) else {
            return;
        };
        let listed = self.listed();
        let connection = &mut self.connections[id];
        assert!(connection.is_peer, "only a peer is sent presence");
        let names = message["peers"].as_object().unwrap();
        if message["all"] == json!(true) {
            let is_listed = |name: &String| listed.contains_key(name);
            assert!(names.keys().all(is_listed), "no peer that has left");
            // A peer that is listed only later is in the next message.
            let id = id.to_string();
            let is_itself_among_them = names.contains_key(&id);
            assert!(is_itself_among_them || !self.listed_then.contains(&id));
            connection.has_all = true;
        } else {
            assert!(connection.has_all, "an `all` message comes first");
            let is_announced = |name: &String| self.announced.contains(name);
            assert!(names.keys().all(is_announced), "only what has changed");
        }
        apply(&mut connection.replica, &message);
        let replica = self.connections[id].replica.clone();
        for (new, connection) in self.connections.iter().enumerate() {
            let is_shown = |id: usize| replica.contains_key(&id.to_string());
            let is_twice = is_shown(new) && connection.replaced.is_some_and(is_shown);
            assert!(!is_twice, "a peer and the one that it replaced");
        }
    }
}

fn run(steps: Vec<PeersStep>, bytes_max: usize) {
    let settings = PresenceSettings {
        bytes_max,
        ..SETTINGS
    };
    let mut room = PeersRig::new(settings);
    let mut model = PeersModel {
        bytes_max,
        ..PeersModel::default()
    };
    for step in steps {
        let count = model.connections.len();
        match step {
            PeersStep::Join(user, replaces) => model.join(user, replaces, &mut room),
            _ if count == 0 => {}
            PeersStep::Set(at, bytes) => model.set(at % count, bytes, &mut room),
            PeersStep::Leave(at) => {
                // The end of a connection may be noticed twice, or after it was replaced.
                model.end(at % count);
                room.leave((at % count) as u64);
                model.list_what_fits();
            }
            PeersStep::Announce => model.announce(&mut room),
            PeersStep::Take(at) => model.take(at % count, &mut room),
        }
        let listed: Vec<u64> = room.peers.listed().map(|peer| peer.connection).collect();
        let expected = model.connections.iter().zip(0..);
        let expected = expected.filter(|(peer, _)| peer.is_listed);
        assert_eq!(listed, expected.map(|(_, id)| id).collect::<Vec<u64>>());
    }
    // The changes end: every peer is up to date after the next message.
    model.announce(&mut room);
    for id in 0..model.connections.len() {
        model.take(id, &mut room);
        let connection = &model.connections[id];
        if connection.is_peer {
            assert_eq!(connection.replica, model.listed(), "{id}");
        }
    }
    assert!(!room.announce());
    assert!(matches!(room.peers.all, Encoded::No), "nothing is held");
}

proptest! {
    /// P161 to P166.
    #[test]
    fn each_copy_ends_up_equal_to_the_table(steps in prop::collection::vec(step(), 1..120)) {
        run(steps, 1 << 20);
    }

    /// P162.
    #[test]
    fn each_copy_ends_up_equal_to_a_table_at_its_limit(
        steps in prop::collection::vec(step(), 1..120),
        bytes_max in 0..400_usize,
    ) {
        run(steps, bytes_max);
    }
}
