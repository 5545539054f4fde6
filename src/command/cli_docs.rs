//! `etherply completions` and `etherply manual`: shell completions and manual pages, generated from
//! the command line.

use clap::CommandFactory;

use super::output::{Printer, Stop};
use crate::config::CommandLine;
use crate::config::cli_docs::{CompletionsArgs, ManualArgs};

/// Prints the completions of a shell.
pub fn completions(settings: &CompletionsArgs) -> Result<(), String> {
    let mut script = Vec::new();
    clap_complete::generate(
        settings.shell,
        &mut CommandLine::command(),
        "etherply",
        &mut script,
    );
    let mut output = Printer::new();
    match output.bytes(&script).and_then(|()| output.flush()) {
        Ok(()) | Err(Stop::OutputClosed) => Ok(()),
        Err(Stop::Failed(line)) => Err(line),
    }
}

/// Writes a manual page for each command.
pub fn manual(settings: &ManualArgs) -> Result<(), String> {
    clap_mangen::generate_to(CommandLine::command(), &settings.folder).map_err(|error| {
        format!(
            "cannot write the manual pages to {} ({error}): name an existing folder",
            settings.folder.display()
        )
    })
}
