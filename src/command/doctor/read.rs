//! Reads the facts from the host. Facts that the host does not reveal are omitted, and nothing is
//! judged here.
//!
//! The parsers for /proc are our own. Those of the crate `procfs-core` reject an entire `status` or
//! `meminfo` if a field is missing (as in gVisor and other sandboxes), do not unescape mount
//! points, and lose the order of mount options.

use super::facts::{Facts, WantedServer};
use crate::config::doctor::DoctorArgs;
use crate::config::{ConfigError, environment};

mod directory;
mod host;
mod processor;
mod system;

#[cfg(test)]
mod tests;

use host::HostFiles;

/// Reads the facts of this host.
pub fn facts(settings: &DoctorArgs) -> Result<Facts, ConfigError> {
    let host = HostFiles::at("/");
    let wanted = WantedServer {
        address: settings.address(environment::platform_port())?,
        shards: settings.shards(std::thread::available_parallelism().ok()),
        connections: settings.max_connections,
    };
    Ok(Facts {
        kernel: system::kernel(&host),
        ring: system::ring(wanted.shards),
        limits: system::limits(),
        network: system::network(&host, wanted.address),
        directory: directory::read(&host, &settings.data_dir),
        processor: processor::read(&host),
        wanted,
    })
}
