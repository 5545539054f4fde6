//! Checks that a shard's log is still where it was opened: the data directory, its `LOCK` file and
//! the open segment.

use crate::limits::{PLACE_CHECK_COMMIT_US, PLACE_CHECK_US};
use crate::log::disk::Disk;
use crate::log::log_files::{LogFiles, LogFilesError};

/// A periodic check that a log is still in place.
///
/// Each commit checks that the files still have names, with two fstat(2) calls. Checking that they
/// are still at their paths takes a stat(2) of each path, so it is done at most 20 times a second.
/// A shard without commits wakes once a second to do it, which costs about ten microseconds of CPU
/// time.
#[derive(Debug, Default)]
pub struct DirectoryWatch {
    checked_us: u64,
    is_displaced: bool,
}

impl DirectoryWatch {
    /// Checks the log before any op of a commit is sent to clients. `log` is `None` while the log
    /// is still being read.
    pub fn committed(
        &mut self,
        log: Option<&LogFiles<impl Disk>>,
        now_us: u64,
    ) -> Result<(), LogFilesError> {
        let Some(log) = log else { return Ok(()) };
        let linked = log.check_linked();
        self.is_displaced |= linked.is_err();
        linked?;
        if now_us < self.checked_us + PLACE_CHECK_COMMIT_US {
            return Ok(());
        }
        self.check(log, now_us)
    }

    /// Checks the log if a check is due. Returns an error once, and not again until the log is back
    /// in place.
    pub fn tick(
        &mut self,
        log: Option<&LogFiles<impl Disk>>,
        now_us: u64,
    ) -> Option<LogFilesError> {
        let log = log.filter(|_| now_us >= self.next_us())?;
        let was_displaced = self.is_displaced;
        self.check(log, now_us).err().filter(|_| !was_displaced)
    }

    /// Records whether a rebuild of the shard succeeded. A rebuild does its own check before it
    /// begins.
    pub fn rebuilt(&mut self, is_done: bool) {
        self.is_displaced &= !is_done;
    }

    /// Returns the time at which the next check is due even if nothing is committed before then.
    #[must_use]
    pub fn next_us(&self) -> u64 {
        self.checked_us + PLACE_CHECK_US
    }

    fn check(&mut self, log: &LogFiles<impl Disk>, now_us: u64) -> Result<(), LogFilesError> {
        self.checked_us = now_us;
        let outcome = log.check_place();
        self.is_displaced = outcome.is_err();
        outcome
    }
}
