//! Tests of the version 2 rules of the protocol (P100 to P183) on the rig: joining, resuming, ops
//! and deletes, `saved`, and clients of both versions in one workspace.

use std::collections::BTreeMap;

use serde_json::Value;

use super::rig::{Rig, frame};
use crate::core::state::segment_usage::UNMARKED;
use crate::core::state::workspace::{Edit, Source, Workspace};
use crate::core::testing::{self, HASH_SEED, START_UNIX_S};
use crate::limits::SECOND_US;
use crate::log::record::Change;

mod behind;
mod both_versions;
mod connection;
mod joining;
mod ops;
mod random;
mod resuming;
mod saved;
mod turn_work;

/// The base of the timestamps in the tests, which keeps them short: `T + 5` is shown as 5.
const T: u64 = START_UNIX_S * SECOND_US - SECOND_US;

// ---- what clients send ----

/// Returns the request of a version 2 client to join `workspace`; `query` is appended.
fn request(workspace: &str, token: &str, query: &str) -> String {
    let request = testing::upgrade_request(&format!("/v1/sync/{workspace}?token={token}{query}"));
    let upgrade = "Upgrade: websocket\r\n";
    let offer = format!("{upgrade}Sec-WebSocket-Protocol: etherply.v2\r\n");
    request.replacen(upgrade, &offer, 1)
}

/// Joins `workspace` with version 2.
fn join(rig: &mut Rig, workspace: &str, query: &str) -> usize {
    let place = rig.accept(false);
    let request = request(workspace, &testing::token(None), query);
    rig.receive(place, request.as_bytes());
    place
}

/// Joins `workspace` with version 2, and discards what the client receives in reply.
fn joined(rig: &mut Rig, workspace: &str) -> usize {
    let place = join(rig, workspace, "");
    let seen = told(rig, place);
    assert!(
        seen[2..]
            .last()
            .is_some_and(|last| last.starts_with("synced")),
        "{seen:?}"
    );
    place
}

/// Returns the payload of a write.
fn put(key: &str, value: &str, after: u64) -> String {
    format!(r#""key":"{key}","value":{value},"timestamp":{}"#, T + after)
}

/// Returns the payload of a delete.
fn delete(key: &str, after: u64) -> String {
    format!(r#""key":"{key}","deleted":true,"timestamp":{}"#, T + after)
}

/// Returns an op as a frame. An `id` of 0 means no id.
fn op(id: u64, payload: &str) -> Vec<u8> {
    let id = if id > 0 {
        format!(r#""id":{id},"#)
    } else {
        String::new()
    };
    frame(
        1,
        format!(r#"{{"type":"op",{id}"payload":{{{payload}}}}}"#).as_bytes(),
    )
}

fn send(rig: &mut Rig, place: usize, id: u64, payload: &str) {
    rig.receive(place, &op(id, payload));
}

// ---- what clients receive ----

/// Returns a client's events since the last call. Messages are abbreviated: `k=1@5 #3` is an op
/// with the seq 3, `-k@5` is a delete.
fn told(rig: &mut Rig, place: usize) -> Vec<String> {
    rig.seen(place).iter().map(|text| brief(text)).collect()
}

/// Returns the messages that a version 2 client received since the last call.
fn messages(rig: &mut Rig, place: usize) -> Vec<Value> {
    let texts = rig
        .seen(place)
        .into_iter()
        .filter(|text| text.starts_with('{'));
    texts
        .map(|text| serde_json::from_str(&text).expect("a message is JSON"))
        .collect()
}

fn brief(text: &str) -> String {
    if !text.starts_with('{') {
        // An op that a version 1 client received.
        return match text.rsplit_once('@') {
            Some((op, timestamp)) => format!("{op}@{}", after(timestamp.parse().ok())),
            None => text.to_owned(),
        };
    }
    let message: Value = serde_json::from_str(text).expect("a message is JSON");
    let payload = &message["payload"];
    let word = |name: &str| payload[name].as_str().unwrap_or_default().to_owned();
    let id = message["id"]
        .as_u64()
        .map_or(String::new(), |id| format!(" id {id}"));
    let content = match message["type"].as_str().expect("a message has a type") {
        "welcome" => format!("welcome {} {}", word("state"), word("why")),
        "state" => entries(payload)
            .iter()
            .fold("state".to_owned(), |mut all, entry| {
                all.push(' ');
                all.push_str(&entry.brief());
                all
            }),
        "op" => ShownChange::of_op(payload).brief(),
        "saved" => format!("saved {}", payload["id"]),
        "error" => {
            let key = payload["key"]
                .as_str()
                .map_or(String::new(), |key| format!(" key {key}"));
            format!("error {}{key}", payload["code"])
        }
        "token" => format!("token {}", payload["expires"]),
        name => name.to_owned(),
    };
    let seq = message["seq"]
        .as_u64()
        .map_or(String::new(), |seq| format!(" #{seq}"));
    format!("{content}{id}{seq}")
}

/// Returns how far a timestamp is after [`T`], or the timestamp in parentheses if it is not.
fn after(timestamp: Option<u64>) -> String {
    let timestamp = timestamp.expect("a timestamp is an integer");
    timestamp
        .checked_sub(T)
        .map_or_else(|| format!("({timestamp})"), |after| after.to_string())
}

/// An entry, a tombstone or an op that a version 2 client received.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ShownChange {
    key: String,
    /// `None` for a delete.
    value: Option<String>,
    timestamp: u64,
}

impl ShownChange {
    fn of_op(payload: &Value) -> Self {
        let is_deleted = payload["deleted"] == true;
        assert_ne!(is_deleted, payload.get("value").is_some(), "{payload}");
        Self {
            key: payload["key"].as_str().expect("a key").to_owned(),
            value: payload.get("value").map(Value::to_string),
            timestamp: payload["timestamp"].as_u64().expect("a timestamp"),
        }
    }

    fn brief(&self) -> String {
        let (key, at) = (&self.key, after(Some(self.timestamp)));
        match &self.value {
            Some(value) => format!("{key}={value}@{at}"),
            None => format!("-{key}@{at}"),
        }
    }
}

/// Returns the entries and then the tombstones of a state message.
fn entries(payload: &Value) -> Vec<ShownChange> {
    let list = |name: &str| {
        payload[name]
            .as_array()
            .expect("both lists are present")
            .clone()
    };
    let live = list("entries")
        .into_iter()
        .map(|entry| (entry[1].to_string(), entry));
    let live = live.map(|(value, entry)| (Some(value), entry[0].clone(), entry[2].clone()));
    let dead = list("deleted").into_iter();
    let dead = dead.map(|entry| (None, entry[0].clone(), entry[1].clone()));
    let all = live.chain(dead).map(|(value, key, timestamp)| ShownChange {
        key: key.as_str().expect("a key").to_owned(),
        value,
        timestamp: timestamp.as_u64().expect("a timestamp"),
    });
    all.collect()
}

/// A client's copy of the state, kept by the merge rule (P135, P136).
#[derive(Debug, Clone, Default)]
struct Replica {
    held: BTreeMap<String, ShownChange>,
    /// What remains of the state from before a `full` one.
    unconfirmed: BTreeMap<String, ShownChange>,
    /// The resume point.
    seq: u64,
    generation: String,
    /// The resume point is that of all that is held (P144).
    is_exact: bool,
    is_synced: bool,
    /// The id of the last `saved`.
    saved: u64,
}

impl Replica {
    /// Applies a change unless the client's entry of that key is newer.
    fn merge(&mut self, change: ShownChange) {
        self.unconfirmed.remove(&change.key);
        let held = self.held.get(&change.key);
        if held.is_none_or(|held| held.timestamp <= change.timestamp) {
            self.held.insert(change.key.clone(), change);
        }
    }

    fn read_all(&mut self, messages: &[Value]) {
        for message in messages {
            self.read(message);
        }
    }

    /// Returns whether the client must start over after this `welcome` (P144).
    fn must_begin_anew(&self, welcome: &Value) -> bool {
        let payload = &welcome["payload"];
        let is_other = payload["generation"] != *self.generation;
        is_other && payload["state"] == "changes" && !self.is_exact
    }

    fn read(&mut self, message: &Value) {
        let payload = &message["payload"];
        let kind = message["type"].as_str().expect("a type");
        if ["state", "synced", "op", "saved"].contains(&kind) {
            self.is_exact = kind != "state" && message.get("seq").is_some();
        }
        match message["type"].as_str().expect("a type") {
            "welcome" => {
                payload["generation"]
                    .as_str()
                    .expect("a generation")
                    .clone_into(&mut self.generation);
                (self.is_synced, self.saved) = (false, 0);
                if payload["state"] == "full" {
                    self.unconfirmed.append(&mut self.held);
                    self.seq = 0;
                }
            }
            "state" => {
                for change in entries(payload) {
                    self.merge(change);
                }
            }
            "op" => self.merge(ShownChange::of_op(payload)),
            "synced" => {
                self.is_synced = true;
                self.unconfirmed.clear();
            }
            "saved" => {
                let id = payload["id"].as_u64().expect("an id");
                assert!(id > self.saved, "saved {id} after {}", self.saved);
                self.saved = id;
            }
            name => panic!("{name} was not expected: {message}"),
        }
        if let Some(seq) = message["seq"].as_u64() {
            assert!(
                seq >= self.seq,
                "a resume point never decreases: {seq} after {}",
                self.seq
            );
            self.seq = seq;
        }
    }

    /// Returns the live keys with their values.
    fn live(&self) -> BTreeMap<&str, &str> {
        let held = self.held.iter().chain(&self.unconfirmed);
        held.filter_map(|(key, change)| Some((key.as_str(), change.value.as_deref()?)))
            .collect()
    }
}

// ---- initial workspaces ----

/// Returns the workspace `w` with these changes, of which the n-th has the timestamp `T + n`. A
/// change without a value is a delete.
fn workspace(changes: &[(&str, Option<&str>)]) -> Workspace {
    let mut workspace = Workspace::new("w", HASH_SEED);
    for ((key, value), after) in changes.iter().zip(1..) {
        let change = match value {
            Some(value) => Change::write(value),
            None => Change::Delete { deleted_at_us: 0 },
        };
        let edit = Edit {
            key,
            change,
            timestamp: T + after,
            if_timestamp: None,
        };
        let (writer, mark) = (0, UNMARKED);
        let _ = workspace.apply_within(u64::MAX, &edit, Source { writer, mark });
    }
    workspace
}

/// Drops all tombstones of a workspace, which gives it a floor.
fn drop_tombstones(workspace: &mut Workspace) {
    let dropped = workspace.drop_tombstones((u64::MAX, 0), usize::MAX, None, UNMARKED);
    assert!(dropped.is_some(), "there are tombstones");
}

/// Returns the query of a client that resumes.
fn since(seq: u64, generation: &str) -> String {
    format!("&since={seq}&generation={generation}")
}

/// Returns the current generation, as a client of another workspace sees it.
fn generation(rig: &mut Rig) -> String {
    let client = join(rig, "elsewhere", "");
    let welcome = messages(rig, client).swap_remove(0);
    welcome["payload"]["generation"]
        .as_str()
        .expect("a generation")
        .to_owned()
}
