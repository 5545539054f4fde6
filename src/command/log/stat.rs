//! `etherply log stat`: prints the size of the log, its live part and its largest workspaces.

use std::path::Path;

use serde::Serialize;

use super::verify;
use crate::command::output::{Printer, Stop};
use crate::command::progress::Bar;
use crate::command::text;
use crate::config::log::StatArgs;
use crate::log::census::{Census, Share, WorkspaceShare};
use crate::log::directory::shard_folder;
use crate::log::disk::HostDisk;
use crate::log::read_only::ReadOnlyLog;
use crate::log::recovery::FolderGeneration;

/// The number of workspaces that are listed without `--all`.
const WORKSPACES_LISTED: usize = 20;

/// The output of the command. The field names are the keys of `--json`.
#[derive(Serialize)]
struct Statistics {
    #[serde(flatten)]
    total: SizeFigures,
    folders: Vec<FolderFigures>,
    workspaces_total: usize,
    workspaces: Vec<WorkspaceFigures>,
}

#[derive(Serialize, Default, Clone, Copy)]
struct SizeFigures {
    segments: u64,
    records: u64,
    /// The size of the files, without torn tails.
    bytes: u64,
    /// The size of the records that make up the state.
    live_bytes: u64,
    /// The size of the other records.
    dead_bytes: u64,
}

#[derive(Serialize)]
struct FolderFigures {
    folder: String,
    #[serde(flatten)]
    figures: SizeFigures,
    /// The last generation of the shard.
    generation: Option<GenerationFigures>,
    torn_tail: Option<TornTail>,
    /// Records beyond the ends of segments, which are not served.
    beyond: Vec<BeyondEnd>,
}

#[derive(Serialize)]
struct GenerationFigures {
    id: String,
    number: u64,
    shards: u32,
}

#[derive(Serialize)]
struct BeyondEnd {
    file: String,
    offset: u64,
    records: u64,
    #[serde(skip)]
    line: String,
}

#[derive(Serialize)]
struct TornTail {
    file: String,
    offset: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct WorkspaceFigures {
    workspace: String,
    keys: u64,
    /// The deleted keys whose tombstones are kept.
    tombstones: u64,
    last_seq: u64,
    /// The floor left by dropped tombstones, if there are any.
    floor: Option<FloorFigures>,
    records: u64,
    bytes: u64,
    live_bytes: u64,
    dead_bytes: u64,
}

#[derive(Serialize)]
struct FloorFigures {
    timestamp: u64,
    dropped_seq: u64,
}

/// Reads the log and prints its size and its contents.
pub fn run(data: &Path, settings: &StatArgs) -> Result<(), Stop> {
    let statistics = count(data, settings.all)?;
    let mut output = Printer::new();
    if settings.json {
        output.line(serde_json::to_string(&statistics)?)?;
    } else {
        output.bytes(tables(&statistics).as_bytes())?;
    }
    output.flush()
}

fn count(data: &Path, all: bool) -> Result<Statistics, Stop> {
    let snapshot = ReadOnlyLog::take(&HostDisk, data)?;
    let bar = Bar::new("reading the log", snapshot.bytes());
    let (mut census, mut bytes) = (Census::default(), Vec::new());
    let mut folders = Vec::new();
    for (number, folder) in snapshot.folders().iter().enumerate() {
        let mut folder_figures = FolderFigures {
            folder: shard_folder(folder.shard()),
            figures: SizeFigures::default(),
            generation: None,
            torn_tail: None,
            beyond: Vec::new(),
        };
        let mut generation = None;
        for (place, link) in folder.links().iter().enumerate() {
            let extent = folder.read(place, &mut bytes, |op| {
                census.visit(number, op);
                FolderGeneration::update(&mut generation, op, folder.shard());
            })?;
            bar.add(link.file_bytes);
            folder_figures.figures.segments += 1;
            folder_figures.figures.bytes += extent.whole_bytes;
            let beyond = folder.records_past_end(place, &mut bytes)?;
            folder_figures.beyond.extend(beyond.map(|found| BeyondEnd {
                line: verify::describe_beyond(&link.path, &found),
                file: link.path.display().to_string(),
                offset: found.offset,
                records: found.records,
            }));
            if extent.whole_bytes < extent.file_bytes {
                folder_figures.torn_tail = Some(TornTail {
                    file: link.path.display().to_string(),
                    offset: extent.whole_bytes,
                    bytes: extent.file_bytes - extent.whole_bytes,
                });
            }
        }
        folder_figures.generation = generation.map(|last: FolderGeneration| GenerationFigures {
            id: last.id.to_string(),
            number: last.number,
            shards: last.shards,
        });
        folders.push(folder_figures);
    }
    let contents = census.finish();
    let mut total = SizeFigures::default();
    // This is done last, because an op in a later folder may supersede one in an earlier folder.
    for (number, folder_figures) in folders.iter_mut().enumerate() {
        let share = contents.folders.get(number).copied();
        folder_figures.figures.take(share.unwrap_or_default());
        total.add(folder_figures.figures);
    }
    let workspaces = contents.workspaces;
    let workspaces_listed = if all {
        workspaces.len()
    } else {
        WORKSPACES_LISTED
    };
    Ok(Statistics {
        total,
        folders,
        workspaces_total: workspaces.len(),
        workspaces: workspaces
            .into_iter()
            .take(workspaces_listed)
            .map(Into::into)
            .collect(),
    })
}

impl SizeFigures {
    fn take(&mut self, share: Share) {
        self.records = share.records;
        self.live_bytes = share.live_bytes;
        self.dead_bytes = share.record_bytes - share.live_bytes;
    }

    fn add(&mut self, other: Self) {
        self.segments += other.segments;
        self.records += other.records;
        self.bytes += other.bytes;
        self.live_bytes += other.live_bytes;
        self.dead_bytes += other.dead_bytes;
    }

    fn cells(self, name: &str) -> Vec<String> {
        vec![
            name.to_owned(),
            self.segments.to_string(),
            self.records.to_string(),
            text::bytes(self.bytes),
            text::bytes(self.live_bytes),
            text::bytes(self.dead_bytes),
        ]
    }
}

impl From<WorkspaceShare> for WorkspaceFigures {
    fn from(workspace: WorkspaceShare) -> Self {
        let share = workspace.share;
        Self {
            workspace: workspace.id,
            keys: workspace.keys,
            tombstones: workspace.tombstones,
            last_seq: workspace.seq.get(),
            floor: workspace.floor.map(|floor| FloorFigures {
                timestamp: floor.floor,
                dropped_seq: floor.dropped_seq.get(),
            }),
            records: share.records,
            bytes: share.record_bytes,
            live_bytes: share.live_bytes,
            dead_bytes: share.record_bytes - share.live_bytes,
        }
    }
}

fn tables(statistics: &Statistics) -> String {
    let head = |cells: &[&str]| cells.iter().map(ToString::to_string).collect();
    let mut rows = vec![head(&[
        "folder", "segments", "records", "bytes", "live", "dead",
    ])];
    let folders = statistics.folders.iter();
    rows.extend(folders.map(|folder| folder.figures.cells(&folder.folder)));
    rows.push(statistics.total.cells("total"));
    let mut parts = vec![text::table(&rows)];
    let torn = statistics.folders.iter();
    parts.extend(
        torn.filter_map(|folder| folder.torn_tail.as_ref())
            .map(|torn| {
                let (torn_bytes, offset) = (text::count(torn.bytes, "byte"), torn.offset);
                let file = &torn.file;
                format!(
                    "\n{file} ends with an unfinished batch ({torn_bytes} from byte \
                     {offset})\n"
                )
            }),
    );
    let beyond = statistics.folders.iter().flat_map(|folder| &folder.beyond);
    parts.extend(beyond.map(|beyond| format!("\n{}\n", beyond.line)));
    if statistics.workspaces.is_empty() {
        return parts.concat();
    }
    let mut rows = vec![head(&[
        "workspace",
        "keys",
        "tombstones",
        "records",
        "bytes",
        "live",
        "dead",
    ])];
    for workspace in &statistics.workspaces {
        rows.push(vec![
            // Printed as a JSON string, since an id may contain spaces.
            serde_json::Value::from(workspace.workspace.as_str()).to_string(),
            workspace.keys.to_string(),
            workspace.tombstones.to_string(),
            workspace.records.to_string(),
            text::bytes(workspace.bytes),
            text::bytes(workspace.live_bytes),
            text::bytes(workspace.dead_bytes),
        ]);
    }
    parts.extend(["\n".to_owned(), text::table(&rows)]);
    let more = statistics.workspaces_total - statistics.workspaces.len();
    if more > 0 {
        parts.push(format!("and {more} more; use --all to list them\n"));
    }
    parts.concat()
}
