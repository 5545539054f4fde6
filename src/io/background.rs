//! Slow log work that runs on its own threads so that no shard's loop waits for it: creating new
//! segments and rebuilding shards.

use crate::io::threads;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::core::state::placement::shard_of;
use crate::core::state::replay::Replay;
use crate::generation::Generation;
use crate::io::mailbox::{RebuildError, RebuiltShard, ShardMessage, ShardSender};
use crate::io::random::random_u64;
use crate::log::disk::HostDisk;
use crate::log::log_files::{Creation, Rebuild};

/// Creates a segment on a background thread and sends the result to the shard.
pub fn create(creation: Creation<HostDisk>, sender: ShardSender) {
    spawn(sender, ShardMessage::SegmentCreated, move || {
        Ok(creation.run(0)?)
    });
}

/// Rebuilds a shard, given by its number and the shard count, and sends the result to that shard.
pub fn rebuild(
    rebuild: Rebuild<HostDisk>,
    (shard, shards): (u32, u32),
    hash_seed: u64,
    sender: ShardSender,
) {
    spawn(sender, ShardMessage::Rebuilt, move || {
        let mut replay = Replay::new(hash_seed);
        let segment = rebuild.run(|op| {
            if shard_of(op.workspace, shards) == shard {
                replay.visit(op);
            }
        })?;
        replay.finish_restore();
        Ok(RebuiltShard {
            segment,
            workspaces: replay.finish(shards).swap_remove(shard as usize),
            generation: Generation::new(random_u64()?),
        })
    });
}

/// Runs slow work on its own thread and sends the result. A result is always sent, even after a
/// panic, because a shard that waits for one serves no clients.
fn spawn<T: Send + 'static>(
    sender: ShardSender,
    message: impl FnOnce(Result<T, RebuildError>) -> ShardMessage + Copy + Send + 'static,
    work: impl FnOnce() -> Result<T, RebuildError> + Send + 'static,
) {
    let own_sender = sender.clone();
    let started = threads::start("etherply-log".to_owned(), move || {
        let outcome = catch_unwind(AssertUnwindSafe(work));
        sender.send(message(outcome.unwrap_or(Err(RebuildError::Fault))));
    });
    if let Err(error) = started {
        own_sender.send(message(Err(RebuildError::Thread(error))));
    }
}
