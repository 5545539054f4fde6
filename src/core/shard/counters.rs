//! The counters of a shard: plain numbers, published by its caller once per turn.
//!
//! No counter is atomic, allocates or reads a clock; counting an op is a single addition.

/// The upper bounds of the classes of durations: 1, 2 and 5 in each decade. Longer durations are
/// counted in an additional last class.
pub const DURATION_BOUNDS_US: [u64; 19] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
    500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];
/// The upper bounds of the classes of group sizes, in ops.
pub const GROUP_BOUNDS: [u64; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];
/// The status codes of answers that are counted separately.
pub const RESPONSE_CODES: [u16; 15] = [
    101, 200, 204, 304, 400, 401, 403, 404, 405, 408, 426, 429, 431, 500, 503,
];
/// The close codes that are counted separately.
pub const CLOSE_CODES: [u16; 11] = [
    1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 4001,
];

/// The number of classes of durations.
pub const DURATION_CLASSES: usize = DURATION_BOUNDS_US.len() + 1;
/// The number of classes of group sizes.
pub const GROUP_CLASSES: usize = GROUP_BOUNDS.len() + 1;
/// The number of classes of answers. The last class counts all other status codes.
pub const RESPONSE_CLASSES: usize = RESPONSE_CODES.len() + 1;
/// The number of classes of close frames. The last class counts all other close codes.
pub const CLOSE_CLASSES: usize = CLOSE_CODES.len() + 1;

/// Durations, by class.
pub type Durations = Tally<DURATION_CLASSES>;
/// Groups of ops, by class.
pub type Groups = Tally<GROUP_CLASSES>;
/// Answers, by status.
pub type Responses = Tally<RESPONSE_CLASSES>;
/// Close frames, by code.
pub type Closes = Tally<CLOSE_CLASSES>;

/// A histogram with a fixed number of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally<const CLASSES: usize> {
    /// The number of values in each class.
    pub counts: [u64; CLASSES],
    /// The sum of all values.
    pub sum: u64,
    /// The number of values.
    pub count: u64,
}

impl<const CLASSES: usize> Default for Tally<CLASSES> {
    fn default() -> Self {
        Self {
            counts: [0; CLASSES],
            sum: 0,
            count: 0,
        }
    }
}

impl<const CLASSES: usize> Tally<CLASSES> {
    fn add(&mut self, class: usize, value: u64) {
        self.counts[class] += 1;
        self.sum += value;
        self.count += 1;
    }
}

impl Durations {
    /// Counts a duration.
    pub fn took(&mut self, us: u64) {
        self.add(duration_class(us), us);
    }
}

impl Groups {
    /// Counts a group of `ops` ops.
    pub fn had(&mut self, ops: u64) {
        self.add(GROUP_BOUNDS.partition_point(|bound| *bound < ops), ops);
    }
}

impl Responses {
    /// Counts an answer with `status`.
    pub fn answered(&mut self, status: u16) {
        self.add(code_class(&RESPONSE_CODES, status), 0);
    }
}

impl Closes {
    /// Counts a close frame with `code`.
    pub fn closed(&mut self, code: u16) {
        self.add(code_class(&CLOSE_CODES, code), 0);
    }

    /// Returns the count of `code`, or of all other codes if it is not counted separately.
    #[must_use]
    pub fn of(&self, code: u16) -> u64 {
        self.counts[code_class(&CLOSE_CODES, code)]
    }
}

/// Returns the class of a duration among [`DURATION_BOUNDS_US`].
#[must_use]
pub fn duration_class(us: u64) -> usize {
    DURATION_BOUNDS_US.partition_point(|bound| *bound < us)
}

fn code_class(codes: &[u16], code: u16) -> usize {
    let known = codes.iter().position(|known| *known == code);
    known.unwrap_or(codes.len())
}

/// Defines each number in one place, both its field and its position in the published list.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counts since a shard started, and the current values of its gauges.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
            /// The number of ops in each batch that was written to the log.
            pub groups: Groups,
            /// The time from the oldest op in a commit until the commit is on disk.
            pub durable: Durations,
            /// The time from the oldest op in a round of sends until the end of the round.
            pub sent: Durations,
            /// Answers to requests.
            pub responses: Responses,
            /// Close frames that the server sent first.
            pub closes: Closes,
        }

        impl Counters {
            /// The number of counters that are plain numbers.
            pub const NUMBERS: usize = [$(stringify!($name)),+].len();

            /// Returns the plain numbers, in the order of their fields.
            #[must_use]
            pub fn numbers(&self) -> [u64; Self::NUMBERS] {
                [$(self.$name),+]
            }

            /// Sets the plain numbers, in the order of [`Counters::numbers`].
            pub fn set_numbers(&mut self, numbers: [u64; Self::NUMBERS]) {
                [$(self.$name),+] = numbers;
            }
        }
    };
}

counters! {
    /// Ops that won.
    ops,
    /// Ops that lost to the current op of their key.
    ops_lost,
    /// Ops resent after they had already been applied.
    ops_duplicate,
    /// Malformed messages.
    refused_bad_message,
    /// Ops with timestamps too far in the future.
    refused_future_skew,
    /// Version 1 ops with timestamps before 2001, which are applied.
    early_timestamps,
    /// Messages that are too long.
    refused_too_large,
    /// Ops that lost because their keys have no entry and their timestamps are not above the floor.
    refused_floor,
    /// Keys that expired.
    expiries,
    /// Tombstones dropped after their retention.
    tombstones_dropped,
    /// Times that tombstones were dropped and the floor of their workspace was logged.
    floors,
    /// Messages, mostly ops, from connections that exceeded `--max-ops-per-second`.
    refused_rate,
    /// Ops that would have grown a workspace beyond `--max-workspace-bytes`.
    refused_workspace_bytes,
    /// Connections refused because of `--max-connections-per-workspace`.
    refused_members,
    /// Requests with a token refused because of `--max-handshakes-per-second`.
    refused_handshakes,
    /// Joins and reads over HTTP refused because too many encoded states were being sent.
    refused_snapshot_bytes,
    /// Sessions evicted because individual sessions held too much memory in total.
    given_up_sessions,
    /// Encoded states evicted because their receivers were slow and other states needed the memory.
    given_up_states,
    /// Clients closed for taking too long to send a message.
    given_up_messages,
    /// Clients whose ops were lost in a log failure, and clients whose input caused a panic.
    refused_log_failed,
    /// Ops refused because the disk was full.
    refused_disk_full,
    /// The time that clients have spent waiting for compaction, in microseconds.
    held_us,
    /// Clients that are waiting for compaction.
    sessions_held,
    /// Ops that won, counted once for each client that must receive them.
    deliveries,
    /// Bytes received.
    bytes_received,
    /// Bytes accepted by sockets.
    bytes_sent,
    /// Sends started.
    sends,
    /// Sends that have ended.
    sends_ended,
    /// Frames with other clients' ops in all sends, including those to conflated sessions.
    frames_sent,
    /// Times that a session fell behind.
    conflations,
    /// Ops sent to conflated sessions, each the latest for its key.
    conflated_keys,
    /// Version 2 clients that were sent a full state because they did not ask to resume.
    joins_first,
    /// Version 2 clients that resumed.
    joins_resumed,
    /// Version 2 clients that could not resume because they were in another generation.
    joins_other_generation,
    /// Version 2 clients that could not resume because tombstones were dropped.
    joins_too_old,
    /// Parts of a state sent to version 2 clients.
    state_chunks,
    /// `saved` messages sent to version 2 clients.
    saved,
    /// Presence messages built, each counted once for all peers in a room.
    presence_messages,
    /// Casts received from version 2 clients.
    casts,
    /// Bytes written to the log.
    log_bytes_written,
    /// Failures that made the shard stop serving.
    failures,
    /// Close frames from clients that closed first.
    closed_by_peer,
    /// Connections shed to make room for others.
    shed,
    /// The time during which the shard was absent, that is, stopped or without CPU time, in
    /// microseconds.
    absent_us,
    /// Clients that are members of a workspace.
    connections,
    /// Connections whose requests have not been answered yet.
    sessions_handshake,
    /// Connections that are being closed.
    sessions_closing,
    /// Workspaces in memory.
    workspaces,
    /// Tombstones in memory.
    tombstones,
    /// Keys that will expire.
    expiring_keys,
    /// The memory of all windows.
    window_bytes,
    /// The memory of answers to individual clients that are queued or being sent.
    answer_bytes,
    /// The memory of corrections and lists of users that are shared by several receivers.
    shared_answer_bytes,
    /// The memory of incomplete messages and heads.
    unfinished_bytes,
    /// The memory of encoded states that are being sent.
    snapshot_bytes,
    /// The size that the log would have without superseded ops.
    log_live_bytes,
    /// The length of the open segment.
    log_open_bytes,
    /// The length of the log in the shard's folder. For the open segment, at most the usual length
    /// is counted.
    log_bytes,
    /// The length of the log at which all writers wait for compaction.
    log_bytes_max,
    /// 1 while ops that grow the log are refused, otherwise 0.
    disk_is_full,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upper_bound_belongs_to_its_class() {
        for (us, class) in [
            (0, 0),
            (10, 0),
            (11, 1),
            (20, 1),
            (10_000_000, 18),
            (u64::MAX, 19),
        ] {
            assert_eq!(duration_class(us), class, "{us}");
        }
        let mut groups = Groups::default();
        for ops in [1, 2, 3, 4, 5, 4096, 4097] {
            groups.had(ops);
        }
        assert_eq!(groups.counts, [1, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((groups.sum, groups.count), (8208, 7));
    }

    #[test]
    fn other_codes_are_counted_together() {
        let mut responses = Responses::default();
        for status in [101, 503, 503, 999] {
            responses.answered(status);
        }
        assert_eq!(responses.counts[0], 1);
        assert_eq!(responses.counts[14..], [2, 1]);
        let mut closes = Closes::default();
        for code in [1000, 4001, 3000] {
            closes.closed(code);
        }
        assert_eq!([1000, 4001, 1008].map(|code| closes.of(code)), [1, 1, 0]);
        assert_eq!(closes.counts, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn numbers_survive_a_round_trip() {
        let mut numbers = [0; Counters::NUMBERS];
        for (place, number) in (1..).zip(&mut numbers) {
            *number = place;
        }
        let mut counters = Counters::default();
        counters.set_numbers(numbers);
        assert_eq!(counters.numbers(), numbers);
        assert_eq!((counters.ops, counters.ops_lost), (1, 2));
    }
}
