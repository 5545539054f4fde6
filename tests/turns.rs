//! Single turns of a shard, driven by hand: sequences that went wrong once.

use std::sync::Arc;

use etherply::core::contract::{Clock, Input, Output, Received, ShardConfig};
use etherply::core::fanout::window::{Spans, spans_bytes};
use etherply::core::shard::Shard;
use etherply::core::shard::session::SessionId;
use etherply::log::commit::{Durability, End, LogStep, OpenSegment};
use etherply::log::directory::DataDirectory;
use etherply::log::log_files::LogFiles;
use etherply::log::position::LogPosition;
use etherply::log::recovery::Report;
use etherply::wire::auth::{Secret, Verifier, mint};

const MS_US: u64 = 1000;

struct Driver {
    shard: Shard,
    token: String,
    now_us: u64,
}

/// What one turn asked for.
#[derive(Default)]
struct Turn {
    sends: Vec<(SessionId, Spans)>,
    received: Vec<SessionId>,
    write: Option<Vec<u8>>,
    sync: bool,
}

impl Turn {
    fn sends_to(&self, id: SessionId) -> usize {
        self.sends.iter().filter(|send| send.0 == id).count()
    }
}

impl Driver {
    fn new(durability: Durability) -> Self {
        let secret = Secret::new(b"0123456789abcdef0123456789abcdef".to_vec()).unwrap();
        let config = ShardConfig {
            shard: 0,
            shards: 1,
            durability,
            sync_interval_us: 1000 * MS_US,
            ping_interval_us: 25_000 * MS_US,
            outbox_bytes_max: 1 << 20,
            message_bytes_max: 1 << 20,
            session_bytes_max: etherply::limits::SESSION_BUDGET_BYTES,
            snapshot_bytes_max: etherply::limits::SNAPSHOT_BYTES_MAX,
            snapshot_part_bytes: etherply::limits::SNAPSHOT_PART_BYTES,
            batch_bytes_max: etherply::limits::BATCH_BYTES_MAX,
            segment_bytes_min: 1 << 26,
            segment_bytes_max: 1 << 26,
            log_spare_bytes: etherply::limits::LOG_SPARE_BYTES,
            future_skew_us: u64::MAX / 2,
            drain_us: 0,
            hash_seed: 1,
            start_id: 1,
            verifier: Arc::new(Verifier::new(&secret, None)),
            origins: std::sync::Arc::default(),
            limits: etherply::core::contract::Limits::default(),
            has_journal: false,
            fault_panic_key: None,
        };
        let segment = OpenSegment {
            index: 1,
            first_position: LogPosition::START,
            salt: 7,
            writes_through: false,
        };
        let token = mint(&secret, "test", 1, None);
        Self {
            shard: Shard::new(config, segment, Vec::new(), Clock::default()),
            token,
            now_us: 0,
        }
    }

    fn clock(&self) -> Clock {
        Clock {
            now_us: self.now_us,
            unix_us: 1_000_000_000_000 + self.now_us,
        }
    }

    fn turn(&mut self) -> Turn {
        self.shard.flush(self.clock());
        let mut turn = Turn::default();
        while let Some(output) = self.shard.poll_output() {
            match output {
                Output::Send(id, spans) => turn.sends.push((id, spans)),
                Output::Receive(id) => turn.received.push(id),
                Output::Log(LogStep::Write { bytes, .. }) => turn.write = Some(bytes),
                Output::Log(LogStep::Sync) => turn.sync = true,
                _ => {}
            }
        }
        turn
    }

    fn handle(&mut self, input: Input<'_>) {
        self.shard.handle(input, self.clock());
    }

    fn receive(&mut self, id: SessionId, mut bytes: Vec<u8>) {
        self.handle(Input::Received(id, Received::Bytes(&mut bytes)));
    }

    fn ask_to_join(&mut self, id: SessionId) {
        let head = format!(
            "GET /v1/sync/w?token={} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.token
        );
        self.receive(id, head.into_bytes());
    }

    fn accept(&mut self) -> SessionId {
        let id = self.shard.accept(false, self.clock());
        self.turn();
        id
    }

    /// A client that has its init.
    fn join(&mut self) -> SessionId {
        let id = self.accept();
        self.ask_to_join(id);
        let turn = self.turn();
        assert_eq!(turn.sends_to(id), 1);
        self.take_all(turn);
        self.turn();
        id
    }

    fn take_all(&mut self, turn: Turn) {
        for (id, spans) in turn.sends {
            let bytes = spans_bytes(&spans);
            self.handle(Input::Sent(id, spans, Ok(bytes)));
        }
    }
}

fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len())
        .ok()
        .filter(|length| *length < 126)
        .expect("short");
    [&[0x80 | opcode, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

fn op(timestamp: u64) -> Vec<u8> {
    let text = format!(
        r#"{{"type":"op","payload":{{"key":"k","value":{timestamp},"timestamp":{timestamp}}}}}"#
    );
    frame(1, text.as_bytes())
}

#[test]
fn one_who_joins_in_the_turn_of_an_op_takes_it_from_nobody() {
    for durability in [Durability::Always, Durability::Interval] {
        let mut driver = Driver::new(durability);
        let (writer, reader) = (driver.join(), driver.join());
        let joiner = driver.accept();
        driver.now_us += MS_US;
        driver.receive(writer, op(10));
        if durability == Durability::Always {
            let bytes = driver.turn().write.expect("the log is idle");
            let count = bytes.len();
            driver.handle(Input::LogWritten(bytes, Ok(count)));
            assert!(driver.turn().sync);
            driver.handle(Input::LogSynced(Ok(())));
        }
        driver.ask_to_join(joiner);
        assert_eq!(driver.turn().sends_to(reader), 1, "{durability:?}");
    }
}

#[test]
fn a_disk_that_is_slower_than_the_age_of_a_batch_leaves_turns_for_the_sends() {
    let mut driver = Driver::new(Durability::Always);
    let (writer, reader) = (driver.join(), driver.join());
    let (mut written, mut sync_ends_us, mut sends_count) = (None, None, 0);
    for number in 0..500 {
        driver.now_us += MS_US;
        driver.receive(writer, op(10 + number));
        if let Some(bytes) = written.take() {
            let count = Vec::len(&bytes);
            driver.handle(Input::LogWritten(bytes, Ok(count)));
        }
        if sync_ends_us
            .take_if(|end_us| *end_us <= driver.now_us)
            .is_some()
        {
            driver.handle(Input::LogSynced(Ok(())));
        }
        let turn = driver.turn();
        sends_count += turn.sends_to(reader);
        if turn.sync {
            sync_ends_us = Some(driver.now_us + 5 * MS_US);
        }
        written = turn.write.clone();
        driver.take_all(turn);
    }
    assert!(sends_count > 50, "{sends_count} sends for 500 ops");
}

#[test]
fn short_answers_to_one_who_reads_nothing_are_bounded() {
    let mut driver = Driver::new(Durability::Always);
    let id = driver.join();
    let pings: Vec<u8> = frame(9, b"").repeat(2000);
    driver.receive(id, pings);
    let stuck = driver.turn();
    assert_eq!(stuck.sends_to(id), 1, "the first pongs are on their way");
    let mut is_read = stuck.received.contains(&id);
    for _ in 0..50 {
        let turn = driver.turn();
        assert_eq!(turn.sends_to(id), 0);
        is_read |= turn.received.contains(&id);
    }
    assert!(!is_read, "2000 pongs are more than one may have waiting");

    // When it reads, all of its pings are answered.
    let mut bytes = 0;
    let mut turn = stuck;
    for _ in 0..100 {
        bytes += turn
            .sends
            .iter()
            .map(|send| spans_bytes(&send.1))
            .sum::<usize>();
        driver.take_all(turn);
        turn = driver.turn();
        is_read |= turn.received.contains(&id);
    }
    assert_eq!((bytes, is_read), (2 * 2000, true));
}

#[test]
fn one_who_reads_slowly_shows_that_it_lives() {
    let mut driver = Driver::new(Durability::Always);
    let id = driver.accept();
    driver.ask_to_join(id);
    let (_, mut spans) = driver.turn().sends.pop().expect("101 and init");
    for second in 0..120 {
        driver.now_us += 5000 * MS_US;
        driver.handle(Input::Sent(id, spans, Ok(1)));
        let mut turn = driver.turn();
        assert_eq!(turn.sends_to(id), 1, "after {second} bytes");
        spans = turn.sends.pop().expect("it was just counted").1;
    }
}

#[test]
fn a_segment_that_was_opened_in_the_moment_of_a_failure_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let directory = Arc::new(DataDirectory::open(folder.path()).unwrap());
    let mut log = LogFiles::open(directory, 0, &Report::default(), None).unwrap();
    let segment = log.next(2, LogPosition::START).unwrap().run(0).unwrap();
    log.replace(segment);
    for is_kept in [true, false, true] {
        let end = End {
            index: 1,
            durable: LogPosition::START,
            shown: LogPosition::START,
        };
        let segment = log
            .rebuild(end)
            .unwrap()
            .run(|op| panic!("{op:?}"))
            .unwrap();
        // A try that gets as far as the segment, and then fails, is not kept.
        if is_kept {
            log.replace(segment);
        }
    }
}
