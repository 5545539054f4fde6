//! Message order in the protocol: init comes first, at a single point of the op order; the order is
//! the same for all clients; no client receives its own ops.

use crate::support::client::{Client, Event, Op, op_text};
use crate::support::server::Server;
use crate::support::stamp;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// P45.
#[tokio::test]
async fn the_first_message_is_init_with_the_complete_state() {
    let server = Server::start().await;
    let mut writer = Client::connect(&server, "room").await;
    let mut witness = Client::connect(&server, "room").await;
    for (key, value) in [
        ("a", json!(1)),
        ("b", json!([2])),
        ("a", json!({"three": 3})),
        ("c", json!(null)),
    ] {
        let op = writer.write(key, value).await;
        witness.expect_op(&op).await;
    }
    let late = Client::connect(&server, "room").await;
    assert_eq!(
        json!(late.init),
        json!({"a": {"three": 3}, "b": [2], "c": null})
    );
}

/// P45.
#[tokio::test]
async fn the_first_message_is_init_even_for_a_client_that_writes_immediately() {
    let server = Server::start().await;
    let mut other = Client::connect(&server, "room").await;
    let mut client = Client::dial(server.addr(), &Server::sync_path("room"))
        .await
        .expect("the handshake succeeds");
    let op = client.write("early", json!(1)).await;
    other.expect_op(&op).await;
    assert_eq!(client.next().await["type"], "init");
    client.expect_silence(&mut other).await;
}

/// P46.
#[tokio::test]
async fn the_sender_does_not_get_its_own_op_back() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    for number in 0..10 {
        let op = sender.write("k", json!(number)).await;
        other.expect_op(&op).await;
    }
    sender.expect_silence(&mut other).await;
}

/// P46.
#[tokio::test]
async fn a_second_connection_with_the_same_token_is_a_separate_client() {
    let server = Server::start().await;
    let path = Server::sync_path("room");
    let mut one = Client::connect_path(&server, &path).await;
    let mut two = Client::connect_path(&server, &path).await;
    let op = one.write("k", json!(1)).await;
    two.expect_op(&op).await;
}

#[tokio::test]
async fn workspaces_do_not_receive_each_others_ops() {
    let server = Server::start().await;
    let mut rooms = Vec::new();
    for index in 0..8 {
        let name = format!("room {index}");
        rooms.push((
            Client::connect(&server, &name).await,
            Client::connect(&server, &name).await,
        ));
    }
    for (index, (writer, _)) in rooms.iter_mut().enumerate() {
        writer.write("same key", json!(index)).await;
    }
    for (index, (writer, reader)) in rooms.iter_mut().enumerate() {
        assert_eq!(reader.next_op().await.value, json!(index));
        reader.expect_silence(writer).await;
    }
}

/// P46.
#[tokio::test]
async fn all_clients_receive_the_ops_of_many_writers_in_the_same_order() {
    const WRITERS: u64 = 4;
    const OPS_EACH: u64 = 100;
    let server = Server::start().await;
    let mut observers = Vec::new();
    for _ in 0..3 {
        observers.push(Client::connect(&server, "room").await);
    }
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        writers.push(Client::connect(&server, "room").await);
    }
    let mut writing = Vec::new();
    for (writer, mut client) in writers.into_iter().enumerate() {
        writing.push(tokio::spawn(async move {
            for number in 0..OPS_EACH {
                client
                    .send_op(&Op::new(
                        &format!("{writer}-{number}"),
                        json!(number),
                        stamp(),
                    ))
                    .await;
            }
            client
        }));
    }
    let mut orders = Vec::new();
    for observer in &mut observers {
        let mut order = Vec::new();
        for _ in 0..WRITERS * OPS_EACH {
            order.push(observer.next_op().await.key);
        }
        orders.push(order);
    }
    assert_eq!(orders[0], orders[1]);
    assert_eq!(orders[0], orders[2]);
    for (writer, task) in (0..).zip(writing) {
        let mut client = task.await.expect("the writer task succeeds");
        let prefix = format!("{writer}-");
        let others_order = orders[0].iter().filter(|key| !key.starts_with(&prefix));
        for key in others_order {
            assert_eq!(
                &client.next_op().await.key,
                key,
                "writer {writer} receives the others' ops in another order"
            );
        }
        let own: Vec<&String> = orders[0]
            .iter()
            .filter(|key| key.starts_with(&prefix))
            .collect();
        let sent: Vec<String> = (0..OPS_EACH)
            .map(|number| format!("{writer}-{number}"))
            .collect();
        assert!(
            own.into_iter().eq(sent.iter()),
            "the ops of one client arrive in another order"
        );
    }
}

/// P45.
#[tokio::test]
async fn init_is_one_point_in_the_order_and_no_op_is_missed_or_repeated_after_it() {
    let server = Server::start().await;
    let mut writer = Client::connect(&server, "room").await;
    let mut pace = Client::connect(&server, "room").await;
    let running = Arc::new(AtomicBool::new(true));
    let goes_on = running.clone();
    let writing = tokio::spawn(async move {
        let mut number = 0u64;
        while goes_on.load(Ordering::Relaxed) {
            number += 1;
            writer
                .send_op(&Op::new("count", json!(number), stamp()))
                .await;
            // The lead is bounded, so that no client falls behind and receives conflated ops.
            if number > 50 {
                pace.next_op().await;
            }
        }
        number
    });
    let joining = (0..20).map(|_| async {
        let mut joined = Client::connect(&server, "room").await;
        let at_init = joined
            .init
            .get("count")
            .map_or(0, |count| count.as_u64().expect("the value is a number"));
        for next in at_init + 1..=at_init + 30 {
            let op = joined.next_op().await;
            assert_eq!(op.value, json!(next), "ops are missing after init");
        }
    });
    futures_util::future::join_all(joining).await;
    running.store(false, Ordering::Relaxed);
    assert!(writing.await.expect("the writer task succeeds") > 30);
}

/// P30.
#[tokio::test]
async fn messages_of_one_client_are_served_in_the_order_sent() {
    let server = Server::start().await;
    let mut sender = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    let mut sent = Vec::new();
    for number in 0..200 {
        sent.push(Op::new(&format!("k{}", number % 7), json!(number), stamp()));
    }
    for op in &sent {
        sender.send_text(&op_text(op)).await;
    }
    for op in &sent {
        other.expect_op(op).await;
    }
}

#[tokio::test]
async fn a_client_that_disconnects_abruptly_disturbs_nobody() {
    let server = Server::start().await;
    let mut stays = Client::connect(&server, "room").await;
    let mut other = Client::connect(&server, "room").await;
    for number in 0..20 {
        let mut leaves = Client::connect(&server, "room").await;
        let op = leaves.write("last words", json!(number)).await;
        stays.expect_op(&op).await;
        other.expect_op(&op).await;
        drop(leaves);
    }
    let op = stays.write("k", json!(1)).await;
    match other.event().await {
        Event::Text(text) => assert_eq!(Op::parse(&text), Some(op)),
        event => panic!("expected an op, got {event:?}"),
    }
}
