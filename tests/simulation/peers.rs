//! Checks of presence: each message when it is sent and when it is read, and the table that each
//! peer has in the end.

use std::collections::BTreeSet;

use etherply::log::commit::Durability;

use crate::client::{Home, Reading};
use crate::plan::Planted;
use crate::presence::{Listed, PeersMessage, PeersTable, entry_bytes, number};
use crate::wire::Told;
use crate::world::World;

impl World {
    // ---- what is sent to them ----

    /// Checks a message of presence that is about to leave the server.
    pub fn check_send_peer(&mut self, place: usize, told: &Told) {
        match told {
            Told::Welcome(welcome) => self.note_peer(place, welcome.connection),
            Told::Presence(message) => {
                self.check_peers_message(place, message);
                self.coverage.presence_messages += 1;
            }
            _ => {}
        }
    }

    /// Records the id of a connection, and that it has replaced another one.
    fn note_peer(&mut self, place: usize, connection: u64) {
        let before = self.presence.connections.insert(connection, place);
        assert_eq!(before, None, "the id {connection} is used again");
        let client = &mut self.clients[place];
        client.peer.connection = Some(connection);
        let (side, workspace) = (&client.peer, client.workspace);
        let old = side.replaces.filter(|_| side.is_peer);
        let old = old.and_then(|old| self.presence.connections.get(&old).copied());
        let Some(old) = old.filter(|old| *old != place) else {
            return;
        };
        let user = side.user;
        let client = &mut self.clients[old];
        let is_same_user = user.is_some() && client.peer.user == user;
        if is_same_user && client.peer.is_peer && client.workspace == workspace {
            client.peer.is_replaced = true;
            self.coverage.peers_replaced += u64::from(!client.is_gone());
        } else {
            self.coverage.peers_not_replaced += 1;
        }
    }

    fn check_peers_message(&mut self, place: usize, message: &PeersMessage) {
        let (now_us, interval_us) = (self.clock.now_us, self.plan.presence().interval_us);
        let side = &mut self.clients[place].peer;
        assert!(
            side.is_peer && !side.is_replaced,
            "client {place} is no peer, and is sent {message:?}"
        );
        side.messages += 1;
        let most = 1 + (now_us - side.came_us) / interval_us;
        assert!(
            side.messages <= most,
            "client {place} is sent {} presence messages in the time for {most}",
            side.messages
        );
        for connection in message.peers.keys().filter(|_| message.is_all) {
            let Some(owner) = self.presence.connections.get(connection) else {
                continue;
            };
            let owner = &self.clients[*owner];
            assert!(
                owner.home != Home::Gone && !owner.peer.is_replaced,
                "client {place} is sent a table with a dead peer: {connection}"
            );
        }
    }

    // ---- what they read ----

    /// Makes a client read a message of presence. Returns false if it is another message.
    pub fn read_peer(&mut self, place: usize, told: &Told) -> bool {
        let client = &mut self.clients[place];
        assert!(
            client.is_v2 || !matches!(told, Told::Presence(_) | Told::Cast(..)),
            "client {place}: {told:?} in version 1"
        );
        match told {
            Told::Presence(message) => self.read_peers(place, message),
            Told::Cast(from, user, value) => self.hear_cast(place, (*from, user), value),
            Told::Users(table, total) => {
                client.peer.users = Some((table.clone(), *total));
                return false;
            }
            Told::Refused(code, id) => {
                let limits = client.limits;
                let is_small = self.plan.presence().bytes_max < 1 << 20;
                if !client.peer.take_refused(*id) {
                    return false;
                }
                let is_right = match code {
                    413 => is_small,
                    429 => limits.ops_per_second.is_some(),
                    _ => false,
                };
                assert!(is_right, "client {place}: {told:?} of presence");
                self.coverage.presence_refused += 1;
            }
            _ => return false,
        }
        true
    }

    /// Records a message that a client of version 2 has read.
    pub fn note_peer_read(&mut self, place: usize, told: &Told) {
        let client = &mut self.clients[place];
        match told {
            Told::Welcome(welcome) => {
                let user = client.peer.user.map(str::to_owned);
                assert_eq!(welcome.user, user, "client {place}");
                if let Some(replica) = &mut client.replica {
                    replica.identity.connection = Some(welcome.connection);
                }
            }
            Told::Part(..) => client.peer.casts.is_behind = true,
            Told::Synced(_) => {
                client.peer.casts.is_behind = false;
                client.peer.casts.synced += 1;
            }
            Told::Saved(id, _) => {
                client.peer.saved = *id;
                client.peer.open = client.peer.open.split_off(&(id + 1));
            }
            _ => {}
        }
    }

    fn read_peers(&mut self, place: usize, message: &PeersMessage) {
        for (connection, listed) in &message.peers {
            self.check_listed(place, *connection, listed);
        }
        let bytes_max = self.plan.presence().bytes_max;
        let side = &mut self.clients[place].peer;
        assert!(
            message.is_all || side.shown.is_some(),
            "client {place}: the first message is the table"
        );
        let mut table = side.shown.take().unwrap_or_default();
        if message.is_all {
            let is_gone = |connection: &&u64| !message.peers.contains_key(connection);
            side.gone.extend(table.keys().filter(is_gone));
            table.clone_from(&message.peers);
            let own = side.connection.expect("it was welcomed");
            assert!(
                table.contains_key(&own) || bytes_max < 1 << 20,
                "client {place} is not in its own table"
            );
        } else {
            table.extend(message.peers.clone());
            for left in &message.left {
                let is_listed = message.peers.contains_key(left);
                assert!(!is_listed, "client {place}: {left} is listed and has left");
                table.remove(left);
                side.gone.insert(*left);
            }
        }
        let bytes = table
            .iter()
            .map(|(connection, peer)| entry_bytes(*connection, peer));
        let bytes: usize = bytes.sum();
        assert!(bytes <= bytes_max, "{bytes} bytes of presence");
        let revived = table
            .keys()
            .find(|connection| side.gone.contains(connection));
        assert_eq!(
            revived, None,
            "client {place}: a peer is back that had left"
        );
        side.shown = Some(table);
        self.check_shown_once(place);
    }

    /// Checks an entry that a client is shown: the value is one that this peer has sent, and none
    /// that is older than the one before it.
    fn check_listed(&self, place: usize, connection: u64, listed: &Listed) {
        let shown = self.clients[place].peer.shown.as_ref();
        let before = shown.and_then(|shown| shown.get(&connection));
        let before = before.and_then(|before| number(&before.value));
        let now = number(&listed.value);
        assert!(
            now >= before,
            "client {place}: the value of {connection} goes back to {now:?} from {before:?}"
        );
        let owner = self.presence.connections.get(&connection).copied();
        let sender = self.presence.sender(&listed.value);
        assert!(
            sender.is_none() || sender == owner,
            "client {place}: {connection} is of {owner:?}, and shows a value of {sender:?}"
        );
        let Some(owner) = owner.map(|owner| &self.clients[owner]) else {
            return;
        };
        assert_eq!(
            (listed.user.as_deref(), owner.workspace, owner.peer.is_peer),
            (owner.peer.user, self.clients[place].workspace, true),
            "client {place}: {connection}"
        );
    }

    /// Checks that a client is not shown a peer beside the connection that it has replaced.
    fn check_shown_once(&self, place: usize) {
        let shown = self.clients[place].peer.shown.as_ref();
        let shown = shown.expect("it was just told");
        for (connection, listed) in shown {
            let Some(owner) = self.presence.connections.get(connection) else {
                continue;
            };
            let old = self.clients[*owner].peer.replaces;
            let old = old.filter(|old| old != connection && listed.user.is_some());
            let beside = old.and_then(|old| shown.get(&old));
            let is_twice = beside.is_some_and(|beside| beside.user == listed.user);
            assert!(
                !is_twice,
                "client {place}: {connection} is shown beside {old:?}"
            );
        }
    }

    /// Changes what a client reads, if such a bug is planted.
    pub fn plant_in_presence(&mut self, place: usize) {
        let told = &mut self.clients[place].told;
        let Some((end, last)) = told.back().cloned() else {
            return;
        };
        match (self.plan.planted, last) {
            (Some(Planted::KeptPeer), Told::Presence(mut message)) => {
                message.left.clear();
                told.back_mut().expect("it was just there").1 = Told::Presence(message);
            }
            (Some(Planted::LostValue), Told::Presence(message)) if !message.is_all => {
                told.pop_back();
            }
            (Some(Planted::RepeatedCast), cast @ Told::Cast(..)) => told.push_back((end, cast)),
            _ => {}
        }
    }

    // ---- quiet ----

    /// Checks that presence holds up no op: when nothing but the clock can make anything happen,
    /// and presence may still be due, all clients that are not behind have all ops.
    pub fn check_prompt(&mut self) {
        let count = self.models.iter().map(|model| model.wins.len()).sum();
        let before = std::mem::replace(&mut self.presence.checked_count, count);
        let seats = self.server.iter().flat_map(|server| &server.seats);
        let is_serving = seats
            .clone()
            .all(|seat| seat.is_serving && !seat.is_drained);
        if count == before || !is_serving || self.plan.durability != Durability::Always {
            return;
        }
        for client in self.live.iter().map(|place| &self.clients[*place]) {
            let casts = &client.peer.casts;
            let is_up_to_date = casts.synced > 0 && !casts.is_behind;
            let Some(replica) = client
                .replica
                .as_ref()
                .filter(|_| client.is_reached() && is_up_to_date)
            else {
                continue;
            };
            let number = client.number;
            let count = self.models[client.workspace].wins.len() as u64;
            assert_eq!(replica.seq, count, "an op for client {number} is held up");
        }
        self.coverage.prompt += 1;
    }

    /// Returns the peers of a workspace once everything has settled, without those whose
    /// connections are dead: whether the server has noticed that, nobody can tell.
    fn peers_of(&self, workspace: usize) -> Vec<usize> {
        let is_peer = |place: &usize| {
            let client = &self.clients[*place];
            let is_member = client.peer.connection.is_some() && client.workspace == workspace;
            is_member && client.is_reached() && client.peer.is_peer && !client.peer.is_replaced
        };
        self.live.iter().copied().filter(is_peer).collect()
    }

    /// Returns the peers whose connections may be dead.
    fn vanished_peers(&self) -> BTreeSet<u64> {
        let clients = self.live.iter().map(|place| &self.clients[*place]);
        let vanished = clients.filter(|client| client.reading == Reading::HalfOpen);
        let vanished = vanished.filter(|client| client.peer.is_peer && !client.peer.is_replaced);
        vanished
            .filter_map(|client| client.peer.connection)
            .collect()
    }

    /// Checks that each peer ends with the table, once everything has settled.
    pub fn check_peers(&mut self) {
        for workspace in 0..self.models.len() {
            let peers = self.peers_of(workspace);
            let mut tables = peers
                .iter()
                .map(|place| (*place, &self.clients[*place].peer));
            let Some((first, side)) = tables.next() else {
                continue;
            };
            let table = side.shown.as_ref();
            let table = table.unwrap_or_else(|| panic!("client {first} has no table"));
            self.check_table(&peers, table);
            for (place, side) in tables {
                assert_eq!(side.shown.as_ref(), Some(table), "client {place} ends with");
            }
            for place in peers.iter().copied() {
                let open = &self.clients[place].peer.open;
                assert!(open.is_empty(), "client {place}: {open:?} are not settled");
            }
            self.coverage.tables_compared += u64::from(peers.len() > 1);
        }
        self.check_casts();
    }

    /// Checks a table of a workspace with these peers.
    fn check_table(&self, peers: &[usize], table: &PeersTable) {
        let vanished = self.vanished_peers();
        let entry = |place: &usize| {
            let side = &self.clients[*place].peer;
            (side.connection.expect("it is a peer"), side.listed())
        };
        let expected: PeersTable = peers.iter().map(entry).collect();
        let shown = table.iter().filter(|entry| !vanished.contains(entry.0));
        let shown: PeersTable = shown.map(|(id, peer)| (*id, peer.clone())).collect();
        let bytes_max = self.plan.presence().bytes_max;
        if bytes_max >= 1 << 20 {
            return assert_eq!(shown, expected, "the peers");
        }
        for (connection, peer) in &shown {
            assert_eq!(Some(peer), expected.get(connection), "{connection}");
        }
        let entries = table.iter().map(|(id, peer)| entry_bytes(*id, peer));
        let bytes: usize = entries.sum();
        assert!(bytes <= bytes_max, "{bytes} bytes of presence");
        let mut unlisted = expected.iter().filter(|entry| !shown.contains_key(entry.0));
        if let Some((id, first)) = unlisted.next().filter(|_| vanished.is_empty()) {
            let needed_bytes = bytes + entry_bytes(*id, first);
            assert!(
                needed_bytes > bytes_max,
                "{id} would fit, and is not listed"
            );
            assert_eq!(first.value, "null", "what is not listed has no value");
        }
    }

    /// Checks that the users of each workspace over HTTP are its peers, once everything has
    /// settled.
    pub fn check_users(&mut self) {
        if self.plan.version2_percent == 0 {
            return;
        }
        let vanished = self.vanished_peers();
        let asked = (0..self.models.len()).map(|workspace| self.ask_for_users(workspace));
        let asked: Vec<Option<usize>> = asked.collect();
        self.settle();
        for (workspace, place) in asked.into_iter().enumerate() {
            let users = place.and_then(|place| self.clients[place].peer.users.take());
            let Some((mut table, total)) = users else {
                continue;
            };
            let peers = self.peers_of(workspace);
            assert!(
                total >= peers.len() && total <= peers.len() + vanished.len(),
                "{total} users are counted, and {} are there",
                peers.len()
            );
            self.coverage.users_compared += u64::from(!table.is_empty());
            table.retain(|connection, _| !vanished.contains(connection));
            self.check_table(&peers, &table);
        }
        self.check_peers();
    }
}
