//! Checks of the cores, their speed, and the memory.

use crate::command::doctor::facts::{Processor, WantedServer};
use crate::command::doctor::finding::Finding;
use crate::command::text;
use crate::limits::SHARD_BYTES;

/// The memory that the process uses without any shards, workspaces or connections.
const PROCESS_BYTES: u64 = 16 * 1024 * 1024;

pub fn shards(processor: &Processor, wanted: &WantedServer) -> Finding {
    const CHECK: &str = "shards";
    let (allowed, shards) = (processor.cores_allowed, wanted.shards);
    let online = processor.cores_online.unwrap_or(allowed);
    let cores = if online == allowed {
        text::count(allowed as u64, "core")
    } else {
        format!("{allowed} of {} cores", online.max(allowed))
    };
    let found = format!("{} on {cores}", text::count(u64::from(shards), "shard"));
    if shards as usize > allowed {
        return Finding::warn(
            CHECK,
            format!("{found}: some share a core and delay each other"),
            format!("use --shards {allowed} or fewer; see the table in tuning/cpu.md"),
        );
    }
    Finding::ok(CHECK, found)
}

pub fn quota(processor: &Processor, wanted: &WantedServer) -> Option<Finding> {
    const CHECK: &str = "CPU quota";
    let millicores = processor.quota_millicores?;
    let found = format!("{}.{:03} cores", millicores / 1000, millicores % 1000);
    Some(if millicores < 1000 * u64::from(wanted.shards) {
        Finding::warn(
            CHECK,
            format!(
                "{found} for {}: once it is used up, all clients wait until the period ends \
                 (100 ms by default)",
                text::count(u64::from(wanted.shards), "shard")
            ),
            "allow the control group one core per shard and some for the kernel's work, or pin it \
             to cores instead (cpuset); see tuning/cpu.md",
        )
    } else {
        Finding::ok(CHECK, found)
    })
}

/// Returns the memory that `shards` busy shards use, not counting state.
pub fn working_bytes(shards: u32) -> u64 {
    PROCESS_BYTES + u64::from(shards) * SHARD_BYTES
}

pub fn memory(processor: &Processor, wanted: &WantedServer) -> Option<Finding> {
    const CHECK: &str = "memory";
    let total = processor.memory_total_bytes;
    let limit = processor.memory_max_bytes;
    let most = [total, limit].into_iter().flatten().min()?;
    let of_group = limit.is_some_and(|limit| limit == most);
    let whose = if of_group {
        "for the control group"
    } else {
        "on this host"
    };
    let found = format!("{} {whose}", text::bytes(most));
    let needed = working_bytes(wanted.shards);
    Some(if most < needed {
        Finding::warn(
            CHECK,
            format!(
                "{found}, but {} may use up to {} under load, in addition to the state and the \
                 kernel's socket buffers",
                text::count(u64::from(wanted.shards), "shard"),
                text::bytes(needed)
            ),
            "add memory, or lower --shards: a process over the limit is killed",
        )
    } else {
        Finding::ok(CHECK, found)
    })
}

pub fn governor(processor: &Processor) -> Option<Finding> {
    const CHECK: &str = "CPU governor";
    let slow = processor.governors.iter().any(|name| name != "performance");
    let names = processor.governors.join(", ");
    if names.is_empty() {
        return None;
    }
    Some(if slow {
        Finding::warn(
            CHECK,
            format!("{names}: a core that goes idle between ops wakes up slowly"),
            "sudo cpupower frequency-set -g performance; see tuning/cpu.md",
        )
    } else {
        Finding::ok(CHECK, names)
    })
}
