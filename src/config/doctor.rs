//! The settings of `etherply doctor`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::value;

/// The settings of the server whose host is checked.
#[derive(Debug, Args)]
#[command(after_help = "\
Pass the server's flags and variables, and run it as the server's user, under the same limits and \
in the same container: most results depend on these. It changes nothing; the file that it writes \
into the data directory to time the disk is removed. Exit code 1: the server would not work here.")]
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

    /// The port to listen on. The variable PORT sets it too [default: 8080]
    #[arg(
        long,
        value_name = "PORT",
        env = "ETHERPLY_PORT",
        hide_env_values = true,
        value_parser = value::port
    )]
    pub port: Option<u16>,

    /// The number of event loops, among which the workspaces are divided [default: one per core]
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

    /// The maximum number of connections [default: as many as the limit of open files allows]
    #[arg(
        long,
        value_name = "N",
        env = "ETHERPLY_MAX_CONNECTIONS",
        hide_env_values = true,
        value_parser = value::connections
    )]
    pub max_connections: Option<usize>,

    /// Print one JSON object: the checks, and the facts that they are based on
    #[arg(long)]
    pub json: bool,
}
