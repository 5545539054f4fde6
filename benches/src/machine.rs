//! A description of the measuring machine, for readers of the figures.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    /// The load average over a minute, read before the measurement.
    pub load_average: String,
}

impl Machine {
    /// Reads what the kernel reports about this machine; anything that it does not report is left
    /// empty.
    pub fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("an unknown CPU", |(_, name)| name);
        // The first line is `MemTotal: … kB`.
        let memory = read("/proc/meminfo");
        let memory_kib = memory.split_whitespace().nth(1);
        let memory_kib: u64 = memory_kib.and_then(|kib| kib.parse().ok()).unwrap_or(0);
        let load_average = read("/proc/loadavg");
        Self {
            cpu: cpu.to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: memory_kib / (1024 * 1024),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average: load_average
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            cores,
            memory_gib,
            kernel,
            load_average,
        } = self;
        write!(
            f,
            "{cpu}, {cores} cores, {memory_gib} GiB, Linux {kernel}, load average {load_average}"
        )
    }
}
