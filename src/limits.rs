//! Every bound of the server in one file, related to each other by `const` assertions.
//!
//! A bound that an operator may move is a default here and a field of [`crate::config::Settings`];
//! all the others are constants. Over a bound there is a rule, never growth.

// ---- the request head (protocol.md, "HTTP") ----

/// A request head longer than this is answered with 431.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// More header lines than this are answered with 431.
pub const HEADERS_MAX: usize = 64;
/// A head that is not complete after this long is answered with 408.
pub const HEAD_TIMEOUT_US: u64 = 10 * SECOND_US;
/// The longest workspace id, after percent-decoding.
pub const WORKSPACE_ID_BYTES_MAX: usize = 256;
/// How far `exp` and `nbf` may be off (RFC 7519 section 4.1.4: "some small leeway").
pub const TOKEN_LEEWAY_S: u64 = 30;
/// A secret shorter than this is warned of: RFC 7518 section 3.2 wants the size of the hash.
pub const SECRET_BYTES_ADVISED: usize = 32;

// ---- messages (protocol.md, "Messages: client to server") ----

/// The longest key, in bytes of its unescaped UTF-8.
pub const KEY_BYTES_MAX: usize = 1024;
/// The greatest timestamp, in Unix microseconds.
pub const TIMESTAMP_MAX_US: u64 = i64::MAX as u64;
/// A value nested deeper than this is refused.
pub const VALUE_DEPTH_MAX: usize = 128;
/// Default of `--max-message-bytes`.
pub const MESSAGE_BYTES_DEFAULT: usize = 1024 * 1024;
/// The greatest `--max-message-bytes`: a record of the log must hold one message.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest payload of a control frame (RFC 6455 section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

// ---- the log ----

/// A segment that has reached this size is closed at the end of its batch.
pub const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A batch of ops that has reached this size takes no more sessions' messages until it is written.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One second, in the unit of all times inside the server.
pub const SECOND_US: u64 = 1_000_000;

const _: () = assert!(
    WORKSPACE_ID_BYTES_MAX < HEAD_BYTES_MAX,
    "a legal id fits a legal head"
);
const _: () = assert!(CONTROL_BYTES_MAX == 125, "a fixed number of RFC 6455");
const _: () = assert!(
    KEY_BYTES_MAX <= u16::MAX as usize,
    "a record holds a key's length in 16 bits"
);
const _: () = assert!(
    WORKSPACE_ID_BYTES_MAX <= u16::MAX as usize,
    "a record holds an id's length in 16 bits"
);
