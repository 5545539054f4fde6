//! The number of system calls of a process, counted by `perf`.

use std::io::{self, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const EVENT: &str = "raw_syscalls:sys_enter";

/// A count in progress. It is ended when this is dropped.
pub struct SystemCalls {
    perf: Child,
}

impl SystemCalls {
    /// Returns the reason if system calls cannot be counted on this machine.
    pub fn check() -> Result<(), String> {
        let mut command = perf();
        let output = command.arg("true").output();
        let output = output.map_err(|error| format!("perf cannot be started: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        match counted(&text) {
            Some(_) => Ok(()),
            None => Err(format!("perf stat does not count {EVENT} here")),
        }
    }

    /// Starts to count the system calls of all threads of a process, for as long as `period` once
    /// perf is ready.
    pub fn count(pid: u32, period: Duration) -> io::Result<Self> {
        let mut command = perf();
        command
            .args(["--pid", &pid.to_string(), "sleep"])
            .arg(period.as_secs_f64().to_string());
        Ok(Self {
            perf: command.spawn()?,
        })
    }

    /// Returns the count; `None` if the period is not over yet, or perf could not count.
    pub fn finish(mut self) -> io::Result<Option<u64>> {
        if self.perf.try_wait()?.is_none() {
            return Ok(None);
        }
        let mut text = String::new();
        let stdout = self.perf.stdout.as_mut().expect("stdout is piped");
        stdout.read_to_string(&mut text)?;
        Ok(counted(&text))
    }
}

impl Drop for SystemCalls {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

fn perf() -> Command {
    let mut command = Command::new("perf");
    command
        .args(["stat", "--field-separator", ";", "--log-fd", "1"])
        .args(["--event", EVENT])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// Returns the number in perf's output, whose lines are `count;unit;event;…`
/// (perf-stat(1), "CSV FORMAT").
fn counted(output: &str) -> Option<u64> {
    let mut lines = output.lines();
    lines.find_map(|line| {
        let mut fields = line.split(';');
        let count = fields.next()?;
        let is_event = fields.nth(1)? == EVENT;
        is_event.then(|| count.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_perf_is_read() {
        for (output, count) in [
            (
                "12345;;raw_syscalls:sys_enter;1000123;100.00;;\n",
                Some(12345),
            ),
            (
                "# started on …\n\n7;;raw_syscalls:sys_enter;1;100.00;;",
                Some(7),
            ),
            ("<not counted>;;raw_syscalls:sys_enter;0;100.00;;", None),
            ("<not supported>;;raw_syscalls:sys_enter;0;0.00;;", None),
            ("12;;cycles;1;100.00;;", None),
            ("event syntax error: unknown tracepoint", None),
            ("", None),
        ] {
            assert_eq!(counted(output), count, "{output}");
        }
    }
}
