//! The manual page and the completions, from the definition of the command line.

use std::io;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::options::Options;
use crate::print;

/// Prints the manual page.
pub fn manual() -> Result<(), String> {
    let page = clap_mangen::Man::new(Options::command());
    page.render(&mut io::stdout().lock())
        .map_err(|error| error.to_string())
}

/// Prints the completions of a shell.
pub fn completions(shell: Shell) {
    let mut script = Vec::new();
    clap_complete::generate(
        shell,
        &mut Options::command(),
        "etherply-bench",
        &mut script,
    );
    print(&String::from_utf8_lossy(&script));
}
