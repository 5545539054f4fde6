//! What the texts of states take in memory that are on their way to anybody.

use std::rc::{Rc, Weak};

use crate::core::fanout::window::Chunk;

/// The texts that were made and may be alive.
#[derive(Default)]
pub(in crate::core) struct SnapshotBudget {
    held: Vec<(Weak<Vec<u8>>, usize)>,
    bytes: usize,
    /// Of texts that are being written.
    promised_bytes: usize,
    /// Where the next sweep goes on.
    place: usize,
    /// Those that were added since the last one.
    added: usize,
}

impl SnapshotBudget {
    /// What is held, or promised, and what was let go and not swept yet.
    pub fn bytes(&self) -> usize {
        self.bytes + self.promised_bytes
    }

    /// So many bytes are going to be written.
    pub fn promise(&mut self, bytes: usize) {
        self.promised_bytes += bytes;
    }

    /// So many of those are not promised any more: they were written and added, or nobody wants them.
    pub fn release(&mut self, bytes: usize) {
        self.promised_bytes -= bytes;
    }

    /// Nothing is promised any more.
    pub fn release_all(&mut self) {
        self.promised_bytes = 0;
    }

    /// Adds a text that was just made.
    pub fn add(&mut self, chunk: &Chunk) {
        self.added += 1;
        self.held.push((Rc::downgrade(chunk), chunk.len()));
        self.bytes += chunk.len();
    }

    /// A text comes back by itself: it does not count any more.
    pub fn write_off(&mut self, chunk: &Chunk) {
        let is_it = |(held, _): &&mut (Weak<Vec<u8>>, usize)| {
            std::ptr::eq(held.as_ptr(), Rc::as_ptr(chunk))
        };
        if let Some((_, bytes)) = self.held.iter_mut().find(is_it) {
            self.bytes -= std::mem::take(bytes);
        }
    }

    /// How many texts may be alive.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Looks at so many texts, and at twice as many as were added, and forgets those that are on their way to nobody any more.
    pub fn sweep(&mut self, count: usize) {
        let count = count.max(2 * std::mem::take(&mut self.added));
        for _ in 0..count.min(self.held.len()) {
            if self.place >= self.held.len() {
                self.place = 0;
            }
            let (chunk, bytes) = &self.held[self.place];
            if chunk.strong_count() == 0 {
                self.bytes -= bytes;
                self.held.swap_remove(self.place);
            } else {
                self.place += 1;
            }
        }
    }

    /// The same of all.
    pub fn sweep_all(&mut self) {
        self.place = 0;
        self.sweep(self.held.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let mut ledger = SnapshotBudget::default();
        let mut chunks: Vec<Chunk> = (0..10).map(|_| Rc::new(vec![0; 100])).collect();
        for chunk in &chunks {
            ledger.add(chunk);
        }
        assert_eq!(ledger.bytes(), 1000);
        ledger.sweep(0);
        assert_eq!(ledger.bytes(), 1000);
        let mut is_kept = [false, true].into_iter().cycle();
        chunks.retain(|_| is_kept.next().expect("it goes on for ever"));
        for (count, bytes_left) in [(0, 1000), (1, 900), (1, 900), (20, 500), (20, 500)] {
            ledger.sweep(count);
            assert_eq!(ledger.bytes(), bytes_left, "{count}");
        }
        chunks.clear();
        ledger.sweep_all();
        assert_eq!((ledger.bytes(), ledger.held.len()), (0, 0));
        for _ in 0..100 {
            ledger.add(&Rc::new(vec![0; 100]));
            ledger.sweep(1);
        }
        assert_eq!(
            ledger.held.len(),
            0,
            "it does not grow faster than it is swept"
        );
        let texts: Vec<Chunk> = (1..4).map(|bytes| Rc::new(vec![0; bytes])).collect();
        for text in &texts {
            ledger.add(text);
        }
        ledger.write_off(&texts[1]);
        ledger.write_off(&texts[1]);
        assert_eq!((ledger.bytes(), ledger.len()), (4, 3));
        drop(texts);
        ledger.sweep_all();
        assert_eq!((ledger.bytes(), ledger.len()), (0, 0));
        ledger.promise(30);
        ledger.release(10);
        assert_eq!(ledger.bytes(), 20);
        ledger.release_all();
        assert_eq!(ledger.bytes(), 0);
    }
}
