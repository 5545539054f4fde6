//! `etherply log verify`: checks every record.

use std::path::Path;

use crate::command::output::{Printer, Stop};
use crate::command::progress::Bar;
use crate::command::text;
use crate::log::disk::HostDisk;
use crate::log::past_end::RecordsPastEnd;
use crate::log::read_only::ReadOnlyLog;

/// The result for a log whose served records are all intact. Damage is returned as an error
/// instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyOutcome {
    /// Everything is intact.
    Whole,
    /// Some segments have records beyond their end, which are not served.
    RecordsBeyond,
}

/// Reads every record and prints a summary. The first damage found is returned as an error.
pub fn run(data: &Path) -> Result<VerifyOutcome, Stop> {
    let mut output = Printer::new();
    let verdict = check(data, &mut output)?;
    output.flush()?;
    Ok(verdict)
}

/// Checks the log as [`run`] does, but as part of another command.
pub fn check(data: &Path, output: &mut Printer) -> Result<VerifyOutcome, Stop> {
    let snapshot = ReadOnlyLog::take(&HostDisk, data)?;
    let bar = Bar::new("reading the log", snapshot.bytes());
    let (mut segments, mut records, mut whole_bytes) = (0, 0, 0);
    let (mut torn, mut beyond, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    for folder in snapshot.folders() {
        for (place, link) in folder.links().iter().enumerate() {
            let extent = folder.read(place, &mut bytes, |_| {})?;
            bar.add(link.file_bytes);
            segments += 1;
            records += extent.records;
            whole_bytes += extent.whole_bytes;
            if let Some(found) = folder.records_past_end(place, &mut bytes)? {
                beyond.push(describe_beyond(&link.path, &found));
            }
            if extent.whole_bytes < extent.file_bytes {
                let torn_bytes = text::count(extent.file_bytes - extent.whole_bytes, "byte");
                let (path, offset) = (link.path.display(), extent.whole_bytes);
                torn.push(format!(
                    "{path} ends with an unfinished batch ({torn_bytes} from byte {offset}): a \
                     running server may still be writing it; after a crash it is a torn tail, \
                     which the server cuts off when it starts"
                ));
            }
        }
    }
    drop(bar);
    output.line(format_args!(
        "the log is intact: {} with {} in {}",
        text::count(segments, "segment"),
        text::count(records, "record"),
        text::bytes(whole_bytes)
    ))?;
    let lines = torn.iter().chain(&beyond);
    lines.into_iter().try_for_each(|line| output.line(line))?;
    Ok(if beyond.is_empty() {
        VerifyOutcome::Whole
    } else {
        VerifyOutcome::RecordsBeyond
    })
}

/// Describes records beyond the end of a segment and how they may have got there.
pub fn describe_beyond(path: &Path, found: &RecordsPastEnd) -> String {
    let (path, offset) = (path.display(), found.offset);
    let records = text::count(found.records, "record");
    format!(
        "{path} has {records} past its end at byte {offset} (not served): left by a failed write, \
         or by two servers that used this data directory at the same time"
    )
}
