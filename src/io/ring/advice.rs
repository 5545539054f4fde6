//! Advice for the user when a ring cannot be set up.

use std::io;

use rustix::process::{Resource, getrlimit};

use super::setup::locked_bytes;
use crate::io::buffers::kernel;

/// Explains why the rings of `shards` shards could not be set up, and how to fix it.
#[must_use]
pub fn advice(error: &io::Error, shards: u32) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel does not have it, or a seccomp filter hides it: use \
            Linux 5.10 or later, and in a container a seccomp profile that allows io_uring_setup, \
            io_uring_enter and io_uring_register"
            .to_owned(),
        Some(libc::EPERM | libc::EACCES) => "it is forbidden: set the sysctl \
            kernel.io_uring_disabled to 0, and in a container use a seccomp profile that allows \
            io_uring_setup, io_uring_enter and io_uring_register"
            .to_owned(),
        Some(libc::ENOMEM) => memory_advice(shards),
        Some(libc::EMFILE | libc::ENFILE) => "the process has reached its limit on open files: \
            raise the limit (ulimit -n)"
            .to_owned(),
        _ if error.kind() == io::ErrorKind::Unsupported => "the kernel lacks operations that the \
            server needs: use Linux 5.10 or later"
            .to_owned(),
        _ => error.to_string(),
    }
}

/// Explains an ENOMEM: this user may lock no more memory, or the system has none left.
fn memory_advice(shards: u32) -> String {
    let need = locked_bytes(kernel(), shards);
    let limit = getrlimit(Resource::Memlock).current;
    match (need, limit) {
        (Some(need), Some(limit)) => format!(
            "the rings of {shards} shards lock {} KiB of memory, but all processes of this user \
             together may lock only {} KiB: raise the limit on locked memory (ulimit -l, \
             LimitMEMLOCK= in systemd, docker run --ulimit memlock=BYTES), or lower --shards",
            need / 1024,
            limit / 1024
        ),
        _ => format!(
            "there is not enough memory for the rings of {shards} shards (ENOMEM): free some, \
             raise the memory limit of the control group, or lower --shards"
        ),
    }
}
