//! The settings that protect a server from its clients.

use clap::Args;

use super::value;
use crate::core::shard::contract;
use crate::limits::WORKSPACE_BYTES_DEFAULT;

/// The limits that protect a server from its clients. 0 means no limit.
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// The maximum number of messages per second from a connection, with bursts of up to twice as
    /// many; messages over the limit get error 429, and a client that keeps exceeding it is closed
    /// with 1008; 0 means no limit
    #[arg(
        long,
        value_name = "N",
        env = "ETHERPLY_MAX_OPS_PER_SECOND",
        hide_env_values = true,
        default_value_t = 0,
        value_parser = value::per_second
    )]
    pub max_ops_per_second: u32,

    /// The maximum number of connections per workspace; any more are refused with 503; 0 means no
    /// limit
    #[arg(
        long,
        value_name = "N",
        env = "ETHERPLY_MAX_CONNECTIONS_PER_WORKSPACE",
        hide_env_values = true,
        default_value_t = 0,
        value_parser = value::workspace_connections
    )]
    pub max_connections_per_workspace: usize,

    /// The maximum size of a workspace's state, as reported by `etherply log stat` (live); an op
    /// that would exceed it gets error 413; 0 means no limit
    #[arg(
        long,
        value_name = "BYTES",
        env = "ETHERPLY_MAX_WORKSPACE_BYTES",
        hide_env_values = true,
        default_value_t = WORKSPACE_BYTES_DEFAULT,
        value_parser = value::workspace_bytes
    )]
    pub max_workspace_bytes: u64,

    /// The maximum number of tokens checked per second, divided among the shards, with bursts of up
    /// to twice as many; requests over the limit are refused with 503; 0 means no limit
    #[arg(
        long,
        value_name = "N",
        env = "ETHERPLY_MAX_HANDSHAKES_PER_SECOND",
        hide_env_values = true,
        default_value_t = 0,
        value_parser = value::per_second
    )]
    pub max_handshakes_per_second: u32,
}

impl From<&LimitArgs> for contract::Limits {
    fn from(limits: &LimitArgs) -> Self {
        Self {
            ops_per_second: some(limits.max_ops_per_second),
            connections_per_workspace: some(limits.max_connections_per_workspace),
            workspace_bytes: some(limits.max_workspace_bytes),
            handshakes_per_second: some(limits.max_handshakes_per_second),
        }
    }
}

fn some<T: Default + PartialEq>(number: T) -> Option<T> {
    (number != T::default()).then_some(number)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::usage::summary;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitArgs,
    }

    fn limits(arguments: &[&str]) -> Result<contract::Limits, String> {
        let line = ["etherply"].iter().chain(arguments);
        let line = Line::try_parse_from(line).map_err(|error| summary(&error))?;
        Ok((&line.limits).into())
    }

    #[test]
    fn by_default_only_the_size_of_a_workspace_is_limited() {
        let expected = contract::Limits {
            workspace_bytes: Some(WORKSPACE_BYTES_DEFAULT),
            ..contract::Limits::default()
        };
        assert_eq!(limits(&[]), Ok(expected));
    }

    #[test]
    fn each_flag_sets_a_limit_and_zero_means_none() {
        let flags = [
            "--max-ops-per-second",
            "--max-connections-per-workspace",
            "--max-workspace-bytes",
            "--max-handshakes-per-second",
        ];
        let with = |first: u32| {
            let numbers = (first..).map(|number| if first == 0 { 0 } else { number });
            let arguments = flags.iter().zip(numbers);
            let arguments: Vec<String> = arguments
                .map(|(flag, number)| format!("{flag}={number}"))
                .collect();
            limits(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        };
        assert_eq!(with(0), Ok(contract::Limits::default()));
        let expected = contract::Limits {
            ops_per_second: Some(5),
            connections_per_workspace: Some(6),
            workspace_bytes: Some(7),
            handshakes_per_second: Some(8),
        };
        assert_eq!(with(5), Ok(expected));
    }

    #[test]
    fn the_error_for_a_wrong_value_names_the_flag_and_the_range() {
        for (flag, value, range) in [
            ("--max-ops-per-second", "1000001", "from 0 to 1000000"),
            (
                "--max-connections-per-workspace",
                "some",
                "from 0 to 100000000",
            ),
            ("--max-workspace-bytes", "64MiB", "from 0 to 1099511627776"),
            ("--max-handshakes-per-second", "-1", "from 0 to 1000000"),
        ] {
            let error = limits(&[&format!("{flag}={value}")]).unwrap_err();
            for part in [flag, value, &format!("must be a whole number {range}")] {
                assert!(
                    error.contains(part),
                    "the error does not name {part}: {error}"
                );
            }
        }
    }
}
