//! kill -9 under load: nothing that any client was shown is lost, whatever the number of shards that comes after.

mod support;

use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::client::{Client, Event, Op, op_text};
use support::server::{Server, Setup};
use support::{Dice, eventually, stamp, within};
use tokio_tungstenite::tungstenite::Message;

const ROOMS_COUNT: usize = 20;
const ROUNDS_COUNT: u64 = 20;
const KEYS_COUNT: u64 = 200;

/// For each room and key, the newest op that some client was shown. A value carries its timestamp in the field `n`.
#[derive(Default)]
struct Ledger {
    newest: HashMap<(usize, String), Value>,
    /// Broadcasts and corrections, without what inits repeat.
    ops_count: u64,
}

impl Ledger {
    fn shown(&mut self, room: usize, key: &str, value: &Value) {
        let newest = self
            .newest
            .entry((room, key.to_string()))
            .or_insert_with(|| value.clone());
        if timestamp_of(value) > timestamp_of(newest) {
            *newest = value.clone();
        }
    }

    /// The state shows all that was shown before, or what has overwritten it.
    fn check(&self, room: usize, state: &serde_json::Map<String, Value>, when: &str) {
        for ((_, key), shown) in self
            .newest
            .iter()
            .filter(|((shown_in, _), _)| *shown_in == room)
        {
            let held = state.get(key);
            let held = held.unwrap_or_else(|| {
                panic!("{when}: room {room} lost {key}, of which {shown} was shown")
            });
            let is_later = timestamp_of(held) > timestamp_of(shown);
            assert!(
                is_later || held == shown,
                "{when}: room {room} holds {held} under {key}, but {shown} was shown"
            );
        }
    }
}

fn timestamp_of(value: &Value) -> u64 {
    value["n"]
        .as_u64()
        .expect("the values of this test carry their timestamp")
}

type SharedLedger = Arc<Mutex<Ledger>>;

/// Reads, and with dice also writes, until the server is gone.
async fn take_part(mut client: Client, room: usize, ledger: SharedLedger, mut dice: Option<Dice>) {
    loop {
        let pause = Duration::from_millis(if dice.is_some() { 5 } else { 1000 });
        tokio::select! {
            biased;
            event = client.event() => match event {
                Event::Text(text) => {
                    let op = Op::parse(&text).unwrap_or_else(|| panic!("no op of this test is refused: {text}"));
                    let mut ledger = ledger.lock().expect("no client panics");
                    ledger.ops_count += 1;
                    ledger.shown(room, &op.key, &op.value);
                }
                Event::Close(..) | Event::Lost(_) => return,
            },
            () = tokio::time::sleep(pause) => {
                if let Some(dice) = &mut dice && !client.try_send(random_op(dice)).await {
                    return;
                }
            }
        }
    }
}

/// Joins and leaves again and again, until the server is gone: what an init shows counts as shown.
async fn come_and_go(addr: SocketAddr, first_room: usize, ledger: SharedLedger) {
    for room in (0..ROOMS_COUNT).cycle().skip(first_room) {
        let dialed = Client::dial(addr, &Server::sync_path(&room_name(room))).await;
        let Ok(mut client) = dialed else { return };
        let Event::Text(text) = client.event().await else {
            return;
        };
        client.take_init(&text);
        let mut ledger = ledger.lock().expect("no client panics");
        for (key, value) in &client.init {
            ledger.shown(room, key, value);
        }
    }
}

/// A write, one in ten of them with a clock that is a second late.
fn random_op(dice: &mut Dice) -> Message {
    let late_us = if dice.below(10) == 0 { 1_000_000 } else { 0 };
    let timestamp = stamp() - late_us;
    let filler = "x".repeat(usize::try_from(dice.below(300)).expect("a small number"));
    let op = Op::new(
        &format!("k{}", dice.below(KEYS_COUNT)),
        json!({"n": timestamp, "filler": filler}),
        timestamp,
    );
    Message::text(op_text(&op))
}

fn room_name(room: usize) -> String {
    format!("room {room}")
}

/// Puts two writers and a reader into each room, and lets others come and go.
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
        tasks.push(tokio::spawn(come_and_go(
            server.addr(),
            first_room,
            ledger.clone(),
        )));
    }
    tasks
}

/// What a new client is shown in each room agrees with the ledger, and is entered in it.
async fn check_all_rooms(server: &Server, ledger: &SharedLedger, when: &str) {
    for room in 0..ROOMS_COUNT {
        let state = Client::connect(server, &room_name(room)).await.init;
        let mut ledger = ledger.lock().expect("no client panics");
        ledger.check(room, &state, when);
        for (key, value) in &state {
            ledger.shown(room, key, value);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_twenty_times_loses_nothing_that_was_shown_with_1_2_and_3_shards() {
    let ledger = SharedLedger::default();
    let mut dice = Dice::new(7);
    let mut server = Setup::new().shards(2).start().await;
    for round in 1..=ROUNDS_COUNT {
        let tasks = load(&server, &ledger, round).await;
        let before = ledger.lock().expect("no client panics").ops_count;
        let goal = before + 100 + dice.below(2000);
        let reached =
            async || (ledger.lock().expect("no client panics").ops_count >= goal).then_some(());
        eventually("the clients are shown ops", reached).await;

        server.kill9();
        for task in tasks {
            within("a client notices the end", task)
                .await
                .expect("no client panics");
        }
        let shards = [1, 2, 3, 2][usize::try_from(round % 4).expect("a small number")];
        server.restart(shards).await;
        check_all_rooms(
            &server,
            &ledger,
            &format!("after kill {round}, with {shards} shards"),
        )
        .await;
    }
    server.stop().await;
    server.restart(2).await;
    check_all_rooms(&server, &ledger, "after a stop in good order").await;
}
