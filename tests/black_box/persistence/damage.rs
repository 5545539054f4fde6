//! A segment that is truncated or altered, at each field of each of its units: the server either
//! starts with exactly what the format page in `src/log/record.rs` promises and reports the
//! truncation, or refuses to start and changes nothing.

mod format;
mod surgery;

use crate::support::client::{Client, op_text, state_of};
use crate::support::raw::{Raw, TEXT, masked_frame};
use crate::support::server::{Server, Setup};
use crate::support::{client::Op, eventually, files, stamp};
use format::{FIRST_OPS, GENERATION, Kind, Layout, SEGMENT_HEADER_BYTES, reseal};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use surgery::SURGERIES;

const SEGMENT_1: &str = "shard-00/0000000001.aof";
const SEGMENT_2: &str = "shard-00/0000000002.aof";
const SEGMENT_3: &str = "shard-00/0000000003.aof";
const SECTOR_BYTES: usize = 512;

type Image = BTreeMap<PathBuf, Vec<u8>>;

/// A log and its content.
struct Log {
    image: Image,
    /// The layout of segment 1, which the tests damage.
    layout: Layout,
    /// All ops, in order, each with its own key.
    ops: Vec<Op>,
    end: End,
}

/// The content of segment 1 after the ops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing: the server was killed. Every op was synced.
    Killed,
    /// Nothing, as with [`End::Killed`], but no op was synced.
    Unsynced,
    /// The empty batch that a clean stop writes.
    Sealed,
    /// A second segment, with one op.
    Followed,
}

/// The expected outcome of a start.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    /// The server serves the first `ops` ops. `cut` is the offset at which segment 1 was truncated.
    /// The cut is reported, except for the trailing zeros that a segment is preallocated with.
    Starts { ops: usize, cut: Option<usize> },
    /// The server prints one line with the file, the offset, and the command to run.
    Refused { file: &'static str, offset: usize },
}

impl Log {
    /// Creates a log of five ops: after the generation's batch, a batch of one, a batch of three, a
    /// batch of one.
    async fn new(end: End) -> Log {
        let mode = if end == End::Unsynced {
            "none"
        } else {
            "always"
        };
        let setup = Setup::new().shards(1).args(&["--durability", mode]);
        let mut server = setup.start().await;
        // The generation's batch is written before an op can join it.
        eventually("the generation is in the file", async || {
            let layout = Layout::of(&segment(&server, SEGMENT_1)?);
            (layout.batches_count == FIRST_OPS).then_some(())
        })
        .await;
        let mut ops = Vec::new();
        for (batch, ops_count) in [1, 3, 1].into_iter().enumerate() {
            let new = (0..ops_count).map(|_| ops.len());
            let new: Vec<Op> = new.zip(0..).map(|(first, more)| op(first + more)).collect();
            write_batch(&server, &new).await;
            ops.extend(new);
            let wanted = (FIRST_OPS + batch + 1, ops.len());
            eventually("the batch is in the file", async || {
                let layout = Layout::of(&segment(&server, SEGMENT_1)?);
                ((layout.batches_count, layout.ops_count) == wanted).then_some(())
            })
            .await;
        }
        match end {
            End::Killed | End::Unsynced => server.kill9(),
            End::Sealed => server.stop().await,
            End::Followed => {
                server.kill9();
                server.restart(1).await;
                ops.push(op(ops.len()));
                write_batch(&server, &ops[5..]).await;
                server.kill9();
            }
        }
        let mut image = files::image(server.data_dir());
        let layout = Layout::of(&image[Path::new(SEGMENT_1)]);
        for (_, bytes) in image.iter_mut().filter(|(name, _)| {
            let extension = name.extension();
            extension.is_some_and(|extension| extension == "aof")
        }) {
            bytes.truncate(Layout::of(bytes).len);
        }
        Log {
            image,
            layout,
            ops,
            end,
        }
    }

    /// Returns the log with segment 1 damaged by `damage`.
    fn damaged(&self, damage: impl FnOnce(&mut Vec<u8>)) -> Image {
        let mut image = self.image.clone();
        let bytes = image.get_mut(Path::new(SEGMENT_1));
        damage(bytes.expect("segment 1 is there"));
        image
    }

    /// Returns the expected outcome if one byte of segment 1 was altered. The damage is detected
    /// because a later batch proves that the byte was on disk, or because no sector is missing.
    fn expected_bad_at(&self, offset: usize) -> Expected {
        assert!(
            self.layout.len < SECTOR_BYTES,
            "a batch crosses the edge of a sector, so that its checksum could look missing"
        );
        Expected::Refused {
            file: SEGMENT_1,
            offset: self.layout.unit_at(offset).start,
        }
    }

    /// Returns the expected outcome if segment 1 is truncated to this length.
    fn expected_cut_at(&self, len: usize) -> Expected {
        let unit = self.layout.unit_at(len);
        if unit.kind == Kind::SegmentHeader || self.end == End::Followed {
            return Expected::Refused {
                file: SEGMENT_1,
                offset: unit.start,
            };
        }
        Expected::Starts {
            ops: unit.ops_before,
            cut: Some(unit.start),
        }
    }

    fn state(&self, ops_count: usize) -> Map<String, Value> {
        let ops = self.ops[..ops_count].iter();
        ops.map(|op| (op.key.clone(), op.value.clone())).collect()
    }

    /// Starts a server on the image of a damaged log and checks the outcome.
    async fn check(&self, what: &str, image: &Image, expected: &Expected) {
        println!("{:?}, {what}: {expected:?}", self.end);
        let setup = Setup::new().shards(1);
        files::put_back(setup.data_dir(), image);
        match expected {
            Expected::Refused { file, offset } => {
                let line = refused(&setup, image).await;
                let path = setup.data_dir().join(file).display().to_string();
                assert!(
                    line.contains(&path),
                    "the line does not name {path}: {line}"
                );
                let place = format!("byte {offset}:");
                assert!(line.contains(&place), "{place} is missing: {line}");
                let command = format!(
                    "etherply log repair --data-dir {}",
                    setup.data_dir().display()
                );
                assert!(line.ends_with(&command), "the line gives no remedy: {line}");
            }
            Expected::Starts { ops, cut } => {
                let behind = cut.map(|cut| (cut, &image[Path::new(SEGMENT_1)][cut..]));
                let cut = behind.map(|(cut, behind)| (cut, files::written_len(behind)));
                let cut = cut.filter(|(_, bytes)| *bytes > 0);
                self.check_start(setup, *ops, cut).await;
            }
        }
    }

    /// Checks that the server starts with the first `ops_count` ops, reports the cut, and continues
    /// after it.
    async fn check_start(&self, setup: Setup, ops_count: usize, cut: Option<(usize, usize)>) {
        let mut server = setup.start().await;
        let mut state = self.state(ops_count);
        assert_eq!(state_of(&server, "room").await, state);
        let new = Op::new("new", json!("after the damage"), stamp());
        write_batch(&server, std::slice::from_ref(&new)).await;
        state.insert(new.key, new.value);
        server.kill9();
        let log = server.log();
        let torn_lines: Vec<&str> = log.lines().filter(|line| line.contains("torn")).collect();
        match (&torn_lines[..], cut) {
            ([], None) => {}
            ([line], Some((offset, bytes))) => {
                let left = segment(&server, SEGMENT_1).map(|bytes| bytes.len());
                assert_eq!(left, Some(offset), "the remaining length of the segment");
                let path = server.data_dir().join(SEGMENT_1).display().to_string();
                let words = [path, format!("offset={offset}"), format!("bytes={bytes}")];
                for word in words {
                    assert!(line.contains(&word), "{word:?} is not reported: {line}");
                }
            }
            _ => panic!("{cut:?} is not reported:\n{log}"),
        }
        server.restart(2).await;
        assert_eq!(state_of(&server, "room").await, state, "after a restart");
        assert!(
            !server.log().contains("torn"),
            "the tail was truncated again"
        );
    }
}

fn op(number: usize) -> Op {
    Op::new(&format!("k{number}"), json!(format!("v{number}")), stamp())
}

/// Sends these ops in a single write, and waits until each of them was shown.
async fn write_batch(server: &Server, ops: &[Op]) {
    let mut witness = Client::connect(server, "room").await;
    let mut writer = Raw::open(server.addr(), &Server::sync_path("room")).await;
    let frames = ops
        .iter()
        .map(|op| masked_frame(TEXT, op_text(op).as_bytes()));
    writer.send(&frames.collect::<Vec<_>>().concat()).await;
    for op in ops {
        witness.expect_op(op).await;
    }
}

fn segment(server: &Server, name: &str) -> Option<Vec<u8>> {
    std::fs::read(server.data_dir().join(name)).ok()
}

/// Expects a start to be refused and returns the line that it prints. Nothing may have changed
/// except the process id in LOCK.
async fn refused(setup: &Setup, image: &Image) -> String {
    let outcome = setup.run().await;
    let line = outcome.expect_refusal().to_string();
    let mut after = files::image(setup.data_dir());
    let lock = PathBuf::from("LOCK");
    after.insert(lock.clone(), image[&lock].clone());
    assert!(
        &after == image,
        "the refused start changed the data directory: {line}"
    );
    line
}

// ---- every field ----

/// Flips a bit in the first byte of every field.
async fn check_flips(end: End) {
    let log = Log::new(end).await;
    for unit in &log.layout.units {
        for (field, at) in &unit.fields {
            let what = format!(
                "a flipped bit in {field} of {:?} at {}",
                unit.kind, unit.start
            );
            let expected = log.expected_bad_at(*at);
            let image = log.damaged(|bytes| bytes[*at] ^= 1);
            log.check(&what, &image, &expected).await;
        }
    }
}

/// Truncates the segment before every field, and in the middle of each unit's last field.
async fn check_cuts(end: End) {
    let log = Log::new(end).await;
    // Up to its last ops, a sealed segment is the same as any other.
    let first_batch = if end == End::Sealed { FIRST_OPS + 2 } else { 0 };
    let units = log.layout.units.iter();
    for unit in units.filter(|unit| unit.batch >= first_batch) {
        let last = (unit.fields.last().expect("the unit has fields").1 + unit.end).div_ceil(2);
        let cuts = unit.fields.iter().map(|(_, at)| *at).chain([last]);
        for len in cuts {
            let what = format!("truncated to {len}, in {:?} at {}", unit.kind, unit.start);
            let image = log.damaged(|bytes| bytes.truncate(len));
            log.check(&what, &image, &log.expected_cut_at(len)).await;
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_in_any_field_of_a_last_segment_prevents_startup() {
    check_flips(End::Killed).await;
}

#[tokio::test]
async fn a_flipped_bit_in_any_field_of_a_sealed_segment_prevents_startup() {
    check_flips(End::Sealed).await;
}

#[tokio::test]
async fn a_flipped_bit_in_any_field_of_an_unsynced_segment_prevents_startup() {
    check_flips(End::Unsynced).await;
}

#[tokio::test]
async fn a_flipped_bit_in_any_field_of_an_earlier_segment_prevents_startup() {
    check_flips(End::Followed).await;
}

#[tokio::test]
async fn a_last_segment_truncated_at_any_field_serves_everything_before_it() {
    check_cuts(End::Killed).await;
}

#[tokio::test]
async fn a_sealed_segment_truncated_at_any_field_serves_everything_before_it() {
    check_cuts(End::Sealed).await;
}

#[tokio::test]
async fn an_earlier_segment_truncated_at_any_field_prevents_startup() {
    check_cuts(End::Followed).await;
}

// ---- pieces that are missing, duplicated, swapped, or from elsewhere ----

#[tokio::test]
async fn missing_or_moved_pieces_are_never_overlooked() {
    for end in [End::Killed, End::Followed] {
        let log = Log::new(end).await;
        for surgery in SURGERIES {
            let image = log.damaged(|bytes| (surgery.damage)(bytes, &log.layout));
            let unit = log.layout.unit_at((surgery.bad_at)(&log.layout));
            let expected = if end == End::Followed || surgery.is_found_in_the_last {
                Expected::Refused {
                    file: SEGMENT_1,
                    offset: unit.start,
                }
            } else {
                Expected::Starts {
                    ops: unit.ops_before,
                    cut: Some(unit.start),
                }
            };
            log.check(surgery.what, &image, &expected).await;
        }
    }
}

#[tokio::test]
async fn bytes_after_the_end_are_truncated_or_ignored_or_prevent_startup() {
    let noise: Vec<u8> = (1..=200).collect();
    for end in [End::Killed, End::Sealed, End::Followed] {
        let log = Log::new(end).await;
        let first_batch = &log.image[Path::new(SEGMENT_1)][log.layout.range(GENERATION)];
        let after_zeros = [&[0; 4096][..], &noise, &[0; 4096]].concat();
        for (more, may_be_torn) in [
            (&[0; 4096][..], true),
            (&after_zeros, true),
            // The file ends before a batch header could.
            (b"\xFFEPB", true),
            (&first_batch[..20], true),
            (&noise, false),
        ] {
            let image = log.damaged(|bytes| bytes.extend_from_slice(more));
            // The next segment records where the previous one ends.
            let expected = if may_be_torn || end == End::Followed {
                Expected::Starts {
                    ops: log.ops.len(),
                    cut: (end != End::Followed).then_some(log.layout.len),
                }
            } else {
                Expected::Refused {
                    file: SEGMENT_1,
                    offset: log.layout.len,
                }
            };
            log.check("bytes after the end", &image, &expected).await;
        }
    }
}

#[tokio::test]
async fn a_second_segment_with_a_damaged_header_prevents_startup() {
    let log = Log::new(End::Followed).await;
    let header = &log.layout.units[0];
    let refused = Expected::Refused {
        file: SEGMENT_2,
        offset: 0,
    };
    for (field, at) in &header.fields {
        let mut image = log.image.clone();
        image
            .get_mut(Path::new(SEGMENT_2))
            .expect("the file exists")[*at] ^= 1;
        log.check(&format!("a flipped bit in {field}"), &image, &refused)
            .await;
        image
            .get_mut(Path::new(SEGMENT_2))
            .expect("the file exists")
            .truncate(*at);
        log.check(&format!("truncated before {field}"), &image, &refused)
            .await;
    }
}

#[tokio::test]
async fn a_segment_with_another_name_or_in_another_log_is_detected() {
    let log = Log::new(End::Followed).await;
    let stranger = Log::new(End::Followed).await;
    let (first, second) = (PathBuf::from(SEGMENT_1), PathBuf::from(SEGMENT_2));
    let moved = |from: &Path, to: &str| {
        let mut image = log.image.clone();
        let bytes = image.remove(from).expect("the file exists");
        image.insert(PathBuf::from(to), bytes);
        image
    };
    let mut of_another_log = log.image.clone();
    of_another_log.insert(first.clone(), stranger.image[&first].clone());
    let mut twice = log.image.clone();
    twice.insert(second.clone(), log.image[&first].clone());
    let mut without_the_first = log.image.clone();
    without_the_first.remove(&first);
    let cases = [
        ("another log's segment", of_another_log, SEGMENT_1, 16),
        ("the first as the second", twice, SEGMENT_2, 0),
        ("the first is missing", without_the_first, SEGMENT_1, 0),
        ("a wrong number", moved(&second, SEGMENT_3), SEGMENT_3, 0),
        (
            "another shard's",
            moved(&first, "shard-01/0000000001.aof"),
            SEGMENT_1,
            0,
        ),
    ];
    for (what, image, file, offset) in cases {
        let expected = Expected::Refused { file, offset };
        log.check(what, &image, &expected).await;
    }
}

// ---- content that neither a crash nor a bad disk produces: the checksums are correct ----

#[tokio::test]
async fn invalid_content_prevents_startup_even_with_correct_checksums() {
    type Harm = fn(&mut [u8], &Layout);
    type BadAt = fn(&Layout) -> usize;
    const HEADER: usize = 0;
    let cases: [(&str, Harm, BadAt); 14] = [
        ("a reserved byte", |bytes, _| bytes[50] = 1, |_| HEADER),
        ("the shard", |bytes, _| bytes[12] = 1, |_| HEADER),
        ("the index", |bytes, _| bytes[32] = 2, |_| HEADER),
        ("the epoch", |bytes, _| bytes[16] ^= 1, |_| 16),
        ("the first position", |bytes, _| bytes[40] = 1, |_| 40),
        (
            "a batch from another position",
            |bytes, layout| bytes[layout.batch(FIRST_OPS + 2).field("position")] ^= 1,
            |layout| layout.batch(FIRST_OPS + 2).start,
        ),
        (
            "a batch that is durable before it is written",
            |bytes, layout| bytes[layout.batch(FIRST_OPS + 2).field("durable position") + 6] = 1,
            |layout| layout.batch(FIRST_OPS + 2).start,
        ),
        (
            "a record of an unknown kind",
            |bytes, layout| bytes[layout.record(4).field("kind")] = 9,
            |layout| layout.record(4).start,
        ),
        (
            "a key longer than its record",
            |bytes, layout| bytes[layout.record(4).field("key bytes") + 1] = 1,
            |layout| layout.record(4).start,
        ),
        (
            "a value that is not UTF-8",
            |bytes, layout| bytes[layout.record(4).field("value") + 1] = 0xFF,
            |layout| layout.record(4).start,
        ),
        (
            "a generation that a client's op could be",
            |bytes, layout| bytes[layout.generation().field("kind")] = 1,
            |layout| layout.generation().start,
        ),
        (
            "a generation of no shard",
            |bytes, layout| bytes[layout.generation().field("key")] = b'x',
            |layout| layout.generation().start,
        ),
        (
            "a generation without a number",
            |bytes, layout| bytes[layout.generation().field("seq")] = 0,
            |layout| layout.generation().start,
        ),
        (
            "a generation with two numbers",
            |bytes, layout| bytes[layout.generation().field("timestamp")] ^= 2,
            |layout| layout.generation().start,
        ),
    ];
    let log = Log::new(End::Killed).await;
    for (what, damage, bad_at) in cases {
        let image = log.damaged(|bytes| {
            damage(bytes, &log.layout);
            reseal(bytes, &log.layout);
        });
        let expected = Expected::Refused {
            file: SEGMENT_1,
            offset: bad_at(&log.layout),
        };
        log.check(what, &image, &expected).await;
    }
    let untouched = log.damaged(|bytes| reseal(bytes, &log.layout));
    assert!(
        untouched == log.image,
        "the checksums differ from the format page"
    );
}

#[tokio::test]
async fn a_segment_in_a_newer_format_is_refused_and_repair_is_not_suggested() {
    let log = Log::new(End::Killed).await;
    let image = log.damaged(|bytes| {
        bytes[8] = 3;
        reseal(bytes, &log.layout);
    });
    let setup = Setup::new().shards(1);
    files::put_back(setup.data_dir(), &image);
    let line = refused(&setup, &image).await;
    let path = setup.data_dir().join(SEGMENT_1).display().to_string();
    for word in [&path, "format 3", "start the newer server"] {
        assert!(line.contains(word), "{word:?}: {line}");
    }
    assert!(!line.contains("repair"), "{line}");
}

/// Covers the case that the format page describes as undetectable: a last segment that lost exactly
/// its last batches or records.
#[tokio::test]
async fn a_log_that_ends_with_a_complete_batch_is_served() {
    let log = Log::new(End::Killed).await;
    let first_ops = log.layout.range(FIRST_OPS).start;
    for (what, len) in [
        ("no batch is left", SEGMENT_HEADER_BYTES),
        ("only the generation is left", first_ops),
    ] {
        let image = log.damaged(|bytes| bytes.truncate(len));
        let expected = Expected::Starts { ops: 0, cut: None };
        log.check(what, &image, &expected).await;
    }
    let expected = Expected::Starts {
        ops: log.ops.len(),
        cut: None,
    };
    log.check("nothing is damaged", &log.image, &expected).await;
}
