//! `etherply log dump`: prints the ops of a workspace.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use crate::command::output::{Printer, Stop};
use crate::command::progress::Bar;
use crate::config::log::DumpArgs;
use crate::log::disk::HostDisk;
use crate::log::read_only::{ReadOnlyFolder, ReadOnlyLog};
use crate::log::record::{Change, LoggedOp};
use crate::seq::Seq;

/// An op of the workspace, copied from its segment.
struct Kept {
    key: String,
    value: String,
    seq: Seq,
    timestamp: u64,
}

/// Prints the ops of a workspace as JSON lines, in the order of their seq.
pub fn run(data: &Path, settings: &DumpArgs) -> Result<(), Stop> {
    let snapshot = ReadOnlyLog::take(&HostDisk, data)?;
    let bar = Bar::new("reading the log", snapshot.bytes());
    let mut merge = Merge::new(snapshot.folders(), &settings.workspace, &bar);
    let mut output = Printer::new();
    let mut is_known = false;
    // The workspace is the same on every line.
    let begin = format!(r#"{{"workspace":{}"#, quoted(&settings.workspace));
    let mut state: BTreeMap<String, Kept> = BTreeMap::new();
    while let Some(op) = merge.next()? {
        is_known = true;
        if !settings.state {
            print(&mut output, &begin, &op)?;
            continue;
        }
        let held = state.get(&op.key);
        if held.is_none_or(|held| op.as_op().wins_over(held.timestamp, held.seq)) {
            state.insert(op.key.clone(), op);
        }
    }
    drop(bar);
    let mut winners: Vec<Kept> = state.into_values().collect();
    winners.sort_unstable_by_key(|op| op.seq);
    for op in &winners {
        print(&mut output, &begin, op)?;
    }
    output.flush()?;
    if is_known {
        return Ok(());
    }
    let (workspace, data) = (quoted(&settings.workspace), data.display());
    Err(Stop::Failed(format!(
        "no workspace {workspace} in this log; to list its workspaces, run: \
         etherply log stat --all --data-dir {data}"
    )))
}

/// Prints an op as one line. The value is printed as its writer sent it, except that a line break,
/// which can only occur between two JSON tokens, becomes a space.
fn print(output: &mut Printer, begin: &str, op: &Kept) -> Result<(), Stop> {
    let value = op.value.replace(['\n', '\r'], " ");
    let (key, seq, timestamp) = (quoted(&op.key), op.seq, op.timestamp);
    output.line(format_args!(
        r#"{begin},"key":{key},"value":{value},"seq":{seq},"timestamp":{timestamp}}}"#
    ))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Merges the ops of one workspace from all folders, in the order of their seq.
///
/// A workspace is in several folders if the number of shards has changed. Within each folder its
/// ops are in order. Only the ops of one segment per folder are held in memory at a time.
struct Merge<'a> {
    workspace: &'a str,
    bar: &'a Bar,
    folders: Vec<FolderCursor<'a>>,
    bytes: Vec<u8>,
}

/// The position of a [`Merge`] in one folder.
struct FolderCursor<'a> {
    folder: &'a ReadOnlyFolder,
    next_place: usize,
    ops: VecDeque<Kept>,
}

impl<'a> Merge<'a> {
    fn new(folders: &'a [ReadOnlyFolder], workspace: &'a str, bar: &'a Bar) -> Self {
        let cursor = |folder| FolderCursor {
            folder,
            next_place: 0,
            ops: VecDeque::new(),
        };
        Self {
            workspace,
            bar,
            folders: folders.iter().map(cursor).collect(),
            bytes: Vec::new(),
        }
    }

    fn next(&mut self) -> Result<Option<Kept>, Stop> {
        for cursor in &mut self.folders {
            cursor.fill(self.workspace, self.bar, &mut self.bytes)?;
        }
        let first_seq = |cursor: &&mut FolderCursor<'a>| cursor.ops.front().map(|op| op.seq);
        let cursors = self
            .folders
            .iter_mut()
            .filter(|cursor| !cursor.ops.is_empty());
        let first = cursors.min_by_key(first_seq);
        Ok(first.and_then(|cursor| cursor.ops.pop_front()))
    }
}

impl FolderCursor<'_> {
    /// Reads segments until there is an op or no segment is left.
    fn fill(&mut self, workspace: &str, bar: &Bar, bytes: &mut Vec<u8>) -> Result<(), Stop> {
        while self.ops.is_empty()
            && let Some(link) = self.folder.links().get(self.next_place)
        {
            let ops = &mut self.ops;
            self.folder.read(self.next_place, bytes, |op| {
                if op.workspace == workspace {
                    ops.push_back(Kept {
                        key: op.key.to_owned(),
                        value: op.value().to_owned(),
                        seq: op.seq,
                        timestamp: op.timestamp,
                    });
                }
            })?;
            bar.add(link.file_bytes);
            self.next_place += 1;
        }
        Ok(())
    }
}

impl Kept {
    fn as_op(&self) -> LoggedOp<'_> {
        LoggedOp {
            workspace: "",
            key: &self.key,
            change: Change::write(&self.value),
            seq: self.seq,
            timestamp: self.timestamp,
        }
    }
}
