//! The settings of `etherply log`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// The settings of `etherply log`.
#[derive(Debug, Args)]
#[command(after_help = "\
stat, verify and dump can read the log of a running server without disturbing it. Before repair or \
compact, stop the server.")]
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

    #[expect(missing_docs, reason = "a doc comment would show up in the help")]
    #[command(subcommand)]
    pub command: LogCommand,
}

/// The commands on the log, with their settings.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show the size of the log, how much of it is live, and its largest workspaces
    Stat(StatArgs),
    /// Check every record; on the first error, print its file and offset and exit 1
    Verify,
    /// Print the ops of a workspace as JSON lines, ordered by seq
    Dump(DumpArgs),
    /// Keep the intact part of a damaged log and set the rest aside; nothing is deleted
    Repair(RepairArgs),
    /// Rewrite the log without superseded ops
    Compact,
}

/// The settings of `etherply log stat`.
#[derive(Debug, Args)]
pub struct StatArgs {
    /// List all workspaces, not just the 20 largest
    #[arg(long)]
    pub all: bool,

    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// The settings of `etherply log dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// The id of the workspace
    #[arg(long, value_name = "ID")]
    pub workspace: String,

    /// Print only the last write of each key that is not deleted, which is the state
    #[arg(long)]
    pub state: bool,
}

/// The settings of `etherply log repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
}
