//! Parsers for flag values. Their errors say which values are accepted.

use std::net::IpAddr;
use std::time::Duration;

use crate::limits::{
    MESSAGE_BYTES_MAX, OUTBOX_BYTES_MIN, PER_SECOND_MAX, PRESENCE_BYTES_MAX, PRESENCE_BYTES_MIN,
    PRESENCE_INTERVAL_MS_MAX, SHARDS_MAX, WORKSPACE_BYTES_MAX,
};

fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display + Copy>(
    text: &str,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, String> {
    match text.parse::<T>() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!(
            "must be a whole number from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        text => text
            .parse()
            .map_err(|_| "must be an IP address, such as 127.0.0.1 or ::".to_owned()),
    }
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    number(text, 0..=u16::MAX)
}

pub(super) fn shards(text: &str) -> Result<u32, String> {
    number(text, 1..=SHARDS_MAX)
}

pub(super) fn interval_ms(text: &str) -> Result<u64, String> {
    number(text, 10..=86_400_000)
}

pub(super) fn drain_ms(text: &str) -> Result<u64, String> {
    number(text, 0..=3_600_000)
}

pub(super) fn outbox_bytes(text: &str) -> Result<usize, String> {
    number(text, OUTBOX_BYTES_MIN..=1 << 30)
}

pub(super) fn message_bytes(text: &str) -> Result<usize, String> {
    number(text, 64..=MESSAGE_BYTES_MAX)
}

pub(super) fn connections(text: &str) -> Result<usize, String> {
    number(text, 1..=100_000_000)
}

pub(super) fn workspace_connections(text: &str) -> Result<usize, String> {
    number(text, 0..=100_000_000)
}

pub(super) fn workspace_bytes(text: &str) -> Result<u64, String> {
    number(text, 0..=WORKSPACE_BYTES_MAX)
}

pub(super) fn presence_interval_ms(text: &str) -> Result<u64, String> {
    number(text, 10..=PRESENCE_INTERVAL_MS_MAX)
}

pub(super) fn presence_bytes(text: &str) -> Result<usize, String> {
    number(text, PRESENCE_BYTES_MIN..=PRESENCE_BYTES_MAX)
}

pub(super) fn per_second(text: &str) -> Result<u32, String> {
    number(text, 0..=PER_SECOND_MAX)
}

/// Parses the variable of a flag that takes no value.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" => Ok(true),
        "0" | "false" | "no" => Ok(false),
        _ => Err("must be 1, true or yes, or 0, false or no".to_owned()),
    }
}

/// The longest accepted duration. A year has 365.25 days, as in humantime.
const HUNDRED_YEARS: Duration = Duration::from_hours(36_525 * 24);

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    time(text, Duration::ZERO).ok_or_else(|| {
        "must be a duration such as 30s, 15m, 24h or 7days, up to \
                        100years"
            .to_owned()
    })
}

/// Parses the lifetime of a token. It is at least one second, because `exp` is in whole seconds.
pub(super) fn ttl(text: &str) -> Result<Duration, String> {
    time_from_1s(text)
}

/// Parses the retention of tombstones. It is at least one second: with none, the server would have
/// forgotten the deleted keys before a client could even reconnect.
pub(super) fn retention(text: &str) -> Result<Duration, String> {
    time_from_1s(text)
}

fn time_from_1s(text: &str) -> Result<Duration, String> {
    time(text, Duration::from_secs(1)).ok_or_else(|| {
        "must be a duration from 1s to 100years, such as 30s, 15m, 24h or 7days".to_owned()
    })
}

fn time(text: &str, min: Duration) -> Option<Duration> {
    let time = humantime::parse_duration(text).ok();
    time.filter(|time| (min..=HUNDRED_YEARS).contains(time))
}
