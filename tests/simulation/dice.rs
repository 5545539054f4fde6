//! Chance by the seed, and the journal of what it led to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Numbers that only depend on the seed (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0xA24B_AED4_963E_E407) ^ stream << 48);
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// A number from 0 up to, and without, `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "there is something to choose from");
        usize::try_from(self.next() % bound as u64).expect("less than the bound")
    }

    pub fn below_u64(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `count` throws; never for 0.
    pub fn one_in(&mut self, count: usize) -> bool {
        let thrown = self.below(count.max(1));
        count > 0 && thrown == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// What happened, line by line. It is written only where somebody will read it.
#[derive(Debug, Clone, Default)]
pub struct Journal(Option<Arc<Mutex<Vec<String>>>>);

impl Journal {
    pub fn kept() -> Self {
        Self(Some(Arc::default()))
    }

    pub fn note(&self, line: impl FnOnce() -> String) {
        if let Some(lines) = &self.0 {
            let line = line();
            Self::lock(lines).push(line);
        }
    }

    pub fn lines(&self) -> Vec<String> {
        self.0
            .as_ref()
            .map_or_else(Vec::new, |lines| Self::lock(lines).clone())
    }

    fn lock(lines: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
        lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
