//! The format of samples, labels and numbers.

use super::*;

#[test]
fn values_are_written_in_base_units() {
    for (value, written) in [
        (Value::Count(0), "0"),
        (Value::Count(u64::MAX), "18446744073709551615"),
        (Value::Microseconds(0), "0"),
        (Value::Microseconds(10), "0.00001"),
        (Value::Microseconds(1_000_000), "1"),
        (Value::Microseconds(1_050_000), "1.05"),
        (Value::Microseconds(12_345_678), "12.345678"),
    ] {
        let mut page = MetricsPage(Vec::new());
        page.value(value);
        assert_eq!(String::from_utf8(page.0).unwrap(), written);
    }
}

#[test]
fn a_histogram_counts_upwards_and_ends_in_infinity() {
    let mut page = MetricsPage(Vec::new());
    let bounds = [Value::Microseconds(10), Value::Microseconds(2_000_000)];
    page.histogram(
        "h",
        "shard=\"7\"",
        &bounds,
        &[1, 2, 4],
        Value::Microseconds(500),
    );
    assert_eq!(
        String::from_utf8(page.0).unwrap(),
        "h_bucket{shard=\"7\",le=\"0.00001\"} 1\n\
         h_bucket{shard=\"7\",le=\"2\"} 3\n\
         h_bucket{shard=\"7\",le=\"+Inf\"} 7\n\
         h_sum{shard=\"7\"} 0.0005\n\
         h_count{shard=\"7\"} 7\n"
    );
}
