//! Turns facts into findings. This module is pure: the result depends only on the facts.

use super::facts::Facts;
use super::finding::Finding;

mod directory;
mod kernel;
mod network;
mod processor;

#[cfg(test)]
mod tests;

/// Returns one finding for each check whose facts are known, in the order of the output.
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
        directory::free_space(directory),
        directory::sync(directory, processor),
        Some(processor::shards(processor, wanted)),
        processor::quota(processor, wanted),
        processor::memory(processor, wanted),
        processor::governor(processor),
    ];
    findings.into_iter().flatten().collect()
}
