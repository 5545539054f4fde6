//! The ring with real sockets and files: the data that goes into an operation comes back out of it,
//! and nothing is left behind.

use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};

use rustix::event::{EventfdFlags, eventfd};

use super::setup::first_known;
use super::*;
use crate::core::fanout::window::{Chunk, Span};
use crate::limits::{COMPLETION_ENTRIES, RECEIVE_BUFFERS, RING_ENTRIES};
use crate::log::blocks::{BLOCK_BYTES, Blocks};

/// Tokens that are plain numbers.
#[derive(Debug)]
struct Numbers;

impl Tokens for Numbers {
    type Receive = usize;
    type Send = usize;
    type Accept = usize;
    type Write = usize;
    type Signal = usize;
}

const COMPAT: RingKind = RingKind::COMPAT;
const OLD: RingKind = RingKind::Compat {
    waits_before_receive: true,
};
const RECENT: [RingKind; 2] = [RingKind::Native, COMPAT];
const ALL: [RingKind; 3] = [RingKind::Native, COMPAT, OLD];

type Turns<'a> = &'a mut dyn FnMut(&mut Ring<Numbers>, Vec<Completion<Numbers>>) -> ControlFlow<()>;

/// Runs turns that start with all available completions. The first turn has none.
fn run_turns(kind: RingKind, turn: Turns<'_>) {
    let go = || ControlFlow::Continue(());
    run(kind, go, |ring| {
        let mut completions = Vec::new();
        ring.drain(&mut completions);
        let flow = turn(ring, completions);
        ring.finish_turn();
        flow
    })
    .unwrap();
}

/// Submits an operation that does nothing.
fn no_op(ring: &mut Ring<Numbers>, token: usize) {
    ring.submit(Operation::Signal(token), opcode::Nop::new().build());
}

/// Returns the number of operations that have been queued or submitted, and of those that wait for
/// a place in the queue.
fn counts(ring: &Ring<Numbers>) -> (usize, usize) {
    match &ring.engine {
        Engine::Native(native) => (native.flights.len(), native.pending.len()),
        Engine::Compat(compat) => (compat.flights.len(), compat.pending.len()),
    }
}

fn chunk(bytes: &[u8]) -> Chunk {
    Rc::new(bytes.to_vec())
}

fn spans(texts: &[&str]) -> Spans {
    let whole = |text: &&str| Span::new(chunk(text.as_bytes()), 0, text.len());
    texts.iter().map(whole).collect()
}

/// Returns the token and the outcome of a completion, the latter as text.
fn outcome(ring: &mut Ring<Numbers>, completion: Completion<Numbers>) -> (usize, String) {
    match completion {
        Completion::Received(token, mut filled) => {
            let text = String::from_utf8(filled.bytes().to_vec()).unwrap();
            ring.give_back(filled);
            (token, text)
        }
        Completion::Ended(token, outcome) => (token, format!("ended {}", outcome.is_ok())),
        Completion::Sent(token, spans, outcome) => {
            let bytes: Vec<u8> = spans
                .iter()
                .flat_map(|span| span.bytes().to_vec())
                .collect();
            let text = String::from_utf8(bytes).unwrap();
            (token, format!("{text} {}", outcome.unwrap()))
        }
        Completion::Accepted(token, outcome) => (token, format!("accepted {}", outcome.is_ok())),
        Completion::Written(token, bytes, outcome) => {
            let text = String::from_utf8(bytes).unwrap();
            (token, format!("{text} {}", outcome.unwrap()))
        }
        Completion::BlocksWritten(token, blocks, outcome) => {
            let text = String::from_utf8(blocks[..5].to_vec()).unwrap();
            (token, format!("{text}… {}", outcome.unwrap()))
        }
        Completion::Signalled(token, outcome) => {
            let code = outcome.err().and_then(|error| error.raw_os_error());
            (token, format!("done {code:?}"))
        }
    }
}

fn every_operation(kind: RingKind) -> BTreeMap<usize, String> {
    let file = tempfile::tempfile().unwrap();
    let bell = eventfd(1, EventfdFlags::empty()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (one, one_peer) = UnixStream::pair().unwrap();
    let (many, many_peer) = UnixStream::pair().unwrap();
    let (closed, _) = UnixStream::pair().unwrap();
    let mut outcomes = BTreeMap::new();
    let mut is_started = false;
    let blocks_file = tempfile::tempfile().unwrap();
    run_turns(kind, &mut |ring, completions| {
        if !is_started {
            is_started = true;
            let mut blocks = Blocks::new(BLOCK_BYTES);
            blocks.resize(2 * BLOCK_BYTES, b'b');
            let offset = BLOCK_BYTES as u64;
            ring.write_blocks(blocks_file.as_fd(), BlockWrite { offset, blocks }, 11);
            ring.write(file.as_fd(), b"not written".to_vec(), 4, 2, 0);
            ring.sync(file.as_fd(), 1);
            ring.timer(1000, 2);
            ring.wait(bell.as_fd(), 3);
            ring.accept(listener.as_fd(), 4);
            ring.again(5);
            ring.send(one.as_fd(), spans(&["one"]), 6);
            ring.send(many.as_fd(), spans(&["one ", "after ", "another"]), 7);
            ring.receive(one_peer.as_fd(), 8);
            ring.receive(many_peer.as_fd(), 9);
            ring.receive(closed.as_fd(), 10);
        }
        for completion in completions {
            let (token, text) = outcome(ring, completion);
            assert_eq!(
                outcomes.insert(token, text),
                None,
                "an operation ended twice"
            );
        }
        if outcomes.len() == 12 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    let mut written = String::new();
    let mut file = file;
    file.read_to_string(&mut written).unwrap();
    assert_eq!(written, "\0\0written");
    let written = "\0".repeat(BLOCK_BYTES) + &"b".repeat(2 * BLOCK_BYTES);
    let mut found = String::new();
    let mut blocks_file = blocks_file;
    blocks_file.rewind().unwrap();
    blocks_file.read_to_string(&mut found).unwrap();
    assert!(found == written, "the blocks were written at other offsets");
    outcomes
}

#[test]
fn an_operation_returns_what_it_held_with_its_outcome() {
    let timed_out = format!("done {:?}", Some(libc::ETIME));
    let expected = [
        "not written 7",
        "done None",
        &timed_out,
        "done None",
        "accepted true",
        "done None",
        "one 3",
        "one after another 17",
        "one",
        "one after another",
        "ended true",
        "bbbbb… 8192",
    ];
    for kind in ALL {
        let outcomes = every_operation(kind);
        assert_eq!(
            outcomes.into_values().collect::<Vec<_>>(),
            expected,
            "{kind:?}"
        );
    }
}

#[test]
fn more_receives_than_buffers_each_get_their_own_bytes() {
    const COUNT: usize = RECEIVE_BUFFERS as usize + 70;
    for kind in ALL {
        let text = |number: usize| format!("peer {number} ").repeat(100);
        let pairs: Vec<_> = (0..COUNT).map(|_| UnixStream::pair().unwrap()).collect();
        for (number, (_, peer)) in pairs.iter().enumerate() {
            let mut peer = peer;
            peer.write_all(text(number).as_bytes()).unwrap();
        }
        let mut pending = Vec::new();
        let mut received = BTreeMap::new();
        let mut is_started = false;
        run_turns(kind, &mut |ring, completions| {
            if !is_started {
                is_started = true;
                for (number, (socket, _)) in pairs.iter().enumerate() {
                    ring.receive(socket.as_fd(), number);
                }
            }
            let is_received = |completion: &_| matches!(completion, Completion::Received(..));
            pending.extend(completions.into_iter().filter(is_received));
            // Hold on to all buffers at the same time, so that the remaining receives find none.
            if pending.len() + received.len() == COUNT
                || pending.len() == usize::from(RECEIVE_BUFFERS)
            {
                for completion in pending.drain(..) {
                    let (number, text) = outcome(ring, completion);
                    received.insert(number, text);
                }
            } else {
                ring.again(usize::MAX);
            }
            if received.len() == COUNT {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        for (number, received) in received {
            assert_eq!(received, text(number));
        }
    }
}

#[test]
fn receives_without_a_buffer_get_one_in_order() {
    for kind in RECENT {
        let count = 4 * usize::from(RECEIVE_BUFFERS);
        let pairs: Vec<_> = (0..count).map(|_| UnixStream::pair().unwrap()).collect();
        for (_, peer) in &pairs {
            (&*peer).write_all(b"x").unwrap();
        }
        let (mut received, mut turns) = (vec![0_u32; count], 0);
        run_turns(kind, &mut |ring, completions| {
            if turns == 0 {
                for (token, (socket, _)) in pairs.iter().enumerate() {
                    ring.receive(socket.as_fd(), token);
                }
            }
            turns += 1;
            for completion in completions {
                // Each socket that was read has data again immediately, like a client that reacts
                // to a response.
                let (token, text) = outcome(ring, completion);
                assert_eq!(text, "x");
                received[token] += 1;
                (&pairs[token].1).write_all(b"x").unwrap();
                ring.receive(pairs[token].0.as_fd(), token);
            }
            let all: u32 = received.iter().sum();
            if all >= 20 * u32::try_from(count).unwrap() {
                return ControlFlow::Break(());
            }
            assert!(turns < 10_000, "no more receives complete: {all} in total");
            ControlFlow::Continue(())
        });
        let (least, most) = (received.iter().min(), received.iter().max());
        assert!(
            least >= Some(&15) && most <= Some(&25),
            "{least:?} to {most:?}"
        );
    }
}

#[test]
fn receives_beyond_the_buffers_are_armed_on_an_idle_ring() {
    for kind in RECENT {
        const GUARD: usize = usize::MAX - 1;
        let count = 4 * usize::from(RECEIVE_BUFFERS);
        let pairs: Vec<_> = (0..count).map(|_| UnixStream::pair().unwrap()).collect();
        // All sockets but the last are silent.
        let last = count - 1;
        (&pairs[last].1).write_all(b"x").unwrap();
        let mut outcomes = Vec::new();
        let mut is_started = false;
        run_turns(kind, &mut |ring, completions| {
            if !is_started {
                is_started = true;
                for (token, (socket, _)) in pairs.iter().enumerate() {
                    ring.receive(socket.as_fd(), token);
                }
                ring.timer(10_000_000, GUARD);
            }
            for completion in completions {
                outcomes.push(outcome(ring, completion));
            }
            if outcomes.is_empty() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        assert_eq!(outcomes, [(last, "x".to_owned())]);
    }
}

#[test]
fn a_turn_runs_only_when_something_has_completed() {
    for kind in RECENT {
        let (mut turns, mut is_started) = (0_usize, false);
        run_turns(kind, &mut |ring, completions| {
            if is_started {
                assert_eq!(completions.len(), 1, "turn {turns}");
                turns += 1;
            }
            is_started = true;
            ring.again(turns);
            if turns < 20 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
    }
}

#[test]
fn a_cancel_ends_only_the_operations_on_its_descriptor() {
    for kind in RECENT {
        let bell = eventfd(0, EventfdFlags::empty()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut outcomes = Vec::new();
        let mut is_started = false;
        run_turns(kind, &mut |ring, completions| {
            if !is_started {
                is_started = true;
                ring.accept(listener.as_fd(), 0);
                ring.accept(listener.as_fd(), 1);
                ring.wait(bell.as_fd(), 2);
                assert!(ring.cancel(listener.as_fd(), 3));
            }
            outcomes.extend(
                completions
                    .into_iter()
                    .map(|completion| outcome(ring, completion)),
            );
            if outcomes.len() == 3 {
                rustix::io::write(&bell, &1_u64.to_ne_bytes()).unwrap();
            }
            if outcomes.len() < 4 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        let bell_last = outcomes.pop();
        assert_eq!(bell_last, Some((2, "done None".to_owned())));
        outcomes.sort();
        let cancelled = "accepted false";
        let expected = [(0, cancelled), (1, cancelled), (3, "done None")];
        assert_eq!(
            outcomes,
            expected.map(|(token, text)| (token, text.to_owned()))
        );
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(listener.accept().is_ok(), "the listener was closed");
    }
}

#[test]
fn no_cancel_is_submitted_if_the_kernel_does_not_support_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    run_turns(OLD, &mut |ring, _| {
        let before = counts(ring);
        assert!(!ring.cancel(listener.as_fd(), 0));
        assert_eq!(counts(ring), before);
        ControlFlow::Break(())
    });
}

/// Returns a socket whose send buffer is full, and its peer.
fn full_socket() -> (UnixStream, UnixStream) {
    let (mut socket, peer) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[b'x'; 4096]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    (socket, peer)
}

/// Ends a ring in which every kind of operation is in flight, by a panic or normally. Returns a
/// weak reference to the chunk that the sends hold.
fn end_with_all_in_flight(kind: RingKind, by_panic: bool) -> Weak<Vec<u8>> {
    let bell = eventfd(0, EventfdFlags::empty()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent, _silent_peer) = UnixStream::pair().unwrap();
    let (one, mut one_peer) = full_socket();
    let (many, _many_peer) = full_socket();
    let lent = Rc::new(vec![b'x'; 100_000]);
    let watch = Rc::downgrade(&lent);
    let mut lent = Some(lent);
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let go = || ControlFlow::Continue(());
        run(kind, go, |ring: &mut Ring<Numbers>| {
            let Some(lent) = lent.take() else {
                assert!(!by_panic, "a planted fault");
                return ControlFlow::Break(());
            };
            let half = |half: usize| Span::new(lent.clone(), half * 50_000, (half + 1) * 50_000);
            ring.receive(silent.as_fd(), 0);
            ring.wait(bell.as_fd(), 1);
            ring.timer(3_600_000_000, 2);
            ring.accept(listener.as_fd(), 3);
            ring.send(one.as_fd(), [half(0)].into_iter().collect(), 4);
            ring.send(many.as_fd(), [half(0), half(1)].into_iter().collect(), 5);
            ring.again(6);
            ring.finish_turn();
            ControlFlow::Continue(())
        })
    }));
    let fault = ended.err().map(|fault| *fault.downcast::<&str>().unwrap());
    assert_eq!(fault, by_panic.then_some("a planted fault"));
    drop(one);
    let mut all = Vec::new();
    one_peer.read_to_end(&mut all).unwrap();
    assert!(
        all.iter().all(|byte| *byte == b'x'),
        "a byte that was never sent arrived"
    );
    watch
}

#[test]
fn a_dropped_ring_releases_everything_in_flight() {
    for kind in ALL {
        let held = end_with_all_in_flight(kind, false);
        assert_eq!(held.strong_count(), 0, "{kind:?}");
    }
}

#[test]
fn a_panic_in_a_turn_releases_everything_in_flight_and_leaves_nothing_for_the_next_ring() {
    for kind in ALL {
        let held = end_with_all_in_flight(kind, true);
        assert_eq!(held.strong_count(), 0, "{kind:?}");
        let mut outcomes = Vec::new();
        run_turns(kind, &mut |ring, completions| {
            for completion in completions {
                outcomes.push(outcome(ring, completion));
            }
            if outcomes.is_empty() {
                ring.again(8);
                return ControlFlow::Continue(());
            }
            ControlFlow::Break(())
        });
        assert_eq!(outcomes, [(8, "done None".to_owned())], "{kind:?}");
    }
}

/// Accepts buffers as a kernel does: as many of a run as it has memory for. Some kernels return
/// their number, and newer ones (`io_add_buffers`, 5.18 to 6.18) return 0 if there is at least one.
fn take_buffers(run: u16, memory: &mut u16, says_count: bool) -> (u16, i32) {
    let taken = run.min(*memory);
    *memory -= taken;
    let result = match taken {
        0 => -libc::ENOMEM,
        taken if says_count => taken.into(),
        _ => 0,
    };
    (taken, result)
}

#[test]
fn buffers_that_the_kernel_did_not_accept_are_not_lost() {
    for (memory, says_count) in [(0, true), (0, false), (5, true), (5, false), (128, false)] {
        let mut ring: Ring<Numbers> = Ring::compat(false, -1);
        let (mut left, mut with_kernel) = (memory, 0);
        let indices: Vec<u16> = std::iter::from_fn(|| ring.buffers.lend_next())
            .map(|(index, _)| index)
            .collect();
        for index in indices {
            let (taken, result) = take_buffers(1, &mut left, says_count);
            with_kernel += taken;
            let provided = Operation::Provide { index };
            let completion = ring.complete((provided, result, 0));
            assert!(completion.is_none());
        }
        let again = std::iter::from_fn(|| ring.buffers.lend_next()).count();
        let all = usize::from(with_kernel) + again;
        assert_eq!(all, usize::from(RECEIVE_BUFFERS), "{memory} {says_count}");
    }
}

/// Lets the kernel refuse the next submissions, with EAGAIN.
fn refuse(ring: &mut Ring<Numbers>, count: u32) {
    match &mut ring.engine {
        Engine::Native(native) => native.refusals = count,
        Engine::Compat(compat) => {
            let enter = &mut compat.submissions.enter;
            let mut real = std::mem::replace(enter, Box::new(|| Ok(0)));
            let mut refusals = 0;
            *enter = Box::new(move || {
                refusals += 1;
                if refusals > count {
                    return real();
                }
                Err(io::Error::from_raw_os_error(libc::EAGAIN))
            });
        }
    }
}

#[test]
fn a_turn_with_more_operations_than_the_queue_holds_loses_none_if_the_kernel_refuses() {
    const COUNT: usize = 20_000;
    for kind in RECENT {
        let mut seen = vec![0_u32; COUNT];
        let mut is_started = false;
        run_turns(kind, &mut |ring, completions| {
            if !is_started {
                is_started = true;
                refuse(ring, 5);
                for token in 0..COUNT {
                    no_op(ring, token);
                }
                let (queued, pending) = counts(ring);
                assert_eq!(queued, RING_ENTRIES as usize, "more were queued than fit");
                assert_eq!(queued + pending, COUNT);
            }
            for completion in completions {
                seen[outcome(ring, completion).0] += 1;
            }
            if seen.iter().all(|count| *count > 0) {
                assert!(ring.retries() > 0, "{kind:?}");
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(
            seen.iter().all(|count| *count == 1),
            "an operation ended more than once"
        );
    }
}

#[test]
fn an_overflowing_completion_queue_loses_nothing() {
    for kind in RECENT {
        const COUNT: usize = 3 * COMPLETION_ENTRIES as usize + 100;
        let mut seen = vec![0_u32; COUNT];
        let mut is_started = false;
        run_turns(kind, &mut |ring, completions| {
            if !is_started {
                is_started = true;
                // A no-op completes when it is submitted, and no completion is consumed before the
                // turn ends.
                for token in 0..COUNT {
                    no_op(ring, token);
                }
                let (submitted, _) = counts(ring);
                assert!(submitted > COMPLETION_ENTRIES as usize, "{submitted}");
            }
            for completion in completions {
                let (token, text) = outcome(ring, completion);
                assert_eq!(text, "done None");
                seen[token] += 1;
            }
            if seen.iter().all(|count| *count > 0) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(
            seen.iter().all(|count| *count == 1),
            "an operation ended more than once"
        );
    }
}

#[test]
fn a_setup_that_the_kernel_refuses_is_skipped() {
    let plain = tokio_uring::uring_builder();
    // A CPU for a kernel thread that was not requested: EINVAL, as with an unknown flag.
    let mut refused = plain.clone();
    refused.setup_sqpoll_cpu(0);
    let mut known = plain.clone();
    known.setup_cqsize(64);
    let completion_entries =
        |setup: io_uring::Builder| setup.build(8).unwrap().params().cq_entries();
    let first = first_known([refused.clone(), known], plain.clone());
    assert_eq!(completion_entries(first), 64);
    let none = first_known([refused.clone(), refused], plain.clone());
    assert_eq!(completion_entries(none), completion_entries(plain));
}
