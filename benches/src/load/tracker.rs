//! Tracks which ops were sent, which receivers have received them, and how long that took.

use std::ops::Range;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::check::{Cursor, Window};
use super::failure::Failure;
use super::op::{KEYS, Text, put_client_frame, put_server_frame};
use super::plan::Plan;
use super::saved::SavedCursor;

/// A clock that counts nanoseconds since it was started.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now_ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos())
            .expect("the duration fits in 64 bits of nanoseconds")
    }
}

struct Room {
    window: Window,
    /// The time at which each op in the window was due.
    due_ns: Box<[u64]>,
    /// The number of receivers that have received exactly `n` ops, for each `n` from `done` on, as
    /// a circular buffer.
    at_count: Box<[u32]>,
    /// The number of ops that all receivers have received.
    done: u64,
    /// What has been confirmed to the sender about its ops, and when it began to wait for more.
    saved: SavedCursor,
    unsaved_since_ns: u64,
}

/// The rooms of a load. Each has one sender, connection `room * (receivers + 1)`, and its
/// receivers, the connections after it.
pub struct Tracker {
    rooms: Vec<Room>,
    cursors: Vec<Cursor>,
    receivers: u32,
    /// The number of ops by which the slowest receiver of a room may lag behind its sender.
    kept_ops: usize,
    /// One delivery in this many is timed; the receivers whose deliveries are timed change from op
    /// to op.
    sample: u64,
    clock: Clock,
    sent_text: Text,
    expected_text: Text,
    /// The frame of the op that is being sent.
    frame: Vec<u8>,
    /// Whether the senders must receive `saved`; otherwise, nothing is sent to them.
    has_saved: bool,
    /// The stream of senders to which nothing is sent.
    nothing: Window,
    answer: Vec<u8>,
    /// Only ops that were due in this period are timed.
    timed_ns: Range<u64>,
    latencies_ns: Histogram<u64>,
    deliveries: u64,
    ops: u64,
    /// Rooms in which all receivers have received another op, once per op.
    done_rooms: Vec<u32>,
    /// Pongs to be sent.
    pub answers: Vec<(u32, Vec<u8>)>,
}

impl Tracker {
    /// Creates a tracker for a load that has not sent anything yet.
    pub fn new(plan: &Plan, clock: Clock) -> Self {
        let Plan {
            rooms,
            receivers,
            protocol,
            field_order,
            ..
        } = *plan;
        let kept_ops = plan.ops_in_flight_max();
        let first_timestamp_us = unix_us();
        let expected_text = Text::received(protocol, field_order, first_timestamp_us);
        let layout = expected_text.frame_layout();
        let mut at_count = vec![0; kept_ops + 1];
        at_count[0] = receivers;
        let room = || Room {
            window: Window::new(layout.clone(), kept_ops),
            due_ns: vec![0; kept_ops].into(),
            at_count: at_count.clone().into(),
            done: 0,
            saved: SavedCursor::default(),
            unsaved_since_ns: 0,
        };
        Self {
            rooms: (0..rooms).map(|_| room()).collect(),
            cursors: (0..rooms * (receivers + 1))
                .map(|_| Cursor::default())
                .collect(),
            receivers,
            kept_ops,
            sample: plan.sample(),
            clock,
            sent_text: Text::sent(protocol, first_timestamp_us),
            expected_text,
            frame: Vec::new(),
            has_saved: protocol.has_ids(),
            nothing: Window::empty(),
            answer: Vec::new(),
            timed_ns: 0..u64::MAX,
            latencies_ns: histogram(),
            deliveries: 0,
            ops: 0,
            done_rooms: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Restricts timing to ops that are due in `timed_ns`. Returns the latencies recorded so far.
    pub fn time_only(&mut self, timed_ns: Range<u64>) -> Histogram<u64> {
        self.timed_ns = timed_ns;
        std::mem::replace(&mut self.latencies_ns, histogram())
    }

    pub fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// Returns the number of ops that all receivers of their room have received.
    pub fn ops(&self) -> u64 {
        self.ops
    }

    pub fn rooms(&self) -> u32 {
        u32::try_from(self.rooms.len()).expect("the value came from a u32")
    }

    /// Returns the connection that sends in a room.
    pub fn sender(&self, room: u32) -> u32 {
        room * (self.receivers + 1)
    }

    /// Returns the number of `saved` messages that the senders have received.
    pub fn saved_messages(&self) -> u64 {
        self.rooms.iter().map(|room| room.saved.messages()).sum()
    }

    /// Returns whether all receivers have received all ops, and the senders have received `saved`
    /// for them.
    pub fn is_done(&self) -> bool {
        let mut rooms = self.rooms.iter();
        rooms.all(|room| {
            let count = room.window.count();
            room.done == count && (room.saved.saved() == count || !self.has_saved)
        })
    }

    /// Moves to `into` the rooms in which all receivers have received another op, once per op.
    pub fn take_done_rooms(&mut self, into: &mut Vec<u32>) {
        into.append(&mut self.done_rooms);
    }

    /// Records the next op of a room, and appends its frame to the sender's output.
    pub fn put(&mut self, room_number: u32, due_ns: u64, out: &mut Vec<u8>) -> Result<(), Failure> {
        let room = &mut self.rooms[room_number as usize];
        let number = room.window.count();
        if number - room.done == self.kept_ops as u64 {
            return Err(self.late(room_number));
        }
        let expected = self.expected_text.of(room_number, number);
        self.frame.clear();
        put_server_frame(&mut self.frame, expected);
        room.window.push(&self.frame);
        if room.saved.saved() == number {
            room.unsaved_since_ns = due_ns;
        }
        let slot = slot(number, self.kept_ops);
        room.due_ns[slot] = due_ns;
        put_client_frame(out, self.sent_text.of(room_number, number));
        Ok(())
    }

    /// Checks and counts the bytes that a connection has received.
    pub fn received(&mut self, connection: u32, bytes: &[u8]) -> Result<(), Failure> {
        let room_number = connection / (self.receivers + 1);
        let place = connection % (self.receivers + 1);
        let room = &mut self.rooms[room_number as usize];
        let cursor = &mut self.cursors[connection as usize];
        let before = cursor.count();
        let outcome = if place > 0 {
            cursor.take(&room.window, bytes, &mut self.answer)
        } else if self.has_saved {
            let saved = room.saved.saved();
            let outcome = room
                .saved
                .take(room.window.count(), bytes, &mut self.answer);
            if room.saved.saved() > saved {
                room.unsaved_since_ns = self.clock.now_ns();
            }
            outcome
        } else {
            cursor.take(&self.nothing, bytes, &mut self.answer)
        };
        outcome.map_err(|mismatch| Failure::Wrong {
            room: room_number,
            place,
            mismatch,
        })?;
        let after = cursor.count();
        if !self.answer.is_empty() {
            self.answers
                .push((connection, std::mem::take(&mut self.answer)));
        }
        if after > before {
            self.delivered(room_number, place, before..after);
        }
        Ok(())
    }

    fn delivered(&mut self, room_number: u32, place: u32, numbers: Range<u64>) {
        let room = &mut self.rooms[room_number as usize];
        self.deliveries += numbers.end - numbers.start;
        room.at_count[slot(numbers.start, self.kept_ops + 1)] -= 1;
        room.at_count[slot(numbers.end, self.kept_ops + 1)] += 1;
        while room.at_count[slot(room.done, self.kept_ops + 1)] == 0 {
            room.done += 1;
            self.ops += 1;
            self.done_rooms.push(room_number);
        }
        let sample = self.sample;
        let step = (numbers.start + u64::from(place) + u64::from(room_number)) % sample;
        let first = numbers.start + (sample - step) % sample;
        if first >= numbers.end {
            return;
        }
        let now_ns = self.clock.now_ns();
        let mut number = first;
        while number < numbers.end {
            let due_ns = room.due_ns[slot(number, self.kept_ops)];
            if self.timed_ns.contains(&due_ns) {
                self.latencies_ns
                    .saturating_record(now_ns.saturating_sub(due_ns).max(1));
            }
            number += sample;
        }
    }

    /// Returns the failure of a connection that has ended, which happens only if something is
    /// wrong.
    pub fn gone(&self, connection: u32, error: Option<std::io::Error>) -> Failure {
        Failure::Gone {
            room: connection / (self.receivers + 1),
            place: connection % (self.receivers + 1),
            why: error.map_or("closed by the server".to_owned(), |error| error.to_string()),
        }
    }

    /// Fails if an op has been in flight for longer than `limit`, or if a sender has waited that
    /// long for the next op to be saved.
    pub fn check_lateness(&self, limit: Duration) -> Result<(), Failure> {
        let limit_ns =
            u64::try_from(limit.as_nanos()).expect("the limit fits in 64 bits of nanoseconds");
        let now_ns = self.clock.now_ns();
        for (room_number, room) in (0..).zip(&self.rooms) {
            let is_late = room.done < room.window.count()
                && room.due_ns[slot(room.done, self.kept_ops)] + limit_ns < now_ns;
            if is_late {
                return Err(self.late(room_number));
            }
            let (saved, sent) = (room.saved.saved(), room.window.count());
            if self.has_saved && saved < sent && room.unsaved_since_ns + limit_ns < now_ns {
                return Err(Failure::Unsaved {
                    room: room_number,
                    saved,
                    sent,
                    after_ms: (now_ns - room.unsaved_since_ns) / 1_000_000,
                });
            }
        }
        Ok(())
    }

    fn late(&self, room_number: u32) -> Failure {
        let room = &self.rooms[room_number as usize];
        let number = room.done;
        let after_ms = (self.clock.now_ns() - room.due_ns[slot(number, self.kept_ops)]) / 1_000_000;
        let first = self.sender(room_number) + 1;
        let waiting: Vec<u32> = (1..=self.receivers)
            .filter(|place| {
                let cursor = &self.cursors[(first + place - 1) as usize];
                cursor.count() <= number
            })
            .collect();
        let expected = String::from_utf8_lossy(&room.window.frame(number)[4..]).into_owned();
        Failure::Missing {
            room: room_number,
            number,
            after_ms,
            missing: waiting.len(),
            receivers: self.receivers,
            first: waiting.first().copied().unwrap_or_default(),
            sent: room.window.count(),
            expected,
        }
    }

    /// Returns the values that a room must hold: for each key, that of its last op.
    pub fn state(&mut self, room_number: u32) -> serde_json::Map<String, serde_json::Value> {
        let count = self.rooms[room_number as usize].window.count();
        let kept = count.saturating_sub(KEYS)..count;
        let fields = kept.map(|number| {
            let text = self.sent_text.of(room_number, number);
            let op: serde_json::Value = serde_json::from_slice(text).expect("the op is JSON");
            let key = op["payload"]["key"].as_str().expect("the key is a string");
            (key.to_owned(), op["payload"]["value"].clone())
        });
        fields.collect()
    }
}

/// Returns an empty histogram of nanoseconds up to ten minutes.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(600_000_000_000, 3).expect("the bounds are valid")
}

fn slot(number: u64, kept_ops: usize) -> usize {
    usize::try_from(number % kept_ops as u64).expect("the remainder is smaller than the divisor")
}

fn unix_us() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("the clock is after 1970");
    u64::try_from(now.as_micros()).expect("the clock is before the year 580000")
}
