//! A process that is measured.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use serde_json::Value;

/// What a process holds of the machine's memory.
pub struct Memory {
    /// Resident when it serves.
    pub resident_bytes: f64,
    /// The most that was resident on the way.
    pub most_bytes: f64,
}

/// A process whose stdout is read; killed when it is dropped.
pub struct Process {
    pub child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    pub fn start(mut command: Command) -> (Self, Instant) {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().expect("it can be started");
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        (Self { child, lines }, begun)
    }

    /// Waits for a line that has this in it.
    pub fn line_with(&mut self, text: &str) -> String {
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

/// Returns the path of the server's binary, after building it from this tree.
///
/// The server is built as it is shipped: a dependency gets the features that the server asks for,
/// and none of those that only a bench needs. The profile is that of the caller.
pub fn server_program() -> io::Result<PathBuf> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program.clone());
    }
    let program = build_server()?;
    Ok(PROGRAM.get_or_init(|| program).clone())
}

fn build_server() -> io::Result<PathBuf> {
    // Cargo sets it for what it runs.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let profile = if cfg!(debug_assertions) {
        "dev"
    } else {
        "release"
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(cargo);
    command
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--package", "etherply"])
        .args(["--bin", "etherply", "--profile", profile])
        .args(["--message-format", "json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    // Build scripts that watch the variables of a package would run again for each package that
    // builds the server.
    for (name, _) in std::env::vars_os() {
        let is_of_package =
            |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(is_of_package) {
            command.env_remove(name);
        }
    }
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter_map(|message| {
        let is_server = message["target"]["name"] == "etherply";
        Some(PathBuf::from(
            message["executable"].as_str().filter(|_| is_server)?,
        ))
    });
    match programs.next() {
        Some(program) if output.status.success() => Ok(program),
        _ => Err(io::Error::other("cargo cannot build the server")),
    }
}
