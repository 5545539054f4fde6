//! Reads the facts. What this host does not tell is left out; nothing is judged here.

use super::facts::{Facts, Wanted};
use crate::config::doctor::Doctor;
use crate::config::{ConfigError, environment};

mod directory;
mod host;
mod processor;
mod system;

#[cfg(test)]
mod tests;

use host::Host;

/// Reads this host.
pub fn facts(settings: &Doctor) -> Result<Facts, ConfigError> {
    let host = Host::at("/");
    let wanted = Wanted {
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
