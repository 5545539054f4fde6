//! The settings of `etherply completions` and `etherply manual`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// The settings of `etherply completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
To load them into the current shell: source <(etherply completions bash). The Debian package \
installs completions for bash, zsh and fish.")]
pub struct CompletionsArgs {
    /// The shell to generate completions for
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: Shell,
}

/// The settings of `etherply manual`.
#[derive(Debug, Args)]
#[command(after_help = "For example: etherply manual /tmp && man /tmp/etherply-serve.1")]
pub struct ManualArgs {
    /// The folder for the pages; it must exist
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}
