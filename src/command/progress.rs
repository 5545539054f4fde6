//! The progress display of a command: a bar on a terminal, otherwise nothing.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar on stderr, which disappears when the value is dropped.
pub struct Bar(ProgressBar);

impl Bar {
    /// Creates a bar for `total_bytes`. `doing` names the activity, for example "compacting".
    pub fn new(doing: &str, total_bytes: u64) -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = format!("{doing} [{{wide_bar}}] {{bytes}} of {{total_bytes}}, {{eta}} left");
        let style = ProgressStyle::with_template(&style).expect("the template is valid");
        let bar = ProgressBar::with_draw_target(Some(total_bytes), target);
        bar.set_style(style.progress_chars("=> "));
        Self(bar)
    }

    /// Advances the bar by `bytes`.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Sets the number of bytes done and the total number of bytes.
    pub fn set(&self, done_bytes: u64, total_bytes: u64) {
        self.0.set_length(total_bytes);
        self.0.set_position(done_bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
