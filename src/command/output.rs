//! Prints to standard output, whose reader may close the pipe after any line (`| head`).

use std::fmt;
use std::io::{self, BufWriter, Stdout, Write};

/// A buffered standard output.
pub struct Printer(BufWriter<Stdout>);

/// The reason that a command ends early.
#[derive(Debug)]
pub enum Stop {
    /// The reader has closed the pipe, as `head` does. That is not an error.
    OutputClosed,
    /// The command failed. The text is one line that says why and what to do.
    Failed(String),
}

impl<E: fmt::Display> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Printer {
    /// Creates a printer for the standard output of this process.
    pub fn new() -> Self {
        Self(BufWriter::with_capacity(64 * 1024, io::stdout()))
    }

    /// Prints a line.
    pub fn line(&mut self, line: impl fmt::Display) -> Result<(), Stop> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// Prints bytes unchanged.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.0.write_all(bytes).map_err(|error| stop(&error))
    }

    /// Writes out the buffered data.
    pub fn flush(&mut self) -> Result<(), Stop> {
        self.0.flush().map_err(|error| stop(&error))
    }
}

/// Prints the help or the version that the user asked for.
pub fn print_help(help: &clap::Error) -> Result<(), String> {
    match help.print().map_err(|error| stop(&error)) {
        Ok(()) | Err(Stop::OutputClosed) => Ok(()),
        Err(Stop::Failed(line)) => Err(line),
    }
}

fn stop(error: &io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Stop::OutputClosed,
        _ => Stop::Failed(format!("cannot write the output: {error}")),
    }
}
