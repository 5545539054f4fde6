//! What a shard counts of itself: plain numbers of its own, which its caller shows to others once a
//! turn.
//!
//! Nothing here is atomic, allocates, or asks for the time: a count on the way of an op is one
//! addition.

/// The upper bounds of the classes of durations: 1, 2, 5 in each decade. What is longer falls into
/// a last one.
pub const DURATION_BOUNDS_US: [u64; 19] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
    500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];
/// The upper bounds of the classes of group sizes, in ops.
pub const GROUP_BOUNDS: [u64; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];
/// The status codes of answers that are told apart.
pub const RESPONSE_CODES: [u16; 15] = [
    101, 200, 204, 304, 400, 401, 403, 404, 405, 408, 426, 429, 431, 500, 503,
];
/// The close codes that are told apart.
pub const CLOSE_CODES: [u16; 10] = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1013, 4001];

/// The classes of durations.
pub const DURATION_CLASSES: usize = DURATION_BOUNDS_US.len() + 1;
/// The classes of group sizes.
pub const GROUP_CLASSES: usize = GROUP_BOUNDS.len() + 1;
/// The classes of answers: the last has all that are not told apart.
pub const RESPONSE_CLASSES: usize = RESPONSE_CODES.len() + 1;
/// The classes of close frames: the last has all that are not told apart.
pub const CLOSE_CLASSES: usize = CLOSE_CODES.len() + 1;

/// Durations by their class.
pub type Durations = Tally<DURATION_CLASSES>;
/// Groups of ops by their class.
pub type Groups = Tally<GROUP_CLASSES>;
/// Answers by their status.
pub type Responses = Tally<RESPONSE_CLASSES>;
/// Close frames by their code.
pub type Closes = Tally<CLOSE_CLASSES>;

/// How often each of some classes came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally<const CLASSES: usize> {
    /// By class.
    pub counts: [u64; CLASSES],
    /// Of all that was counted.
    pub sum: u64,
    /// How often anything was counted.
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
    /// Counts a group of so many ops.
    pub fn had(&mut self, ops: u64) {
        self.add(GROUP_BOUNDS.partition_point(|bound| *bound < ops), ops);
    }
}

impl Responses {
    /// Counts an answer with this status.
    pub fn answered(&mut self, status: u16) {
        self.add(code_class(&RESPONSE_CODES, status), 0);
    }
}

impl Closes {
    /// Counts a close frame with this code.
    pub fn closed(&mut self, code: u16) {
        self.add(code_class(&CLOSE_CODES, code), 0);
    }

    /// How often there was this code, or one of those that are not told apart.
    #[must_use]
    pub fn of(&self, code: u16) -> u64 {
        self.counts[code_class(&CLOSE_CODES, code)]
    }
}

/// The class of a duration among [`DURATION_BOUNDS_US`].
#[must_use]
pub fn duration_class(us: u64) -> usize {
    DURATION_BOUNDS_US.partition_point(|bound| *bound < us)
}

fn code_class(codes: &[u16], code: u16) -> usize {
    let known = codes.iter().position(|known| *known == code);
    known.unwrap_or(codes.len())
}

/// Names each number once: as a field, and by its place in the list that is shown to others.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What a shard has done since it began, and what it has now.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
            /// Ops of each batch that went to the log.
            pub groups: Groups,
            /// From the oldest op of a commit until it is on disk.
            pub durable: Durations,
            /// From the oldest op of a round of sends to the end of the round.
            pub sent: Durations,
            /// Answers to requests.
            pub responses: Responses,
            /// Close frames that the server sent first.
            pub closes: Closes,
        }

        impl Counters {
            /// How many of the counters are plain numbers.
            pub const NUMBERS: usize = [$(stringify!($name)),+].len();

            /// The plain numbers.
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
    /// Ops that lost: another one has won over them.
    ops_lost,
    /// Ops that were sent again, and are there already.
    ops_duplicate,
    /// Messages that are none.
    refused_bad_message,
    /// Ops whose timestamp is too far ahead.
    refused_future_skew,
    /// Messages that are too long.
    refused_too_large,
    /// Messages, ops most of all, of connections over `--max-ops-per-second`.
    refused_rate,
    /// Ops that would have grown a workspace over `--max-workspace-bytes`.
    refused_workspace_bytes,
    /// Connections over `--max-connections-per-workspace`.
    refused_members,
    /// Requests with a token over `--max-handshakes-per-second`.
    refused_handshakes,
    /// Joins and looks for which too many states were on their way.
    refused_snapshot_bytes,
    /// Sessions that were given up because too much was held for single ones.
    given_up_sessions,
    /// States that were given up because nobody took them, and others wanted room.
    given_up_states,
    /// Clients that took too long for a message.
    given_up_messages,
    /// Senders whose ops a log that failed has lost, or that caused a panic.
    refused_log_failed,
    /// Ops for whose log the disk had no room.
    refused_disk_full,
    /// Microseconds in which clients waited for compaction.
    held_us,
    /// Clients that wait for compaction.
    sessions_held,
    /// Ops that won, times the clients that were owed them.
    deliveries,
    /// Bytes that came in.
    bytes_received,
    /// Bytes that sockets took.
    bytes_sent,
    /// Sends.
    sends,
    /// Of these, those that have ended.
    sends_ended,
    /// Frames of others' ops in all sends; those that a conflated session was sent too.
    frames_sent,
    /// How often a session fell behind.
    conflations,
    /// Ops that sessions were sent for a key that had changed more often meanwhile.
    conflated_keys,
    /// Bytes that the log took.
    log_bytes_written,
    /// How often the shard stopped serving.
    failures,
    /// Close frames of clients that closed first.
    closed_by_peer,
    /// Connections that were shed.
    shed,
    /// How long the shard was away: it was stopped, or got no core.
    absent_us,
    /// Clients in a workspace.
    connections,
    /// Connections whose request is awaited or waits for its answer.
    sessions_handshake,
    /// Connections whose last bytes are on their way.
    sessions_closing,
    /// Workspaces in memory.
    workspaces,
    /// The memory of the frames of the recent past.
    window_bytes,
    /// The memory of what waits for one client each, or is on its way to it.
    answer_bytes,
    /// The memory of corrections and lists of users, each shared by all who are sent it.
    shared_answer_bytes,
    /// The memory of messages and heads that are not whole yet.
    unfinished_bytes,
    /// The memory of the texts of states that are on their way.
    snapshot_bytes,
    /// What the state takes in a log in which nothing is dead.
    log_live_bytes,
    /// The length of the open segment.
    log_open_bytes,
    /// The length of the log in the shard's folder, without what the open segment has over its
    /// usual length.
    log_bytes,
    /// What that may be.
    log_bytes_max,
    /// Whether ops that grow the log are refused.
    disk_is_full,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_class_below_it() {
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
    fn codes_that_nobody_names_are_counted_too() {
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
        assert_eq!(closes.counts, [1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn numbers_go_out_and_back() {
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
