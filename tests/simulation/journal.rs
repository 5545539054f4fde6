//! The journal of a run, which is printed if the run fails.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The events of a run, one per line. Lines are formatted only if the journal is kept.
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
