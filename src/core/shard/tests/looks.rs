//! Looks at a workspace without a WebSocket, and pages.

use super::rig::{Rig, look};
use crate::core::contract::{Input, Output};
use crate::core::session::SessionId;
use crate::wire::upgrade::{Answer, Page};

#[test]
fn a_look_shows_nothing_that_is_not_durable() {
    for (log_fails, status) in [(false, "200"), (true, "500")] {
        let mut rig = Rig::new(|_| ());
        let writer = rig.join("w", None);
        rig.log_hangs = true;
        rig.op(writer, "k", "1", 1);
        let (state, presence) = (rig.accept(false), rig.accept(false));
        rig.receive(state, look("/v1/workspaces/w").as_bytes());
        rig.receive(presence, look("/v1/presence/w").as_bytes());
        assert!(rig.seen(state).is_empty(), "the op is not durable");
        (rig.log_hangs, rig.log_fails) = (false, log_fails);
        rig.run();
        assert_eq!(rig.seen(state), [status, "gone"]);
        // Who is there is no op.
        assert_eq!(rig.seen(presence), ["200", "gone"]);
    }
}

#[test]
fn a_look_makes_no_workspace() {
    let mut rig = Rig::new(|_| ());
    for path in ["/v1/workspaces/w", "/v1/presence/w"] {
        let client = rig.accept(false);
        rig.receive(client, look(path).as_bytes());
        assert_eq!(rig.seen(client), ["200", "gone"]);
    }
    assert_eq!(rig.shard.counters().workspaces, 0);
}

#[test]
fn a_look_is_refused_like_a_handshake() {
    let mut rig = Rig::new(|_| ());
    let over = rig.accept(true);
    rig.receive(over, look("/v1/workspaces/w").as_bytes());
    assert_eq!(rig.seen(over), ["503", "gone"]);
    let head_only = rig.accept(true);
    let request = look("/v1/workspaces/w").replace("GET", "HEAD");
    rig.receive(head_only, request.as_bytes());
    assert_eq!(rig.seen(head_only), ["503", "gone"]);
    let answer = &rig.peers[head_only].client.incoming;
    assert!(answer.is_empty(), "an answer to HEAD has no body");
    let client = rig.accept(false);
    rig.receive(client, b"GET /v1/workspaces/w HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(rig.seen(client), ["401", "gone"]);
    let writer = rig.join("w", None);
    rig.log_fails = true;
    rig.op(writer, "k", "1", 1);
    let client = rig.accept(false);
    rig.receive(client, look("/v1/workspaces/w").as_bytes());
    assert_eq!(rig.seen(client), ["500", "gone"]);
}

#[test]
fn a_page_comes_from_outside() {
    let mut rig = Rig::new(|_| ());
    let client = rig.accept(false);
    rig.receive(client, b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n");
    let Some(Output::Page(id, Page::Console)) = rig.pages.pop() else {
        panic!("the console was asked for");
    };
    // Late, for one that has gone meanwhile.
    let stranger = SessionId {
        generation: id.generation + 1,
        ..id
    };
    for (id, seen) in [(stranger, &[][..]), (id, &["200", "gone"])] {
        let input = Input::Page(id, Answer::json(b"{}".to_vec()));
        rig.shard.handle(input, rig.clock);
        rig.run();
        assert_eq!(rig.seen(client), seen);
    }
}

#[test]
fn ops_and_deliveries_are_counted() {
    let mut rig = Rig::new(|_| ());
    let clients: Vec<usize> = (0..3).map(|_| rig.join("w", None)).collect();
    rig.op(clients[0], "k", "1", 2);
    rig.op(clients[1], "k", "2", 3);
    // A loser is no op.
    rig.op(clients[2], "k", "3", 1);
    let counters = rig.shard.counters();
    assert_eq!((counters.ops, counters.deliveries), (2, 4));
    assert_eq!((counters.connections, counters.workspaces), (3, 1));
}
