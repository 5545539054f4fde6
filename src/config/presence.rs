//! The presence settings.

use clap::Args;

use super::value;
use crate::core::fanout::peers::PresenceSettings;
use crate::limits::{
    PRESENCE_BYTES_DEFAULT, PRESENCE_INTERVAL_MS_DEFAULT, PRESENCE_SHARD_BYTES_MAX,
};

/// The presence settings, which apply only to version 2 clients.
#[derive(Debug, Args)]
pub struct PresenceArgs {
    /// Milliseconds for which presence changes are collected before they are sent as one message
    #[arg(
        long,
        value_name = "MS",
        env = "ETHERPLY_PRESENCE_INTERVAL_MS",
        hide_env_values = true,
        default_value_t = PRESENCE_INTERVAL_MS_DEFAULT,
        value_parser = value::presence_interval_ms
    )]
    pub presence_interval_ms: u64,

    /// The largest presence of a workspace, in bytes of JSON; a value that would exceed it gets
    /// error 413, and clients that do not fit are counted but not shown
    #[arg(
        long,
        value_name = "BYTES",
        env = "ETHERPLY_MAX_PRESENCE_BYTES",
        hide_env_values = true,
        default_value_t = PRESENCE_BYTES_DEFAULT,
        value_parser = value::presence_bytes
    )]
    pub max_presence_bytes: usize,
}

impl From<&PresenceArgs> for PresenceSettings {
    fn from(presence: &PresenceArgs) -> Self {
        Self {
            interval_us: presence.presence_interval_ms * 1000,
            bytes_max: presence.max_presence_bytes,
            shard_bytes_max: PRESENCE_SHARD_BYTES_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::usage::summary;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        presence: PresenceArgs,
    }

    fn settings(arguments: &[&str]) -> Result<PresenceSettings, String> {
        let line = ["etherply"].iter().chain(arguments);
        let line = Line::try_parse_from(line).map_err(|error| summary(&error))?;
        Ok((&line.presence).into())
    }

    #[test]
    fn each_flag_is_a_setting() {
        for (arguments, interval_us, bytes_max) in [
            (&[][..], 50_000, 1 << 20),
            (&["--presence-interval-ms=10"], 10_000, 1 << 20),
            (&["--max-presence-bytes=1024"], 50_000, 1024),
        ] {
            let expected = PresenceSettings {
                interval_us,
                bytes_max,
                shard_bytes_max: PRESENCE_SHARD_BYTES_MAX,
            };
            assert_eq!(settings(arguments), Ok(expected), "{arguments:?}");
        }
    }

    #[test]
    fn the_error_for_a_wrong_value_names_the_flag_and_the_range() {
        for (flag, value, range) in [
            ("--presence-interval-ms", "9", "from 10 to 60000"),
            ("--max-presence-bytes", "1MiB", "from 1024 to 16777216"),
        ] {
            let error = settings(&[&format!("{flag}={value}")]).unwrap_err();
            for part in [flag, value, &format!("must be a whole number {range}")] {
                assert!(error.contains(part), "{error} names {part}");
            }
        }
    }
}
