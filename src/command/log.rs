//! `etherply log`, with one module for each of its commands.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use std::process::ExitCode;

use self::verify::VerifyOutcome;
use super::output::Stop;
use crate::config::log::{LogArgs, LogCommand};

mod compact;
mod dump;
mod repair;
mod stat;
mod verify;

/// The exit code when all served records are intact but some segments have records beyond their
/// ends.
const RECORDS_BEYOND: u8 = 3;

/// Runs a log command. On failure, returns one line that says what to do.
pub fn run(settings: &LogArgs) -> Result<ExitCode, String> {
    raise_file_limit();
    let data = &settings.data_dir;
    let outcome = match &settings.command {
        LogCommand::Stat(stat) => stat::run(data, stat).map(|()| VerifyOutcome::Whole),
        LogCommand::Verify => verify::run(data),
        LogCommand::Dump(dump) => dump::run(data, dump).map(|()| VerifyOutcome::Whole),
        LogCommand::Repair(repair) => repair::run(data, repair),
        LogCommand::Compact => compact::run(data).map(|()| VerifyOutcome::Whole),
    };
    match outcome {
        Ok(VerifyOutcome::RecordsBeyond) => Ok(ExitCode::from(RECORDS_BEYOND)),
        Ok(VerifyOutcome::Whole) | Err(Stop::OutputClosed) => Ok(ExitCode::SUCCESS),
        Err(Stop::Failed(line)) => Err(line),
    }
}

/// Raises the limit on open files. A reader holds every segment open, and a log of many GiB has
/// more segments than a process may open by default.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // If this is not allowed, the limit stays as it is.
    let _ = setrlimit(Resource::Nofile, raised);
}
