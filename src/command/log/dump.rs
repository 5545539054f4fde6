//! `etherply log dump`: prints the ops of a workspace.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use crate::command::output::{Printer, Stop};
use crate::command::progress::Bar;
use crate::config::log::DumpArgs;
use crate::log::disk::HostDisk;
use crate::log::read_only::{ReadOnlyFolder, ReadOnlyLog};
use crate::log::record::{Change, LoggedOp};
use crate::log::recovery::FolderGeneration;
use crate::seq::Seq;

/// A record of the workspace, copied from its segment.
struct Kept {
    key: String,
    change: KeptChange,
    seq: Seq,
    timestamp: u64,
    /// The generation in which it was written, if the log still contains its record.
    generation: Option<FolderGeneration>,
}

enum KeptChange {
    Write {
        value: String,
        expires_at_us: Option<u64>,
    },
    Delete {
        deleted_at_us: u64,
    },
    Floor {
        dropped_seq: Seq,
    },
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
    let mut generation = None;
    let mut state: BTreeMap<String, Kept> = BTreeMap::new();
    while let Some(op) = merge.next()? {
        is_known = true;
        if !settings.state {
            if op.generation != generation {
                generation = op.generation;
                print_generation(&mut output, &begin, generation)?;
            }
            print(&mut output, &begin, &op)?;
            continue;
        }
        if matches!(op.change, KeptChange::Floor { .. }) {
            continue;
        }
        let held = state.get(&op.key);
        if held.is_none_or(|held| op.as_op().wins_over(held.timestamp, held.seq)) {
            state.insert(op.key.clone(), op);
        }
    }
    drop(bar);
    let is_write = |op: &Kept| matches!(op.change, KeptChange::Write { .. });
    let mut winners: Vec<Kept> = state.into_values().filter(is_write).collect();
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

/// Prints a record as one line. A value is printed as its writer sent it, except that a line break,
/// which can only occur between two JSON tokens, becomes a space.
fn print(output: &mut Printer, begin: &str, op: &Kept) -> Result<(), Stop> {
    let (key, seq, timestamp) = (quoted(&op.key), op.seq, op.timestamp);
    let order = format_args!(r#""seq":{seq},"timestamp":{timestamp}"#);
    match &op.change {
        KeptChange::Write {
            value,
            expires_at_us,
        } => {
            let value = value.replace(['\n', '\r'], " ");
            let expires = expires_at_us.map(|us| format!(r#","expires":{us}"#));
            let expires = expires.unwrap_or_default();
            output.line(format_args!(
                r#"{begin},"key":{key},"value":{value},{order}{expires}}}"#
            ))
        }
        KeptChange::Delete { deleted_at_us } => output.line(format_args!(
            r#"{begin},"key":{key},"deleted":true,{order},"deleted_at":{deleted_at_us}}}"#
        )),
        KeptChange::Floor { dropped_seq } => output.line(format_args!(
            r#"{begin},"floor":{timestamp},"dropped_seq":{dropped_seq},"seq":{seq}}}"#
        )),
    }
}

/// Prints the generation of the lines that follow.
fn print_generation(
    output: &mut Printer,
    begin: &str,
    generation: Option<FolderGeneration>,
) -> Result<(), Stop> {
    let Some(FolderGeneration {
        shard, id, shards, ..
    }) = generation
    else {
        return output.line(format_args!(r#"{begin},"generation":null}}"#));
    };
    output.line(format_args!(
        r#"{begin},"generation":"{id}","shard":{shard},"shards":{shards}}}"#
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
    generation: Option<FolderGeneration>,
    ops: VecDeque<Kept>,
}

impl<'a> Merge<'a> {
    fn new(folders: &'a [ReadOnlyFolder], workspace: &'a str, bar: &'a Bar) -> Self {
        let cursor = |folder| FolderCursor {
            folder,
            next_place: 0,
            generation: None,
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
            let (ops, generation) = (&mut self.ops, &mut self.generation);
            self.folder.read(self.next_place, bytes, |op| {
                FolderGeneration::update(generation, op, self.folder.shard());
                if op.workspace == workspace {
                    ops.extend(Kept::of(op, *generation));
                }
            })?;
            bar.add(link.file_bytes);
            self.next_place += 1;
        }
        Ok(())
    }
}

impl Kept {
    /// Returns a copy of a record of a workspace.
    fn of(op: &LoggedOp<'_>, generation: Option<FolderGeneration>) -> Option<Self> {
        let change = match op.change {
            Change::Write {
                value,
                expires_at_us,
            } => KeptChange::Write {
                value: value.to_owned(),
                expires_at_us,
            },
            Change::Delete { deleted_at_us } => KeptChange::Delete { deleted_at_us },
            Change::Floor { dropped_seq } => KeptChange::Floor { dropped_seq },
            Change::Generation { .. } => return None,
        };
        Some(Self {
            key: op.key.to_owned(),
            change,
            seq: op.seq,
            timestamp: op.timestamp,
            generation,
        })
    }

    fn as_op(&self) -> LoggedOp<'_> {
        let change = match &self.change {
            KeptChange::Write {
                value,
                expires_at_us,
            } => Change::Write {
                value,
                expires_at_us: *expires_at_us,
            },
            KeptChange::Delete { deleted_at_us } => Change::Delete {
                deleted_at_us: *deleted_at_us,
            },
            KeptChange::Floor { dropped_seq } => Change::Floor {
                dropped_seq: *dropped_seq,
            },
        };
        LoggedOp {
            workspace: "",
            key: &self.key,
            change,
            seq: self.seq,
            timestamp: self.timestamp,
        }
    }
}
