//! The contestants as processes: how each is started and timed, and how its answer is checked.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::workload::{RedisLayout, Workload};
use etherply::core::testing::Dice;
use etherply_bench::process::{Memory, Process, server_program};
use etherply_bench::resp::ask;

const SECRET: &str = "a secret for the bench that is long enough";

/// The cost of one start.
pub struct Run {
    /// The time from the start of the process to its answer.
    pub clock_s: f64,
    /// The CPU time of the process until then.
    pub cpu_s: f64,
    /// The time that reading took, as the process itself reports it.
    pub own_s: f64,
    pub memory: Memory,
}

/// A log of the server.
pub struct EtherplyLog {
    data: PathBuf,
    shards: u32,
    files: Vec<PathBuf>,
}

impl EtherplyLog {
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

    /// Restores the original log, without the empty segments of later starts, and reads it into the
    /// page cache.
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
        let mut command = Command::new(server_program().expect("the server builds"));
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
        let mut run = measure(&process, begun);
        assert!(
            ready.starts_with("HTTP/1.1 200"),
            "the server is not ready: {ready}"
        );
        let stderr = process.child.stderr.take().expect("stderr is piped");
        let read = BufReader::new(stderr).lines().map_while(Result::ok);
        let mut lines = read.map(|line| json(&line));
        let report = lines.find(|line| line["message"] == "read the log");
        let report = report.expect("the server logs what it read");
        assert_eq!(report["ops"], workload.records());
        assert_eq!(report["workspaces"], workload.workspaces());
        run.own_s = report["took_ms"].as_f64().expect("a number") / 1e3;
        check(workload, round, |workspace| init(&address, workspace));
        run
    }
}

/// An append-only file of redis.
pub struct RedisLog {
    data: PathBuf,
    shape: RedisLayout,
    files: Vec<PathBuf>,
}

impl RedisLog {
    pub fn new(workload: &Workload, data: PathBuf, shape: RedisLayout) -> Self {
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
        let mut run = measure(&process, begun);
        assert_eq!(pong, ["PONG"]);
        let own = loaded
            .split_whitespace()
            .rev()
            .nth(1)
            .and_then(|number| number.parse().ok());
        run.own_s = own.expect("the output has the duration");
        let keys = match self.shape {
            RedisLayout::Set => workload.keys(),
            RedisLayout::Hset => workload.workspaces(),
        };
        assert_eq!(ask(&mut client, &["DBSIZE"]), [keys.to_string()]);
        check(workload, round, |workspace| match self.shape {
            RedisLayout::Hset => {
                let all = ask(&mut client, &["HGETALL", workspace]);
                all.chunks_exact(2)
                    .map(|pair| (pair[0].clone(), json(&pair[1])))
                    .collect()
            }
            RedisLayout::Set => {
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

fn measure(process: &Process, begun: Instant) -> Run {
    Run {
        clock_s: begun.elapsed().as_secs_f64(),
        cpu_s: process.cpu_s(),
        own_s: 0.0,
        memory: process.memory(),
    }
}

/// Compares a workspace, chosen by the round, with its expected state.
fn check(workload: &Workload, round: u32, mut held: impl FnMut(&str) -> HashMap<String, Value>) {
    let chosen = Dice::new(u64::from(round) + 7).below_u64(workload.workspaces().into());
    let state = workload.state(u32::try_from(chosen).expect("the number fits in 32 bits"));
    let workspace = state[0].workspace.clone();
    let held = held(&workspace);
    let wanted: HashMap<_, _> = state
        .into_iter()
        .map(|texts| (texts.key, json(&texts.value)))
        .collect();
    assert!(held == wanted, "{workspace} differs from what was written");
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
        let mut file = fs::File::open(file).expect("the log was just written");
        std::io::copy(&mut file, &mut std::io::sink()).expect("the file can be read");
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
    )
    .expect("the server reads the handshake");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .expect("the server answers");
    answer
}

/// Returns the state that a client receives when it joins.
fn init(address: &str, workspace: &str) -> HashMap<String, Value> {
    let secret = etherply::wire::auth::Secret::new(SECRET.into()).expect("the secret is not empty");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is after 1970");
    let token = etherply::wire::auth::mint(&secret, "bench", now.as_secs(), None);
    let url = format!("ws://{address}/v1/sync/{workspace}?token={token}");
    let stream = TcpStream::connect(address).expect("the server listens");
    let (mut client, _) = tungstenite::client(url, stream).expect("the server accepts a client");
    let text = client
        .read()
        .expect("the server sends the state")
        .into_text()
        .expect("the message is text");
    let data = json(&text)["data"].take();
    serde_json::from_value(data).expect("the server sends the state")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("the text is JSON")
}
