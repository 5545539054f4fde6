//! The settings of `etherply doctor`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::value;

/// The settings of the server whose host is checked.
#[derive(Debug, Args)]
#[command(after_help = "\
Run it with the server's flags and variables, as the server's user, under the same limits and in \
the same container: most results depend on these. It changes nothing: the file that it writes to \
the data directory to time the disk is removed again. Exit code 1 means that the server would not \
work here.")]
pub struct DoctorArgs {
    /// The address to listen on [default: 0.0.0.0]
    #[arg(
        long,
        value_name = "IP",
        env = "ETHERPLY_HOST",
        hide_env_values = true,
        value_parser = value::ip
    )]
    pub host: Option<IpAddr>,

    /// The port to listen on. Falls back to the variable PORT [default: 8080]
    #[arg(
        long,
        value_name = "PORT",
        env = "ETHERPLY_PORT",
        hide_env_values = true,
        value_parser = value::port
    )]
    pub port: Option<u16>,

    /// The number of event loops; each serves a share of the workspaces [default: one per core]
    #[arg(
        long,
        value_name = "N",
        env = "ETHERPLY_SHARDS",
        hide_env_values = true,
        value_parser = value::shards
    )]
    pub shards: Option<u32>,

    /// The folder that holds the log
    #[arg(
        long,
        value_name = "DIR",
        env = "ETHERPLY_DATA_DIR",
        hide_env_values = true,
        default_value = "./etherply-data"
    )]
    pub data_dir: PathBuf,

    /// The maximum number of connections [default: as many as the limit on open files allows]
    #[arg(
        long,
        value_name = "N",
        env = "ETHERPLY_MAX_CONNECTIONS",
        hide_env_values = true,
        value_parser = value::connections
    )]
    pub max_connections: Option<usize>,

    /// Print one JSON object with the checks and the facts they are based on
    #[arg(long)]
    pub json: bool,
}
