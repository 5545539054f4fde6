//! Presence: which connections are peers, what they send, and the messages that they receive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use etherply::core::testing::{self, Dice, START_UNIX_S};
use etherply::wire::auth::mint;

use crate::casts::{CastSent, CastsHeard};
use crate::client::{Client, Reading};
use crate::plan::{Plan, faults};
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
    /// The index of the user in [`USERS`], once it was chosen.
    pub user: Option<usize>,
    pub connection: Option<u64>,
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
    pub replaces: Option<u64>,
    /// A later connection of the same user has replaced it.
    pub is_replaced: bool,
    /// The time when it connected.
    pub came_us: u64,
    /// The id of its last message, if it has no copy of the workspace any more.
    pub last_id: u64,
    /// The values that it has sent and that were not refused, each with the id of its message.
    pub values: Vec<(u64, String)>,
    /// The ids of all its presence messages and casts, until they are settled.
    pub open: BTreeSet<u64>,
    pub refused: BTreeSet<u64>,
    pub saved: u64,
    /// Its copy of the table, once it has received one.
    pub shown: Option<PeersTable>,
    /// The connections that it was told have left.
    pub gone: BTreeSet<u64>,
    /// The number of presence messages that it was sent.
    pub messages: u64,
    pub casts: CastsHeard,
    /// The answer to a request for the users, and their number.
    pub users: Option<(PeersTable, usize)>,
}

/// What the world knows of presence.
pub struct PresenceModel {
    /// A sequence of its own, so that runs of version 1 do not depend on it.
    pub dice: Dice,
    /// The clients by the ids of their connections, since the start of the server.
    pub connections: BTreeMap<u64, usize>,
    /// The clients that sent each value. A value names its place in the list.
    pub values: Vec<usize>,
    pub casts: Vec<CastSent>,
    /// The number of steps for which the disk does not answer.
    pub hanging_steps: usize,
    /// The number of ops that had won when it was last checked that all clients have them.
    pub checked_count: usize,
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
    pub fn sender(&self, value: &str) -> Option<usize> {
        Some(self.values[number(value)?])
    }
}

impl PeerSide {
    /// Returns the value that others are shown.
    fn value(&self) -> &str {
        self.values.last().map_or("null", |(_, value)| value)
    }

    pub fn listed(&self) -> Listed {
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
    pub fn take_refused(&mut self, id: u64) -> bool {
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
pub fn number(value: &str) -> Option<usize> {
    let value: serde_json::Value = serde_json::from_str(value).expect("a value is JSON");
    let number = value["at"].as_u64()?;
    Some(usize::try_from(number).expect("the number is small"))
}

/// Returns the length of an entry in a message, without a comma.
pub fn entry_bytes(connection: u64, listed: &Listed) -> usize {
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
        let (is_peer, other) = (dice.below(4) > 0, dice.below(USERS.len()));
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
            user: USERS[user],
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
        let value = if let Some((_, value)) = last.filter(|_| presence.dice.one_in(8)) {
            value.clone()
        } else {
            let text = "v".repeat(presence.dice.below(TEXT_BYTES_MAX));
            presence.values.push(place);
            format!(r#"{{"at":{},"text":"{text}"}}"#, presence.values.len() - 1)
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
    pub fn ask_for_users(&mut self, workspace: usize) -> Option<usize> {
        let server = self.server.as_ref().filter(|server| !server.is_draining)?;
        let shard = self.presence.dice.below(server.seats.len());
        let mut client = Client::new(self.clients.len(), workspace, Reading::Swift, 0);
        let id = WORKSPACES[workspace].replace(' ', "%20");
        client.status_wanted = 200;
        let head = wire::head(&format!("/v1/presence/{id}?token={}", token()));
        Some(self.arrive(client, &head, shard, false))
    }
}
