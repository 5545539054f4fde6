//! Presence: the connections that are peers, what they send and are shown, and a naive model of
//! the table that each of them ends with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use etherply::core::testing::{self, Dice, START_UNIX_S};
use etherply::log::commit::Durability;
use etherply::wire::auth::mint;

use crate::casts::{CastSent, CastsHeard};
use crate::client::{Client, Home, Reading};
use crate::plan::{Plan, Planted, faults};
use crate::replica::Replica;
use crate::server::token;
use crate::wire::{self, Told};
use crate::world::{WORKSPACES, World};

/// The `sub` of the tokens of each kind of user.
const USERS: [Option<&str>; 4] = [Some("ann"), Some("ann"), Some("ben"), None];
/// The maximum length of the padding of a value.
const TEXT_BYTES_MAX: usize = 300;

/// A peer as a message lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub user: Option<String>,
    /// The value as JSON text.
    pub value: String,
}

/// Peers by connection.
pub type PeersTable = BTreeMap<u64, Listed>;

/// A presence message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeersMessage {
    pub is_all: bool,
    pub peers: PeersTable,
    pub left: Vec<u64>,
}

/// The user of a client, and its last connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeerIdentity {
    user: Option<Option<&'static str>>,
    connection: Option<u64>,
}

/// A connection as a peer.
#[derive(Debug, Default)]
pub struct PeerSide {
    /// It asked for presence.
    pub is_peer: bool,
    pub user: Option<&'static str>,
    /// The id of the connection, from the moment when the server sends `welcome`.
    pub connection: Option<u64>,
    /// The connection that it has named as the one that it replaces.
    replaces: Option<u64>,
    /// A later connection of the same user has replaced it.
    is_replaced: bool,
    /// The time when it connected.
    came_us: u64,
    /// The id of its last message, if it has no copy of the workspace any more.
    last_id: u64,
    /// The values that it has sent and that were not refused, each with the id of its message.
    values: Vec<(u64, String)>,
    /// The ids of all its presence messages and casts, until they are settled.
    open: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    saved: u64,
    /// Its copy of the table, once it has received one.
    shown: Option<PeersTable>,
    /// The connections that it was told have left.
    gone: BTreeSet<u64>,
    /// The number of presence messages that it was sent.
    messages: u64,
    pub casts: CastsHeard,
    /// The answer to a request for the users, and their number.
    users: Option<(PeersTable, usize)>,
}

/// What the world knows of presence.
pub struct PresenceModel {
    /// A sequence of its own, so that runs of version 1 do not depend on it.
    pub dice: Dice,
    /// The clients by the ids of their connections, since the start of the server.
    connections: BTreeMap<u64, usize>,
    /// The clients that sent each value. A value names its place in the list.
    values: Vec<usize>,
    pub casts: Vec<CastSent>,
    /// The number of steps for which the disk does not answer.
    hanging_steps: usize,
    /// The number of ops that had won when it was last checked that all clients have them.
    checked_count: usize,
}

impl PresenceModel {
    pub fn new(plan: &Plan) -> Self {
        Self {
            dice: Dice::stream(plan.seed, 31),
            connections: BTreeMap::new(),
            values: Vec::new(),
            casts: Vec::new(),
            hanging_steps: 0,
            checked_count: 0,
        }
    }

    /// Records that a server starts. Its connections have nothing to do with those before it.
    pub fn begin(&mut self) {
        self.connections.clear();
    }

    /// Makes the disk answer.
    pub fn calm_down(&mut self) {
        self.hanging_steps = 0;
    }

    /// Returns whether operations of the disk do not complete.
    pub fn has_hanging_disk(&self) -> bool {
        self.hanging_steps > 0
    }

    /// Returns the client that has sent a value.
    fn sender(&self, value: &str) -> Option<usize> {
        Some(self.values[number(value)?])
    }
}

impl PeerSide {
    /// Returns the value that others are shown.
    fn value(&self) -> &str {
        self.values.last().map_or("null", |(_, value)| value)
    }

    fn listed(&self) -> Listed {
        Listed {
            user: self.user.map(str::to_owned),
            value: self.value().to_owned(),
        }
    }

    /// Returns the query of its request.
    pub fn query(&self) -> String {
        let presence = if self.is_peer { "&presence=1" } else { "" };
        let replaces = self.replaces;
        let replaces = replaces.map_or(String::new(), |old| format!("&replaces={old}"));
        format!("{presence}{replaces}")
    }

    /// Returns the token of its user.
    pub fn token(&self) -> &'static str {
        static ANN: LazyLock<String> = LazyLock::new(|| named("ann"));
        static BEN: LazyLock<String> = LazyLock::new(|| named("ben"));
        static NOBODY: LazyLock<String> = LazyLock::new(nameless);
        match self.user {
            Some("ann") => &ANN,
            Some(_) => &BEN,
            None => &NOBODY,
        }
    }

    /// Records that a message is refused. Returns false if it was neither a presence message nor a
    /// cast that is not settled.
    fn take_refused(&mut self, id: u64) -> bool {
        self.values.retain(|(value_id, _)| *value_id != id);
        let is_own = self.open.remove(&id);
        if is_own {
            self.refused.insert(id);
        }
        is_own
    }

    pub fn has_refused(&self, id: u64) -> bool {
        self.refused.contains(&id)
    }

    /// Returns whether the message with this id has been handled and was not refused.
    pub fn is_accepted(&self, id: u64) -> bool {
        id <= self.saved && !self.has_refused(id)
    }

    /// Records that a presence message or a cast is sent.
    pub fn note_sent(&mut self, id: u64) {
        self.open.insert(id);
    }
}

fn named(user: &str) -> String {
    mint(&testing::secret(), user, START_UNIX_S, None)
}

/// Returns a token without `sub`.
fn nameless() -> String {
    // The first token that is made installs the signature algorithm.
    named("ann");
    let key = jsonwebtoken::EncodingKey::from_secret(testing::secret().bytes());
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    let claims = serde_json::json!({ "iat": START_UNIX_S });
    let token = jsonwebtoken::encode(&header, &claims, &key.expect("a key"));
    token.expect("the claims are plain")
}

/// Returns the number in a value, which is its place among all that were sent. `null` has none.
fn number(value: &str) -> Option<usize> {
    let value: serde_json::Value = serde_json::from_str(value).expect("a value is JSON");
    let number = value["at"].as_u64()?;
    Some(usize::try_from(number).expect("the number is small"))
}

/// Returns the length of an entry in a message, without a comma.
fn entry_bytes(connection: u64, listed: &Listed) -> usize {
    let user = listed.user.as_ref();
    let user = user.map_or("null".to_owned(), |user| format!("{user:?}"));
    format!(
        r#""{connection}":{{"user":{user},"value":{}}}"#,
        listed.value
    )
    .len()
}

fn listed(user: &serde_json::Value, value: &serde_json::Value) -> Listed {
    Listed {
        user: user.as_str().map(str::to_owned),
        value: value.to_string(),
    }
}

/// Reads the id of a connection.
pub fn id(text: &str) -> u64 {
    text.parse().expect("an id")
}

/// Reads a presence message.
pub fn peers_message(payload: &serde_json::Value) -> PeersMessage {
    let peers = payload["peers"].as_object().expect("an object");
    let peer = |(name, peer): (&String, &serde_json::Value)| {
        (id(name), listed(&peer["user"], &peer["value"]))
    };
    let left = payload["left"].as_array().into_iter().flatten();
    PeersMessage {
        is_all: payload["all"] == true,
        peers: peers.iter().map(peer).collect(),
        left: left.map(|left| id(left.as_str().expect("an id"))).collect(),
    }
}

/// Reads the answer to a request for the users of a workspace.
pub fn users(head: &str, body: &[u8]) -> Told {
    let list: Vec<serde_json::Value> = serde_json::from_slice(body).expect("a list");
    let mut table = PeersTable::new();
    for user in &list {
        let connection = user["connection"].as_str().expect("a connection");
        let peer = listed(&user["userId"], &user["value"]);
        let before = table.insert(id(connection), peer);
        assert_eq!(before, None, "{connection} is listed twice");
    }
    let mut lines = head.lines();
    let total = lines.find_map(|line| line.strip_prefix("X-Total-Count: "));
    let total = total.expect("a total").parse().expect("a number");
    Told::Users(table, total)
}

impl World {
    // ---- what peers do ----

    /// Runs one event of presence.
    pub fn presence_step(&mut self) {
        let steps = &mut self.presence.hanging_steps;
        *steps = steps.saturating_sub(1);
        if self.plan.version2_percent == 0 || self.server.is_none() {
            return;
        }
        match self.presence.dice.below(24) {
            0..6 => self.change_value(),
            6..10 => self.cast(1),
            10 | 11 => self.reconnect_beside(),
            12 if self.presence.dice.one_in(4) => {
                let workspace = self.presence.dice.below(self.plan.workspaces);
                self.ask_for_users(workspace);
            }
            13 if !self.is_calm && self.presence.dice.one_in(4) => {
                self.presence.hanging_steps = self.presence.dice.below(60);
            }
            14 if self.presence.dice.one_in(4) => self.cast(40),
            _ => {}
        }
    }

    /// Picks a live client of version 2 that has been served and satisfies `fits`.
    pub fn any_peer(&mut self, fits: impl Fn(&Client) -> bool) -> Option<usize> {
        let fits = |place: &usize| {
            let client = &self.clients[*place];
            let is_here = client.is_open() && client.reading != Reading::HalfOpen;
            client.is_v2 && is_here && fits(client)
        };
        let fitting: Vec<usize> = self.live.iter().copied().filter(fits).collect();
        (!fitting.is_empty()).then(|| fitting[self.presence.dice.below(fitting.len())])
    }

    /// Decides on the presence of a client that connects.
    pub fn ask_for_presence(&mut self, replica: &mut Replica) -> PeerSide {
        let dice = &mut self.presence.dice;
        let is_crowd = self.plan.clients > 100;
        let (is_peer, other) = (dice.below(4) > 0, dice.pick(&USERS));
        let is_peer = is_peer && (!is_crowd || dice.one_in(8));
        let identity = &mut replica.identity;
        let user = identity.user.filter(|_| !dice.one_in(6)).unwrap_or(other);
        let is_told = dice.below(4) > 0;
        let mut replaces = identity.connection.filter(|_| is_told);
        if dice.one_in(12) {
            // Any connection may be named, and that of another client of the user is replaced.
            let all = &self.presence.connections;
            let chosen = dice.below(all.len() + 1);
            replaces = all.keys().copied().nth(chosen).or(replaces);
        }
        identity.user = Some(user);
        PeerSide {
            is_peer,
            user,
            replaces,
            came_us: self.clock.now_us,
            ..PeerSide::default()
        }
    }

    /// Makes a client send a value: a new one, or the same again. One that is no peer may, too.
    fn change_value(&mut self) {
        let Some(place) = self.any_peer(|_| true) else {
            return;
        };
        for _ in 0..=self.presence.dice.below(3) {
            self.send_value(place);
        }
    }

    fn send_value(&mut self, place: usize) {
        let presence = &mut self.presence;
        let last = self.clients[place].peer.values.last();
        let value = match last.filter(|_| presence.dice.one_in(8)) {
            Some((_, value)) => value.clone(),
            None => {
                let text = "v".repeat(presence.dice.below(TEXT_BYTES_MAX));
                presence.values.push(place);
                format!(r#"{{"at":{},"text":"{text}"}}"#, presence.values.len() - 1)
            }
        };
        let id = self.send_message(place, "presence", &value);
        self.clients[place].peer.values.push((id, value));
    }

    /// Sends a presence message or a cast. Returns its id.
    pub fn send_message(&mut self, place: usize, name: &str, value: &str) -> u64 {
        let client = &mut self.clients[place];
        let id = match &mut client.replica {
            Some(replica) => replica.next_id(),
            None => client.peer.last_id + 1,
        };
        client.peer.last_id = id;
        client.peer.note_sent(id);
        let text = format!(r#"{{"type":"{name}","id":{id},"payload":{{"value":{value}}}}}"#);
        client
            .outgoing
            .extend(wire::frame(wire::TEXT, text.as_bytes()));
        client.messages += 1;
        self.journal
            .note(|| format!("client {place} sends {text:.80}"));
        id
    }

    /// Makes a client connect again while its connection is still there: it is about to close, or
    /// it stays, or it is dead and nobody has noticed.
    fn reconnect_beside(&mut self) {
        if self.live.len() >= self.plan.clients + 4 {
            return;
        }
        let Some(old) = self.any_peer(|client| client.replica.is_some()) else {
            return;
        };
        let replica = self.clients[old].replica.as_mut();
        let last_id = replica.expect("it was just there").next_id();
        self.connect_one(Some(old));
        if self.clients[old].replica.is_some() {
            return;
        }
        self.coverage.connections_beside += 1;
        self.clients[old].peer.last_id = last_id;
        let may_vanish = self.plan.may(faults::NETWORK) && !self.is_calm;
        match self.presence.dice.below(3) {
            0 => {
                // A value that arrives when the connection may have been replaced.
                self.send_value(old);
                let goodbye = wire::frame(wire::CLOSE, &1000_u16.to_be_bytes());
                self.leave(old, 1000, &goodbye);
            }
            1 if may_vanish => self.clients[old].reading = Reading::HalfOpen,
            _ => self.send_value(old),
        }
    }

    /// Requests the users of a workspace. Returns the client, if a server accepts it.
    fn ask_for_users(&mut self, workspace: usize) -> Option<usize> {
        let server = self.server.as_ref().filter(|server| !server.is_draining)?;
        let shard = self.presence.dice.below(server.seats.len());
        let mut client = Client::new(self.clients.len(), workspace, Reading::Swift, 0);
        let id = WORKSPACES[workspace].replace(' ', "%20");
        client.status_wanted = 200;
        let head = wire::head(&format!("/v1/presence/{id}?token={}", token()));
        Some(self.arrive(client, &head, shard, false))
    }

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
        let (now_us, interval_us) = (self.clock.now_us, self.plan.presence_interval_us);
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
                let is_small = self.plan.presence_bytes < 1 << 20;
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
        let bytes_max = self.plan.presence_bytes;
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

    /// Checks that presence holds up no op: when nothing but the clock can make anything happen, and
    /// presence may still be due, all clients that are not behind have all ops.
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
        let bytes_max = self.plan.presence_bytes;
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
