//! Version 2 pings, token renewal and close codes.

use super::{join, joined, messages, put, request, send, told};
use crate::core::shard::contract::Input;
use crate::core::shard::tests::rig::{Rig, frame, pong};
use crate::core::state::placement::shard_of;
use crate::core::testing::{self, START_UNIX_S};
use crate::limits::{CAST_VALUE_BYTES_MAX, SECOND_US};
use crate::wire::auth::mint;

/// P180.
#[test]
fn a_ping_is_answered_with_the_servers_time() {
    let mut rig = Rig::new(|_| ());
    let client = joined(&mut rig, "w");
    rig.clock.unix_us += 17;
    let time = START_UNIX_S * SECOND_US + 17;
    rig.receive(client, &frame(1, br#"{"type":"ping"}"#));
    rig.receive(client, &frame(1, br#"{"type":"ping","id":3,"payload":{}}"#));
    assert_eq!(
        rig.seen(client),
        [
            format!(r#"{{"type":"pong","payload":{{"time":{time}}}}}"#),
            format!(r#"{{"type":"pong","id":3,"payload":{{"time":{time}}}}}"#),
            r#"{"type":"saved","payload":{"id":3},"seq":0}"#.to_owned(),
        ]
    );
}

/// P181: a ping message is a sign of life; without one, the client is closed with 1001 (P183).
#[test]
fn a_silent_client_is_closed_with_1001() {
    let mut rig = Rig::new(|_| ());
    let (silent, alive) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    for tens in 1..6_u32 {
        rig.sleep_until(f64::from(tens) * 10.0);
        rig.receive(alive, &frame(1, br#"{"type":"ping"}"#));
    }
    assert!(told(&mut rig, silent).contains(&"close 1001".to_owned()));
    assert!(
        !told(&mut rig, alive)
            .iter()
            .any(|text| text.starts_with("close"))
    );
}

/// P77, P183: a server that stops closes version 1 clients with 1001, and version 2 clients
/// with 1012.
#[test]
fn a_drain_closes_each_version_with_its_code() {
    let mut rig = Rig::new(|_| ());
    let (old, new) = (rig.join("w", None), joined(&mut rig, "w"));
    told(&mut rig, old);
    rig.shard.handle(Input::Drain, rig.clock);
    rig.sleep_until(20.0);
    assert_eq!(told(&mut rig, old), ["close 1001", "gone"]);
    assert_eq!(told(&mut rig, new), ["close 1012", "gone"]);
    let closes = rig.shard.counters().closes;
    assert_eq!([1001, 1012].map(|code| closes.of(code)), [1, 1]);
}

/// Returns the message that replaces a token.
fn renewal(token: &str) -> Vec<u8> {
    frame(
        1,
        format!(r#"{{"type":"token","id":1,"payload":{{"token":"{token}"}}}}"#).as_bytes(),
    )
}

/// P182, P25: the connection then ends when the new token expires.
#[test]
fn a_new_token_replaces_the_old_one() {
    // The lifetimes of the tokens, and the time at which the connection ends, 30 s of leeway later.
    for (old_s, new_s, end_s) in [
        (Some(10), Some(100), Some(130)),
        (Some(100), Some(10), Some(40)),
        (Some(10), None, None),
        (None, Some(10), Some(40)),
    ] {
        let mut rig = Rig::new(|config| config.ping_interval_us = 1000 * SECOND_US);
        let client = rig.accept(false);
        rig.receive(client, request("w", &testing::token(old_s), "").as_bytes());
        told(&mut rig, client);
        rig.receive(client, &renewal(&testing::token(new_s)));
        let expires = new_s.map_or("null".to_owned(), |new_s| {
            (START_UNIX_S + new_s).to_string()
        });
        let expected = [format!("token {expires}"), "saved 1 #0".to_owned()];
        assert_eq!(told(&mut rig, client), expected);
        rig.sleep_until(200.0);
        let closed = rig
            .seen_at(client)
            .into_iter()
            .find(|(_, text)| text == "close 4001");
        let closed_s = closed.map(|(at_ms, _)| (at_ms + 500) / 1000);
        assert_eq!(closed_s, end_s, "{old_s:?} {new_s:?}");
    }
}

/// P182: each new token sets a deadline, and a client may send many.
#[test]
fn new_tokens_do_not_fill_the_timer_wheel() {
    let mut rig = Rig::new(|_| ());
    let client = joined(&mut rig, "w");
    for number in 0..200 {
        let token = testing::token(Some(100 + number % 2));
        let payload = format!(r#"{{"token":"{token}"}}"#);
        let text = format!(r#"{{"type":"token","payload":{payload}}}"#);
        rig.receive(client, &frame(1, text.as_bytes()));
    }
    let timers_count = rig.shard.sessions.timers_count();
    assert!(timers_count < 10, "{timers_count}");
}

/// P182, P113: a token that is refused changes nothing: the old one's `exp` still holds.
#[test]
fn a_refused_token_changes_nothing() {
    let other_user = mint(&testing::secret(), "eve", START_UNIX_S, None);
    let expired = mint(&testing::secret(), "client", START_UNIX_S - 1000, Some(5));
    let forged = format!("{}x", testing::token(None));
    for token in [
        other_user.as_str(),
        &expired,
        &forged,
        "nonsense",
        "\\u0000",
    ] {
        let mut rig = Rig::new(|config| config.ping_interval_us = 1000 * SECOND_US);
        let client = rig.accept(false);
        rig.receive(
            client,
            request("w", &testing::token(Some(10)), "").as_bytes(),
        );
        told(&mut rig, client);
        rig.receive(client, &renewal(token));
        let answers = messages(&mut rig, client);
        let payload = answers[0]["payload"].clone();
        assert_eq!(
            (answers[0]["type"].as_str(), answers[0]["id"].as_u64()),
            (Some("error"), Some(1))
        );
        assert_eq!(payload["code"], 401, "{token}");
        let text = payload["message"].as_str().expect("a text");
        assert!(!text.contains(token), "a token is never shown: {text}");
        send(&mut rig, client, 2, &put("k", "1", 1));
        assert_eq!(
            told(&mut rig, client),
            ["saved 2 #1"],
            "the connection stays open"
        );
        rig.sleep_until(60.0);
        assert!(told(&mut rig, client).contains(&"close 4001".to_owned()));
    }
}

/// P25, P182: if a token expires while the client is away, its next request is refused.
#[test]
fn the_expiry_of_a_token_that_was_replaced_does_not_matter() {
    let mut rig = Rig::new(|_| ());
    let client = rig.accept(false);
    rig.receive(
        client,
        request("w", &testing::token(Some(10)), "").as_bytes(),
    );
    rig.receive(client, &renewal(&testing::token(Some(1000))));
    for tens in 1..10_u32 {
        rig.sleep_until(f64::from(tens) * 10.0);
        rig.receive(client, &pong());
    }
    assert!(
        !told(&mut rig, client)
            .iter()
            .any(|text| text.starts_with("close"))
    );
}

/// P131: connection ids are never reused, not even after a failure of the log.
#[test]
fn connection_ids_are_not_reused() {
    let mut rig = Rig::new(|_| ());
    let mut ids = std::collections::BTreeSet::new();
    for round in 0..6 {
        let client = join(&mut rig, "w", "");
        let welcome = messages(&mut rig, client).swap_remove(0);
        let id = welcome["payload"]["connection"]
            .as_str()
            .expect("an id is a string")
            .to_owned();
        assert!(ids.insert(id), "{ids:?}");
        if round == 3 {
            rig.log_fails = true;
            send(&mut rig, client, 0, &put("k", "1", 1));
            rig.log_fails = false;
            rig.sleep_until(1.0);
        } else {
            rig.peers[client].client.broken = true;
            rig.run();
        }
    }
}

/// P160: presence and casts are not logged and do not wait for the log.
#[test]
fn presence_and_casts_are_not_logged() {
    let mut rig = Rig::new(|_| ());
    let (one, other) = (join(&mut rig, "w", "&presence=1"), joined(&mut rig, "w"));
    rig.log_hangs = true;
    for (client, id) in [(one, 1), (other, 1), (one, 2)] {
        for (step, name) in [(0, "presence"), (1, "cast")] {
            let id = 2 * id + step;
            let text = format!(r#"{{"type":"{name}","id":{id},"payload":{{"value":{id}}}}}"#);
            rig.receive(client, &frame(1, text.as_bytes()));
        }
    }
    assert!(rig.log.is_none());
    assert!(told(&mut rig, other).contains(&"saved 3 #0".to_owned()));
    rig.log_hangs = false;
    send(&mut rig, other, 9, &put("k", "1", 1));
    assert!(told(&mut rig, one).contains(&"k=1@1 #1".to_owned()));
}

/// P131: no two shards use the same id.
#[test]
fn connection_ids_are_unique_across_shards() {
    let mut ids = std::collections::BTreeSet::new();
    for shard in 0..2 {
        let mut rig = Rig::new(|config| (config.shard, config.shards) = (shard, 2));
        let names = (0..100).map(|number| format!("w{number}"));
        for name in names.filter(|name| shard_of(name, 2) == shard) {
            let client = join(&mut rig, &name, "");
            let welcome = messages(&mut rig, client).swap_remove(0);
            let id = welcome["payload"]["connection"].to_string();
            assert!(ids.insert(id), "{ids:?}");
        }
    }
}

/// P166: a connection that was replaced stays open, even if its successor leaves first and no peer
/// is left.
#[test]
fn a_connection_that_was_replaced_outlives_its_successor() {
    let mut rig = Rig::new(|_| ());
    let old = join(&mut rig, "w", "&presence=1");
    let welcome = messages(&mut rig, old).swap_remove(0);
    let connection = welcome["payload"]["connection"].as_str().expect("an id");
    let new = join(&mut rig, "w", &format!("&presence=1&replaces={connection}"));
    rig.sleep_until(0.1);
    rig.peers[new].client.broken = true;
    rig.run();
    let text = r#"{"type":"presence","id":1,"payload":{"value":1}}"#;
    rig.receive(old, &frame(1, text.as_bytes()));
    send(&mut rig, old, 2, &put("k", "1", 1));
    let seen = told(&mut rig, old);
    for expected in ["saved 1 #0", "saved 2 #1"] {
        assert!(seen.contains(&expected.to_owned()), "{seen:?}");
    }
}

/// P167: while an op waits for a slow disk, casts do not fill the memory.
#[test]
fn casts_do_not_pile_up_behind_a_slow_disk() {
    let mut rig = Rig::new(|_| ());
    let (writer, other) = (joined(&mut rig, "w"), joined(&mut rig, "w"));
    rig.log_hangs = true;
    send(&mut rig, writer, 1, &put("k", "1", 1));
    let value = "x".repeat(CAST_VALUE_BYTES_MAX - 2);
    let text = format!(r#"{{"type":"cast","payload":{{"value":"{value}"}}}}"#);
    for _ in 0..50 {
        rig.receive(other, &frame(1, text.as_bytes()));
    }
    let held_bytes = rig.shard.counters().window_bytes;
    assert!(held_bytes < 4 * 64 * 1024, "{held_bytes}");
    rig.log_hangs = false;
    rig.run();
    let received = messages(&mut rig, writer);
    let casts = received.iter().filter(|message| message["type"] == "cast");
    assert!((1..50).contains(&casts.count()));
}

/// P162: the values of the peers of all workspaces are limited together. A peer that leaves makes
/// room.
#[test]
fn the_values_of_all_workspaces_are_limited_together() {
    let mut rig = Rig::new(|config| config.presence.shard_bytes_max = 20);
    let one = join(&mut rig, "v", "&presence=1");
    let other = join(&mut rig, "w", "&presence=1");
    let mut errors = |client: Option<usize>, id: u64, value: &str| -> Vec<String> {
        let Some(client) = client else {
            rig.peers[one].client.broken = true;
            rig.run();
            return Vec::new();
        };
        let payload = format!(r#"{{"value":{value}}}"#);
        let text = format!(r#"{{"type":"presence","id":{id},"payload":{payload}}}"#);
        rig.receive(client, &frame(1, text.as_bytes()));
        let seen = told(&mut rig, client).into_iter();
        seen.filter(|text| text.starts_with("error")).collect()
    };
    // A value that was not set counts as `null`.
    assert!(errors(Some(one), 1, "123456789012").is_empty());
    assert_eq!(errors(Some(other), 1, "123456789"), ["error 413 id 1"]);
    assert!(errors(Some(other), 2, "12345678").is_empty());
    assert!(errors(None, 0, "").is_empty());
    assert!(errors(Some(other), 3, "12345678901234567890").is_empty());
}

/// P131: a client whose `sub` is too long to be shown to everybody has no user.
#[test]
fn a_long_sub_is_no_user() {
    for (bytes, is_user) in [(256, true), (257, false)] {
        let sub = "u".repeat(bytes);
        let token = mint(&testing::secret(), &sub, START_UNIX_S, None);
        let mut rig = Rig::new(|_| ());
        let client = rig.accept(false);
        rig.receive(client, request("w", &token, "&presence=1").as_bytes());
        rig.sleep_until(0.1);
        let expected = is_user.then_some(sub.as_str());
        let received = messages(&mut rig, client);
        assert_eq!(received[0]["payload"]["user"].as_str(), expected);
        let connection = received[0]["payload"]["connection"].as_str();
        let peer = &received[2]["payload"]["peers"][connection.expect("an id")];
        assert!(peer.is_object(), "{received:?}");
        assert_eq!(peer["user"].as_str(), expected);
    }
}
