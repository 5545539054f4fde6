//! The rounds of a case: each measures all contestants in turn, in its own order.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::config::HarnessConfig;
use crate::scenarios::{Case, Scenario};
use etherply_bench::figures::Numbers;

/// The rounds of each contestant of a case, in the order of its contestants.
pub type Rounds = Vec<Vec<Numbers>>;

/// The progress of the run: a bar on a terminal, lines elsewhere.
pub struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
}

impl Progress {
    pub fn new(measurements: usize) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(measurements as u64), target);
        let style = "[{bar:30}] {pos} of {len}, {eta} left · {wide_msg}";
        let style = ProgressStyle::with_template(style).expect("the template is valid");
        bar.set_style(style.progress_chars("=> "));
        Self { bar, is_terminal }
    }

    /// Prints text above the bar.
    pub fn print(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    fn begin(&self, what: String) {
        if !self.is_terminal {
            eprintln!("{what}");
        }
        self.bar.set_message(what);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Measures all contestants in all rounds. A failure of the server ends the run. A failure of a
/// peer is printed, and the round has no numbers for it: a peer may be too slow for a load, which
/// says nothing about the server.
pub fn run(
    scenario: &dyn Scenario,
    case: &Case,
    config: &HarnessConfig,
    progress: &Progress,
) -> Result<Rounds, String> {
    let count = case.contestants.len();
    let mut rounds: Rounds = vec![Vec::new(); count];
    let rounds_count = scenario.rounds(config);
    for round in 0..rounds_count {
        for step in 0..count {
            let place = (step + round as usize) % count;
            let contestant = &case.contestants[place];
            let what = format!(
                "{} · {} · round {} of {} · {}",
                scenario.name(),
                case.title,
                round + 1,
                rounds_count,
                contestant.name
            );
            progress.begin(what.clone());
            let numbers = scenario.measure(case, contestant, config);
            rounds[place].push(match numbers {
                Ok(numbers) => numbers,
                Err(failure) if contestant.is_peer() => {
                    progress.print(&format!("\n{what}: FAILED: {}", failure.trim_end()));
                    Numbers::new()
                }
                Err(failure) => return Err(format!("{what}\n{failure}")),
            });
            progress.bar.inc(1);
        }
    }
    Ok(rounds)
}
