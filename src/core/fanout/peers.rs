//! The peers of a room: its connections with presence, the value of each, and the messages that
//! keep every peer's copy of the table current (P161 to P166).
//!
//! Changes are collected for an interval and then combined into one *message*, encoded once and
//! shared by all peers: the latest value of each peer that joined or changed, and the peers that
//! left. Messages are numbered, and a peer is sent a message when its socket drains
//! ([`Peers::take_message`]), so nothing is ever queued for it. Which message it is sent depends on
//! what it has received so far:
//!
//! | received | is sent |
//! | --- | --- |
//! | the previous message | the latest message |
//! | an older one, or none | an `all` message: the table as it is now |
//!
//! # Why this is correct
//!
//! An `all` message replaces everything that its receiver knew, so whatever the receiver missed
//! does not matter. The table is at least as new as the latest message, so the next message, which
//! contains every change since the latest one, misses nothing. It may repeat a change that the
//! `all` message already contained. That is harmless: a value replaces itself, and `left` names
//! only connections that never return.
//!
//! An `all` message is encoded at most once for each message number, at its first use. It is
//! discarded when a listed peer leaves, so that it never shows a peer that is gone; a receiver that
//! needs one then waits for the next message, which is due within the interval. A peer that joins
//! receives its `all` message with the first message after it, so clients that return together
//! share one.
//!
//! # Limit
//!
//! The encoded entries of all peers have a total size limit, and so do the values of all peers of
//! a shard. An entry is *listed*, which means that others are sent it, if it fits when its peer
//! joins. A value that does not fit is refused, and the peer keeps the one that it had. Peers that
//! are not listed are counted, and are listed as soon as they fit: the shortest entry first, so
//! that a long one keeps nobody else from being listed.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::core::fanout::chunk_pool::Chunk;
use crate::core::fanout::outbox::OutboxPool;
use crate::limits::PEER_BYTES_KEPT;
use crate::wire::message::v2::{PresenceFrame, put_peer};
use crate::wire::state::ListedPeer;

#[cfg(test)]
mod tests;

/// A server's presence settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresenceSettings {
    /// The time for which changes are collected.
    pub interval_us: u64,
    /// The maximum total length of the encoded entries of a room's peers.
    pub bytes_max: usize,
    /// The maximum total length of the values of all peers of a shard.
    pub shard_bytes_max: usize,
}

/// A connection that becomes a peer.
#[derive(Debug, Clone)]
pub struct NewPeer {
    /// The id of the connection, which is never reused.
    pub connection: u64,
    /// The slot of its session.
    pub slot: u32,
    /// The `sub` of its token.
    pub user: Option<Rc<str>>,
    /// The connection that it replaces, according to the client.
    pub replaces: Option<u64>,
}

/// A message to a peer.
#[derive(Debug)]
pub struct PresenceMessage {
    /// The message as a frame, which may also be sent to other peers.
    pub chunk: Chunk,
    /// Whether this is the first time that the chunk is handed out.
    pub is_first: bool,
}

/// The reason why a peer's value was not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PresenceFull {
    /// The entries of the workspace's peers are at their limit.
    #[error("the presence of the workspace is at its size limit, so the value was not set")]
    Workspace,
    /// The values of all peers of the shard are at their limit.
    #[error("the server has no memory left for presence, so the value was not set")]
    Shard,
}

/// The peers of a room.
///
/// Invariant: `listed_bytes` is the sum over all listed entries, and at most the limit; no peer
/// that is not listed fits; `value_bytes` is the sum over all peers; `owed_count` peers have not
/// received the latest message, and while there are any, the chunks that they need are held or can
/// be encoded.
#[derive(Debug)]
pub struct Peers {
    settings: PresenceSettings,
    table: BTreeMap<u64, Peer>,
    listed_bytes: usize,
    /// The total length of the values of all peers.
    value_bytes: usize,
    /// The peers that are not listed, by the length of their entries.
    unlisted: BTreeSet<(usize, u64)>,
    changes: Changes,
    /// The number of messages so far, which is also the number of the latest one.
    version: u64,
    latest: Encoded,
    all: Encoded,
    /// The number of peers that have not received the latest message, except for those that joined
    /// after it.
    owed_count: usize,
    due_us: Option<u64>,
    /// Whether `due_us` is in the shard's [queue](crate::core::fanout::presence_queue).
    is_queued: bool,
    edition: u64,
}

#[derive(Debug)]
struct Peer {
    slot: u32,
    user: Option<Rc<str>>,
    /// The entry as it appears in messages, without a comma.
    entry: Vec<u8>,
    /// The length of the value, at which the entry ends except for a brace.
    value_bytes: usize,
    is_listed: bool,
    /// Whether the peer is in the list of changes.
    is_changed: bool,
    position: PeerPosition,
}

/// The changes since the latest message. A peer that is in both lists has left.
#[derive(Debug, Default)]
struct Changes {
    changed: Vec<u64>,
    left: Vec<u64>,
    /// The number of peers that joined and are still there.
    joined_count: usize,
}

/// The messages that a peer has received so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PeerPosition {
    /// Nothing. The message with this number is the first since it joined.
    Nothing { first: u64 },
    /// The message with this number, or an `all` message in its place.
    Message(u64),
}

/// A message that is encoded once for all its receivers.
#[derive(Debug, Default)]
enum Encoded {
    /// It has not been needed yet.
    #[default]
    No,
    Yes {
        chunk: Chunk,
        is_handed_out: bool,
    },
    /// It shows a peer that has left.
    Stale,
}

/// The kind of message that a peer needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    Latest,
    All,
}

impl PeerPosition {
    /// Returns the kind of message that a peer needs after `version` messages.
    fn owed(self, version: u64) -> Option<Owed> {
        match self {
            Self::Nothing { first } => (first <= version).then_some(Owed::All),
            Self::Message(number) if number == version => None,
            Self::Message(number) if number + 1 == version => Some(Owed::Latest),
            Self::Message(_) => Some(Owed::All),
        }
    }
}

impl Peer {
    fn value(&self) -> &[u8] {
        let end = self.entry.len() - 1;
        &self.entry[end - self.value_bytes..end]
    }

    fn set(&mut self, connection: u64, value: Option<&str>) {
        self.entry.clear();
        put_peer(&mut self.entry, connection, self.user.as_deref(), value);
        self.value_bytes = value.unwrap_or("null").len();
        // The limit counts lengths, so the capacity must not stay far above them.
        self.entry
            .shrink_to(PEER_BYTES_KEPT.max(2 * self.entry.len()));
    }
}

impl Encoded {
    /// Drops the bytes. Chunks that no receiver holds go back to the pool.
    fn clear(&mut self, pool: &mut OutboxPool) {
        if let Self::Yes { chunk, .. } = std::mem::take(self) {
            pool.give(chunk);
        }
    }

    fn message(&mut self) -> Option<PresenceMessage> {
        let Self::Yes {
            chunk,
            is_handed_out,
        } = self
        else {
            return None;
        };
        Some(PresenceMessage {
            chunk: Chunk::clone(chunk),
            is_first: !std::mem::replace(is_handed_out, true),
        })
    }
}

impl From<Chunk> for Encoded {
    fn from(chunk: Chunk) -> Self {
        Self::Yes {
            chunk,
            is_handed_out: false,
        }
    }
}

impl Peers {
    /// Returns an empty table.
    #[must_use]
    pub fn new(settings: PresenceSettings) -> Self {
        Self {
            settings,
            table: BTreeMap::new(),
            listed_bytes: 0,
            value_bytes: 0,
            unlisted: BTreeSet::new(),
            changes: Changes::default(),
            version: 0,
            latest: Encoded::No,
            all: Encoded::No,
            owed_count: 0,
            due_us: None,
            is_queued: false,
            edition: 0,
        }
    }

    // ---- the table ----

    /// Returns the number of peers, including those that are not listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Returns whether there are no peers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Returns whether the connection is a peer. A peer that was replaced no longer is one, even if
    /// its connection has not ended yet.
    #[must_use]
    pub fn contains(&self, connection: u64) -> bool {
        self.table.contains_key(&connection)
    }

    /// Returns a number that changes when a peer joins or leaves, and with each message. Values
    /// change without it, but the message that contains them is due within the interval.
    #[must_use]
    pub fn edition(&self) -> u64 {
        self.edition
    }

    /// Returns the listed peers, in the order of their connections.
    pub fn listed(&self) -> impl Iterator<Item = ListedPeer<'_>> {
        let listed = self.table.iter().filter(|(_, peer)| peer.is_listed);
        listed.map(|(connection, peer)| ListedPeer {
            connection: *connection,
            user: peer.user.as_deref(),
            value: peer.value(),
        })
    }

    /// Returns the total length of the values of all peers.
    #[must_use]
    pub fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Returns the slots of the sessions of all peers.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        self.table.values().map(|peer| peer.slot)
    }

    /// Adds a peer, whose value is `null`. The peer that it replaces is removed, if both have the
    /// same user: the next message then reports both changes.
    ///
    /// # Panics
    /// If the connection is already a peer.
    pub fn join(&mut self, new: NewPeer, now_us: u64) {
        let NewPeer {
            connection,
            slot,
            user,
            replaces,
        } = new;
        let is_same_user = |old: &u64| {
            let old = self.table.get(old);
            user.is_some() && old.is_some_and(|old| old.user == user)
        };
        if let Some(old) = replaces.filter(is_same_user) {
            self.remove(old);
        }
        let mut peer = Peer {
            slot,
            user,
            entry: Vec::new(),
            value_bytes: 0,
            is_listed: false,
            is_changed: false,
            position: PeerPosition::Nothing {
                first: self.version + 1,
            },
        };
        peer.set(connection, None);
        self.value_bytes += peer.value_bytes;
        self.unlisted.insert((peer.entry.len(), connection));
        let before = self.table.insert(connection, peer);
        assert!(before.is_none(), "a connection joins once");
        self.changes.joined_count += 1;
        self.edition += 1;
        self.list_what_fits();
        self.changed(now_us);
    }

    /// Sets the value of a peer, which is JSON text. Does nothing if the connection is not a peer:
    /// a value that arrives late does not bring back a peer that was replaced. `shard_bytes` is the
    /// total length of the values of all peers of the shard.
    ///
    /// # Errors
    /// If the value does not fit a limit, in which case the peer keeps the one that it had.
    pub fn set(
        &mut self,
        connection: u64,
        value: &str,
        shard_bytes: usize,
        now_us: u64,
    ) -> Result<(), PresenceFull> {
        let Some(peer) = self.table.get_mut(&connection) else {
            return Ok(());
        };
        if peer.value() == value.as_bytes() {
            return Ok(());
        }
        if !peer.is_listed {
            return Err(PresenceFull::Workspace);
        }
        let is_growing = value.len() > peer.value_bytes;
        let shard_bytes = shard_bytes - peer.value_bytes + value.len();
        if is_growing && shard_bytes > self.settings.shard_bytes_max {
            return Err(PresenceFull::Shard);
        }
        let listed_bytes = self.listed_bytes - peer.value_bytes + value.len();
        if listed_bytes > self.settings.bytes_max {
            return Err(PresenceFull::Workspace);
        }
        self.listed_bytes = listed_bytes;
        self.value_bytes = self.value_bytes - peer.value_bytes + value.len();
        peer.set(connection, Some(value));
        if !std::mem::replace(&mut peer.is_changed, true) {
            self.changes.changed.push(connection);
        }
        self.list_what_fits();
        self.changed(now_us);
        Ok(())
    }

    /// Removes a peer. Does nothing if the connection is not a peer, so a replaced connection that
    /// ends late is not reported again.
    pub fn leave(&mut self, connection: u64, now_us: u64) {
        if self.table.contains_key(&connection) {
            self.remove(connection);
            self.edition += 1;
            self.list_what_fits();
            self.changed(now_us);
        }
        if self.table.is_empty() {
            // No peer is left to send anything to.
            *self = Self {
                version: self.version,
                edition: self.edition,
                ..Self::new(self.settings)
            };
        }
    }

    fn remove(&mut self, connection: u64) {
        let peer = self.table.remove(&connection).expect("the caller saw it");
        match peer.position.owed(self.version) {
            Some(_) => self.owed_count -= 1,
            None if matches!(peer.position, PeerPosition::Nothing { .. }) => {
                self.changes.joined_count -= 1;
            }
            None => {}
        }
        if self.owed_count == 0 {
            (self.latest, self.all) = (Encoded::No, Encoded::No);
        }
        self.value_bytes -= peer.value_bytes;
        if !peer.is_listed {
            self.unlisted.remove(&(peer.entry.len(), connection));
            return;
        }
        self.listed_bytes -= peer.entry.len();
        self.changes.left.push(connection);
        if let Encoded::Yes { .. } = self.all {
            self.all = Encoded::Stale;
        }
    }

    /// Lists the peers that fit the limit now, the shortest entry first.
    fn list_what_fits(&mut self) {
        while let Some((entry_bytes, connection)) = self.unlisted.first() {
            let listed_bytes = self.listed_bytes + entry_bytes;
            if listed_bytes > self.settings.bytes_max {
                break;
            }
            self.listed_bytes = listed_bytes;
            let peer = self.table.get_mut(connection);
            let peer = peer.expect("what is not listed is in the table");
            (peer.is_listed, peer.is_changed) = (true, true);
            self.changes.changed.push(*connection);
            self.unlisted.pop_first();
        }
    }

    // ---- messages ----

    fn changed(&mut self, now_us: u64) {
        self.due_us
            .get_or_insert(now_us.saturating_add(self.settings.interval_us));
    }

    /// Returns when the next message is due, or `None` if nothing has changed.
    #[must_use]
    pub fn due_us(&self) -> Option<u64> {
        self.due_us
    }

    /// Returns, once, when the next message is due.
    pub fn take_due_us(&mut self) -> Option<u64> {
        let due_us = self.due_us.filter(|_| !self.is_queued);
        self.is_queued |= due_us.is_some();
        due_us
    }

    /// Encodes the changes since the latest message as the next one. Returns its length, or `None`
    /// if nothing has changed. Otherwise, a message is now pending for all peers.
    pub fn announce(&mut self, frame: &mut PresenceFrame, pool: &mut OutboxPool) -> Option<usize> {
        (self.due_us, self.is_queued) = (None, false);
        let Changes {
            changed,
            left,
            joined_count,
        } = &mut self.changes;
        if changed.is_empty() && left.is_empty() && *joined_count == 0 {
            return None;
        }
        for connection in changed.drain(..) {
            if let Some(peer) = self.table.get_mut(&connection) {
                peer.is_changed = false;
                frame.push_peer(&peer.entry);
            }
        }
        for connection in left.drain(..) {
            frame.push_left(connection);
        }
        *joined_count = 0;
        self.latest.clear(pool);
        self.all.clear(pool);
        self.version += 1;
        self.edition += 1;
        self.owed_count = self.table.len();
        let bytes = frame.frame_bytes(false);
        let chunk = pool.fill(bytes, |out| frame.finish(out, false));
        self.latest = chunk.into();
        Some(bytes)
    }

    /// Returns the approximate length of the peer's pending message, or `None` if there is none
    /// that can be taken now.
    #[must_use]
    pub fn owed_bytes(&self, connection: u64) -> Option<usize> {
        let peer = self.table.get(&connection)?;
        let message = match peer.position.owed(self.version)? {
            Owed::Latest => &self.latest,
            Owed::All => &self.all,
        };
        match message {
            Encoded::No => Some(self.listed_bytes),
            Encoded::Yes { chunk, .. } => Some(chunk.len()),
            Encoded::Stale => None,
        }
    }

    /// Returns whether the message that the peer is owed, if there is one, is not encoded yet.
    #[must_use]
    pub fn must_encode(&self, connection: u64) -> bool {
        let peer = self.table.get(&connection);
        let owed = peer.and_then(|peer| peer.position.owed(self.version));
        owed == Some(Owed::All) && matches!(self.all, Encoded::No)
    }

    /// Returns the message that the peer is owed, which counts as received from now on. Returns
    /// `None` if it is owed none, or must wait for the next one.
    pub fn take_message(
        &mut self,
        connection: u64,
        frame: &mut PresenceFrame,
        pool: &mut OutboxPool,
    ) -> Option<PresenceMessage> {
        let position = self.table.get(&connection)?.position;
        let message = match position.owed(self.version)? {
            Owed::Latest => self.latest.message(),
            Owed::All => {
                if let Encoded::No = self.all {
                    self.all = self.encode_all(frame, pool).into();
                }
                self.all.message()
            }
        };
        if message.is_some() {
            let peer = self.table.get_mut(&connection);
            peer.expect("it is in the table").position = PeerPosition::Message(self.version);
            self.owed_count -= 1;
            if self.owed_count == 0 {
                // An idle room holds no messages.
                self.latest.clear(pool);
                self.all.clear(pool);
            }
        }
        message
    }

    fn encode_all(&self, frame: &mut PresenceFrame, pool: &mut OutboxPool) -> Chunk {
        for peer in self.table.values().filter(|peer| peer.is_listed) {
            frame.push_peer(&peer.entry);
        }
        pool.fill(frame.frame_bytes(true), |out| frame.finish(out, true))
    }

    // ---- checks ----

    /// Checks the invariant.
    ///
    /// # Panics
    /// If it is broken.
    pub fn invariants(&self) {
        let listed = self.table.values().filter(|peer| peer.is_listed);
        let bytes: usize = listed.map(|peer| peer.entry.len()).sum();
        assert_eq!(self.listed_bytes, bytes, "the sum over the listed entries");
        assert!(bytes <= self.settings.bytes_max, "the limit holds");
        let unlisted = self.table.iter().filter(|(_, peer)| !peer.is_listed);
        let unlisted = unlisted.map(|(connection, peer)| (peer.entry.len(), *connection));
        assert_eq!(
            self.unlisted,
            unlisted.collect::<BTreeSet<_>>(),
            "the peers that wait"
        );
        if let Some((entry_bytes, _)) = self.unlisted.first() {
            assert!(
                bytes + entry_bytes > self.settings.bytes_max,
                "what fits is listed"
            );
        }
        let value_bytes: usize = self.table.values().map(|peer| peer.value_bytes).sum();
        assert_eq!(self.value_bytes, value_bytes, "the sum over the values");
        let owed = |owed: Option<Owed>| {
            let peers = self.table.values();
            let is_owed = |peer: &&Peer| peer.position.owed(self.version) == owed;
            peers.filter(is_owed).count()
        };
        let latest_count = owed(Some(Owed::Latest));
        assert_eq!(self.owed_count, latest_count + owed(Some(Owed::All)));
        let has_latest = matches!(self.latest, Encoded::Yes { .. });
        assert_eq!(
            has_latest,
            self.owed_count > 0,
            "the latest message is held while a peer needs it"
        );
        let has_all = matches!(self.all, Encoded::Yes { .. });
        assert!(
            !has_all || self.owed_count > 0,
            "an idle room holds nothing"
        );
        let is_new = |peer: &&Peer| {
            let position = peer.position;
            matches!(position, PeerPosition::Nothing { first } if first > self.version)
        };
        let joined_count = self.table.values().filter(is_new).count();
        assert_eq!(
            self.changes.joined_count, joined_count,
            "the number of new peers"
        );
        let is_stale = matches!(self.all, Encoded::Stale);
        assert!(
            !is_stale || self.due_us.is_some(),
            "the next message follows"
        );
    }
}
