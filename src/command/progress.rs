//! How far a command is: a bar on a terminal, nothing elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on stderr, which goes when the value does.
pub struct Bar(ProgressBar);

impl Bar {
    /// Of so many bytes. `doing` is what the command is at.
    pub fn new(doing: &str, total_bytes: u64) -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = format!("{doing} [{{wide_bar}}] {{bytes}} of {{total_bytes}}, {{eta}} left");
        let style = ProgressStyle::with_template(&style).expect("the template is legal");
        let bar = ProgressBar::with_draw_target(Some(total_bytes), target);
        bar.set_style(style.progress_chars("=> "));
        Self(bar)
    }

    /// Tells that so much more is done.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Tells how much is done, and how much there is to do.
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
