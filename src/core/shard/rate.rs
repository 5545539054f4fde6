//! Rate limits: token buckets, and the handling of clients that exceed them.
//!
//! A bucket is implemented as a meter of the tokens taken: its level falls at the given rate, and a
//! request that does not fit into the bucket is over the limit. This is the continuous-state leaky
//! bucket of ITU-T I.371, which needs no timer. All numbers are integers, so nothing is lost to
//! rounding, however often a bucket is used.

use crate::limits::{FRAMES_BURST_MIN, FRAMES_PER_MESSAGE, PATIENCE_S, RATE_BURST_S, REFUSALS_MIN};

/// One token, in the unit of a bucket's level: at a rate of one token per minute, 1 leaks each
/// microsecond.
const TOKEN: u64 = 60_000_000;

/// The number of tokens per minute, and the number that may be taken at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_minute: u64,
    burst: u64,
}

impl Rate {
    /// Returns a rate of `count` per second, with a burst of [`RATE_BURST_S`] seconds' worth.
    #[must_use]
    pub fn per_second(count: u32) -> Self {
        Self::share(count, 1)
    }

    /// Returns one of `shares` equal shares of a rate, rounded up.
    #[must_use]
    pub fn share(per_second: u32, shares: u32) -> Self {
        let (count, shares) = (u64::from(per_second), u64::from(shares));
        Self {
            per_minute: (count * 60).div_ceil(shares),
            burst: (count * RATE_BURST_S).div_ceil(shares),
        }
    }

    /// Returns the rate of frames other than messages for a client that may send `per_second`
    /// messages.
    fn of_frames(per_second: u32) -> Self {
        let count = u64::from(per_second) * u64::from(FRAMES_PER_MESSAGE);
        Self {
            per_minute: count * 60,
            burst: (count * RATE_BURST_S).max(FRAMES_BURST_MIN),
        }
    }

    /// Returns the rate of refusals above which a client that may send `per_second` messages is
    /// closed: a tenth of that rate indefinitely, plus a burst of [`PATIENCE_S`] seconds' worth.
    fn of_refusals(per_second: u32) -> Self {
        let count = u64::from(per_second);
        Self {
            per_minute: count * 6,
            burst: (count * PATIENCE_S).max(REFUSALS_MIN),
        }
    }
}

/// The tokens that were taken recently.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    taken: u64,
    /// An amount that may be taken once, beyond the burst.
    allowance: u64,
    at_us: u64,
}

impl Bucket {
    /// Takes a token. Returns `false` if none is left.
    pub fn take(&mut self, rate: Rate, now_us: u64) -> bool {
        // A clock that goes backwards neither adds nor removes tokens.
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

    /// Accounts for time during which the clock stood still.
    pub fn has_aged(&mut self, us: u64) {
        self.at_us = self.at_us.saturating_sub(us);
    }

    /// Allows what the rate yields in `us`, in addition to the burst, because that much may have
    /// been sent during that time and arrives now.
    fn allow_for(&mut self, rate: Rate, us: u64) {
        let leaked = us.saturating_mul(rate.per_minute);
        self.allowance = self.allowance.saturating_add(leaked);
    }
}

/// The decision on a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// The message is handled.
    Within,
    /// The message is refused.
    Over,
    /// The message is refused after too many other refusals, so the client is closed.
    Beyond,
}

/// The rate limits of one client.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    sent: Bucket,
    refused: Bucket,
    frames: Bucket,
}

impl Meter {
    /// Counts a message from a client that may send `per_second` messages.
    pub fn count(&mut self, per_second: u32, now_us: u64) -> Pace {
        if self.sent.take(Rate::per_second(per_second), now_us) {
            Pace::Within
        } else if self.refused.take(Rate::of_refusals(per_second), now_us) {
            Pace::Over
        } else {
            Pace::Beyond
        }
    }

    /// Counts a frame that is not a message. Returns whether it is within the rate of such frames.
    pub fn count_frame(&mut self, per_second: u32, now_us: u64) -> bool {
        self.frames.take(Rate::of_frames(per_second), now_us)
    }

    /// Allows the messages that the client may have sent during a period of `us` in which the shard
    /// did not read.
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

    /// A naive model: the times at which tokens were taken. A token may be taken if no period that
    /// ends now contains more of them than the burst plus what the rate yields in that period.
    fn model_takes(taken_us: &[u64], rate: Rate, now_us: u64) -> bool {
        (0..=taken_us.len()).all(|first| {
            let begin_us = taken_us.get(first).copied().unwrap_or(now_us);
            let count = (taken_us.len() - first) as u64 + 1;
            count * TOKEN <= rate.burst * TOKEN + (now_us - begin_us) * rate.per_minute
        })
    }

    proptest! {
        #[test]
        fn a_bucket_agrees_with_the_model(
            per_second in 1..2000_u32,
            shares in 1..5_u32,
            waits_us in prop::collection::vec(prop_oneof![
                4 => Just(0), 4 => 0..2_000_u64, 2 => 0..SECOND_US, 1 => 0..5 * SECOND_US,
            ], 0..300),
        ) {
            let rate = Rate::share(per_second, shares);
            let (mut bucket, mut taken_us) = (Bucket::default(), Vec::new());
            let mut now_us = 1_000 * SECOND_US;
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

    /// Returns the numbers of messages that are handled and refused, of `count` messages sent at
    /// `per_second`, and whether the client is closed.
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
    fn a_client_within_its_limit_is_not_refused() {
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
        // Sent almost at once, so the leakage is negligible.
        for (limit, within) in [(1, 2), (10, 20), (1000, 2000)] {
            assert_eq!(paces(limit, 1 << 40, within + 5), (within, 5, false));
        }
    }

    #[test]
    fn a_client_far_over_its_limit_is_closed_and_one_slightly_over_is_not() {
        for (limit, per_second, count, expected) in [
            // A tenth over the rate: that tenth is refused indefinitely.
            (100, 110, 110_000, (100_200, 9_800, false)),
            // Twice the rate: once the burst is used up, half of the messages are refused, and
            // refusals up to a tenth of the rate are forgiven.
            (100, 200, 100_000, (1_511, 1_111, true)),
            // A flood: the burst, and then ten seconds' worth of refusals.
            (100, 1 << 40, 100_000, (200, 1_000, true)),
            // Small limits forgive more.
            (1, 1 << 40, 1_000, (2, 256, true)),
        ] {
            let (within, over, is_closed) = paces(limit, per_second, count);
            let case = format!("{per_second} of {limit} in a second: {within} {over} {is_closed}");
            assert!(within.abs_diff(expected.0) <= 1, "{case}");
            assert!(over.abs_diff(expected.1) <= 1, "{case}");
            assert_eq!(is_closed, expected.2, "{case}");
        }
    }

    #[test]
    fn a_pause_restores_the_full_burst() {
        let mut meter = Meter::default();
        let mut now_us = 5;
        for _ in 0..3 {
            let within = (0..500).filter(|_| meter.count(100, now_us) == Pace::Within);
            assert_eq!(within.count(), 200);
            now_us += 30 * SECOND_US;
        }
    }

    #[test]
    fn a_clock_that_goes_backward_adds_no_tokens() {
        let (mut bucket, rate) = (Bucket::default(), Rate::per_second(1));
        let takes: Vec<bool> = [9, 9, 9, 0, 5, 9, 10]
            .iter()
            .map(|second| bucket.take(rate, second * SECOND_US))
            .collect();
        assert_eq!(takes, [true, true, false, false, false, false, true]);
    }

    #[test]
    fn shares_add_up_to_the_rate() {
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
