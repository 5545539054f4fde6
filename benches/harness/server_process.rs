//! A server as a process: its start, its address, and the resources it uses.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etherply_bench::process::memory;
use etherply_bench::process::system_calls::SystemCalls;
use etherply_bench::process::usage::Reading;
use tempfile::TempDir;

use crate::cores::Halves;

/// A running server. When this is dropped, the server is killed and its folder removed.
pub struct ServerProcess {
    child: Child,
    pub address: SocketAddr,
    stderr: PathBuf,
    /// `None` after [`stop`](Self::stop).
    folder: Option<TempDir>,
}

/// The start of the first line that every server prints.
const LISTENING: &str = "listening on ";
/// The number of lines of stderr that an error quotes.
const LOG_LINES: usize = 5;

impl ServerProcess {
    /// Starts a server in `folder` on its half of the cores, and waits for its address.
    pub fn start(mut command: Command, folder: TempDir, cores: &Halves) -> io::Result<Self> {
        let stderr = folder.path().join("stderr");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr)?);
        // A child inherits the cores of the thread that starts it.
        cores.server.take()?;
        let child = command.spawn();
        cores.load.take()?;
        let mut child = child?;
        let stdout = child.stdout.take().expect("stdout is piped");
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
        // It may have exited already.
        let _ = child.kill();
        let _ = child.wait();
        let log = last_lines(&stderr);
        Err(io::Error::other(format!("it did not start: {line}{log}")))
    }

    /// Kills the server and returns its folder, in which another one can be started.
    pub fn stop(mut self) -> TempDir {
        self.folder
            .take()
            .expect("the server has not been stopped yet")
    }

    /// Returns the last lines that the server wrote to stderr.
    pub fn last_log_lines(&self) -> String {
        last_lines(&self.stderr)
    }

    /// Returns what it has used so far.
    pub fn usage(&self) -> Reading {
        Reading::of(self.child.id()).expect("the server is running")
    }

    /// Starts to count its system calls.
    pub fn count_system_calls(&self, period: Duration) -> io::Result<SystemCalls> {
        SystemCalls::count(self.child.id(), period)
    }

    /// Returns its resident memory.
    pub fn resident_bytes(&self) -> f64 {
        memory(self.child.id())
            .expect("the server is running")
            .resident_bytes
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_lines(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
