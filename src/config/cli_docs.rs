//! The settings of `etherply completions` and `etherply manual`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// Which completions.
#[derive(Debug, Args)]
#[command(
    after_help = "For the shell that is running: source <(etherply completions bash). The Debian package installs those of bash, zsh and fish."
)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: Shell,
}

/// Where the manual goes.
#[derive(Debug, Args)]
#[command(after_help = "For example: etherply manual /tmp && man /tmp/etherply-serve.1")]
pub struct ManualArgs {
    /// An existing folder
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}
