//! A failing `io_uring_enter`: the kernel has no memory for requests (EAGAIN, ENOMEM), a signal
//! interrupts it (EINTR), or completions must be read first (EBUSY). The operations stay in the
//! submission queue and must be submitted again even if nothing else happens.

use crate::support::client::Client;
use crate::support::server::Setup;
use crate::support::strace::Injection;
use serde_json::json;

/// A ping interval longer than any test waits, so that no ping wakes an idle ring.
const NEVER_MS: &str = "3600000";

#[tokio::test]
async fn an_op_is_delivered_on_an_idle_server_even_if_the_kernel_refuses_submissions() {
    for errno in ["EAGAIN", "EINTR", "EBUSY", "ENOMEM"] {
        let setup =
            Setup::new()
                .shards(1)
                .args(&["--ping-interval-ms", NEVER_MS, "--drain-ms", "100"]);
        let mut server = setup.start().await;
        let mut writer = Client::connect(&server, "room").await;
        let mut witness = Client::connect(&server, "room").await;
        // These numbers have no common divisor with the number of calls that an op takes.
        let fault = format!("error={errno}:when=2+7");
        let Some(injection) = Injection::attach(server.pid(), "io_uring_enter", &fault).await
        else {
            return;
        };
        for number in 0..30 {
            let op = writer.write("k", json!(number)).await;
            witness.expect_op(&op).await;
        }
        let page = server.get("/metrics").await.body;
        let retries = page.lines().find_map(|line| {
            let count = line.strip_prefix("etherply_ring_retries_total{shard=\"0\"} ")?;
            count.parse::<u64>().ok()
        });
        assert!(
            retries > Some(0),
            "the retries are not counted: {retries:?}"
        );
        server.stop().await;
        drop(injection);
    }
}
