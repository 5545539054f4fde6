//! `/metrics`: the values match the server's activity, as read by another project's parser; access
//! is restricted; an admin port serves them; and the dashboard and the alerts use only existing
//! metrics.

use crate::support::client::{Client, Op, op_text};
use crate::support::disk::limit_file_size;
use crate::support::raw::{Answer, Raw};
use crate::support::server::{Server, Setup};
use crate::support::{PATIENCE, eventually, files, now_us, stamp};
use prometheus_parse::{LineInfo, Scrape, Value};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

/// Sends a GET with these header lines, each ending in CRLF, and returns the response.
async fn get(addr: SocketAddr, path: &str, headers: &str) -> Answer {
    let mut socket = Raw::connect(addr).await;
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    socket.send(head.as_bytes()).await;
    socket.answer().await
}

/// The figures at one point in time.
struct Figures {
    scrape: Scrape,
    /// The names as Prometheus stores them, including those of a histogram's series.
    names: BTreeSet<String>,
}

impl Figures {
    async fn read(addr: SocketAddr) -> Figures {
        let answer = get(addr, "/metrics", "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(
            answer.header("content-type"),
            Some("text/plain; version=0.0.4; charset=utf-8")
        );
        assert!(
            answer.body.ends_with('\n'),
            "the last line is not terminated"
        );
        let lines = answer.body.lines().map(|line| Ok(line.to_owned()));
        let scrape = Scrape::parse(lines).expect("the lines can be parsed");
        let mut names = BTreeSet::new();
        for line in answer.body.lines() {
            match LineInfo::parse(line) {
                LineInfo::Sample { metric_name, .. } => {
                    names.insert(metric_name.to_owned());
                }
                LineInfo::Doc { .. } | LineInfo::Type { .. } => {}
                other => panic!("unexpected comment {other:?} in {line:?}"),
            }
        }
        Figures { scrape, names }
    }

    /// Returns the sum over all shards of the samples with these labels, as in
    /// `ops_total{result="won"}`.
    fn sum(&self, series: &str) -> f64 {
        let (name, labels) = selector(series);
        let mut values = Vec::new();
        for sample in self
            .scrape
            .samples
            .iter()
            .filter(|sample| sample.metric == name)
        {
            if labels
                .iter()
                .all(|(label, value)| sample.labels.get(label) == Some(value))
            {
                values.push(number(&sample.value));
            }
        }
        assert!(!values.is_empty(), "{series} is not exported");
        values.iter().sum()
    }

    /// Returns a histogram, summed over all shards.
    fn histogram(&self, name: &str) -> Vec<(f64, f64)> {
        let mut sums: Vec<(f64, f64)> = Vec::new();
        for sample in self
            .scrape
            .samples
            .iter()
            .filter(|sample| sample.metric == name)
        {
            let Value::Histogram(counts) = &sample.value else {
                panic!("{name} is a histogram, but has {sample:?}");
            };
            sums.resize(counts.len(), (0.0, 0.0));
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum = (count.less_than, sum.1 + count.count);
            }
        }
        assert!(!sums.is_empty(), "{name} is not exported");
        sums
    }
}

fn number(value: &Value) -> f64 {
    match value {
        Value::Counter(number) | Value::Gauge(number) | Value::Untyped(number) => *number,
        Value::Histogram(_) | Value::Summary(_) => panic!("{value:?} is not a number"),
    }
}

/// Splits `name{label="value",…}` into its parts.
fn selector(text: &str) -> (&str, Vec<(&str, &str)>) {
    let Some((name, rest)) = text.split_once('{') else {
        return (text, Vec::new());
    };
    let labels = rest.trim_end_matches('}').split(',').map(|label| {
        let (label, value) = label.split_once('=').expect("a label has a value");
        (label.trim(), value.trim_matches('"'))
    });
    (name, labels.collect())
}

/// Waits until the figures have these values.
async fn expect(addr: SocketAddr, expected: &[(&str, u32)]) -> Figures {
    let begun = Instant::now();
    let (figures, wrong) = eventually("the metrics have the expected values", async || {
        let figures = Figures::read(addr).await;
        let mut wrong = Vec::new();
        for (series, value) in expected {
            let sum = figures.sum(series);
            if (sum - f64::from(*value)).abs() > 0.1 {
                wrong.push(format!("{series} is {sum}, not {value}"));
            }
        }
        let is_over = wrong.is_empty() || begun.elapsed() > PATIENCE / 2;
        is_over.then_some((figures, wrong))
    })
    .await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    figures
}

// ---- counters ----

#[tokio::test]
async fn ops_are_counted_by_outcome() {
    let setup = Setup::new().args(&["--max-message-bytes", "2000"]);
    let server = setup.start().await;
    let mut room = Vec::new();
    for workspace in ["room", "room", "room", "hall", "hall"] {
        room.push(Client::connect(&server, workspace).await);
    }
    for number in 0..10 {
        let op = room[0].write(&format!("k{number}"), json!(number)).await;
        room[1].expect_op(&op).await;
        room[2].expect_op(&op).await;
    }
    for _ in 0..3 {
        let op = room[3].write("k", json!("in the hall")).await;
        room[4].expect_op(&op).await;
    }
    let first = Op::new("k", json!(1), stamp());
    room[3].send_op(&first).await;
    room[4].expect_op(&first).await;
    room[3].send_op(&first).await;
    room[4].send_op(&Op::new("k", json!(2), 1)).await;
    room[4].expect_op(&first).await;
    let too_new = Op::new("k", json!(2), now_us() + 48 * 3_600_000_000);
    for bad in ["{", r#"{"type":"what"}"#, &op_text(&too_new)] {
        room[3].send_text(bad).await;
        room[3].expect_error(400).await;
    }
    room[2].send_text(&"x".repeat(2001)).await;
    assert_eq!(room[2].close_code().await, 1009);
    let figures = expect(
        server.addr(),
        &[
            ("etherply_ops_total{result=\"won\"}", 14),
            ("etherply_ops_total{result=\"lost\"}", 1),
            ("etherply_ops_total{result=\"duplicate\"}", 1),
            ("etherply_ops_refused_total{reason=\"bad_message\"}", 2),
            ("etherply_ops_refused_total{reason=\"future_skew\"}", 1),
            ("etherply_ops_refused_total{reason=\"too_large\"}", 1),
            ("etherply_ops_refused_total{reason=\"log_failed\"}", 0),
            ("etherply_deliveries_total", 24),
            ("etherply_sent_frames_total", 24),
            ("etherply_sessions{state=\"open\"}", 4),
            ("etherply_workspaces", 2),
            ("etherply_closes_total{code=\"1009\"}", 1),
            ("etherply_conflations_total", 0),
            ("etherply_outbox_bytes", 0),
            ("etherply_ready", 2),
            ("etherply_commit_ops_sum", 14),
        ],
    )
    .await;
    // 13 ops were awaited one by one, so each had a send to each of its receivers.
    assert!(figures.sum("etherply_sends_total") >= 24.0 + 5.0);
    assert!(figures.sum("etherply_received_bytes_total") > 2001.0);
    let sent = figures.sum("etherply_sent_bytes_total");
    let frames_bytes = 24 * op_text(&first).len();
    let frames_bytes = u32::try_from(frames_bytes).expect("the value is small");
    assert!(sent > f64::from(frames_bytes), "{sent}");
}

#[tokio::test]
async fn histograms_agree_with_each_other_and_with_the_log() {
    let server = Server::start().await;
    let mut writer = Client::connect(&server, "room").await;
    let mut reader = Client::connect(&server, "room").await;
    for number in 0..50 {
        let op = writer.write(&format!("k{number}"), json!(number)).await;
        reader.expect_op(&op).await;
    }
    let figures = expect(server.addr(), &[("etherply_commit_ops_sum", 50)]).await;
    let counts: BTreeMap<&str, f64> = [
        "etherply_commit_ops",
        "etherply_log_write_seconds",
        "etherply_log_fdatasync_seconds",
        "etherply_op_durable_seconds",
        "etherply_op_sent_seconds",
        "etherply_turn_seconds",
    ]
    .into_iter()
    .map(|name| {
        let classes = figures.histogram(name);
        assert!(
            classes.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
            "{name}: {classes:?}"
        );
        let (last, count) = *classes.last().expect("the histogram has classes");
        assert!(last.is_infinite(), "{name}");
        assert!(
            (count - figures.sum(&format!("{name}_count"))).abs() < 0.1,
            "{name}"
        );
        assert!(figures.sum(&format!("{name}_sum")) > 0.0, "{name}");
        (name, count)
    })
    .collect();
    // The reader waited for each op, so each op had its own commit.
    for (name, least) in [
        ("etherply_commit_ops", 50.0),
        ("etherply_log_write_seconds", 50.0),
        ("etherply_log_fdatasync_seconds", 50.0),
        ("etherply_op_durable_seconds", 50.0),
        ("etherply_turn_seconds", 100.0),
    ] {
        assert!(counts[name] >= least, "{counts:?}");
    }
    // The completion of the last send may be handled in the next turn.
    assert!(counts["etherply_op_sent_seconds"] >= 49.0, "{counts:?}");
    assert!(counts["etherply_op_sent_seconds"] <= counts["etherply_op_durable_seconds"]);
    assert!(figures.sum("etherply_turn_longest_seconds") > 0.0);
    let segments = files::segments(server.data_dir());
    // Without the zeros that they are preallocated with.
    let bytes: usize = segments
        .iter()
        .map(|path| std::fs::read(path).expect("the segment exists"))
        .map(|bytes| files::log_len(&bytes))
        .sum();
    let bytes = u32::try_from(bytes).expect("the value is small");
    let headers_bytes = figures.sum("etherply_log_segments") * 64.0;
    let written = figures.sum("etherply_log_written_bytes_total");
    assert!(
        (written + headers_bytes - f64::from(bytes)).abs() < 0.1,
        "{written} {bytes}"
    );
    let known = figures.sum("etherply_log_open_bytes") + figures.sum("etherply_log_closed_bytes");
    assert!((known - f64::from(bytes)).abs() < 0.1, "{known} {bytes}");
    let live = figures.sum("etherply_log_live_bytes") / known;
    let ratio = figures.sum("etherply_log_live_ratio");
    assert!(
        ratio > 0.0 && (live - ratio).abs() < 0.001,
        "{live} {ratio}"
    );
}

#[tokio::test]
async fn answers_and_closes_are_counted_by_code() {
    let server = Server::start().await;
    for _ in 0..3 {
        assert_eq!(
            server.handshake("/v1/sync/room?token=none").await.status,
            401
        );
    }
    for path in ["/nothing", "/", "/console.css"] {
        assert_eq!(server.get(path).await.status, 404);
    }
    assert_eq!(server.get(&Server::sync_path("room")).await.status, 426);
    let malformed = get(server.addr(), "/healthz", "a line without a colon\r\n").await;
    assert_eq!(malformed.status, 400);
    Client::connect(&server, "room").await.close().await;
    let mut binary = Raw::open(server.addr(), &Server::sync_path("room")).await;
    binary.send_frame(0x82, b"1").await;
    binary.expect_close(1003).await;
    let mut unmasked = Raw::open(server.addr(), &Server::sync_path("room")).await;
    unmasked.send(&[0x81, 1, b'x']).await;
    unmasked.expect_close(1002).await;
    let open = Client::connect(&server, "room").await;
    expect(
        server.addr(),
        &[
            ("etherply_http_responses_total{code=\"101\"}", 4),
            ("etherply_http_responses_total{code=\"400\"}", 1),
            ("etherply_http_responses_total{code=\"401\"}", 3),
            ("etherply_http_responses_total{code=\"404\"}", 3),
            ("etherply_http_responses_total{code=\"426\"}", 1),
            ("etherply_http_responses_total{code=\"other\"}", 0),
            ("etherply_closes_total{code=\"client\"}", 1),
            ("etherply_closes_total{code=\"1002\"}", 1),
            ("etherply_closes_total{code=\"1003\"}", 1),
            ("etherply_closes_total{code=\"1000\"}", 0),
            ("etherply_closes_total{code=\"other\"}", 0),
            ("etherply_sessions{state=\"open\"}", 1),
            // The connection of the request for the figures itself.
            ("etherply_sessions{state=\"handshake\"}", 1),
            ("etherply_sessions{state=\"closing\"}", 0),
            ("etherply_connections{port=\"public\"}", 2),
        ],
    )
    .await;
    drop(open);
}

#[tokio::test]
async fn a_client_that_falls_behind_is_counted_and_its_memory_is_released() {
    let server = Server::start_with(&["--outbox-max-bytes", "65536"]).await;
    let mut writer = Client::connect(&server, "room").await;
    let mut stalled = Client::connect(&server, "room").await;
    // Writes until its socket and the window are full: by then it has missed ops of both keys.
    let text = "v".repeat(20_000);
    eventually("a client falls behind", async || {
        for _ in 0..10 {
            writer.write("k", json!(text)).await;
            writer.write("l", json!(text)).await;
        }
        let figures = Figures::read(server.addr()).await;
        let held = figures.sum("etherply_outbox_bytes{kind=\"windows\"}");
        assert!(held < 10_000_000.0, "{held}");
        let is_behind = figures.sum("etherply_conflations_total") >= 1.0;
        (is_behind && figures.sum("etherply_sends_in_flight") >= 1.0).then_some(())
    })
    .await;
    let last = writer.write("last", json!("the last")).await;
    while stalled.next_op().await != last {}
    let figures = expect(
        server.addr(),
        &[
            ("etherply_outbox_bytes", 0),
            ("etherply_sends_in_flight", 0),
        ],
    )
    .await;
    let keys = figures.sum("etherply_conflated_keys_total");
    assert!(keys >= 2.0, "{keys}");
    let frames = figures.sum("etherply_sent_frames_total");
    assert!(
        frames < figures.sum("etherply_deliveries_total"),
        "no delivery was left out"
    );
}

#[tokio::test]
async fn a_failing_log_is_reported() {
    let setup = Setup::new().shards(1);
    let server = setup.start().await;
    let mut writer = Client::connect(&server, "room").await;
    limit_file_size(server.pid(), Some(1));
    writer.write("k", json!(1)).await;
    writer.expect_error(500).await;
    expect(
        server.addr(),
        &[
            ("etherply_ready", 0),
            ("etherply_shard_failures_total", 1),
            ("etherply_ops_refused_total{reason=\"log_failed\"}", 1),
            ("etherply_closes_total{code=\"1011\"}", 1),
            ("etherply_sessions{state=\"open\"}", 0),
        ],
    )
    .await;
    limit_file_size(server.pid(), None);
    expect(
        server.addr(),
        &[("etherply_ready", 1), ("etherply_workspaces", 0)],
    )
    .await;
}

#[tokio::test]
async fn recovery_metrics_report_what_was_read() {
    let mut server = Server::start().await;
    let mut writer = Client::connect(&server, "room").await;
    for number in 0..7 {
        writer.write(&format!("k{number}"), json!(number)).await;
    }
    writer.expect_no_answer().await;
    expect(
        server.addr(),
        &[("etherply_recovery_ops", 0), ("etherply_log_segments", 2)],
    )
    .await;
    server.stop().await;
    let server = server.setup().clone().start().await;
    let figures = expect(
        server.addr(),
        &[
            ("etherply_recovery_ops", 7),
            ("etherply_recovery_torn_bytes", 0),
            ("etherply_log_segments", 4),
            ("etherply_workspaces", 1),
            ("etherply_ops_total{result=\"won\"}", 0),
            ("etherply_build_info", 1),
        ],
    )
    .await;
    let bytes = |state: &str| figures.sum(&format!("etherply_recovery_bytes{{state=\"{state}\"}}"));
    assert!(bytes("read") > 0.0 && (bytes("read") - bytes("total")).abs() < 0.1);
    assert!(figures.sum("etherply_recovery_seconds") > 0.0);
    let version = format!(
        "etherply_build_info{{version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert!((figures.sum(&version) - 1.0).abs() < 0.1);
}

// ---- access ----

/// P92, P94.
#[tokio::test]
async fn without_an_admin_port_metrics_are_local_only() {
    let (shut, open) = (
        Server::start().await,
        Server::start_with(&["--metrics-public"]).await,
    );
    for (headers, status) in [
        ("", 200),
        ("X-Forwarded-For: 192.0.2.1\r\n", 403),
        ("Forwarded: for=192.0.2.1\r\n", 403),
        ("x-real-ip: 192.0.2.1\r\n", 403),
        ("Via: 1.1 a-proxy\r\n", 403),
        ("X-Forwarded-Host: a.example\r\n", 403),
        ("X-Forwarded-Proto: https\r\n", 403),
        ("X-Client-IP: 192.0.2.1\r\n", 403),
        ("CF-Connecting-IP: 192.0.2.1\r\n", 403),
        ("True-Client-IP: 192.0.2.1\r\n", 403),
    ] {
        let answer = get(shut.addr(), "/metrics", headers).await;
        assert_eq!(answer.status, status, "{headers}");
        let has_figures = answer.body.contains("etherply_ops_total");
        assert_eq!(has_figures, status == 200, "{headers}");
        assert_eq!(
            get(open.addr(), "/metrics", headers).await.status,
            200,
            "{headers}"
        );
    }
}

/// Reads the line that the server prints about the second port, and returns the address in it.
async fn admin_address(server: &mut Server) -> SocketAddr {
    let line = server.stdout_line().await;
    let address = line
        .strip_prefix("metrics on ")
        .or_else(|| line.strip_prefix("metrics and console on "));
    let address = address.and_then(|address| address.parse().ok());
    address
        .unwrap_or_else(|| panic!("expected a second line with the metrics address, got {line:?}"))
}

/// P92.
#[tokio::test]
async fn with_an_admin_port_metrics_are_on_that_port_only() {
    let mut server = Server::start_with(&["--admin-port", "0", "--console"]).await;
    let admin = admin_address(&mut server).await;
    assert!(
        admin.ip().is_loopback(),
        "the admin port is not on loopback: {admin}"
    );
    for (path, here, there) in [
        ("/metrics", 404, 200),
        ("/", 404, 200),
        ("/console.mjs", 404, 200),
        ("/console/stats.json", 404, 200),
        ("/healthz", 200, 200),
        ("/readyz", 200, 200),
        ("/client.mjs", 200, 200),
        ("/nothing", 404, 404),
    ] {
        assert_eq!(server.get(path).await.status, here, "{path}");
        // A proxy in front of the admin port was put there on purpose.
        let forwarded = "X-Forwarded-For: 192.0.2.1\r\n";
        assert_eq!(get(admin, path, forwarded).await.status, there, "{path}");
    }
    // A page whose host name was made to resolve to this machine can reach a loopback address, too.
    for (host, status) in [
        ("localhost", 200),
        ("[::1]:9090", 200),
        ("evil.example", 403),
    ] {
        for path in [
            "/metrics",
            "/",
            "/console/stats.json",
            "/console/session.json",
        ] {
            let mut socket = Raw::connect(admin).await;
            let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            socket.send(head.as_bytes()).await;
            assert_eq!(socket.answer().await.status, status, "{head}");
        }
    }
    // The console connects to the port that served it.
    let over_admin = Client::dial(admin, &Server::sync_path("room")).await;
    let mut over_admin = over_admin.expect("a handshake with a token");
    over_admin.next_text().await;
    let mut writer = Client::connect(&server, "room").await;
    let op = writer.write("k", json!(1)).await;
    over_admin.expect_op(&op).await;
    let expected = [
        ("etherply_connections{port=\"public\"}", 1),
        ("etherply_connections{port=\"admin\"}", 2),
    ];
    expect(admin, &expected).await;
    assert_eq!(get(admin, "/v1/presence/room", "").await.status, 401);
    let begun = Instant::now();
    server.stop().await;
    assert!(begun.elapsed() < PATIENCE, "a port stays open too long");
}

#[tokio::test]
async fn a_flooded_admin_port_does_not_affect_clients_or_health_checks() {
    let mut server = Server::start_with(&["--admin-port", "0", "--max-connections", "2"]).await;
    let admin = admin_address(&mut server).await;
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(Raw::connect(admin).await);
    }
    for round in 0..20 {
        for path in ["/healthz", "/readyz", "/metrics"] {
            let status = get(admin, path, "").await.status;
            assert_eq!(status, 200, "{path} in round {round}");
        }
        // Others take the places of those that were closed.
        idle.push(Raw::connect(admin).await);
    }
    let mut writer = Client::connect(&server, "room").await;
    let mut reader = Client::connect(&server, "room").await;
    let op = writer.write("k", json!(1)).await;
    reader.expect_op(&op).await;
    let figures = Figures::read(admin).await;
    let gave_way = figures.sum("etherply_connections_gave_way_total");
    let timeouts = figures.sum("etherply_http_responses_total{code=\"408\"}");
    assert!(gave_way >= 8.0, "{gave_way}");
    assert!(timeouts > 0.0 && timeouts <= gave_way, "{timeouts}");
}

#[tokio::test]
async fn an_unavailable_admin_port_prevents_startup() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken
        .local_addr()
        .expect("the listener has an address")
        .port()
        .to_string();
    for arguments in [
        &["--admin-port", &port][..],
        &["--admin-port", "0", "--admin-host", "192.0.2.1"],
    ] {
        let outcome = Setup::new().args(arguments).run().await;
        let line = outcome.expect_refusal();
        assert!(line.contains("--admin-"), "{line}");
    }
    let alone = Setup::new().args(&["--admin-host", "::1"]).run().await;
    assert_eq!(alone.code, Some(2), "{alone:?}");
    assert!(alone.stderr.contains("--admin-port"), "{}", alone.stderr);
}

// ---- the dashboard and the alerts ----

/// Returns the metrics named in a text, with their required labels.
fn named(text: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = ["etherply_", "process_"]
        .iter()
        .filter_map(|prefix| rest.find(prefix))
        .min()
    {
        let from = &rest[at..];
        let name_end = from.find(|c| !is_name(c)).unwrap_or(from.len());
        let end = match from[name_end..].strip_prefix('{') {
            Some(labels) => name_end + 2 + labels.find('}').expect("braces are balanced"),
            None => name_end,
        };
        let is_whole = at == 0 || !rest[..at].ends_with(is_name);
        if is_whole {
            found.push(from[..end].to_owned());
        }
        rest = &from[end..];
    }
    found
}

/// Collects the queries of the dashboard, including those that fill its variables.
fn queries(dashboard: &serde_json::Value, found: &mut Vec<String>) {
    match dashboard {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                if let (true, Some(text)) = (name == "expr" || name == "query", value.as_str()) {
                    found.push(text.to_owned());
                }
                queries(value, found);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_metric_in_the_dashboard_and_alerts_is_exported() {
    let server = Server::start().await;
    let figures = Figures::read(server.addr()).await;
    let read = |name: &str| std::fs::read_to_string(name).expect("the file exists");
    let dashboard = serde_json::from_str(&read("tuning/grafana.json")).expect("the text is JSON");
    let mut asked = Vec::new();
    queries(&dashboard, &mut asked);
    let alerts = read("tuning/alerts.yml");
    let lines = alerts.lines().filter(|line| !line.trim().starts_with('#'));
    let texts = [asked.join("\n"), lines.collect::<Vec<_>>().join("\n")];
    for (text, least) in texts.iter().zip([25, 10]) {
        let selectors = named(text);
        assert!(selectors.len() >= least, "{selectors:?}");
        for text in selectors {
            let (name, labels) = selector(&text);
            assert!(figures.names.contains(name), "{text} is not exported");
            let family = name.trim_end_matches("_bucket");
            let samples = figures.scrape.samples.iter();
            let mut samples = samples.filter(|sample| sample.metric == family);
            let has = |sample: &prometheus_parse::Sample| {
                labels.iter().all(|(label, value)| {
                    let is_exact = !label.ends_with('!') && !value.starts_with('~');
                    let label = label.trim_end_matches('!');
                    let given = sample.labels.get(label);
                    // Prometheus adds these to all samples.
                    let is_added = ["job", "instance"].contains(&label);
                    is_added || given.is_some_and(|given| !is_exact || given == *value)
                })
            };
            assert!(samples.any(has), "no sample matches {text}");
        }
    }
}
