//! Fan-out of each change to many clients: each frame is encoded once, and each session has a
//! cursor into the sequence of frames.

pub mod chunk_pool;
pub mod encoded_state;
pub mod outbox;
pub mod peers;
pub mod presence_queue;
pub mod window;
pub mod window_offset;

pub(in crate::core) mod behind_members;
pub(in crate::core) mod free_lists;
pub(in crate::core) mod pacer;
pub(in crate::core) mod presence;
pub(in crate::core) mod room;
pub(in crate::core) mod shared_chunks;
