//! The settings of `etherply log`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// The settings of a look at the log, or of work on it.
#[derive(Debug, Args)]
#[command(
    after_help = "stat, verify and dump also read the log of a running server, without disturbing it. repair and compact need a stopped server."
)]
pub struct LogArgs {
    /// The folder that holds the log
    #[arg(
        long,
        value_name = "DIR",
        env = "ETHERPLY_DATA_DIR",
        hide_env_values = true,
        default_value = "./etherply-data",
        global = true
    )]
    pub data_dir: PathBuf,

    /// What to do.
    #[command(subcommand)]
    pub command: LogCommand,
}

/// What to do with the log.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show how long the log is, how much of it is live, and which workspaces it has
    Stat(StatArgs),
    /// Check every record; exit 1 with the file and the offset of the first fault
    Verify,
    /// Print the ops of a workspace as JSON lines, in the order of their seq
    Dump(DumpArgs),
    /// Keep the intact part of a damaged log and set the rest aside; nothing is deleted
    Repair(RepairArgs),
    /// Rewrite the log without superseded ops
    Compact,
}

/// What `stat` tells.
#[derive(Debug, Args)]
pub struct StatArgs {
    /// All workspaces, not only the 20 largest
    #[arg(long)]
    pub all: bool,

    /// One JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// What `dump` prints.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// The workspace's id
    #[arg(long, value_name = "ID")]
    pub workspace: String,

    /// Only the last change of each key, which is the state
    #[arg(long)]
    pub state: bool,
}

/// How `repair` goes on.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}
