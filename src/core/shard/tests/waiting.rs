//! Requests that arrive while the state is being read: at startup and after a failure.

use super::rig::{Rig, failure, head, look, op};
use crate::core::shard::contract::{Input, Output};
use crate::core::shard::session::State;
use crate::core::state::placement::shard_of;
use crate::core::state::workspace::Workspace;
use crate::limits::{HEAD_BYTES_MAX, WAITING_PER_TURN_MAX};
use crate::log::record::Change;
use crate::seq::Seq;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")
}

/// Opens a connection, sends a request on it, and returns the client.
fn ask(rig: &mut Rig, request: &str) -> usize {
    let client = rig.accept(false);
    rig.receive(client, request.as_bytes());
    client
}

/// Returns the bytes that a client has received but not parsed yet, such as the body of an answer.
fn text(rig: &Rig, client: usize) -> String {
    String::from_utf8_lossy(&rig.peers[client].client.incoming).into_owned()
}

/// Returns a single workspace, which has one key.
fn workspaces() -> Vec<Workspace> {
    let mut workspace = Workspace::new("w", 5);
    workspace.restore("k", &Change::write("1"), 7, Seq::new(1));
    workspace.finish_restore();
    vec![workspace]
}

fn handshakes(rig: &Rig) -> u64 {
    rig.shard.counters().sessions_handshake
}

/// P76: what clients send after a request that waits counts towards the budget.
#[test]
fn bytes_after_a_waiting_request_are_counted() {
    let mut rig = Rig::recovering(|config| config.session_bytes_max = 100_000);
    let bytes = op("k", &"1".repeat(10_000), 8);
    let clients: Vec<usize> = (0..20)
        .map(|_| {
            let client = ask(&mut rig, &head("w", None));
            if rig.peers[client].client.receiving {
                rig.receive(client, &bytes);
            }
            client
        })
        .collect();
    let held_bytes = rig.shard.counters().unfinished_bytes;
    assert!((50_000..200_000).contains(&held_bytes), "{held_bytes}");
    assert!(rig.shard.counters().given_up_sessions > 0);
    let refused = clients.iter().filter(|client| {
        let seen = rig.seen(**client);
        seen.first().is_some_and(|first| first == "503")
    });
    assert!((2..10).contains(&refused.count()));
    rig.recover(workspaces());
    rig.run();
    assert_eq!(rig.shard.counters().unfinished_bytes, 0);
}

/// P14.
#[test]
fn only_requests_that_need_the_state_wait_for_it() {
    let mut rig = Rig::recovering(|_| ());
    let join = rig.accept(false);
    rig.receive(
        join,
        &[head("w", None).as_bytes(), &op("j", "2", 8)].concat(),
    );
    let requests = [look("/v1/workspaces/w"), look("/v1/presence/w")];
    let http_readers = requests.each_ref().map(|request| ask(&mut rig, request));
    for (request, status) in [
        (get("/healthz"), "200"),
        (get("/readyz"), "503"),
        (get("/v1/workspaces/w"), "401"),
        (get("/nowhere"), "404"),
        (get("/v1/sync/w"), "426"),
    ] {
        let client = ask(&mut rig, &request);
        assert_eq!(rig.seen(client), [status, "gone"], "{request}");
    }
    rig.sleep_until(9.9);
    for client in http_readers.into_iter().chain([join]) {
        assert_eq!(rig.seen(client).len(), 0);
    }
    assert_eq!(handshakes(&rig), 3);
    rig.recover(workspaces());
    rig.run();
    assert_eq!(rig.seen(join), ["101", "init 1"]);
    assert_eq!(rig.seen(http_readers[0]), ["200", "gone"]);
    assert!(text(&rig, http_readers[0]).contains(r#""data":{"k":1}"#));
    assert_eq!(rig.seen(http_readers[1]), ["200", "gone"]);
    assert_eq!(
        (handshakes(&rig), rig.shard.admission.waiting_count()),
        (0, 0)
    );
    // The bytes that followed its request were read, and it is now a member like any other.
    let late = rig.join("w", None);
    assert_eq!(rig.seen(late), ["101", "init 2"]);
    rig.op(late, "k", "3", 9);
    rig.op(join, "k", "4", 10);
    assert_eq!(rig.seen(join), ["k=3@9"]);
    assert_eq!(rig.seen(late), ["k=4@10"]);
}

/// P14.
#[test]
fn a_request_waits_for_as_long_as_a_handshake_may_take() {
    let allowed =
        |request: &str| request.replace("Host: h\r\n", "Host: h\r\nOrigin: https://a\r\n");
    for (request, is_for_pages, has_body) in [
        (head("w", None), false, true),
        (allowed(&look("/v1/workspaces/w")), true, true),
        (look("/v1/presence/w").replace("GET", "HEAD"), true, false),
    ] {
        let mut rig = Rig::recovering(|_| ());
        let client = rig.accept(false);
        rig.sleep_until(4.0);
        rig.receive(client, request.as_bytes());
        rig.sleep_until(9.95);
        assert_eq!(rig.seen(client).len(), 0, "{request}");
        // The time runs from when the connection was accepted, not from when the request arrived.
        rig.sleep_until(10.0);
        assert_eq!(rig.seen(client), ["503", "gone"], "{request}");
        let head_text = rig.peers[client].client.head.clone();
        assert!(head_text.contains("Retry-After: 5\r\n"), "{head_text}");
        assert_eq!(
            head_text.contains("Access-Control-Allow-Origin"),
            is_for_pages
        );
        assert_eq!(text(&rig, client).contains("still reading"), has_body);
        assert_eq!(
            (handshakes(&rig), rig.shard.admission.waiting_count()),
            (0, 0)
        );
    }
}

#[test]
fn a_handed_off_request_waits_no_longer_than_the_others() {
    let mut names = (0..).map(|number| format!("w{number}"));
    let of_other = names.find(|name| shard_of(name, 2) == 1).unwrap();
    let mut front = Rig::recovering(|config| config.shards = 2);
    let mut owner = Rig::recovering(|config| (config.shard, config.shards) = (1, 2));
    let mut adopted = Vec::new();
    let accepted = [front.accept(false), front.accept(false)];
    front.sleep_until(4.0);
    owner.sleep_until(4.0);
    for client in accepted {
        front.receive(client, head(&of_other, None).as_bytes());
        let (_, handoff) = front.peers[client]
            .handed_off
            .take()
            .expect("the session is handed off to the owner");
        let id = owner.shard.adopt(handoff, owner.clock);
        adopted.push(owner.add_peer(id));
    }
    // The second client is gone, so its request no longer waits.
    owner.peers[adopted[1]].client.broken = true;
    owner.sleep_until(9.9);
    assert_eq!(owner.seen(adopted[0]).len(), 0);
    assert_eq!(owner.seen(adopted[1]), ["gone"]);
    owner.sleep_until(10.0);
    assert_eq!(owner.seen(adopted[0]), ["503", "gone"]);
}

#[test]
fn a_request_ends_with_its_connection() {
    for (request, is_broken, waits_on) in [
        (head("w", None), true, false),
        (head("w", None), false, false),
        (look("/v1/workspaces/w"), true, false),
        // A client that reads over HTTP may close its side after its request.
        (look("/v1/workspaces/w"), false, true),
    ] {
        let mut rig = Rig::recovering(|_| ());
        let client = ask(&mut rig, &request);
        assert_eq!(rig.shard.admission.waiting_count(), 1);
        let peer = &mut rig.peers[client].client;
        (peer.broken, peer.finished) = (is_broken, true);
        rig.run();
        assert_eq!(
            rig.shard.admission.waiting_count(),
            usize::from(waits_on),
            "{request}"
        );
        rig.recover(workspaces());
        rig.run();
        let seen = rig.seen(client);
        assert_eq!(seen.contains(&"200".to_owned()), waits_on, "{seen:?}");
        assert_eq!(seen.last().map(String::as_str), Some("gone"));
        assert_eq!((rig.shard.connections(), handshakes(&rig)), (0, 0));
    }
}

#[test]
fn bytes_after_a_waiting_request_are_bounded() {
    let mut rig = Rig::recovering(|_| ());
    let client = ask(&mut rig, &head("w", None));
    let mut sent = 0;
    while rig.peers[client].client.receiving {
        rig.receive(client, &op("k", "1", 5 + sent).repeat(10));
        sent += 1;
        assert!(sent < 100, "the client is still being read from");
    }
    let held = rig.session(client).unparsed.len();
    assert!((HEAD_BYTES_MAX..2 * HEAD_BYTES_MAX).contains(&held));
    rig.recover(Vec::new());
    rig.run();
    assert_eq!(rig.seen(client), ["101", "init 0"]);
    assert_eq!(
        rig.shard.counters().ops,
        sent,
        "ops are missing after the read resumed"
    );
    assert!(rig.peers[client].client.receiving);
}

#[test]
fn thousands_of_waiting_requests_are_answered_in_order_over_several_turns() {
    let mut rig = Rig::recovering(|_| ());
    let count = 5 * WAITING_PER_TURN_MAX + 1;
    let clients: Vec<usize> = (0..count)
        .map(|_| ask(&mut rig, &head("w", None)))
        .collect();
    rig.recover(workspaces());
    let mut answered = 0;
    while answered < count {
        rig.turn();
        let next = (answered + WAITING_PER_TURN_MAX).min(count);
        for (place, client) in clients.iter().enumerate() {
            let is_open = matches!(rig.session(*client).state(), State::Open { .. });
            assert_eq!(is_open, place < next, "client {place}");
        }
        assert_eq!(rig.shard.counters().connections, next as u64);
        assert!(rig.shard.has_work() || next == count);
        answered = next;
    }
    rig.run();
    for client in clients {
        assert_eq!(rig.seen(client), ["101", "init 1"]);
    }
}

/// P12.
#[test]
fn all_waiting_requests_are_answered_when_the_server_stops() {
    let mut rig = Rig::recovering(|_| ());
    let count = 3 * WAITING_PER_TURN_MAX;
    let clients: Vec<usize> = (0..count)
        .map(|_| ask(&mut rig, &head("w", None)))
        .collect();
    rig.shard.handle(Input::Drain, rig.clock);
    rig.run();
    for client in clients {
        assert_eq!(rig.seen(client), ["503", "gone"]);
        assert!(text(&rig, client).contains("is stopping"));
    }
    assert_eq!((rig.drained, rig.shard.connections()), (1, 0));
}

/// P13, P14.
#[test]
fn requests_wait_for_a_rebuild_but_not_for_a_failed_log() {
    for fails_again in [false, true] {
        let mut rig = Rig::new(|_| ());
        let writer = rig.join("w", None);
        rig.op(writer, "k", "1", 1);
        rig.log_fails = true;
        rig.op(writer, "k", "2", 2);
        let early = ask(&mut rig, &head("w", None));
        assert_eq!(
            rig.seen(early),
            ["500", "gone"],
            "waiting cannot be expected to help"
        );
        rig.log_hangs = true;
        rig.sleep_until(0.1);
        assert!(matches!(rig.log, Some(Output::Rebuild(_))));
        let clients = [head("w", None), look("/v1/workspaces/w")];
        let clients = clients.each_ref().map(|request| ask(&mut rig, request));
        rig.sleep_until(5.0);
        assert_eq!(rig.shard.admission.waiting_count(), 2);
        (rig.log_hangs, rig.log_fails) = (false, fails_again);
        rig.run();
        if fails_again {
            assert_eq!(rig.seen(clients[0]), ["500", "gone"]);
            assert_eq!(rig.seen(clients[1]), ["500", "gone"]);
        } else {
            assert_eq!(rig.seen(clients[0]), ["101", "init 1"]);
            assert_eq!(rig.seen(clients[1]), ["200", "gone"]);
        }
    }
    // A client that waits too long receives the answer for a failed log.
    let mut rig = Rig::new(|_| ());
    rig.shard
        .handle(Input::LogSynced(Err(failure())), rig.clock);
    rig.log_hangs = true;
    rig.sleep_until(1.0);
    let client = ask(&mut rig, &head("w", None));
    rig.sleep_until(11.0);
    assert_eq!(rig.seen(client), ["500", "gone"]);
}

#[test]
fn after_a_panic_in_one_waiting_request_the_others_stop_waiting() {
    let mut rig = Rig::recovering(|_| ());
    let (culprit, other) = (
        ask(&mut rig, &head("v", None)),
        ask(&mut rig, &head("w", None)),
    );
    // This simulates a bug in the server: the index refers to a room that does not exist.
    rig.shard.rooms.break_index("v");
    rig.recover(workspaces());
    rig.run();
    assert_eq!(rig.seen(culprit), ["500", "gone"]);
    let seen = rig.seen(other);
    assert_eq!(
        seen,
        ["500", "gone"],
        "the duration of a rebuild is unknown"
    );
    assert_eq!(
        (rig.shard.admission.waiting_count(), handshakes(&rig)),
        (0, 0)
    );
    rig.sleep_until(0.2);
    let late = rig.join("w", None);
    assert_eq!(rig.seen(late), ["101", "init 0"]);
}
