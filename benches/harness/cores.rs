//! The cores of the server and those of the load.

use std::fmt;
use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A set of cores, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

/// The cores of the server and those of the load.
#[derive(Debug, Clone)]
pub struct Halves {
    pub server: Cores,
    pub load: Cores,
}

impl Cores {
    /// Returns the cores that this thread may use.
    pub fn allowed() -> io::Result<Self> {
        let set = sched_getaffinity(None)?;
        Ok(Self(
            (0..CpuSet::MAX_CPU)
                .filter(|core| set.is_set(*core))
                .collect(),
        ))
    }

    /// Moves this thread, and everything that it starts from now on, to these cores.
    pub fn take(&self) -> io::Result<()> {
        let mut set = CpuSet::new();
        for core in &self.0 {
            set.set(*core);
        }
        Ok(sched_setaffinity(None, &set)?)
    }

    /// Reads the CPU time that has been used on these cores by any process.
    pub fn busy_s(&self) -> f64 {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let of_these = stat.lines().filter_map(|line| {
            let (name, times) = line.strip_prefix("cpu")?.split_once(' ')?;
            self.0.contains(&name.parse().ok()?).then_some(times)
        });
        // User, nice, system, idle, iowait, irq, softirq, steal, … (proc_stat(5)), in hundredths.
        let busy = of_these.flat_map(|times| {
            let fields = times.split(' ').enumerate();
            let fields = fields.filter(|(at, _)| matches!(at, 0..=2 | 5..=7));
            fields.filter_map(|(_, ticks)| ticks.parse::<f64>().ok())
        });
        busy.sum::<f64>() / 100.0
    }

    /// Splits the cores into two halves; a single core is in both.
    pub fn halves(&self) -> Halves {
        let (server, load) = self.0.split_at(self.0.len() / 2);
        let server = if server.is_empty() { load } else { server };
        Halves {
            server: Self(server.to_vec()),
            load: Self(load.to_vec()),
        }
    }
}

impl Halves {
    /// Returns whether the load shares a core with the server.
    pub fn overlap(&self) -> bool {
        self.server.0.iter().any(|core| self.load.0.contains(core))
    }

    /// Returns the cores of both.
    pub fn all(&self) -> Cores {
        let mut all = [&self.server.0[..], &self.load.0].concat();
        all.sort_unstable();
        all.dedup();
        Cores(all)
    }
}

impl std::str::FromStr for Cores {
    type Err = String;

    /// Parses a list such as `0,2-5`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.parse::<usize>(), last.parse::<usize>()) {
                (Ok(first), Ok(last)) if first <= last && last < CpuSet::MAX_CPU => {
                    cores.extend(first..=last);
                }
                _ => return Err("it takes cores such as 0,2-5".to_owned()),
            }
        }
        Ok(Self(cores))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}
