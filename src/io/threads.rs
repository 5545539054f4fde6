//! Starting threads, and advice for when the system refuses to start one.

use std::fmt;
use std::io;
use std::thread::{self, JoinHandle};

use rustix::process::{Resource, getrlimit};

/// A thread that could not be started. The message is one line that names the limit and says what
/// to do.
#[derive(Debug)]
pub struct ThreadError {
    name: String,
    source: io::Error,
}

/// Starts a thread called `name`.
pub fn start<T: Send + 'static>(
    name: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, ThreadError> {
    let builder = thread::Builder::new().name(name.clone());
    builder
        .spawn(work)
        .map_err(|source| ThreadError { name, source })
}

impl std::error::Error for ThreadError {}

impl fmt::Display for ThreadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, source } = self;
        write!(f, "cannot start the thread {name} ({source}): ")?;
        if let Some(limit) = getrlimit(Resource::Nproc).current {
            write!(
                f,
                "this user may run {limit} processes and threads (ulimit -u, LimitNPROC= in \
                 systemd), and a control group may allow fewer"
            )?;
        } else {
            write!(f, "the control group may set a limit")?;
        }
        write!(
            f,
            " (TasksMax= in systemd, docker run --pids-limit): raise the limit, or lower --shards"
        )
    }
}
