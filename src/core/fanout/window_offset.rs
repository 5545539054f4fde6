//! A byte position in a window.

/// A byte position in a [`Window`](crate::core::fanout::window::Window), counted from the first
/// frame that the window ever contained. Offsets never restart, even after old frames are dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowOffset(u64);

impl WindowOffset {
    /// The offset of the first frame. Bytes queued there precede every broadcast.
    pub const START: Self = Self(0);

    /// Returns the offset `bytes` bytes after the start of the first frame.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes from the start of the first frame to this offset.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the offset `bytes` bytes after this one.
    #[must_use]
    pub const fn advance(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    /// Returns the number of bytes from `earlier` to this offset.
    ///
    /// # Panics
    /// If `earlier` is after this offset.
    #[must_use]
    pub fn bytes_since(self, earlier: Self) -> usize {
        let bytes = self.0.checked_sub(earlier.0);
        let bytes = bytes.expect("the earlier offset comes first");
        usize::try_from(bytes).expect("a window fits in memory")
    }
}
