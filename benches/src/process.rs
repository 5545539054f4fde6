//! The processes being measured, and the build of the server's program.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

pub mod system_calls;
pub mod usage;

use usage::{Reading, schedstat_cpu_ns};

/// The memory of a process.
pub struct Memory {
    /// The bytes that are resident now.
    pub resident_bytes: f64,
    /// The maximum number of bytes that were ever resident.
    pub most_bytes: f64,
}

/// A process whose stdout is read. It is killed when this is dropped.
pub struct Process {
    pub child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    pub fn start(mut command: Command) -> (Self, Instant) {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().expect("the process can be started");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        (Self { child, lines }, begun)
    }

    /// Waits for a line that contains `text`.
    pub fn line_with(&mut self, text: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            let count = self.lines.read_line(&mut line).expect("stdout can be read");
            assert!(
                count > 0,
                "the process exited before it printed {text:?}:\n{seen}"
            );
            if line.contains(text) {
                return line.trim_end().to_owned();
            }
            seen.push_str(&line);
        }
    }

    /// Returns its CPU time so far.
    pub fn cpu_s(&self) -> f64 {
        cpu_s(self.child.id()).expect("the process is running")
    }

    /// Returns its current memory.
    pub fn memory(&self) -> Memory {
        memory(self.child.id()).expect("the process is running")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the CPU time of all threads of a process, including those that have ended.
pub fn cpu_s(pid: u32) -> io::Result<f64> {
    Ok(Reading::of(pid)?.cpu_s())
}

/// Reads the CPU time of this thread; 0 if the kernel does not report it.
pub fn thread_cpu_ns() -> u64 {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    schedstat_cpu_ns(&schedstat).unwrap_or(0)
}

/// Raises the limit on open files as far as this process may, and returns it, or `None` if
/// unlimited.
pub fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// Reads the memory of a process.
pub fn memory(pid: u32) -> io::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let bytes_of = |name: &str| {
        let mut lines = status.lines();
        let kib = lines.find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        // A process that has just exited has no memory.
        let kib = kib.ok_or(io::ErrorKind::NotFound)?.parse::<f64>();
        Ok::<f64, io::Error>(kib.map_err(io::Error::other)? * 1024.0)
    };
    Ok(Memory {
        resident_bytes: bytes_of("VmRSS:")?,
        most_bytes: bytes_of("VmHWM:")?,
    })
}

/// Returns the path of the server's binary, after building it from this tree.
///
/// The server is built as it is shipped: a dependency gets the features that the server requests,
/// and none that only a bench needs. The profile is that of the caller.
pub fn server_program() -> io::Result<PathBuf> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program.clone());
    }
    let program = build_server()?;
    Ok(PROGRAM.get_or_init(|| program).clone())
}

fn build_server() -> io::Result<PathBuf> {
    // Cargo sets this variable for the programs that it runs.
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
