//! `tuning/haproxy.cfg` and `tuning/nginx.conf`, as shipped, in front of three servers with
//! separate data directories.
//!
//! A workspace must stay on one node whatever happens: if two nodes accepted its ops, their states
//! would diverge.

mod site;

use crate::support::client::{Client, Event};
use crate::support::raw::{PING, PONG, Raw};
use crate::support::server::{Server, Setup};
use crate::support::{eventually, files};
use serde_json::json;
use site::{Kind, Site, encoded, encoded_throughout, get, look_path, put};
use std::collections::BTreeMap;
use tokio::task::{JoinSet, LocalSet};
use tokio_tungstenite::tungstenite::Error;

const WORKSPACES: usize = 100;
/// The number of connections that are made at once.
const AT_ONCE: usize = 8;

/// Returns an id. The ids cover everything that an id may contain: letters, spaces, slashes,
/// percent signs, dots, non-ASCII text.
fn id(number: usize) -> String {
    let tails = ["", " b", "/b", "%41", "?x=/y", "ü", "+", "#", "..", "//b"];
    format!("A{number}{}", tails[number % tails.len()])
}

/// Runs `task` for each workspace, several at once, and returns the results in workspace order.
async fn for_each_workspace<T: 'static, F>(task: impl Fn(String) -> F) -> Vec<T>
where
    F: Future<Output = T> + 'static,
{
    let work = async {
        let mut running = JoinSet::new();
        let mut outcomes = BTreeMap::new();
        for number in 0..WORKSPACES {
            while running.len() >= AT_ONCE {
                let done = running.join_next().await.expect("a task is running");
                let (number, outcome) = done.expect("no task panics");
                outcomes.insert(number, outcome);
            }
            let future = task(id(number));
            running.spawn_local(async move { (number, future.await) });
        }
        outcomes.extend(running.join_all().await);
        outcomes.into_values().collect()
    };
    LocalSet::new().run_until(work).await
}

/// Writes an op to each workspace through the proxy and returns the node that stores it.
async fn settle(site: &Site) -> Vec<usize> {
    let door = site.door;
    for_each_workspace(move |id| async move {
        let mut client = Client::dial(door, &Server::sync_path(&id)).await;
        let client = client
            .as_mut()
            .expect("the handshake through the proxy succeeds");
        let init = client.next_text().await;
        client.take_init(&init);
        assert!(client.init.is_empty(), "{id} is not new");
        client.write("name", json!(id)).await;
        eventually("the op is stored", async || {
            let state = get(door, &look_path("workspaces", &encoded(&id))).await;
            (state.json()["seq"] == 1).then_some(())
        })
        .await;
    })
    .await;
    let mut settled = Vec::new();
    for number in 0..WORKSPACES {
        let homes = site.homes(&id(number)).await;
        assert_eq!(
            homes.len(),
            1,
            "{} is not on exactly one node: {homes:?}",
            id(number)
        );
        settled.push(homes[0]);
    }
    settled
}

/// Returns the response through the proxy for each workspace: the status, the node that it names,
/// and the value that was written.
async fn read_states(site: &Site) -> Vec<(u16, String, serde_json::Value)> {
    let door = site.door;
    for_each_workspace(move |id| async move {
        let answer = get(door, &look_path("workspaces", &encoded(&id))).await;
        let node = answer
            .header("etherply-node")
            .expect("the answer names the node");
        let value = answer.json()["data"]["name"].clone();
        if answer.status == 503 {
            assert_eq!(answer.header("retry-after"), Some("2"), "{answer:?}");
        }
        (answer.status, node.to_owned(), value)
    })
    .await
}

fn node_name(number: usize) -> String {
    format!("n{}", number + 1)
}

/// Checks that each workspace is served, with its op, by the node on which it lives.
async fn expect_all_served(site: &Site, settled: &[usize]) {
    for (number, found) in read_states(site).await.into_iter().enumerate() {
        let expected = (200, node_name(settled[number]), json!(id(number)));
        assert_eq!(found, expected, "{}", id(number));
    }
}

fn expect_no_token(site: &Site) {
    let logs = site.logs();
    assert!(logs.contains("/v1/workspaces/A7"), "{logs}");
    for word in ["token", "eyJ"] {
        assert!(!logs.contains(word), "a token in a log:\n{logs}");
    }
}

// ---- a workspace lives on one node ----

/// Checks that all three paths of a workspace lead to one node, in each spelling of its id.
async fn expect_same_node_for_every_request(site: &Site, settled: &[usize]) {
    for (number, home) in settled.iter().enumerate().take(20) {
        for kind in ["workspaces", "presence", "sync"] {
            for segment in [encoded(&id(number)), encoded_throughout(&id(number))] {
                let answer = site.get(&look_path(kind, &segment)).await;
                let node = node_name(*home);
                assert_eq!(answer.header("etherply-node"), Some(&*node), "{segment}");
            }
        }
    }
}

/// Checks that no other paths are proxied: to a node, every client of a proxy on the same host
/// looks like a local client.
async fn expect_nothing_else_passes(site: &Site) {
    let of_one_node = ["/", "/metrics", "/readyz", "/console/session.json"];
    for path in of_one_node
        .into_iter()
        .chain(["/v1/sync", "/v1/nothing/A1"])
    {
        let answer = site.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.header("etherply-node"), None, "{path}");
    }
}

async fn check_dead_node(kind: Kind) {
    const DEAD: usize = 1;
    let Some(mut site) = Site::start(kind, |_| Vec::new()).await else {
        return;
    };
    site.start_proxy().await;
    let settled = settle(&site).await;
    for node in 0..3 {
        let share = settled.iter().filter(|home| **home == node).count();
        assert!(
            share >= WORKSPACES / 5,
            "node {node} has a share of {share}"
        );
    }
    expect_same_node_for_every_request(&site, &settled).await;
    expect_nothing_else_passes(&site).await;

    site.nodes[DEAD].kill9();
    // The kernel tears down a dead process's ring asynchronously, and its accepts hold the port
    // until then.
    let dead = site.nodes[DEAD].addr();
    eventually("the port of the dead node is closed", async || {
        let probe = tokio::net::TcpStream::connect(dead).await;
        probe.is_err().then_some(())
    })
    .await;
    for (number, (status, node, value)) in read_states(&site).await.into_iter().enumerate() {
        assert_eq!(node, node_name(settled[number]), "{}", id(number));
        let expected = if settled[number] == DEAD {
            (503, serde_json::Value::Null)
        } else {
            (200, json!(id(number)))
        };
        assert_eq!((status, value), expected, "{}", id(number));
    }
    let waits = settled.iter().position(|home| *home == DEAD);
    let waits = id(waits.expect("the dead node has a workspace"));
    match Client::dial(site.door, &Server::sync_path(&waits)).await {
        Err(Error::Http(answer)) => assert_eq!(answer.status(), 503),
        Err(error) => panic!("expected an answer, got {error}"),
        Ok(_) => panic!("another node accepted a workspace of the dead one"),
    }

    site.nodes[DEAD].restart(2).await;
    eventually("the proxy sees the node again", async || {
        let answer = site.get(&look_path("workspaces", &encoded(&waits))).await;
        (answer.status == 200).then_some(())
    })
    .await;
    expect_all_served(&site, &settled).await;
    for (number, home) in settled.iter().enumerate() {
        assert_eq!(site.homes(&id(number)).await, [*home], "{}", id(number));
    }
    site.stop_proxy();
    expect_no_token(&site);
}

#[tokio::test]
async fn behind_haproxy_the_workspaces_of_a_dead_node_wait_and_are_not_moved() {
    check_dead_node(Kind::Haproxy).await;
}

#[tokio::test]
async fn behind_nginx_the_workspaces_of_a_dead_node_wait_and_are_not_moved() {
    check_dead_node(Kind::Nginx).await;
}

// ---- one more node ----

/// Returns the configuration after node 1 has handed over half of its share to node 4.
fn with_a_fourth_node(kind: Kind, config: &str) -> String {
    match kind {
        Kind::Haproxy => {
            let half = "-m int 0:170 }\n    use_backend n4 if { var(txn.slot) -m int 171:340 }";
            let config = put(config, "-m int 0:340 }", half);
            let n1 = config
                .split("backend n1\n")
                .nth(1)
                .expect("the config has n1");
            let n1 = n1.split("backend n2\n").next().expect("n2 follows");
            let n4 = format!("\nbackend n4\n{}", n1.replace("n1", "n4"));
            config + &n4
        }
        Kind::Nginx => {
            let half = "16.66%  n1;\n        16.67%  n4;";
            let config = put(config, "33.33%  n1;", half);
            let n1 = "upstream n1 { server n1.internal:8080; }";
            put(&config, n1, &format!("{n1}\n{}", n1.replace("n1", "n4")))
        }
    }
}

async fn check_node_split(kind: Kind) {
    let Some(mut site) = Site::start(kind, |_| Vec::new()).await else {
        return;
    };
    site.start_proxy().await;
    let before = settle(&site).await;

    site.nodes[0].stop().await;
    let fourth = Setup::new();
    files::put_back(fourth.data_dir(), &files::image(site.nodes[0].data_dir()));
    site.config = with_a_fourth_node(kind, &site.config);
    site.nodes[0].restart(2).await;
    site.add_node(fourth).await;
    site.start_proxy().await;

    let found = read_states(&site).await;
    let mut moved = Vec::new();
    for (number, (status, node, value)) in found.into_iter().enumerate() {
        let id = id(number);
        assert_eq!((status, value), (200, json!(id)), "{id}");
        if before[number] == 0 && node == "n4" {
            moved.push(id);
        } else {
            assert_eq!(node, node_name(before[number]), "{id}");
        }
    }
    let stayed = before.iter().filter(|home| **home == 0).count() - moved.len();
    assert!(
        stayed > 0 && !moved.is_empty(),
        "{stayed} workspaces of node 1 stayed"
    );

    // Ops that are written from now on are stored only on the new node.
    let path = Server::sync_path(&moved[0]);
    let mut writer = Client::dial(site.door, &path)
        .await
        .expect("the request is served");
    let init = writer.next_text().await;
    writer.take_init(&init);
    assert_eq!(writer.init["name"], json!(moved[0]));
    writer.write("name", json!("after")).await;
    let path = look_path("workspaces", &encoded(&moved[0]));
    eventually("the new node has the op", async || {
        (site.nodes[3].get(&path).await.json()["seq"] == 2).then_some(())
    })
    .await;
    assert_eq!(site.nodes[0].get(&path).await.json()["seq"], 1);
}

#[tokio::test]
async fn behind_haproxy_a_node_is_split_by_copying_its_data_directory() {
    check_node_split(Kind::Haproxy).await;
}

#[tokio::test]
async fn behind_nginx_a_node_is_split_by_copying_its_data_directory() {
    check_node_split(Kind::Nginx).await;
}

// ---- idle sessions ----

/// Returns an id that lives on this node.
async fn workspace_on(site: &Site, node: usize) -> String {
    for number in 0..WORKSPACES {
        let answer = site
            .get(&look_path("presence", &encoded(&id(number))))
            .await;
        if answer.header("etherply-node") == Some(&node_name(node)) {
            return id(number);
        }
    }
    panic!("no workspace is on node {node}");
}

async fn check_idle_session(kind: Kind) {
    const PINGS: usize = 20;
    // Node 1 pings ten times within the proxy's timeout; the other nodes' pings come too late.
    let args = |node: usize| {
        let ping_ms = if node == 0 { "200" } else { "600000" };
        vec!["--ping-interval-ms".to_owned(), ping_ms.to_owned()]
    };
    let Some(mut site) = Site::start(kind, args).await else {
        return;
    };
    let times: &[&str] = match kind {
        Kind::Haproxy => &["timeout tunnel"],
        Kind::Nginx => &["proxy_read_timeout", "proxy_send_timeout"],
    };
    for time in times {
        let (shipped, short) = (format!("{time} 90s"), format!("{time} 2s"));
        site.config = put(&site.config, &shipped, &short);
    }
    site.start_proxy().await;

    let silent = Server::sync_path(&workspace_on(&site, 1).await);
    let mut silent = Client::dial(site.door, &silent)
        .await
        .expect("the request is served");
    silent.next_text().await;

    let pinged = Server::sync_path(&workspace_on(&site, 0).await);
    let mut reader = Raw::open(site.door, &pinged).await;
    for _ in 0..PINGS {
        let ping = reader.frame().await;
        assert_eq!(ping.first_byte, PING, "{ping:?}");
        reader.send_frame(PONG, &ping.payload).await;
    }
    let mut writer = Client::dial(site.door, &pinged)
        .await
        .expect("the request is served");
    writer.next_text().await;
    writer.write("key", json!("after all the pings")).await;
    let op = reader.frame_but_ping().await;
    let text = String::from_utf8_lossy(&op.payload);
    assert!(text.contains("after all the pings"), "{text}");

    match silent.event().await {
        Event::Lost(_) => {}
        other => panic!("expected the proxy to cut a silent connection, got {other:?}"),
    }
}

#[tokio::test]
async fn an_idle_session_behind_haproxy_is_kept_alive_by_pings() {
    check_idle_session(Kind::Haproxy).await;
}

#[tokio::test]
async fn an_idle_session_behind_nginx_is_kept_alive_by_pings() {
    check_idle_session(Kind::Nginx).await;
}
