//! The check of a state in parts: any division passes, and every fault is detected.

use etherply::seq::Seq;
use etherply::wire::message::v2::{StateChunk, put_synced};

use super::*;

const TIMESTAMP_US: u64 = 1_700_000_000_000_000;
const COUNT: usize = 12;

fn entry(number: usize) -> (String, String) {
    (
        format!("key-{number}"),
        format!("{}", 10_usize.pow([0, 1, 2, 3, 4, 5, 6][number % 7])),
    )
}

fn expected() -> Rc<ExpectedEntries> {
    let entries = (0..COUNT).map(entry);
    let entries = entries.map(|(key, value)| (format!("{key:?}"), value));
    Rc::new(ExpectedEntries::new(entries, TIMESTAMP_US))
}

/// Returns the frame of a part, as the server encodes it.
fn part(numbers: &[usize]) -> Vec<u8> {
    let (mut chunk, mut frame) = (StateChunk::new(), Vec::new());
    for number in numbers {
        let (key, value) = entry(*number);
        chunk.push_entry(&key, &value, TIMESTAMP_US);
    }
    let seq = numbers.last().map_or(0, |last| last + 1);
    chunk.finish(&mut frame, Seq::new(seq as u64));
    frame
}

fn synced(seq: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    put_synced(&mut frame, Seq::new(seq as u64));
    frame
}

fn take(since: usize, stream: &[u8], piece: usize) -> Result<PartsCursor, String> {
    let mut cursor = PartsCursor::new(expected(), since);
    for piece in stream.chunks(piece) {
        let rest = cursor.take(piece)?;
        if !rest.is_empty() {
            return Err("something came after the state".to_owned());
        }
    }
    Ok(cursor)
}

fn numbers(range: std::ops::Range<usize>) -> Vec<usize> {
    range.collect()
}

#[test]
fn a_state_may_be_divided_anywhere_and_arrive_in_pieces_of_any_size() {
    for since in [0, 1, 9, COUNT] {
        for parts in 1..=COUNT {
            let all = numbers(since..COUNT);
            let mut stream: Vec<u8> = all.chunks(parts).flat_map(part).collect();
            stream.extend(synced(COUNT));
            for piece in [1, 2, 3, 10, 100, stream.len()] {
                let cursor = take(since, &stream, piece).unwrap();
                assert!(cursor.is_complete());
            }
            let cursor = take(since, &stream[..stream.len() - 1], 7).unwrap();
            assert!(!cursor.is_complete());
        }
    }
}

#[test]
fn every_altered_byte_is_detected() {
    let stream = [
        part(&numbers(0..5)),
        part(&numbers(5..COUNT)),
        synced(COUNT),
    ]
    .concat();
    for at in 0..stream.len() {
        let mut altered = stream.clone();
        altered[at] ^= 1;
        let outcome = take(0, &altered, altered.len());
        assert!(outcome.is_err_and(|error| !error.is_empty()), "byte {at}");
    }
}

#[test]
fn missing_duplicated_and_unrequested_entries_are_detected() {
    let (first, second) = (part(&numbers(0..5)), part(&numbers(5..COUNT)));
    let end = synced(COUNT);
    for stream in [
        [&second[..], &end].concat(),
        [&first[..], &end].concat(),
        [&first[..], &first, &second, &end].concat(),
        [&second[..], &first, &end].concat(),
        [&first[..], &second, &second, &end].concat(),
        [&first[..], &second, &synced(COUNT - 1)].concat(),
        [&first[..], &part(&[5, 7, 6, 8, 9, 10, 11]), &end].concat(),
        [&first[..], &second, &end, &end].concat(),
    ] {
        let seen = String::from_utf8_lossy(&stream);
        assert!(take(0, &stream, stream.len()).is_err(), "{seen}");
    }
}
