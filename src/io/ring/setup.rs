//! The kernel features that a ring needs, and the flags for setting it up.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Mutex, OnceLock, PoisonError};

use io_uring::{Builder, IoUring, opcode};
use rustix::process::{Resource, getrlimit};

use super::calls::register_buffers;
use crate::config::RingChoice;
use crate::io::buffers::ReceiveBuffers;
use crate::limits::{COMPLETION_ENTRIES, RECEIVE_BUFFERS, RING_ENTRIES};

/// Kernels before `COUNTED_BEFORE` and from `COUNTED_AGAIN` on count rings as locked memory. Those
/// in between charge them to the memory of the control group.
const COUNTED_BEFORE: (u32, u32) = (5, 12);
const COUNTED_AGAIN: (u32, u32) = (6, 14);
/// Sizes in bytes: a submission queue entry, its index, a completion queue entry, the header that
/// the two queues share, and an entry of the ring through which the native ring lends its buffers.
const SUBMISSION_BYTES: u64 = 64;
const INDEX_BYTES: u64 = 4;
const COMPLETION_BYTES: u64 = 16;
const HEAD_BYTES: u64 = 320;
const BUFFER_ENTRY_BYTES: u64 = 16;
const PAGE_BYTES: u64 = 4096;

/// A ring that a shard can run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingKind {
    /// The ring for kernels from 6.1 on.
    Native,
    /// The ring on top of tokio-uring, for kernels from 5.10 on.
    Compat {
        /// Whether receives are submitted only once there is data, as on kernels before 5.19.
        waits_before_receive: bool,
    },
}

impl RingKind {
    /// The ring on top of tokio-uring, with the best receives that the kernel has.
    pub const COMPAT: Self = Self::Compat {
        waits_before_receive: false,
    };

    /// Returns the ring for a setting, or `None` if the kernel does not support the native ring
    /// that it demands.
    #[must_use]
    pub fn choose(choice: RingChoice) -> Option<Self> {
        let is_native = || native_builder().build(8).is_ok();
        match choice {
            RingChoice::Auto | RingChoice::Native if is_native() => Some(Self::Native),
            RingChoice::Auto | RingChoice::Compat => Some(Self::COMPAT),
            RingChoice::Native => None,
        }
    }
}

impl fmt::Display for RingKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Native => "native",
            Self::Compat { .. } => "compat",
        })
    }
}

/// Checks that this process may use `io_uring`, with every feature that a ring needs.
pub fn probe() -> io::Result<()> {
    let ring = IoUring::new(8)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Accept::CODE,
        opcode::Fsync::CODE,
        opcode::Nop::CODE,
        opcode::PollAdd::CODE,
        opcode::ProvideBuffers::CODE,
        opcode::Read::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::SendMsg::CODE,
        opcode::Timeout::CODE,
        opcode::Write::CODE,
    ];
    let knows_all = needed.into_iter().all(|code| probe.is_supported(code));
    if knows_all && ring.params().is_feature_nodrop() {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

/// Returns the number of bytes that the rings of `shards` shards count against the limit on locked
/// memory (`ulimit -l`) on this kernel version, or `None` if that version does not count them.
#[must_use]
pub fn locked_bytes(kernel: (u32, u32), shards: u32) -> Option<u64> {
    let (entries, completions) = (u64::from(RING_ENTRIES), u64::from(COMPLETION_ENTRIES));
    let queues = HEAD_BYTES + COMPLETION_BYTES * completions + INDEX_BYTES * entries;
    let submissions = SUBMISSION_BYTES * entries;
    let parts = [queues, submissions];
    let ring: u64 = if kernel < COUNTED_BEFORE {
        parts.map(u64::next_power_of_two).into_iter().sum()
    } else if kernel >= COUNTED_AGAIN {
        let whole_pages = |part: u64| part.next_multiple_of(PAGE_BYTES);
        let lending = BUFFER_ENTRY_BYTES * u64::from(RECEIVE_BUFFERS);
        [parts[0], parts[1], lending]
            .map(whole_pages)
            .into_iter()
            .sum()
    } else {
        return None;
    };
    Some(ring * u64::from(shards))
}

/// Sets up one ring per shard, holding all of them at once, and drops them again. If a ring cannot
/// be set up, returns its error and the number of rings set up before it.
pub fn try_all(kind: RingKind, shards: u32) -> Result<(), (u32, io::Error)> {
    let mut rings = Vec::new();
    for number in 0..shards {
        let ring = match kind {
            RingKind::Native => native_with_buffers().map(|(ring, buffers)| (ring, Some(buffers))),
            RingKind::Compat { .. } => known().build(RING_ENTRIES).map(|ring| (ring, None)),
        };
        rings.push(ring.map_err(|error| (number, error))?);
    }
    Ok(())
}

/// Returns a runtime with the flags that this kernel supports, and the descriptor of its ring.
/// tokio-uring does not expose the descriptor, so the ring is set up disabled and found as the only
/// descriptor that `enable` can enable.
pub(super) fn runtime(enable: impl Fn(RawFd) -> bool) -> io::Result<(tokio_uring::Runtime, RawFd)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut builder = tokio_uring::builder();
    builder
        .entries(RING_ENTRIES)
        .uring_builder(known().setup_r_disabled());
    let runtime = tokio_uring::Runtime::new(&builder)?;
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let limit = RawFd::try_from(limit).unwrap_or(RawFd::MAX);
    let descriptor = (0..limit).find(|descriptor| enable(*descriptor));
    let missing = || io::Error::other("the ring that was set up is not among the open files");
    Ok((runtime, descriptor.ok_or_else(missing)?))
}

/// Returns a native ring and its buffers, which must be dropped after it.
pub(super) fn native_with_buffers() -> io::Result<(IoUring, ReceiveBuffers)> {
    let mut builder = native_builder();
    builder.setup_cqsize(COMPLETION_ENTRIES);
    let ring = builder.build(RING_ENTRIES)?;
    let buffers = ReceiveBuffers::with_lending_ring();
    register_buffers(&ring, &buffers)?;
    Ok((ring, buffers))
}

fn native_builder() -> Builder {
    let mut builder = IoUring::builder();
    // 6.1: completions run when the thread waits for them, and not in the middle of a turn. One
    // operation that cannot be submitted does not hold up those after it.
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all();
    builder
}

/// Returns a builder for a shard's ring with the flags that this kernel supports. Linux 5.10, which
/// must work too, supports none of them.
fn known() -> Builder {
    static KNOWN: OnceLock<Builder> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let plain = tokio_uring::uring_builder();
        // 5.19: completions do not interrupt a core that is busy with a turn.
        let mut cooperative = plain.clone();
        cooperative.setup_coop_taskrun().setup_taskrun_flag();
        // 6.0: submission takes no lock.
        let mut single_issuer = cooperative.clone();
        single_issuer.setup_single_issuer();
        first_known([single_issuer, cooperative], plain)
    });
    let mut ring = known.clone();
    ring.setup_cqsize(COMPLETION_ENTRIES);
    ring
}

/// Returns the first setup that the kernel supports. Each is tried once, on a small ring without a
/// runtime: a runtime whose setup fails leaks resources, including descriptors, and the kernel
/// releases the locked memory of a ring only some time after the ring has ended.
pub(super) fn first_known<const COUNT: usize>(
    setups: [Builder; COUNT],
    otherwise: Builder,
) -> Builder {
    let is_known = |setup: &Builder| setup.build(8).is_ok();
    setups.into_iter().find(is_known).unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buffers::kernel;

    #[test]
    fn a_setting_chooses_the_ring() {
        assert_eq!(RingKind::choose(RingChoice::Compat), Some(RingKind::COMPAT));
        let native = RingKind::choose(RingChoice::Native);
        let auto = RingKind::choose(RingChoice::Auto);
        assert_eq!(auto, native.or(Some(RingKind::COMPAT)));
        if kernel() >= (6, 1) {
            assert_eq!(native, Some(RingKind::Native));
        }
    }

    #[test]
    fn rings_count_as_locked_memory_before_5_12_and_since_6_14() {
        for (kernel, kib) in [
            ((5, 10), Some(320)),
            ((5, 12), None),
            ((6, 1), None),
            ((6, 13), None),
            // Measured on 6.18: a limit of 204 KiB is enough for one ring, and 200 KiB is not.
            ((6, 14), Some(204)),
            ((7, 0), Some(204)),
        ] {
            let bytes = kib.map(|kib: u64| kib * 1024);
            assert_eq!(locked_bytes(kernel, 1), bytes, "{kernel:?}");
            assert_eq!(locked_bytes(kernel, 3), bytes.map(|bytes| 3 * bytes));
        }
    }
}
