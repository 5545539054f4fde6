//! What a command prints: to somebody who may stop reading at any line.

use std::fmt;
use std::io::{self, BufWriter, Stdout, Write};

/// The standard output, with a buffer.
pub struct Printer(BufWriter<Stdout>);

/// Why a command ends.
#[derive(Debug)]
pub enum Stop {
    /// Nobody reads its output any more: `| head` is content, and that is no failure.
    OutputClosed,
    /// A line that tells what to do.
    Failed(String),
}

impl<E: fmt::Display> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Printer {
    /// The one of this process.
    pub fn new() -> Self {
        Self(BufWriter::with_capacity(64 * 1024, io::stdout()))
    }

    /// Prints a line.
    pub fn line(&mut self, line: impl fmt::Display) -> Result<(), Stop> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// Prints bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.0.write_all(bytes).map_err(|error| stop(&error))
    }

    /// Lets out what is buffered.
    pub fn flush(&mut self) -> Result<(), Stop> {
        self.0.flush().map_err(|error| stop(&error))
    }
}

/// Prints the help or the version that was asked for.
pub fn print_help(help: &clap::Error) -> Result<(), String> {
    match help.print().map_err(|error| stop(&error)) {
        Ok(()) | Err(Stop::OutputClosed) => Ok(()),
        Err(Stop::Failed(line)) => Err(line),
    }
}

fn stop(error: &io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Stop::OutputClosed,
        _ => Stop::Failed(format!("the output cannot be written: {error}")),
    }
}
