//! From the facts to the findings. Pure: what is not in the facts is not known here.

use super::facts::Facts;
use super::finding::Finding;

mod directory;
mod kernel;
mod network;
mod processor;

#[cfg(test)]
mod tests;

/// One finding for each thing that is known, in the order in which they are told.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let Facts {
        wanted,
        kernel,
        ring,
        limits,
        network,
        directory,
        processor,
    } = facts;
    let findings = [
        Some(kernel::release(kernel)),
        Some(kernel::ring(kernel, ring, wanted)),
        kernel::locked_memory(kernel, ring, limits, wanted),
        Some(kernel::clock(kernel)),
        Some(network::open_files(limits, wanted)),
        Some(network::port(network, directory, wanted)),
        network::backlog(network),
        network::send_queue(network),
        network::local_ports(network, wanted),
        Some(directory::folder(directory)),
        directory::file_system(directory),
        directory::discard(directory),
        directory::room(directory),
        directory::sync(directory, processor),
        Some(processor::shards(processor, wanted)),
        processor::quota(processor, wanted),
        processor::memory(processor, wanted),
        processor::governor(processor),
    ];
    findings.into_iter().flatten().collect()
}
