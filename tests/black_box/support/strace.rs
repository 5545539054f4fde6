//! System calls that fail on demand: strace is attached to a running server and injects errors in
//! place of the kernel's results.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{eventually, skipped};

/// Makes some system calls of a process fail until this value is dropped.
pub struct Injection(Child);

impl Injection {
    /// Makes `call` fail in each thread of the process. `fault` is an strace expression such as
    /// `error=EAGAIN:when=2+3`. Returns `None`, and prints a reason, if strace cannot do that.
    pub async fn attach(pid: Pid, call: &str, fault: &str) -> Option<Injection> {
        let arguments = ["-f", "-q", "-o", "/dev/null", "-p"];
        let spawned = Command::new("strace")
            .args(arguments)
            .arg(pid.as_raw_nonzero().to_string())
            .args(["-e", &format!("trace={call}")])
            .args(["-e", &format!("inject={call}:{fault}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = spawned else {
            skipped("strace is not installed");
            return None;
        };
        let mut injection = Injection(child);
        let is_attached = eventually("strace is attached or has exited", async || {
            let has_ended = injection
                .0
                .try_wait()
                .expect("the child has not been reaped")
                .is_some();
            (has_ended || are_all_traced(pid)).then_some(!has_ended)
        })
        .await;
        if !is_attached {
            skipped("strace may not attach to a process here (ptrace(2))");
        }
        is_attached.then_some(injection)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // Both fail if strace has already exited.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

fn are_all_traced(pid: Pid) -> bool {
    let tasks = PathBuf::from(format!("/proc/{}/task", pid.as_raw_nonzero()));
    let tasks = std::fs::read_dir(tasks).expect("the server is running");
    tasks.map_while(Result::ok).all(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let mut lines = status.lines();
        let tracer = lines.find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|tracer| tracer.trim() != "0")
    })
}
