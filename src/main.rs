//! The `etherply` binary, which parses the command line and calls the library.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use etherply::command;
use etherply::config::usage::{self, UsageError};
use etherply::config::{Command, LogFormat, LogLevel, ServeArgs, other_variables};
use etherply::io::{event_log, server};
use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;
use tracing::Level;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let command = match usage::read(&arguments) {
        Ok(line) => line.command,
        Err(UsageError::Wrong(line)) => {
            print_error(&line);
            return ExitCode::from(2);
        }
        Err(UsageError::Help(help)) => return end(command::print_help(&help)),
    };
    // With a handler for this signal, a write beyond the limit on file sizes (ulimit -f) fails like
    // one on a full disk. Without one, it would end the process.
    flag::register(SIGXFSZ, Arc::default()).expect("the signal can be handled");
    let outcome = match command {
        Command::Serve(settings) => {
            start_logging(&settings);
            event_log::log_variables(&other_variables());
            server::serve(&settings).map_err(|error| error.to_string())
        }
        Command::Token(settings) => command::token::run(&settings),
        Command::Log(settings) => match command::log::run(&settings) {
            Ok(code) => return code,
            Err(line) => Err(line),
        },
        Command::Doctor(settings) => command::doctor::run(&settings),
        Command::Completions(settings) => command::cli_docs::completions(&settings),
        Command::Manual(settings) => command::cli_docs::manual(&settings),
    };
    end(outcome)
}

fn end(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            print_error(&format!("error: {line}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a line on stderr. If that fails, the exit code still reports the error.
fn print_error(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn start_logging(settings: &ServeArgs) {
    let level = match settings.log_level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        // Reporting a closed stderr on stderr would panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match settings.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("a bug in this server, please report it: {panic}");
    }));
}
