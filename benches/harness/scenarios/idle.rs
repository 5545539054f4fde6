//! The cost of a connection that does nothing.

use std::io::Write as _;
use std::rc::Rc;
use std::time::Duration;

use super::loads::RESIDENT;
use super::{Case, Scenario, Target};
use crate::config::HarnessConfig;
use crate::contestant::{self, Contestant, Server};
use etherply_bench::figures::Bound::AtMost;
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::crowd::{Crowd, frame_of};
use etherply_bench::load::joiner::Welcome;
use etherply_bench::load::op::{FieldOrder, Text, put_client_frame};
use etherply_bench::load::tracker::Clock;

pub struct Idle;

const TOGETHER: usize = 0;
const ALONE: usize = 1;

const RESIDENT_EACH: Figure = Figure {
    id: "resident_bytes_each",
    name: "resident bytes for each connection",
    unit: "",
    decimals: 0,
};
const CPU_EACH: Figure = Figure {
    id: "cpu_us_per_connection",
    name: "server CPU",
    unit: "µs/connection",
    decimals: 0,
};
const PATIENCE: Duration = Duration::from_secs(20);
/// The number of connections that are opened at once.
const BURST: usize = 32;
/// The number of connections with their own workspaces that are checked.
const SAMPLE: usize = 100;

impl Scenario for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn about(&self) -> &'static str {
        "10,000 connections that do nothing: in one workspace, and each in its own"
    }

    fn figures(&self) -> &'static [Figure] {
        &[RESIDENT_EACH, RESIDENT, CPU_EACH]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        if config.target.is_some() {
            return Vec::new();
        }
        let count = count(config);
        vec![
            Case::against_peers(
                TOGETHER,
                &format!("{count} in one workspace"),
                contestant::all(config),
            ),
            Case::against_peers(
                ALONE,
                &format!("{count}, each in its own workspace"),
                contestant::all(config),
            ),
        ]
    }

    fn note(&self, _: &HarnessConfig) -> Option<String> {
        Some("Memory of the process, without that of the kernel for its sockets.".to_owned())
    }

    fn measure(
        &self,
        case: &Case,
        contestant: &Contestant,
        config: &HarnessConfig,
    ) -> Result<Numbers, String> {
        let server = contestant
            .start(config)
            .map_err(|error| error.to_string())?;
        let clock = Clock::start();
        let mut crowd = Crowd::new(&server.endpoint, clock)?;
        let measured = measure(case.index, contestant, &server, &mut crowd, count(config));
        measured.map_err(|failure| server.with_log(failure))
    }

    fn targets(&self) -> Vec<Target> {
        // If each has its own workspace, the memory of that workspace is included.
        [(TOGETHER, 512.0), (ALONE, 1024.0)]
            .into_iter()
            .flat_map(|(case, bytes)| {
                ["etherply none", "etherply always"].map(|of| Target {
                    case,
                    figure: RESIDENT_EACH.id,
                    of,
                    to: None,
                    bound: AtMost(bytes),
                })
            })
            .collect()
    }
}

fn count(config: &HarnessConfig) -> usize {
    if config.quick { 2000 } else { 10_000 }
}

/// Returns the workspace of a connection.
fn workspace(case: usize, connection: usize) -> String {
    match case {
        TOGETHER => "all".to_owned(),
        _ => format!("own-{connection}"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn measure(
    case: usize,
    contestant: &Contestant,
    server: &Server,
    crowd: &mut Crowd,
    count: usize,
) -> Result<Numbers, String> {
    let empty = frame_of(r#"{"type":"init","data":{}}"#);
    // One-time setup for the server's first clients is not part of the cost of a connection.
    enter(crowd, case, BURST, &empty)?;
    let used = |server: &Server| server.resident_bytes().zip(server.cpu_s());
    let before = used(server);
    enter(crowd, case, count, &empty)?;
    let after = used(server);
    check_still_connected(case, contestant, server, crowd)?;
    let Some(((bytes_before, cpu_before_s), (bytes, cpu_s))) = before.zip(after) else {
        return Err("nothing can be read of the server".to_owned());
    };
    Ok(Numbers::from([
        (RESIDENT_EACH.id, (bytes - bytes_before) / count as f64),
        (CPU_EACH.id, (cpu_s - cpu_before_s) * 1e6 / count as f64),
        (RESIDENT.id, bytes / 1e6),
    ]))
}

/// Lets `count` more clients join; each must receive an empty workspace.
fn enter(crowd: &mut Crowd, case: usize, count: usize, empty: &Rc<[u8]>) -> Result<(), String> {
    for step in 0..count {
        let name = workspace(case, crowd.count());
        crowd.enter(&name, 0, Welcome::Frame(Rc::clone(empty)))?;
        if step % BURST == 0 {
            crowd.finish(PATIENCE)?;
        }
    }
    crowd.finish(PATIENCE)
}

/// Checks that the connections still work: all of them in the single workspace, or a sample of
/// those with their own workspaces, must receive an op.
fn check_still_connected(
    case: usize,
    contestant: &Contestant,
    server: &Server,
    crowd: &mut Crowd,
) -> Result<(), String> {
    let step = if case == TOGETHER {
        1
    } else {
        crowd.count().div_ceil(SAMPLE)
    };
    let mut sent = Text::new(FieldOrder::AsSent, 1_700_000_000_000_000);
    let mut expected = Text::new(contestant.field_order(), 1_700_000_000_000_000);
    let op = frame_of(&String::from_utf8_lossy(expected.of(0, 0)));
    let mut frame = Vec::new();
    put_client_frame(&mut frame, sent.of(0, 0));
    let sampled: Vec<usize> = (0..crowd.count()).step_by(step).collect();
    for connection in &sampled {
        crowd.expect(*connection, &op);
    }
    let rooms = if case == TOGETHER {
        &sampled[..1]
    } else {
        &sampled
    };
    let mut senders = Vec::new();
    for connection in rooms {
        let name = workspace(case, *connection);
        let joined = server.endpoint.join(&name);
        let (mut sender, _) = joined.map_err(|error| error.to_string())?;
        let written = sender.write_all(&frame);
        written.map_err(|error| format!("workspace {name}: {error}"))?;
        // Closing immediately could discard bytes that the server has not read yet.
        senders.push(sender);
    }
    crowd.finish(PATIENCE)
}
