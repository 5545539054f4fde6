//! The contestants as processes: how one is started and timed, and how its answer is checked.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::workload::{Dice, Shape, Workload, put_command};

const SECRET: &str = "a secret of the bench, long enough to be one";

/// What one start took.
pub struct Run {
    /// From the start of the process to its answer.
    pub clock_s: f64,
    /// The CPU time of the process until then.
    pub cpu_s: f64,
    /// How long the reading took by the process's own account.
    pub own_s: f64,
    pub memory: Memory,
}

pub struct Memory {
    /// Resident when it serves.
    pub resident_bytes: f64,
    /// The most that was resident on the way.
    pub most_bytes: f64,
}

/// A log of the server.
pub struct Etherply {
    data: PathBuf,
    shards: u32,
    files: Vec<PathBuf>,
}

impl Etherply {
    pub fn new(workload: &Workload, data: PathBuf, shards: u32) -> Self {
        workload.write_log(&data, shards);
        let files = files_under(&data);
        Self {
            data,
            shards,
            files,
        }
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Brings the log back to how it was written, without the empty segments of later starts, and into the page cache.
    pub fn warm(&self) {
        for file in files_under(&self.data) {
            if !self.files.contains(&file) {
                fs::remove_file(&file).expect("the folder can be written");
            }
        }
        warm(&self.files);
    }

    pub fn run(&self, workload: &Workload, round: u32) -> Run {
        self.warm();
        let mut command = Command::new(env!("CARGO_BIN_EXE_etherply"));
        command
            .args([
                "serve",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--no-pin",
                "--log-format",
                "json",
            ])
            .args(["--shards", &self.shards.to_string()])
            .arg("--data-dir")
            .arg(&self.data)
            .env("ETHERPLY_JWT_SECRET", SECRET)
            .stderr(Stdio::piped());
        let (mut process, begun) = Process::start(command);
        let address = process.line_with("listening on ");
        let address = address.trim_start_matches("listening on ").to_owned();
        let ready = get(&address, "/readyz");
        let mut run = process.measure(begun);
        assert!(ready.starts_with("HTTP/1.1 200"), "it is ready: {ready}");
        let stderr = process.child.stderr.take().expect("it is piped");
        let read = BufReader::new(stderr).lines().map_while(Result::ok);
        let told = read.map(|line| json(&line));
        let told = told
            .map(|line| line["fields"].clone())
            .find(|fields| fields["message"] == "read the log");
        let told = told.expect("it tells what it read");
        assert_eq!(told["ops"], workload.records());
        assert_eq!(told["workspaces"], workload.workspaces());
        run.own_s = told["took_ms"].as_f64().expect("a number") / 1e3;
        check(workload, round, |workspace| init(&address, workspace));
        run
    }
}

/// An append-only file of redis.
pub struct Redis {
    data: PathBuf,
    shape: Shape,
    files: Vec<PathBuf>,
}

impl Redis {
    pub fn new(workload: &Workload, data: PathBuf, shape: Shape) -> Self {
        workload.write_aof(&data, shape);
        let files = files_under(&data);
        Self { data, shape, files }
    }

    pub fn run(&self, workload: &Workload, round: u32) -> Run {
        warm(&self.files);
        let socket = self.data.join("socket");
        let mut command = Command::new("redis-server");
        command
            .args(["--port", "0", "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(&self.data)
            .args(["--appendonly", "yes", "--appendfsync", "no", "--save", ""])
            .args(["--auto-aof-rewrite-percentage", "0"])
            .stderr(Stdio::inherit());
        let (mut process, begun) = Process::start(command);
        let loaded = process.line_with("DB loaded from append only file: ");
        process.line_with("eady to accept connections");
        let mut client = UnixStream::connect(&socket).expect("redis listens");
        let pong = ask(&mut client, &["PING"]);
        let mut run = process.measure(begun);
        assert_eq!(pong, ["PONG"]);
        let own = loaded
            .split_whitespace()
            .rev()
            .nth(1)
            .and_then(|number| number.parse().ok());
        run.own_s = own.expect("it tells how long it took");
        let keys = match self.shape {
            Shape::Set => workload.keys(),
            Shape::Hset => workload.workspaces(),
        };
        assert_eq!(ask(&mut client, &["DBSIZE"]), [keys.to_string()]);
        check(workload, round, |workspace| match self.shape {
            Shape::Hset => {
                let all = ask(&mut client, &["HGETALL", workspace]);
                all.chunks_exact(2)
                    .map(|pair| (pair[0].clone(), json(&pair[1])))
                    .collect()
            }
            Shape::Set => {
                let found = ask(&mut client, &["KEYS", &format!("{workspace}:*")]);
                let value = |name: String| {
                    let value = json(&ask(&mut client, &["GET", &name])[0]);
                    (name[workspace.len() + 1..].to_owned(), value)
                };
                found.into_iter().map(value).collect()
            }
        });
        run
    }
}

/// Compares a workspace, chosen by the round, with what it must be.
fn check(workload: &Workload, round: u32, mut held: impl FnMut(&str) -> HashMap<String, Value>) {
    let chosen = Dice(u64::from(round) + 7).below(workload.workspaces().into());
    let state = workload.state(u32::try_from(chosen).expect("it is below 32 bits"));
    let workspace = state[0].workspace.clone();
    let held = held(&workspace);
    let wanted: HashMap<_, _> = state
        .into_iter()
        .map(|texts| (texts.key, json(&texts.value)))
        .collect();
    assert!(held == wanted, "{workspace} is what was written");
}

/// A process whose stdout is read; killed when it is dropped.
struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    fn start(mut command: Command) -> (Self, Instant) {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().expect("it can be started");
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        (Self { child, lines }, begun)
    }

    /// Waits for a line that has this in it.
    fn line_with(&mut self, text: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            let count = self.lines.read_line(&mut line).expect("it can be read");
            assert!(count > 0, "it ended before it said {text:?}:\n{seen}");
            if line.contains(text) {
                return line.trim_end().to_owned();
            }
            seen.push_str(&line);
        }
    }

    fn measure(&self, begun: Instant) -> Run {
        Run {
            clock_s: begun.elapsed().as_secs_f64(),
            cpu_s: cpu_s(self.child.id()),
            own_s: 0.0,
            memory: memory_bytes(self.child.id()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The CPU time of all threads of a process, also of those that have ended.
pub fn cpu_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // The name in the second field may have anything in it (proc(5)).
    let (_, rest) = stat.rsplit_once(')').expect("the name is in brackets");
    let ticks = rest.split_whitespace().skip(11).take(2);
    // Linux tells these in hundredths of a second on every machine that this runs on.
    ticks
        .map(|ticks| ticks.parse::<f64>().expect("a number"))
        .sum::<f64>()
        / 100.0
}

pub fn memory_bytes(pid: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let [resident_bytes, most_bytes] = ["VmRSS:", "VmHWM:"].map(|name| {
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        kib.expect("each process has memory")
            .parse::<f64>()
            .expect("a number")
            * 1024.0
    });
    Memory {
        resident_bytes,
        most_bytes,
    }
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            files.extend(files_under(&path));
        } else {
            files.push(path);
        }
    }
    files
}

fn warm(files: &[PathBuf]) {
    for file in files {
        let mut file = fs::File::open(file).expect("it was just written");
        std::io::copy(&mut file, &mut std::io::sink()).expect("it can be read");
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
    )
    .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

/// The state that a client is shown when it joins.
fn init(address: &str, workspace: &str) -> HashMap<String, Value> {
    let secret = etherply::wire::auth::Secret::new(SECRET.into()).expect("it is not empty");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970");
    let token = etherply::wire::auth::mint(&secret, "bench", now.as_secs(), None);
    let url = format!("ws://{address}/v1/sync/{workspace}?token={token}");
    let stream = TcpStream::connect(address).expect("it listens");
    let (mut client, _) = tungstenite::client(url, stream).expect("it lets a client in");
    let text = client
        .read()
        .expect("it sends the state")
        .into_text()
        .expect("it sends text");
    let data = json(&text)["data"].take();
    serde_json::from_value(data).expect("it sends the state")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("it is JSON")
}

/// The strings of the answer to a command, an array or a single one.
fn ask(client: &mut UnixStream, words: &[&str]) -> Vec<String> {
    let mut command = Vec::new();
    put_command(&mut command, words);
    client.write_all(&command).expect("redis reads");
    let mut reader = BufReader::new(client);
    let first = answer_line(&mut reader);
    match first.split_at(1) {
        ("*", count) => (0..count.parse().expect("a number"))
            .map(|_| {
                let line = answer_line(&mut reader);
                assert!(line.starts_with('$'), "redis answered {line}");
                answer_line(&mut reader)
            })
            .collect(),
        ("$", _) => vec![answer_line(&mut reader)],
        ("+" | ":", text) => vec![text.to_owned()],
        _ => panic!("redis answered {first}"),
    }
}

fn answer_line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("redis answers");
    line.trim_end().to_owned()
}
