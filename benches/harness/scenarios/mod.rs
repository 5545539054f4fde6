//! The scenarios. A new one needs a file here and a line in [`ALL`].

use crate::config::HarnessConfig;
use crate::contestant::{Contestant, Kind};
use etherply_bench::figures::{Bound, Figure, Numbers};

pub mod crowds;
pub mod durable;
pub mod fanout;
pub mod idle;
pub mod light;
pub mod loads;
pub mod presence;
pub mod recovery;
pub mod resume;
pub mod rooms;
pub mod slow;
pub mod soak;

/// All scenarios, in the order in which they run.
pub const ALL: [&dyn Scenario; 13] = [
    &fanout::Fanout,
    &light::Light,
    &rooms::Rooms,
    &rooms::Shards,
    &durable::Durable,
    &idle::Idle,
    &crowds::Join,
    &slow::Slow,
    &crowds::Reconnect,
    &resume::Resume,
    &presence::Presence,
    &recovery::Recovery,
    &soak::Soak,
];

pub trait Scenario: Sync {
    fn name(&self) -> &'static str;

    /// Describes the scenario for `--list`.
    fn about(&self) -> &'static str;

    /// Returns the columns of its tables, the most important one first.
    fn figures(&self) -> &'static [Figure];

    /// Returns the loads of the scenario, each with its own table.
    fn cases(&self, config: &HarnessConfig) -> Vec<Case>;

    /// Returns how often each contestant is measured.
    fn rounds(&self, config: &HarnessConfig) -> u32 {
        config.rounds
    }

    /// Measures one contestant once, with its own server. An error in the server ends the whole
    /// run: the speed of a server that loses deliveries means nothing.
    fn measure(
        &self,
        case: &Case,
        contestant: &Contestant,
        config: &HarnessConfig,
    ) -> Result<Numbers, String>;

    /// Returns a note about this machine for readers of its tables.
    fn note(&self, _: &HarnessConfig) -> Option<String> {
        None
    }

    /// Returns the figures that the server should reach.
    fn targets(&self) -> Vec<Target> {
        Vec::new()
    }

    /// Returns the picture of its cases, if it has one.
    fn picture(&self) -> Option<Picture> {
        None
    }
}

/// One load of a scenario, and the contestants that run it.
pub struct Case {
    /// Its index among the cases of the scenario.
    pub index: usize,
    pub title: String,
    pub contestants: Vec<Contestant>,
    /// The pairs of contestants to compare, by index.
    pub pairs: Vec<(usize, usize)>,
}

impl Case {
    /// Creates a case that compares each contestant with each peer that speaks its protocol or only
    /// version 1, and the protocols and durability modes of a server with each other.
    pub fn against_peers(index: usize, title: &str, contestants: Vec<Contestant>) -> Self {
        let is_pair = |of: &Contestant, to: &Contestant| {
            let is_later = of.kind == to.kind && of.protocol > to.protocol;
            let is_like = match &to.kind {
                Kind::Peer(_) => true,
                _ => {
                    to.is_peer() && of.protocol == to.protocol && of.durability() == to.durability()
                }
            };
            of.is_safer_than(to) || !of.is_peer() && (is_later || is_like)
        };
        let places = || 0..contestants.len();
        let pairs = places().flat_map(|of| places().map(move |to| (of, to)));
        let pairs = pairs.filter(|(of, to)| is_pair(&contestants[*of], &contestants[*to]));
        Self {
            index,
            title: title.to_owned(),
            pairs: pairs.collect(),
            contestants,
        }
    }
}

/// The bound within which a contestant's figure should stay in a case.
pub struct Target {
    pub case: usize,
    pub figure: &'static str,
    /// The name of the contestant.
    pub of: &'static str,
    /// The name of the contestant whose figure it is divided by; `None` if the figure itself
    /// counts.
    pub to: Option<&'static str>,
    pub bound: Bound,
}

/// A picture of latency against load.
pub struct Picture {
    pub load: Figure,
    pub latencies: &'static [Figure],
}
