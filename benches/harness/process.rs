//! A server as a process: how it is started, where it listens, what it uses.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::cores::Halves;
use etherply_bench::process::{cpu_s, memory_bytes};

/// A running server; it is killed when this is dropped, and its folder removed.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    stderr: PathBuf,
    /// `None`: it was taken, for the next.
    folder: Option<TempDir>,
}

/// What it says first.
const LISTENING: &str = "listening on ";

impl Process {
    /// Starts a server on its half of the cores and waits until it says where it listens. `folder` is its own.
    pub fn start(mut command: Command, folder: TempDir, cores: &Halves) -> io::Result<Self> {
        let stderr = folder.path().join("stderr");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr)?);
        // What a thread starts runs where the thread runs.
        cores.server.take()?;
        let child = command.spawn();
        cores.load.take()?;
        let mut child = child?;
        let stdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let address = line.trim_end().strip_prefix(LISTENING);
        if let (Ok(_), Some(Ok(address))) = (read, address.map(str::parse)) {
            return Ok(Self {
                child,
                address,
                stderr,
                folder: Some(folder),
            });
        }
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
        let told = last_lines(&stderr);
        Err(io::Error::other(format!("it did not start: {line}{told}")))
    }

    /// Kills it and gives its folder, in which another may be started.
    pub fn stop(mut self) -> TempDir {
        self.folder.take().expect("it was not stopped before")
    }

    /// The last lines that it wrote to stderr.
    pub fn last_words(&self) -> String {
        last_lines(&self.stderr)
    }

    /// The CPU time of all its threads, those of the kernel that work for its rings too.
    pub fn cpu_s(&self) -> f64 {
        cpu_s(self.child.id())
    }

    /// Its resident memory; it has to run.
    pub fn resident_bytes(&self) -> f64 {
        memory_bytes(self.child.id()).resident_bytes
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_lines(file: &PathBuf) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
