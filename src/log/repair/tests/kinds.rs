//! Repairs of logs with all kinds of records, and of both formats.

use super::*;
use crate::log::recovery::{FolderGeneration, previous_generation};

/// The format of the directory, and those of the segments of its first folder.
pub fn formats(data: &Path) -> (u16, Vec<u16>) {
    let known = directory::identity(&HostDisk, data).unwrap();
    let chain = Chain::read(&HostDisk, data, known.epoch, 0);
    let format = |link: &Link| link.header.format_version;
    let formats = chain.map_or(Vec::new(), |chain| chain.links.iter().map(format).collect());
    (known.format_version, formats)
}

#[test]
fn a_format_1_log_is_read_unchanged_and_upgraded_by_a_repair_that_writes_segments() {
    let log = Log::sample_of_format_1();
    let before = log.contents();
    assert_eq!(read(log.data()).unwrap(), log.ops());
    assert!(log.plan().is_empty());
    log.plan().run().unwrap();
    assert_eq!(formats(log.data()), (1, vec![1; 3]));
    assert_eq!(log.contents(), before);
    // A repair that only renames files and sets them aside does not prevent a downgrade.
    fs::write(log.path(0, 9), "no segment").unwrap();
    log.plan().run().unwrap();
    assert_eq!(formats(log.data()), (1, vec![1; 3]));
    let batch = log.batches[2].clone();
    flip(&batch.path, batch.begin + 28 + 29 + 5);
    log.plan().run().unwrap();
    assert_eq!(formats(log.data()), (2, vec![1, 2, 1]));
    let mut expected = log.ops();
    assert!(expected.remove(&batch.ops[0]));
    assert_eq!(read(log.data()).unwrap(), expected);
}

/// A client that resumed from before the repair would keep ops that the log has lost.
#[test]
fn nothing_continues_from_before_a_repair_that_lost_ops() {
    let log = Log::sample();
    fs::remove_file(log.path(0, 2)).unwrap();
    let batch = log.batches[0].clone();
    flip(&batch.path, batch.begin + 28 + 29 + 5);
    log.plan().run().unwrap();
    let directory = DataDirectory::open(log.data()).unwrap();
    let report = recover(&directory, |_| {}).unwrap();
    let expected = FolderGeneration {
        shard: 0,
        id: Generation::new(u64::from_le_bytes([9; 8])),
        number: 1,
        shards: 0,
    };
    assert_eq!(report.generations, [expected]);
    assert_eq!(previous_generation(&report.generations, 0, 1), None);
    drop(directory);
    // The next repair gets a higher number than this one.
    flip(&log.path(0, 3), 64 + 28 + 29 + 5);
    log.plan().run().unwrap();
    let directory = DataDirectory::open(log.data()).unwrap();
    let report = recover(&directory, |_| {}).unwrap();
    assert_eq!(report.generations[0].number, 2);
}

#[test]
fn all_kinds_of_records_are_recovered() {
    let mut log = Log::new();
    log.segment(0, &[vec!["demo"]]);
    let header = Chain::read(&HostDisk, log.data(), log.epoch(), 0)
        .unwrap()
        .links[0]
        .header;
    let of_kind = |key, change| LoggedOp {
        workspace: if key == "0" { "" } else { "demo" },
        key,
        change,
        seq: Seq::new(5),
        timestamp: 5,
    };
    let expiring = Change::Write {
        value: "1",
        expires_at_us: Some(7),
    };
    let floor = Change::Floor {
        dropped_seq: Seq::new(4),
    };
    let generation = Change::Generation {
        id: Generation::new(3),
        shards: 1,
    };
    let records = [
        of_kind("before", Change::write("true")),
        of_kind("a", Change::Delete { deleted_at_us: 6 }),
        of_kind("b", expiring),
        of_kind("", floor),
        of_kind("0", generation),
    ];
    for lost in 0..records.len() {
        let (mut batch, mut ends) = (Vec::new(), Vec::new());
        begin_batch(&mut batch);
        for record in &records {
            push_op(&mut batch, record);
            ends.push(batch.len());
        }
        let first = header.first_position;
        seal_batch(&mut batch, header.salt(), first, first);
        // The last byte of a record is in a text, so the record after it is still found.
        batch[ends[lost] - 1] ^= 1;
        fs::write(log.path(0, 1), [&header.encode()[..], &batch].concat()).unwrap();
        log.plan().run().unwrap();
        let mut number = 0;
        let chain = Chain::read(&HostDisk, log.data(), log.epoch(), 0).unwrap();
        let read = chain.links[0].read(&HostDisk, &mut Vec::new(), |op| {
            number += usize::from(number == lost);
            let is_mark = matches!(op.change, Change::Generation { shards: 0, .. });
            assert!(is_mark || *op == records[number], "{op:?} without {lost}");
            number += 1;
        });
        assert_eq!(read.unwrap().records, records.len() as u64);
    }
}
