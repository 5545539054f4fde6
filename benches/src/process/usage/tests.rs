use std::hint::black_box;
use std::process::{Child, Command};
use std::thread;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::*;
use crate::process::thread_cpu_ns;

const STATUS: &str = "Name:\tiou-wrk-17\nState:\tS (sleeping)\nThreads:\t4\n\
                      voluntary_ctxt_switches:\t120\nnonvoluntary_ctxt_switches:\t3\n";

#[test]
fn the_texts_of_the_kernel_are_read() {
    for (text, cpu_ns) in [
        ("129262531 4411 17\n", Some(129_262_531)),
        ("0 0 0\n", Some(0)),
        ("", None),
        ("none", None),
        ("-1 0 0", None),
    ] {
        assert_eq!(schedstat_cpu_ns(text), cpu_ns, "{text:?}");
    }
    assert_eq!(status_context_switches(STATUS), Some(123));
    let without = STATUS.replace("nonvoluntary", "other");
    assert_eq!(status_context_switches(&without), None);
    assert_eq!(status_context_switches("voluntary_ctxt_switches:\t"), None);
}

fn task(cpu_ns: u64, context_switches: u64, is_kernel_worker: bool) -> Task {
    Task {
        cpu_ns,
        context_switches,
        is_kernel_worker,
    }
}

fn reading<const N: usize>(cpu_ns: u64, tasks: [(u32, Task); N]) -> Reading {
    Reading {
        cpu_ns,
        tasks: tasks.into(),
    }
}

#[test]
fn tasks_come_and_end_between_two_readings() {
    let earlier = reading(
        900,
        [
            (1, task(500, 10, false)),
            (2, task(200, 7, true)),
            (3, task(200, 9, true)),
        ],
    );
    // Task 2 has ended after 50 more; another task has its id since then; task 4 is new.
    let later = reading(
        1_000_001_200,
        [
            (1, task(650, 16, false)),
            (2, task(30, 8, true)),
            (3, task(1_000_000_200, 10, true)),
            (4, task(20, 2, false)),
        ],
    );
    let usage = later.since(&earlier);
    assert!((usage.cpu_s - 1.000_000_3).abs() < 1e-12, "{usage:?}");
    assert!((usage.kernel_workers_s - 1.000_000_03).abs() < 1e-12);
    assert_eq!(usage.context_switches, 6 + 8 + 1 + 2);
    let both = usage.plus(usage);
    assert_eq!(both.context_switches, 2 * usage.context_switches);
}

fn burn(until_ns: u64) {
    let begun = thread_cpu_ns();
    while thread_cpu_ns() - begun < until_ns {
        black_box(());
    }
}

#[test]
fn a_thread_that_has_ended_still_counts() {
    let pid = std::process::id();
    let before = Reading::of(pid).unwrap();
    let begin_ns = thread::spawn(|| {
        burn(30_000_000);
        thread_cpu_ns()
    });
    let used_ns = begin_ns.join().unwrap();
    let usage = Reading::of(pid).unwrap().since(&before);
    assert!(usage.cpu_s >= seconds(used_ns), "{usage:?} of {used_ns} ns");
}

/// A process that uses its core until it is killed.
struct Busy(Child);

impl Drop for Busy {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_files_of_a_process_and_its_clock_count_the_same() {
    let script = "while :; do :; done";
    let busy = Busy(Command::new("sh").args(["-c", script]).spawn().unwrap());
    let pid = busy.0.id();
    let begun = Reading::of(pid).unwrap();
    while Reading::of(pid).unwrap().since(&begun).cpu_s < 0.03 {}
    // Its counters do not move while it is stopped.
    let raw = Pid::from_child(&busy.0);
    kill_process(raw, Signal::STOP).unwrap();
    let stopped = waitpid(Some(raw), WaitOptions::UNTRACED).unwrap();
    assert!(stopped.unwrap().1.stopped());
    let reading = Reading::of(pid).unwrap();
    let listed_ns: u64 = reading.tasks.values().map(|task| task.cpu_ns).sum();
    assert_eq!(process_clock_ns(pid), Some(listed_ns));
    assert_eq!(reading.cpu_ns, listed_ns);
    let usage = reading.since(&begun);
    assert!(
        usage.cpu_s >= 0.03 && usage.context_switches > 0,
        "{usage:?}"
    );
    assert!(Reading::of(u32::MAX).is_err());
}
