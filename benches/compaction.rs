//! The cost of compaction for clients that use the server at the time, and the disk space that a
//! log of overwrites takes.
//!
//! ```text
//! cargo bench -p etherply-bench --bench compaction    # 60 s of a steady load
//! # The ops of an hour at 1,000 ops/s, as fast as possible:
//! cargo bench -p etherply-bench --bench compaction -- --rate 0 --ops 3600000
//! ```
//!
//! A real server on loopback has one client that overwrites keys and one that reads. The latency of
//! an op is the time from when it was due to its arrival at the reader. Ops that arrived during a
//! compaction (between its two lines in the log) are compared with all others. Correctness is
//! checked first: after a restart, the server must hold everything that was written.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use etherply::log::record::OP_HEADER_BYTES;
use etherply_bench::process::server_program;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

const SECRET: &str = "a secret for the bench that is long enough";
const WORKSPACE: &str = "bench";
/// The total size of the values that may be in flight without a rate, in bytes: well below the
/// bound at which a server conflates.
const UNDER_WAY_BYTES: u64 = 256 << 10;
/// The number of messages that are written to the socket at once, without a rate.
const BURST: u64 = 32;

struct Settings {
    rate: u64,
    ops: u64,
    keys: u64,
    value_bytes: usize,
}

impl Settings {
    fn read() -> Self {
        let mut settings = Self {
            rate: 4000,
            ops: 240_000,
            keys: 20_000,
            value_bytes: 2000,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let value = arguments.next().and_then(|text| text.parse().ok());
                value.unwrap_or_else(|| panic!("{argument} needs a number"))
            };
            match argument.as_str() {
                "--rate" => settings.rate = number(),
                "--ops" => settings.ops = number(),
                "--keys" => settings.keys = number(),
                "--value-bytes" => {
                    settings.value_bytes = usize::try_from(number()).expect("the value fits");
                }
                "--bench" => {}
                other => panic!("unknown flag {other}: use --rate, --ops, --keys or --value-bytes"),
            }
        }
        settings
    }

    fn key(number: u64) -> String {
        format!("key-{number:08}")
    }

    /// Returns each key once, and then random keys, so that part of every segment stays live.
    fn key_number(&self, op: u64) -> u64 {
        if op < self.keys {
            return op;
        }
        // The finalizer of SplitMix64 (Steele et al., 2014).
        let mixed = (op ^ (op >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % self.keys
    }

    fn value(&self, op: u64) -> String {
        format!("{op:0width$}", width = self.value_bytes - 2)
    }

    fn live_bytes(&self) -> u64 {
        let record_bytes =
            OP_HEADER_BYTES + WORKSPACE.len() + Self::key(0).len() + self.value_bytes;
        self.keys * record_bytes as u64
    }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_micros()).expect("the value fits")
}

/// The times at which the server logged the start and the end of each compaction.
#[derive(Default)]
struct Compactions {
    begun: Option<Instant>,
    spans: Vec<(Instant, Instant)>,
}

struct Server {
    process: Child,
    address: String,
    compactions: Arc<Mutex<Compactions>>,
}

impl Server {
    fn start(data: &Path) -> Self {
        let mut process = Command::new(server_program().expect("the server builds"))
            .args(["serve", "--host", "127.0.0.1", "--port", "0", "--data-dir"])
            .arg(data)
            .env("ETHERPLY_JWT_SECRET", SECRET)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        let line = lines.next().expect("a first line").expect("text");
        let address = line.strip_prefix("listening on ").expect("an address");
        let compactions = Arc::new(Mutex::new(Compactions::default()));
        let logged = Arc::clone(&compactions);
        let stderr = BufReader::new(process.stderr.take().expect("stderr is piped"));
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut logged = logged.lock().expect("no thread panics");
                if line.contains("compacting the log") {
                    logged.begun = Some(Instant::now());
                } else if line.contains("compacted the log") {
                    let begun = logged.begun.take().expect("the compaction has begun");
                    logged.spans.push((begun, Instant::now()));
                } else if line.contains("WARN") || line.contains("ERROR") {
                    eprintln!("{line}");
                }
            }
        });
        Self {
            process,
            address: address.to_owned(),
            compactions,
        }
    }

    fn connect(&self) -> WebSocket<TcpStream> {
        let token = Command::new(server_program().expect("the server builds"))
            .args(["token", "--sub", "bench"])
            .env("ETHERPLY_JWT_SECRET", SECRET)
            .output()
            .expect("a token");
        let token = String::from_utf8(token.stdout).expect("text");
        let url = format!(
            "ws://{}/v1/sync/{WORKSPACE}?token={}",
            self.address,
            token.trim()
        );
        let stream = TcpStream::connect(&self.address).expect("the server listens");
        stream.set_nodelay(true).expect("a socket option");
        let config = WebSocketConfig::default()
            .max_frame_size(None)
            .max_message_size(None);
        tungstenite::client::client_with_config(url, stream, Some(config))
            .expect("a handshake")
            .0
    }

    fn stop(mut self) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .expect("the server is running");
        assert!(self.process.wait().expect("the process exits").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn op_text(key: &str, value: &str, timestamp: u64) -> String {
    format!(
        r#"{{"type":"op","payload":{{"key":"{key}","value":"{value}","timestamp":{timestamp}}}}}"#
    )
}

/// Returns the number in the value of an op, which is all the reader needs.
fn op_number(text: &str) -> u64 {
    let at = text.find(r#""value":""#).expect("a value") + 9;
    let digits = &text[at..at + text[at..].find('"').expect("the end of the value")];
    digits.parse().expect("a number")
}

/// The time at which each op was due, and the number of ops that the reader has read.
struct Course {
    due: Mutex<VecDeque<Instant>>,
    read_count: AtomicU64,
}

fn write(settings: &Settings, mut socket: WebSocket<TcpStream>, course: &Course) {
    let begun = Instant::now();
    let mut timestamp = now_us();
    for op in 0..settings.ops {
        let due = if let Some(due_ns) = (op * 1_000_000_000).checked_div(settings.rate) {
            let due = begun + Duration::from_nanos(due_ns);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            due
        } else {
            let count_max = (UNDER_WAY_BYTES / settings.value_bytes as u64).max(BURST);
            while op >= course.read_count.load(Ordering::Relaxed) + count_max {
                thread::yield_now();
            }
            Instant::now()
        };
        timestamp = now_us().max(timestamp + 1);
        course.due.lock().expect("no thread panics").push_back(due);
        let key = Settings::key(settings.key_number(op));
        let text = op_text(&key, &settings.value(op), timestamp);
        socket
            .write(Message::text(text))
            .expect("the send succeeds");
        if settings.rate > 0 || op % BURST == 0 || op + 1 == settings.ops {
            socket.flush().expect("the send succeeds");
        }
    }
}

/// Lets the writer finish if the reader fails.
struct Release<'a>(&'a Course);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.read_count.store(1 << 62, Ordering::Relaxed);
    }
}

/// The time at which an op arrived, and how long it took.
type Sample = (Instant, Duration);

fn read(settings: &Settings, mut socket: WebSocket<TcpStream>, course: &Course) -> Vec<Sample> {
    let _release = Release(course);
    let mut samples = Vec::new();
    while (samples.len() as u64) < settings.ops {
        let Message::Text(text) = socket.read().expect("the server accepts connections") else {
            continue;
        };
        if !text.starts_with(r#"{"type":"op""#) {
            continue;
        }
        let now = Instant::now();
        assert_eq!(
            op_number(&text),
            samples.len() as u64,
            "ops are missing or out of order"
        );
        let due = course.due.lock().expect("no thread panics").pop_front();
        samples.push((now, now - due.expect("the op was sent")));
        course.read_count.fetch_add(1, Ordering::Relaxed);
    }
    samples
}

/// Watches the data directory and returns its largest size.
fn watch_disk(data: &Path, is_over: &AtomicU64) -> u64 {
    let mut bytes_max = 0;
    while is_over.load(Ordering::Relaxed) == 0 {
        let mut bytes = 0;
        for folder in std::fs::read_dir(data)
            .expect("the data directory opens")
            .flatten()
        {
            for file in std::fs::read_dir(folder.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                bytes += file.metadata().map_or(0, |metadata| metadata.len());
            }
        }
        bytes_max = bytes_max.max(bytes);
        thread::sleep(Duration::from_millis(20));
    }
    bytes_max
}

fn percentile(samples: &mut [Duration], percent: usize) -> Duration {
    samples.sort_unstable();
    samples[(samples.len() * percent / 100).min(samples.len() - 1)]
}

fn check_state(settings: &Settings, data: &Path) {
    let mut expected = HashMap::new();
    for op in 0..settings.ops {
        expected.insert(Settings::key(settings.key_number(op)), op);
    }
    let server = Server::start(data);
    let mut socket = server.connect();
    let init = socket.read().expect("init").into_text().expect("text");
    let init: serde_json::Value = serde_json::from_str(&init).expect("JSON");
    for (key, op) in &expected {
        assert_eq!(
            init["data"][key],
            settings.value(*op),
            "{key} is not the value written last"
        );
    }
    server.stop();
}

fn main() {
    let settings = Settings::read();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    let server = Server::start(&data);
    let (writer, mut reader) = (server.connect(), server.connect());
    reader.read().expect("init");
    let course = Course {
        due: Mutex::default(),
        read_count: AtomicU64::new(0),
    };
    let is_over = AtomicU64::new(0);
    let begun = Instant::now();
    let (samples, bytes_max) = thread::scope(|scope| {
        scope.spawn(|| write(&settings, writer, &course));
        let disk = scope.spawn(|| watch_disk(&data, &is_over));
        let samples = read(&settings, reader, &course);
        is_over.store(1, Ordering::Relaxed);
        (samples, disk.join().expect("the watcher does not panic"))
    });
    let took = begun.elapsed();
    let spans = server
        .compactions
        .lock()
        .expect("no thread panics")
        .spans
        .clone();
    server.stop();
    check_state(&settings, &data);

    let live_bytes = settings.live_bytes();
    // Until the first compaction the state is still growing.
    let first = spans.first().map(|span| span.0);
    let is_in = |at: Instant| spans.iter().any(|span| (span.0..=span.1).contains(&at));
    let steady = samples.into_iter().filter(|sample| Some(sample.0) >= first);
    let (inside, outside): (Vec<Sample>, Vec<Sample>) = steady.partition(|sample| is_in(sample.0));
    let time: Duration = spans.iter().map(|span| span.1 - span.0).sum();
    println!(
        "{} ops in {took:.1?}; live data {} KB; at most {} KB on disk: {} percent",
        settings.ops,
        live_bytes / 1000,
        bytes_max / 1000,
        bytes_max * 100 / live_bytes,
    );
    println!("{} compactions, {time:.1?} in all", spans.len());
    for (name, side) in [("while it compacts", inside), ("otherwise", outside)] {
        let mut side: Vec<_> = side.into_iter().map(|sample| sample.1).collect();
        if !side.is_empty() {
            println!(
                "{name}: {} ops, p50 {:.2?}, p99 {:.2?}",
                side.len(),
                percentile(&mut side, 50),
                percentile(&mut side, 99)
            );
        }
    }
}
