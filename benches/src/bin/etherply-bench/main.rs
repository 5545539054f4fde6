//! `etherply-bench`: puts load on a server, local or remote, checks every delivery, and prints the
//! figures that the harness prints.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

mod cli_docs;
mod compare;
mod credentials;
mod measure;
mod options;
mod table;

use options::{Options, usage_line};

/// Writes to stdout. If the reader has gone away, as `head` does, that is not an error.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            eprintln!("{}", usage_line(&error));
            return ExitCode::from(2);
        }
        Err(help) => {
            // The reader may have gone away.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    let outcome = if let [one, other] = &options.compare[..] {
        compare::run(one, other)
    } else if options.manual {
        cli_docs::manual()
    } else if let Some(shell) = options.completions {
        cli_docs::completions(shell);
        Ok(())
    } else {
        measure::run(&options)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}
