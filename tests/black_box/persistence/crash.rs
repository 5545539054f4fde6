//! kill -9 under load and during a start: no op that a client has received is lost, regardless of
//! the number of shards afterwards, and nothing is served that no client sent.

use crate::support::client::{Client, Event, Op, op_text};
use crate::support::server::{Server, Setup};
use crate::support::{eventually, files, stamp, within};
use etherply::core::testing::Dice;
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio_tungstenite::tungstenite::Message;

const ROOMS_COUNT: usize = 20;
const KEYS_COUNT: u64 = 200;
/// The successive shard counts: up and down, by one and by more.
const SHARDS: [u32; 7] = [2, 1, 3, 5, 4, 1, 2];

/// All ops that the clients have sent and received. Each value repeats its timestamp in the field
/// `n`.
struct Ledger {
    /// For each room and key, the newest op that counts as durable.
    newest: HashMap<(usize, String), Value>,
    /// Whether an op counts as durable once it was broadcast, or only once it has survived a
    /// restart.
    keeps_what_is_broadcast: bool,
    sent: HashSet<(usize, String, String)>,
    /// For each room, the newest timestamp that was sent. `newest_shown` holds the newest that was
    /// shown.
    newest_sent: [u64; ROOMS_COUNT],
    newest_shown: [u64; ROOMS_COUNT],
    /// The number of broadcasts and corrections, without the ops in init messages.
    ops_count: u64,
}

impl Ledger {
    fn new(keeps_what_is_broadcast: bool) -> SharedLedger {
        Arc::new(Mutex::new(Ledger {
            newest: HashMap::new(),
            keeps_what_is_broadcast,
            sent: HashSet::new(),
            newest_sent: [0; ROOMS_COUNT],
            newest_shown: [0; ROOMS_COUNT],
            ops_count: 0,
        }))
    }

    fn sent(&mut self, room: usize, op: &Op) {
        self.sent
            .insert((room, op.key.clone(), op.value.to_string()));
        self.newest_sent[room] = self.newest_sent[room].max(op.timestamp);
    }

    fn broadcast(&mut self, room: usize, key: &str, value: &Value) {
        let newest_shown = &mut self.newest_shown[room];
        *newest_shown = timestamp_of(value).max(*newest_shown);
        if self.keeps_what_is_broadcast {
            self.keep(room, key, value);
        }
    }

    fn keep(&mut self, room: usize, key: &str, value: &Value) {
        let newest = self
            .newest
            .entry((room, key.to_string()))
            .or_insert_with(|| value.clone());
        if timestamp_of(value) > timestamp_of(newest) {
            *newest = value.clone();
        }
    }

    /// Checks that the state has every op known to be durable, or one that overwrote it, and
    /// nothing that no client sent.
    fn check(&self, room: usize, state: &Map<String, Value>, when: &str) {
        let of_room = |entry: &(&(usize, String), &Value)| entry.0.0 == room;
        for ((_, key), kept) in self.newest.iter().filter(of_room) {
            let held = state.get(key);
            let held = held.unwrap_or_else(|| {
                panic!("{when}: room {room} lost {key}, although {kept} was delivered")
            });
            let is_later = timestamp_of(held) > timestamp_of(kept);
            assert!(
                is_later || held == kept,
                "{when}: room {room} holds {held} under {key}, but {kept} was delivered"
            );
        }
        for (key, value) in state {
            let op = (room, key.clone(), value.to_string());
            assert!(
                self.sent.contains(&op),
                "{when}: room {room} holds {value} under {key}, which no client sent"
            );
        }
    }

    /// Returns the number of rooms with an op in flight: sent, while no client has been shown
    /// anything as recent.
    fn rooms_with_ops_in_flight(&self) -> usize {
        let pairs = self.newest_sent.iter().zip(&self.newest_shown);
        pairs.filter(|(sent, shown)| sent > shown).count()
    }
}

fn timestamp_of(value: &Value) -> u64 {
    value["n"]
        .as_u64()
        .expect("values of this test contain their timestamp")
}

type SharedLedger = Arc<Mutex<Ledger>>;

fn open(ledger: &SharedLedger) -> MutexGuard<'_, Ledger> {
    ledger.lock().expect("no client task panics")
}

/// Reads, and with `dice` also writes, until the server is gone.
async fn take_part(mut client: Client, room: usize, ledger: SharedLedger, mut dice: Option<Dice>) {
    loop {
        let pause = Duration::from_millis(if dice.is_some() { 5 } else { 1000 });
        tokio::select! {
            biased;
            event = client.event() => match event {
                Event::Text(text) => {
                    let op = Op::parse(&text);
                    let op = op.unwrap_or_else(|| panic!("an op was refused: {text}"));
                    let mut ledger = open(&ledger);
                    ledger.ops_count += 1;
                    ledger.broadcast(room, &op.key, &op.value);
                }
                Event::Close(..) | Event::Lost(_) => return,
            },
            () = tokio::time::sleep(pause) => {
                if let Some(dice) = &mut dice {
                    let op = random_op(dice);
                    open(&ledger).sent(room, &op);
                    if !client.try_send(Message::text(op_text(&op))).await {
                        return;
                    }
                }
            }
        }
    }
}

/// Joins and leaves repeatedly until the server is gone. An op in an init message counts as shown.
async fn connect_and_leave(addr: SocketAddr, first_room: usize, ledger: SharedLedger) {
    for room in (0..ROOMS_COUNT).cycle().skip(first_room) {
        let dialed = Client::dial(addr, &Server::sync_path(&room_name(room))).await;
        let Ok(mut client) = dialed else { return };
        let Event::Text(text) = client.event().await else {
            return;
        };
        client.take_init(&text);
        let mut ledger = open(&ledger);
        for (key, value) in &client.init {
            ledger.broadcast(room, key, value);
        }
    }
}

/// Returns a random write. In one out of ten, the clock is a second behind.
fn random_op(dice: &mut Dice) -> Op {
    let late_us = if dice.one_in(10) { 1_000_000 } else { 0 };
    let timestamp = stamp() - late_us;
    let filler = "x".repeat(dice.below(300));
    Op::new(
        &format!("k{}", dice.below_u64(KEYS_COUNT)),
        json!({"n": timestamp, "filler": filler}),
        timestamp,
    )
}

fn room_name(room: usize) -> String {
    format!("room {room}")
}

/// Puts two writers and a reader into each room, and has other clients come and go.
async fn load(
    server: &Server,
    ledger: &SharedLedger,
    seed: u64,
) -> Vec<tokio::task::JoinHandle<()>> {
    let mut tasks = Vec::new();
    for room in 0..ROOMS_COUNT {
        for member in 0..3 {
            let client = Client::connect(server, &room_name(room)).await;
            let dice = (member > 0).then(|| Dice::new(seed * 1000 + (room * 10 + member) as u64));
            tasks.push(tokio::spawn(take_part(client, room, ledger.clone(), dice)));
        }
    }
    for first_room in [0, 5, 10, 15] {
        tasks.push(tokio::spawn(connect_and_leave(
            server.addr(),
            first_room,
            ledger.clone(),
        )));
    }
    tasks
}

/// Checks that the state of each room, as received by a new client, agrees with the ledger, and
/// records it as durable.
async fn check_all_rooms(server: &Server, ledger: &SharedLedger, when: &str) {
    for room in 0..ROOMS_COUNT {
        let state = Client::connect(server, &room_name(room)).await.init;
        let mut ledger = open(ledger);
        ledger.check(room, &state, when);
        for (key, value) in &state {
            ledger.keep(room, key, value);
        }
    }
}

/// Kills a start once it has created `segments_made` segments, at most one for each shard.
fn kill_during_start(setup: &Setup, segments_made: u64) {
    let before = files::segments(setup.data_dir());
    // Compares paths, not counts: a start also removes segments that a killed compaction had
    // replaced.
    let is_new = |path: &PathBuf| !before.contains(path);
    setup.start_and_kill(|| {
        let now = files::segments(setup.data_dir());
        now.into_iter().filter(is_new).count() as u64 >= segments_made
    });
}

/// Runs a load and kills the server in the middle of it, `rounds_count` times.
async fn kill_under_load(setup: Setup, mode: &str, rounds_count: u64) {
    let ledger = Ledger::new(mode == "always");
    let mut dice = Dice::new(7);
    let setup = setup.args(&["--durability", mode]);
    let mut server = setup.clone().shards(SHARDS[0]).start().await;
    let mut rooms_hit = 0;
    for (round, shards) in (1..=rounds_count).zip(SHARDS.into_iter().cycle().skip(1)) {
        let tasks = load(&server, &ledger, round).await;
        let goal = open(&ledger).ops_count + 100 + dice.below_u64(2000);
        let reached = async || (open(&ledger).ops_count >= goal).then_some(());
        eventually("the clients receive ops", reached).await;

        rooms_hit += open(&ledger).rooms_with_ops_in_flight();
        server.kill9();
        for task in tasks {
            let ended = within("a client to notice the end", task).await;
            ended.expect("no client task panics");
        }
        let setup = setup.clone().shards(shards);
        for _ in 0..dice.below(3) {
            kill_during_start(&setup, dice.below_u64(u64::from(shards) + 1));
        }
        server = setup.start().await;
        let when = format!("{mode}, after kill {round}, with {shards} shards");
        check_all_rooms(&server, &ledger, &when).await;
    }
    assert!(
        rooms_hit as u64 >= rounds_count,
        "{mode}: in {rounds_count} kills, ops were in flight in {rooms_hit} rooms: too little load"
    );
    server.stop().await;
    server.restart(2).await;
    check_all_rooms(&server, &ledger, "after a stop in good order").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_no_delivered_op_with_any_number_of_shards() {
    kill_under_load(Setup::new(), "always", 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_no_delivered_op_on_the_ring_for_older_kernels() {
    kill_under_load(Setup::new().args(&["--ring", "compat"]), "always", 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_in_interval_mode_loses_no_op_delivered_after_a_restart() {
    kill_under_load(Setup::new(), "interval", 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_in_none_mode_loses_no_op_delivered_after_a_restart() {
    kill_under_load(Setup::new(), "none", 7).await;
}
