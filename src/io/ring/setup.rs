//! What a ring needs of the kernel, and the flags that it is set up with.

use std::io;

use io_uring::opcode;

use crate::limits::{COMPLETION_ENTRIES, RING_ENTRIES};

/// Whether this process may use `io_uring` at all, with all that a ring needs of it.
pub fn probe() -> io::Result<()> {
    let ring = io_uring::IoUring::new(8)?;
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
    if needed.into_iter().all(|code| probe.is_supported(code)) {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

/// A runtime with the flags that this kernel knows: none of them on 5.10, which must work too.
pub(super) fn runtime() -> io::Result<tokio_uring::Runtime> {
    let mut plain = tokio_uring::uring_builder();
    plain.setup_cqsize(COMPLETION_ENTRIES);
    // 5.19: a core that is busy with a turn is not interrupted.
    let mut cooperative = plain.clone();
    cooperative.setup_coop_taskrun().setup_taskrun_flag();
    // 6.0: no lock on submission.
    let mut single_issuer = cooperative.clone();
    single_issuer.setup_single_issuer();
    let setup = first_known([single_issuer, cooperative], plain);
    let mut builder = tokio_uring::builder();
    tokio_uring::Runtime::new(builder.entries(RING_ENTRIES).uring_builder(&setup))
}

/// The first setup that the kernel knows. They are tried on bare rings: a runtime that cannot be made
/// leaves the half that was made behind, with its descriptors.
pub(super) fn first_known<const COUNT: usize>(
    setups: [io_uring::Builder; COUNT],
    otherwise: io_uring::Builder,
) -> io_uring::Builder {
    let is_known = |setup: &io_uring::Builder| setup.build(8).is_ok();
    setups.into_iter().find(is_known).unwrap_or(otherwise)
}
