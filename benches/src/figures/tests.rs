//! The statistics of measurements.

use super::*;

#[test]
fn the_median_is_the_middle_value_or_the_mean_of_the_two_middle_ones() {
    let spread = Spread::of([5.0, 1.0, 3.0]).unwrap();
    assert_eq!((spread.least, spread.median, spread.most), (1.0, 3.0, 5.0));
    assert_eq!(
        Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap().text(1),
        "2.5 (1.0–4.0)"
    );
    assert_eq!(Spread::of([1234.0]).unwrap().text(0), "1,234");
    assert_eq!(Spread::of([]), None);
}

#[test]
fn ratios_are_computed_per_round() {
    let rounds = |numbers: [f64; 3]| numbers.map(|number| Numbers::from([("cpu", number)]));
    // The second round was slow for both: the ratio of the medians would be 2.5.
    let (of, to) = (rounds([10.0, 100.0, 25.0]), rounds([5.0, 50.0, 10.0]));
    assert_eq!(ratio(&of, &to, "cpu").unwrap().text(1), "2.0 (2.0–2.5)");
    assert_eq!(ratio(&of, &to, "p50"), None);
}

#[test]
fn a_bound_includes_its_own_value() {
    assert!(Bound::AtMost(1.05).is_met(1.05) && !Bound::AtMost(1.05).is_met(1.06));
    assert!(Bound::AtLeast(1.0).is_met(1.0) && !Bound::AtLeast(1.0).is_met(0.99));
}

#[test]
fn thousands_are_separated() {
    assert_eq!(grouped(1_234_567.84, 1), "1,234,567.8");
    assert_eq!(grouped(-999.0, 0), "-999");
    assert_eq!(grouped(1000.0, 0), "1,000");
}
