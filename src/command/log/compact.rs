//! `etherply log compact`: rewrites the log without superseded ops.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::command::output::{Printer, Stop};
use crate::command::progress::Bar;
use crate::command::text;
use crate::limits::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::log::compaction::{Compaction, Settings};
use crate::log::directory::DataDirectory;
use crate::log::disk::HostDisk;
use crate::log::recovery::Recovery;

/// Compacts the whole log. The server must be stopped.
pub fn run(data: &Path) -> Result<(), Stop> {
    let directory = DataDirectory::open_existing(HostDisk, data.to_path_buf())?;
    let mut output = Printer::new();
    recover(&directory, &mut output)?;
    let settings = Settings::routine(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX).thorough();
    let mut compaction = Compaction::plan(Arc::new(directory), &[], settings)?;
    let before = compaction.outcome();
    // Each segment is read once to find the live records, and again if it is worth rewriting.
    let bar = Bar::new("compacting", before.bytes * 2);
    let mut pace = |bytes| {
        bar.add(bytes);
        ControlFlow::Continue(())
    };
    while compaction.step(&mut pace)? {}
    drop(bar);
    let outcome = compaction.outcome();
    let segments = outcome.segments - outcome.segments_replaced + outcome.segments_written;
    output.line(format_args!(
        "compacted {} ({}) to {} ({})",
        text::count(outcome.segments, "segment"),
        text::bytes(outcome.bytes),
        text::count(segments, "segment"),
        text::bytes(outcome.bytes - outcome.bytes_freed)
    ))?;
    output.flush()
}

/// Reads the log as a starting server does, and truncates torn tails.
fn recover(directory: &DataDirectory, output: &mut Printer) -> Result<(), Stop> {
    let recovery = Recovery::open(directory)?;
    let bar = Bar::new("reading the log", recovery.bytes());
    let read = |folder| recovery.read(folder, |_| {}, |bytes| bar.add(bytes));
    let folders: Vec<_> = (0..recovery.folders())
        .map(read)
        .collect::<Result<_, _>>()?;
    drop(bar);
    for torn in recovery.finish(&folders)?.torn {
        output.line(format_args!(
            "{}: a torn tail of {} was cut off at byte {}",
            torn.path.display(),
            text::count(torn.bytes, "byte"),
            torn.offset
        ))?;
    }
    Ok(())
}
