//! Connections that are shed when the connection limit is reached.

use super::rig::{Rig, frame, head, look};
use crate::core::shard::contract::ListenerKind;
use crate::core::shard::shedding::Shed;

fn shed(rig: &mut Rig, listener: ListenerKind) -> Option<(usize, bool)> {
    let Shed { id, is_silent } = rig.shard.shed(listener, rig.clock)?;
    let mut peers = rig.peers.iter();
    let place = peers.position(|peer| peer.client.id == id && !peer.client.closed);
    rig.run();
    Some((place.expect("the peer exists"), is_silent))
}

fn accept_at(rig: &mut Rig, listener: ListenerKind) -> usize {
    let id = rig.shard.accept_at(listener, false, rig.clock);
    rig.add_peer(id)
}

#[test]
fn the_oldest_connection_with_the_least_to_lose_is_shed_first() {
    let mut rig = Rig::new(|_| ());
    let member = rig.join("w", None);
    let [first, asks, second, third] = [(); 4].map(|()| rig.accept(false));
    let lingers = rig.accept(false);
    rig.peers[lingers].closes = false;
    rig.receive(lingers, b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n");
    // This client's answer is still being sent.
    rig.peers[asks].reads = false;
    rig.receive(asks, look("/v1/workspaces/w").as_bytes());
    rig.receive(second, b"GET / HTTP/1.1\r\n");
    rig.seen(member);
    for expected in [
        (first, true),
        (second, true),
        (third, true),
        (lingers, false),
    ] {
        assert_ne!(rig.shard.sheddable_count(ListenerKind::Public), 0);
        assert_eq!(shed(&mut rig, ListenerKind::Public), Some(expected));
        assert_eq!(
            rig.seen(expected.0).last().map(String::as_str),
            Some("gone")
        );
    }
    assert_eq!(rig.shard.sheddable_count(ListenerKind::Public), 0);
    assert_eq!(shed(&mut rig, ListenerKind::Public), None);
    assert_eq!(rig.shard.connections(), 2);
    let counters = rig.shard.counters();
    assert_eq!((counters.shed, counters.sessions_handshake), (4, 0));
    rig.op(member, "k", "1", 1);
    assert_eq!(rig.seen(member).len(), 0);
}

#[test]
fn a_connection_is_shed_only_for_one_on_the_same_listener() {
    let mut rig = Rig::new(|_| ());
    let admin = accept_at(&mut rig, ListenerKind::Admin);
    let public = accept_at(&mut rig, ListenerKind::Public);
    assert_eq!(shed(&mut rig, ListenerKind::Public), Some((public, true)));
    assert_eq!(shed(&mut rig, ListenerKind::Public), None);
    assert_eq!(shed(&mut rig, ListenerKind::Admin), Some((admin, true)));
    assert_eq!(shed(&mut rig, ListenerKind::Admin), None);
}

#[test]
fn an_ended_connection_is_not_shed() {
    let mut rig = Rig::new(|config| config.fault_panic_key = Some("boom".to_owned()));
    // These connections end because of the peer, a deadline, a close after an answer, and a close
    // frame from a member.
    let [broken, late, answered] = [(); 3].map(|()| rig.accept(false));
    rig.peers[broken].client.broken = true;
    rig.receive(answered, b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n");
    let member = rig.join("w", None);
    rig.receive(member, &frame(8, b""));
    rig.sleep_until(13.0);
    assert_eq!(rig.seen(late), ["408", "gone"]);
    assert_eq!(rig.shard.connections(), 0);
    assert_eq!(rig.shard.sheddable_count(ListenerKind::Public), 0);

    let mut rig = Rig::recovering(|_| ());
    let waits = rig.accept(false);
    rig.receive(waits, head("w", None).as_bytes());
    assert_eq!(rig.shard.sheddable_count(ListenerKind::Public), 0);
}
