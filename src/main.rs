//! The `etherply` binary: the command line, and nothing else. See the library for the server.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use etherply::command;
use etherply::config::{Command, CommandLine, LogFormat, LogLevel, Serve, usage_line};
use etherply::io::server;
use tracing::Level;

fn main() -> ExitCode {
    let command = match CommandLine::try_parse() {
        Ok(line) => line.command,
        Err(error) if error.use_stderr() => {
            eprintln!("{} (see `etherply --help`)", usage_line(&error));
            return ExitCode::from(2);
        }
        Err(help) => help.exit(),
    };
    let outcome = match command {
        Command::Serve(settings) => {
            start_logging(&settings);
            server::serve(&settings).map_err(|error| error.to_string())
        }
        Command::Token(settings) => command::token::run(&settings),
        Command::Log(settings) => command::log::run(&settings),
        Command::Doctor(settings) => command::doctor::run(&settings),
        Command::Completions(settings) => command::paper::completions(&settings),
        Command::Manual(settings) => command::paper::manual(&settings),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("error: {line}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(settings: &Serve) {
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
        // Where stderr leads nowhere any more, telling that on stderr would be a panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match settings.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("a fault of this server: {panic}");
    }));
}
