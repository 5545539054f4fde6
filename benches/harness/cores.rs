//! Which cores the server has, and which the load.

use std::fmt;
use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Some cores, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

/// The cores of the server, and those of the load.
#[derive(Debug, Clone)]
pub struct Halves {
    pub server: Cores,
    pub load: Cores,
}

impl Cores {
    /// Those that this thread may use.
    pub fn allowed() -> io::Result<Self> {
        let set = sched_getaffinity(None)?;
        Ok(Self(
            (0..CpuSet::MAX_CPU)
                .filter(|core| set.is_set(*core))
                .collect(),
        ))
    }

    /// This thread, and whatever it starts from now on, runs on these.
    pub fn take(&self) -> io::Result<()> {
        let mut set = CpuSet::new();
        for core in &self.0 {
            set.set(*core);
        }
        Ok(sched_setaffinity(None, &set)?)
    }

    /// The first half and the other; of one core, both have it.
    pub fn halves(&self) -> Halves {
        let (server, load) = self.0.split_at(self.0.len() / 2);
        let server = if server.is_empty() { load } else { server };
        Halves {
            server: Self(server.to_vec()),
            load: Self(load.to_vec()),
        }
    }
}

impl std::str::FromStr for Cores {
    type Err = String;

    /// `0,2-5`
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
