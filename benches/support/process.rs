//! A process that is measured.

#![allow(dead_code, reason = "each bench uses its part")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

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
