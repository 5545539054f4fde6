//! What is measured. A new scenario is a file here and a line in [`ALL`].

use crate::config::HarnessConfig;
use crate::contestant::Contestant;
use etherply_bench::figures::{Bound, Figure, Numbers};

pub mod crowds;
pub mod durable;
pub mod fanout;
pub mod idle;
pub mod loads;
pub mod recovery;
pub mod rooms;
pub mod slow;
pub mod soak;

/// All scenarios, in the order in which they run.
pub const ALL: [&dyn Scenario; 10] = [
    &fanout::Fanout,
    &rooms::Rooms,
    &rooms::Shards,
    &durable::Durable,
    &idle::Idle,
    &crowds::Join,
    &slow::Slow,
    &crowds::Reconnect,
    &recovery::Recovery,
    &soak::Soak,
];

pub trait Scenario: Sync {
    fn name(&self) -> &'static str;

    /// What it measures, for `--list`.
    fn about(&self) -> &'static str;

    /// What its tables show; the first is the one that counts most.
    fn figures(&self) -> &'static [Figure];

    /// What is measured in turn, each with a table of its own.
    fn cases(&self, config: &HarnessConfig) -> Vec<Case>;

    /// How often everybody is measured.
    fn rounds(&self, config: &HarnessConfig) -> u32 {
        config.rounds
    }

    /// One measurement of one contestant, with a server of its own. An error of the server ends the whole run: who
    /// loses a delivery has no speed.
    fn measure(
        &self,
        case: &Case,
        contestant: &Contestant,
        config: &HarnessConfig,
    ) -> Result<Numbers, String>;

    /// What a reader of its tables has to know about this machine.
    fn note(&self, _: &HarnessConfig) -> Option<String> {
        None
    }

    /// What the server should reach.
    fn targets(&self) -> Vec<Target> {
        Vec::new()
    }

    /// What its picture shows over its cases, where it has one.
    fn picture(&self) -> Option<Picture> {
        None
    }
}

/// One load of a scenario, and who is put under it.
pub struct Case {
    /// Its place among the cases of the scenario.
    pub index: usize,
    pub title: String,
    pub contestants: Vec<Contestant>,
    /// Who is compared with whom, by their places among the contestants.
    pub pairs: Vec<(usize, usize)>,
}

impl Case {
    /// Everybody is compared with each peer.
    pub fn against_peers(index: usize, title: &str, contestants: Vec<Contestant>) -> Self {
        let places = 0..contestants.len();
        let (peers, others): (Vec<usize>, Vec<usize>) =
            places.partition(|place| contestants[*place].is_peer());
        let of_each = |of: &usize| peers.iter().map(|to| (*of, *to)).collect::<Vec<_>>();
        Self {
            index,
            title: title.to_owned(),
            pairs: others.iter().flat_map(of_each).collect(),
            contestants,
        }
    }
}

/// What a figure of a contestant should be in a case.
pub struct Target {
    pub case: usize,
    pub figure: &'static str,
    /// The name of the contestant.
    pub of: &'static str,
    /// The name of the contestant that it is divided by; `None`: the figure itself counts.
    pub to: Option<&'static str>,
    pub bound: Bound,
}

/// A picture of latency against load.
pub struct Picture {
    pub load: Figure,
    pub latencies: &'static [Figure],
}
