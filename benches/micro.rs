//! Measures the cost of each step of an op, to show the effect of code changes.
//!
//! ```text
//! cargo bench -p etherply-bench --bench micro                    # all
//! cargo bench -p etherply-bench --bench micro -- broadcast       # some
//! cargo bench -p etherply-bench --bench micro -- --save-baseline before
//! cargo bench -p etherply-bench --bench micro -- --baseline before
//! ```
//!
//! Each bench checks its answer before it is timed.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use driver::{Driver, put_frame, put_op};
use etherply::core::fanout::outbox::{Outbox, OutboxPool, View};
use etherply::core::fanout::window::{Spans, Window, spans_bytes};
use etherply::core::state::workspace::{Verdict, Workspace};
use etherply::log::commit::Durability;
use etherply::log::position::LogPosition;
use etherply::log::record::{self, Reader, SegmentHeader};
use etherply::seq::Seq;
use etherply::wire::frame::{Decoder, FrameEvent};
use etherply::wire::message::{self, Message, Parser};

// The load of the test that counts allocations, so that the code timed here is the code counted
// there.
#[path = "../tests/allocations/driver.rs"]
#[allow(dead_code, reason = "the test uses the rest")]
mod driver;

/// The sizes of typical values: a cursor move, a number, a paragraph.
const VALUE_BYTES: [usize; 3] = [16, 100, 4000];
const RECEIVERS: usize = 1000;
const KEYS: u64 = 1000;
const BATCH_OPS: u64 = 64;
const MESSAGE_BYTES_MAX: usize = 1 << 20;

fn length(count: u64) -> usize {
    usize::try_from(count).expect("the value is small")
}

fn message_text(value_bytes: usize) -> String {
    let mut frame = Vec::new();
    put_op(&mut frame, 7, value_bytes, 1_700_000_000_000_000);
    let mut decoder = Decoder::new();
    let step = decoder.decode(&mut frame, MESSAGE_BYTES_MAX);
    match step.expect("a frame").event {
        Some(FrameEvent::Text(text)) => text.to_owned(),
        event => panic!("{event:?} is not an op"),
    }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame decode and unmask");
    for value_bytes in VALUE_BYTES {
        let mut masked = Vec::new();
        put_op(&mut masked, 7, value_bytes, 1_700_000_000_000_000);
        let text = message_text(value_bytes);
        assert!(text.contains(r#""key":"key-7""#) && text.len() > value_bytes);
        group.throughput(Throughput::Bytes(masked.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(value_bytes), |b| {
            let mut decoder = Decoder::new();
            // The frame is unmasked in place, so each iteration needs a copy, which is part of the
            // measured time.
            let mut bytes = masked.clone();
            b.iter(|| {
                bytes.copy_from_slice(&masked);
                let step = decoder.decode(black_box(&mut bytes), MESSAGE_BYTES_MAX);
                step.expect("a frame").consumed
            });
        });
    }
    group.finish();
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("message parse");
    for value_bytes in VALUE_BYTES {
        let text = message_text(value_bytes);
        let mut parser = Parser::new();
        let Ok(Message::Op(op)) = parser.parse(&text) else {
            panic!("{text} is not an op");
        };
        let quotes_bytes = 2;
        assert_eq!(
            (op.key, op.value.len(), op.timestamp),
            ("key-7", value_bytes + quotes_bytes, 1_700_000_000_000_000)
        );
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(value_bytes), |b| {
            b.iter(|| parser.parse(black_box(&text)).is_ok());
        });
    }
    group.finish();
}

fn keys() -> Vec<String> {
    (0..KEYS).map(|key| format!("key-{key}")).collect()
}

/// Applies ops to all keys in turn: as in a busy workspace, a key's entry is rarely in the nearest
/// cache.
fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    let keys = keys();
    let value = "1".repeat(100);
    let mut workspace = Workspace::new("w", 1);
    for (timestamp, key) in (1..).zip(&keys) {
        assert!(matches!(
            workspace.apply(key, &value, timestamp, 1),
            Verdict::Won { seq, .. } if seq.get() == timestamp
        ));
    }
    let lost = matches!(
        workspace.apply(&keys[0], "2", 0, 1),
        Verdict::Lost(entry) if entry.value() == value
    );
    assert!(lost);
    let mut at = KEYS;
    group.bench_function("a winner", |b| {
        b.iter(|| {
            at += 1;
            let key = &keys[length(at % KEYS)];
            matches!(workspace.apply(key, &value, at, 1), Verdict::Won { .. })
        });
    });
    group.bench_function("a loser", |b| {
        b.iter(|| {
            at += 1;
            let key = &keys[length(at % KEYS)];
            matches!(workspace.apply(key, "2", 0, 1), Verdict::Lost(_))
        });
    });
    group.finish();
}

/// Encodes a batch of ops as group commit writes it: 64 that arrived during the previous fdatasync.
fn encode_batch(batch: &mut Vec<u8>, keys: &[String], value: &str, header: &SegmentHeader) {
    record::begin_batch(batch);
    for seq in 0..BATCH_OPS {
        let op = record::LoggedOp {
            workspace: "workspace",
            key: &keys[length(seq)],
            change: record::Change::write(value),
            seq: Seq::new(seq + 1),
            timestamp: seq,
        };
        record::push_op(batch, &op);
    }
    record::seal_batch(batch, header.salt(), LogPosition::START, LogPosition::START);
}

fn log(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    let (keys, header) = (
        keys(),
        SegmentHeader::new(0, [5; 16], 1, LogPosition::START),
    );
    for value_bytes in VALUE_BYTES {
        let value = "1".repeat(value_bytes);
        let mut batch = Vec::new();
        encode_batch(&mut batch, &keys, &value, &header);
        let segment = [&header.encode()[..], &batch].concat();
        let ops: Vec<_> = Reader::new(&header, &segment).collect();
        assert_eq!(ops.len() as u64, BATCH_OPS);
        for (seq, op) in (1..).zip(&ops) {
            let op = op.as_ref().expect("no fault");
            assert_eq!((op.seq.get(), op.value()), (seq, &value[..]));
        }
        group.throughput(Throughput::Elements(BATCH_OPS));
        group.bench_function(BenchmarkId::new("encode", value_bytes), |b| {
            b.iter(|| encode_batch(black_box(&mut batch), &keys, &value, &header));
        });
        group.bench_function(BenchmarkId::new("decode", value_bytes), |b| {
            b.iter(|| Reader::new(&header, black_box(&segment)).count());
        });
    }
    group.finish();
}

/// The work of a turn for its receivers: the ops of a batch are encoded once, then each outbox
/// provides the spans of one send.
struct Broadcast {
    window: Window,
    pool: OutboxPool,
    outboxes: Vec<Outbox>,
    sends: Vec<Spans>,
    seq: u64,
}

impl Broadcast {
    fn new() -> Self {
        Self {
            window: Window::new(Seq::NONE),
            pool: OutboxPool::default(),
            outboxes: (0..RECEIVERS).map(|_| Outbox::default()).collect(),
            sends: Vec::with_capacity(RECEIVERS),
            seq: 0,
        }
    }

    /// Returns the number of bytes sent.
    fn batch(&mut self, ops: u64, keys: &[String], value: &str) -> usize {
        let timestamp = 1_700_000_000_000_000;
        for _ in 0..ops {
            self.seq += 1;
            let key = &keys[length(self.seq % KEYS)];
            let bytes = message::op_frame_bytes(key, value, timestamp);
            let position = LogPosition::new(self.seq);
            self.window.push(
                self.pool.windows(),
                Seq::new(self.seq),
                position,
                bytes,
                |out| {
                    message::put_op(out, key, value, timestamp);
                },
            );
        }
        for outbox in &mut self.outboxes {
            let view = View {
                visible_end: self.window.end(),
                window: &mut self.window,
            };
            let spans = outbox.take(Some(view), LogPosition::new(self.seq), &mut self.pool);
            self.sends.push(spans);
        }
        let bytes = self.sends.iter().map(|spans| spans_bytes(spans)).sum();
        for spans in self.sends.drain(..) {
            self.pool.give_spans(spans);
        }
        self.window
            .drop_before(self.window.end(), self.pool.windows());
        bytes
    }
}

fn broadcast(c: &mut Criterion) {
    let mut group = c.benchmark_group("broadcast to 1,000 outboxes");
    let (keys, value) = (keys(), "1".repeat(100));
    for ops in [1, BATCH_OPS] {
        let mut broadcast = Broadcast::new();
        let frames_bytes: usize = (1..=ops)
            .map(|seq| {
                let key = &keys[length(seq % KEYS)];
                message::op_frame_bytes(key, &value, 1_700_000_000_000_000)
            })
            .sum();
        assert_eq!(
            broadcast.batch(ops, &keys, &value),
            frames_bytes * RECEIVERS
        );
        group.throughput(Throughput::Elements(ops * RECEIVERS as u64));
        group.bench_function(BenchmarkId::new("ops", ops), |b| {
            b.iter(|| broadcast.batch(ops, &keys, &value));
        });
    }
    group.finish();
}

/// Times the whole shard without IO, from the bytes of one client to the completed sends to all
/// others.
fn shard(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard");
    for (name, receivers, writers, ops) in [
        ("1 op to 1,000", RECEIVERS, 1, 1),
        ("64 ops of 1 to 1,000", RECEIVERS, 1, BATCH_OPS),
        ("8 ops of each of 8 to each other", 7, 8, 8),
    ] {
        let mut driver = Driver::new(Durability::Always, |_| ());
        for _ in 0..=receivers {
            driver.join("workspace");
        }
        let mut timestamp = 1_700_000_000_000_000;
        let mut round = |driver: &mut Driver| {
            for place in 0..writers {
                driver.send(place, |out| {
                    for _ in 0..ops {
                        timestamp += 1;
                        put_op(out, timestamp % KEYS, 100, timestamp);
                    }
                });
            }
            driver.settle();
        };
        round(&mut driver);
        let deliveries = ops * writers as u64 * receivers as u64;
        let frames: u64 = driver
            .members
            .iter()
            .map(|member| member.counter.frames)
            .sum();
        assert_eq!(
            frames, deliveries,
            "each op reaches every client except its writer"
        );
        driver.counts_frames = false;
        group.throughput(Throughput::Elements(deliveries));
        group.bench_function(name, |b| b.iter(|| round(&mut driver)));
    }
    group.finish();
}

/// Times the init message of a client that joins a workspace.
fn init(c: &mut Criterion) {
    let mut group = c.benchmark_group("init");
    let (keys, value) = (keys(), "1".repeat(100));
    let mut workspace = Workspace::new("w", 1);
    for (timestamp, key) in (1..).zip(&keys) {
        workspace.apply(key, &value, timestamp, 1);
    }
    let mut out = Vec::new();
    workspace.put_init(&mut out);
    let json_begin = out
        .iter()
        .position(|byte| *byte == b'{')
        .expect("an object");
    let init: serde_json::Value = serde_json::from_slice(&out[json_begin..]).expect("JSON");
    assert_eq!(
        init["data"].as_object().map(serde_json::Map::len),
        Some(keys.len())
    );
    group.throughput(Throughput::Bytes(out.len() as u64));
    group.bench_function("1,000 keys", |b| {
        b.iter_batched_ref(
            Vec::new,
            |out| workspace.put_init(out),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Times a ping and its pong, which take the same path as the ops.
fn pong(c: &mut Criterion) {
    let mut driver = Driver::new(Durability::Always, |_| ());
    let place = driver.join("workspace");
    let ping = |driver: &mut Driver| {
        driver.send(place, |out| put_frame(out, 9, |_| ()));
        driver.settle();
    };
    ping(&mut driver);
    assert_eq!(driver.members[place].counter.frames, 1);
    driver.counts_frames = false;
    c.bench_function("ping", |b| b.iter(|| ping(&mut driver)));
}

fn settings() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = micro;
    config = settings();
    targets = decode, parse, apply, log, broadcast, shard, init, pong
}
criterion_main!(micro);
