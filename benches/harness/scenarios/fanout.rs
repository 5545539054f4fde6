//! One room, one sender, a thousand receivers.

use super::loads::{
    self, CORES_PER_DELIVERY, CPU_PER_DELIVERY, DELIVERIES, LoadShape, MAX, OWN_SHARE, P50, P99,
    RESIDENT,
};
use super::{Case, Picture, Scenario, Target};
use crate::config::HarnessConfig;
use crate::contestant::{self, Contestant};
use etherply_bench::figures::Bound::{AtLeast, AtMost};
use etherply_bench::figures::{Figure, Numbers};
use etherply_bench::load::pace::Pace;
use etherply_bench::load::protocol::ClientProtocol;

pub struct Fanout;

const RECEIVERS: u32 = 1000;

const fn shape(title: &'static str, pace: Pace) -> LoadShape {
    LoadShape {
        title,
        rooms: 1,
        receivers: RECEIVERS,
        pace,
    }
}

const LIGHT: usize = 0;
const BUSY: usize = 1;
const SATURATED: usize = 2;

const SHAPES: [LoadShape; 3] = [
    shape("100 ops/s", Pace::Open { ops_per_s: 100 }),
    shape("2,000 ops/s", Pace::Open { ops_per_s: 2000 }),
    shape("saturated, 256 in flight", Pace::Closed { in_flight: 256 }),
];

fn contestants(config: &HarnessConfig) -> Vec<Contestant> {
    contestant::all_speaking(config, &[ClientProtocol::V1, ClientProtocol::V2])
}

impl Scenario for Fanout {
    fn name(&self) -> &'static str {
        "fanout"
    }

    fn about(&self) -> &'static str {
        "1 room, 1 sender, 1,000 receivers: 100 ops/s; 2,000 ops/s; saturated with 256 in flight"
    }

    fn figures(&self) -> &'static [Figure] {
        &[
            CPU_PER_DELIVERY,
            CORES_PER_DELIVERY,
            DELIVERIES,
            P50,
            P99,
            MAX,
            RESIDENT,
            OWN_SHARE,
        ]
    }

    fn cases(&self, config: &HarnessConfig) -> Vec<Case> {
        let shapes = SHAPES.iter().enumerate();
        let cases = shapes
            .map(|(index, shape)| Case::against_peers(index, shape.title, contestants(config)));
        cases.collect()
    }

    fn measure(
        &self,
        case: &Case,
        contestant: &Contestant,
        config: &HarnessConfig,
    ) -> Result<Numbers, String> {
        loads::measure(&SHAPES[case.index], contestant, config)
    }

    fn targets(&self) -> Vec<Target> {
        let (none, always) = ("etherply none", "etherply always");
        let (none_v2, always_v2) = ("etherply none, v2", "etherply always, v2");
        let (cpu, deliveries) = (CPU_PER_DELIVERY.id, DELIVERIES.id);
        [
            (LIGHT, cpu, none, "floor", AtMost(1.05)),
            (LIGHT, cpu, always, "floor", AtMost(1.25)),
            (BUSY, cpu, none, "floor", AtMost(1.1)),
            (BUSY, cpu, always, "floor", AtMost(1.1)),
            (BUSY, P50.id, none, "floor", AtMost(0.9)),
            (BUSY, P50.id, always, "floor", AtMost(1.1)),
            (SATURATED, deliveries, none, "floor", AtLeast(1.0)),
            (SATURATED, deliveries, always, "floor", AtLeast(0.95)),
            (SATURATED, deliveries, none, "axum", AtLeast(3.0)),
            (SATURATED, deliveries, always, "axum", AtLeast(2.5)),
            (LIGHT, cpu, none_v2, none, AtMost(1.05)),
            (LIGHT, cpu, always_v2, always, AtMost(1.05)),
            (BUSY, cpu, none_v2, none, AtMost(1.05)),
            (BUSY, cpu, always_v2, always, AtMost(1.05)),
            (SATURATED, cpu, none_v2, none, AtMost(1.05)),
            (SATURATED, cpu, always_v2, always, AtMost(1.05)),
        ]
        .map(|(case, figure, of, to, bound)| Target {
            case,
            figure,
            of,
            to: Some(to),
            bound,
        })
        .into()
    }

    fn picture(&self) -> Option<Picture> {
        Some(Picture {
            load: DELIVERIES,
            latencies: &[P50, P99],
        })
    }
}
