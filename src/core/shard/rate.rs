//! How often something may happen: a bucket from which each takes a token, and what a client that
//! goes on without one comes to.
//!
//! A token bucket, written as a meter of what was taken: what is in it leaks away at the rate, and
//! whoever finds no room in it is over the limit. That is the continuous-state leaky bucket of
//! ITU-T I.371, which needs no timer. Whole numbers alone, so nothing is lost to rounding, however
//! often it is asked.

use crate::limits::{FRAMES_BURST_MIN, FRAMES_PER_MESSAGE, PATIENCE_S, RATE_BURST_S, REFUSALS_MIN};

/// So much of a bucket is one token: what leaks in a microsecond at one in a minute is 1.
const TOKEN: u64 = 60_000_000;

/// So many in a minute, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_minute: u64,
    burst: u64,
}

impl Rate {
    /// So many in a second, and as many at once as in [`RATE_BURST_S`] seconds.
    #[must_use]
    pub fn per_second(count: u32) -> Self {
        Self::share(count, 1)
    }

    /// One of so many equal shares of a rate, rounded up.
    #[must_use]
    pub fn share(per_second: u32, shares: u32) -> Self {
        let (count, shares) = (u64::from(per_second), u64::from(shares));
        Self {
            per_minute: (count * 60).div_ceil(shares),
            burst: (count * RATE_BURST_S).div_ceil(shares),
        }
    }

    /// The frames that a client may send which are no messages, where so many messages in a second
    /// are allowed.
    fn of_frames(per_second: u32) -> Self {
        let count = u64::from(per_second) * u64::from(FRAMES_PER_MESSAGE);
        Self {
            per_minute: count * 60,
            burst: (count * RATE_BURST_S).max(FRAMES_BURST_MIN),
        }
    }

    /// What may be refused of a client that may send so much: a tenth of that for ever, and as much
    /// as it may send in [`PATIENCE_S`] seconds before it is given up.
    fn of_refusals(per_second: u32) -> Self {
        let count = u64::from(per_second);
        Self {
            per_minute: count * 6,
            burst: (count * PATIENCE_S).max(REFUSALS_MIN),
        }
    }
}

/// What was taken lately.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    taken: u64,
    /// What may be taken beyond the burst, once.
    allowance: u64,
    at_us: u64,
}

impl Bucket {
    /// Takes a token, if there is one.
    pub fn take(&mut self, rate: Rate, now_us: u64) -> bool {
        // A clock that goes back gives nothing, and takes nothing either.
        let passed_us = now_us.saturating_sub(self.at_us);
        self.at_us = self.at_us.max(now_us);
        let leaked = passed_us.saturating_mul(rate.per_minute);
        self.taken = self.taken.saturating_sub(leaked);
        let has_token = self.taken + TOKEN <= rate.burst * TOKEN;
        if has_token {
            self.taken += TOKEN;
            return true;
        }
        let allowance = self.allowance.checked_sub(TOKEN);
        self.allowance = allowance.unwrap_or(self.allowance);
        allowance.is_some()
    }

    /// Counts time that has passed beside the clock.
    pub fn has_aged(&mut self, us: u64) {
        self.at_us = self.at_us.saturating_sub(us);
    }

    /// Allows what the rate gives in `us`, beyond the burst: it was sent in that time, and comes
    /// now.
    fn allow_for(&mut self, rate: Rate, us: u64) {
        let leaked = us.saturating_mul(rate.per_minute);
        self.allowance = self.allowance.saturating_add(leaked);
    }
}

/// What is to be done with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// It is handled.
    Within,
    /// It is refused.
    Over,
    /// Too much was refused: the client is given up.
    Beyond,
}

/// What one client sends.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    sent: Bucket,
    refused: Bucket,
    frames: Bucket,
}

impl Meter {
    /// Counts a message of a client that may send so many in a second.
    pub fn count(&mut self, per_second: u32, now_us: u64) -> Pace {
        if self.sent.take(Rate::per_second(per_second), now_us) {
            Pace::Within
        } else if self.refused.take(Rate::of_refusals(per_second), now_us) {
            Pace::Over
        } else {
            Pace::Beyond
        }
    }

    /// Counts a frame that is no message. Returns whether it is within the rate of frames.
    pub fn count_frame(&mut self, per_second: u32, now_us: u64) -> bool {
        self.frames.take(Rate::of_frames(per_second), now_us)
    }

    /// Allows what the client may have sent in `us` during which nobody read it.
    pub fn allow_for(&mut self, per_second: u32, us: u64) {
        self.sent.allow_for(Rate::per_second(per_second), us);
        self.frames.allow_for(Rate::of_frames(per_second), us);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::SECOND_US;

    /// The naive model: when each token was taken. A token may be taken where every stretch of time
    /// that ends now holds no more of them than the burst, and what the rate gives in it.
    fn model_takes(taken_us: &[u64], rate: Rate, now_us: u64) -> bool {
        (0..=taken_us.len()).all(|first| {
            let begin_us = taken_us.get(first).copied().unwrap_or(now_us);
            let count = (taken_us.len() - first) as u64 + 1;
            count * TOKEN <= rate.burst * TOKEN + (now_us - begin_us) * rate.per_minute
        })
    }

    proptest! {
        #[test]
        fn a_bucket_gives_what_the_model_gives(
            per_second in 1..2000_u32,
            shares in 1..5_u32,
            waits_us in prop::collection::vec(prop_oneof![
                4 => Just(0), 4 => 0..2_000_u64, 2 => 0..SECOND_US, 1 => 0..5 * SECOND_US,
            ], 0..300),
        ) {
            let rate = Rate::share(per_second, shares);
            let (mut bucket, mut taken_us, mut now_us) = (Bucket::default(), Vec::new(), 1_000 * SECOND_US);
            for wait_us in waits_us {
                now_us += wait_us;
                let expected = model_takes(&taken_us, rate, now_us);
                prop_assert_eq!(bucket.take(rate, now_us), expected, "{:?} at {}", rate, now_us);
                if expected {
                    taken_us.push(now_us);
                }
            }
        }
    }

    /// How many of `count` messages, `per_second` of them, are handled and refused before the
    /// client is given up.
    fn paces(limit: u32, per_second: u64, count: u64) -> (u64, u64, bool) {
        let (mut meter, mut within, mut over) = (Meter::default(), 0, 0);
        for number in 0..count {
            match meter.count(limit, 100 * SECOND_US + number * SECOND_US / per_second) {
                Pace::Within => within += 1,
                Pace::Over => over += 1,
                Pace::Beyond => return (within, over, true),
            }
        }
        (within, over, false)
    }

    #[test]
    fn who_keeps_to_the_limit_is_not_refused() {
        for (limit, per_second) in [
            (1, 1),
            (10, 10),
            (10, 9),
            (100, 100),
            (1_000_000, 1_000_000),
        ] {
            let count = 100_000.min(per_second * 3600);
            assert_eq!(paces(limit, per_second, count), (count, 0, false));
        }
    }

    #[test]
    fn a_burst_is_two_seconds_worth() {
        // As good as at once: nothing leaks that counts.
        for (limit, within) in [(1, 2), (10, 20), (1000, 2000)] {
            assert_eq!(paces(limit, 1 << 40, within + 5), (within, 5, false));
        }
    }

    #[test]
    fn who_goes_on_is_given_up_and_who_is_a_little_over_is_not() {
        for (limit, per_second, count, expected) in [
            // A tenth over: the tenth is refused, for ever.
            (100, 110, 110_000, (100_200, 9_800, false)),
            // Twice: when the burst is used up half is refused, of which a tenth of the limit is
            // forgiven.
            (100, 200, 100_000, (1_511, 1_111, true)),
            // A flood: the burst, and then ten seconds' worth.
            (100, 1 << 40, 100_000, (200, 1_000, true)),
            // Small limits forgive more.
            (1, 1 << 40, 1_000, (2, 256, true)),
        ] {
            let (within, over, is_given_up) = paces(limit, per_second, count);
            let case =
                format!("{per_second} of {limit} in a second: {within} {over} {is_given_up}");
            assert!(within.abs_diff(expected.0) <= 1, "{case}");
            assert!(over.abs_diff(expected.1) <= 1, "{case}");
            assert_eq!(is_given_up, expected.2, "{case}");
        }
    }

    #[test]
    fn a_pause_makes_up_for_all() {
        let mut meter = Meter::default();
        let mut now_us = 5;
        for _ in 0..3 {
            let within = (0..500).filter(|_| meter.count(100, now_us) == Pace::Within);
            assert_eq!(within.count(), 200);
            now_us += 30 * SECOND_US;
        }
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let (mut bucket, rate) = (Bucket::default(), Rate::per_second(1));
        let takes: Vec<bool> = [9, 9, 9, 0, 5, 9, 10]
            .iter()
            .map(|second| bucket.take(rate, second * SECOND_US))
            .collect();
        assert_eq!(takes, [true, true, false, false, false, false, true]);
    }

    #[test]
    fn shares_make_up_the_whole() {
        for (per_second, shares, share) in [
            (1, 1, (60, 2)),
            (100, 2, (3000, 100)),
            (100, 3, (2000, 67)),
            (1, 64, (1, 1)),
            (1_000_000, 1024, (58_594, 1954)),
        ] {
            let rate = Rate::share(per_second, shares);
            assert_eq!(
                (rate.per_minute, rate.burst),
                share,
                "{per_second} in {shares}"
            );
        }
    }
}
