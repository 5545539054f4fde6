//! The numbers of measurements, and statistics over several of them. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

/// The numbers of one measurement, by the id of their [`Figure`].
pub type Numbers = BTreeMap<&'static str, f64>;

/// A kind of number that a scenario measures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    pub id: &'static str,
    pub name: &'static str,
    /// The unit; empty if the name implies it.
    pub unit: &'static str,
    /// The number of decimals in the table.
    pub decimals: usize,
}

impl Figure {
    /// Returns the heading of its column.
    pub fn title(&self) -> String {
        match self.unit {
            "" => self.name.to_owned(),
            unit => format!("{}, {unit}", self.name),
        }
    }
}

/// A median with the minimum and the maximum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl Spread {
    /// Returns the spread of the numbers; `None` if there are none.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let (least, most) = (*numbers.first()?, *numbers.last()?);
        let (upper, lower) = (numbers.len() / 2, (numbers.len() - 1) / 2);
        Some(Self {
            least,
            median: f64::midpoint(numbers[lower], numbers[upper]),
            most,
        })
    }

    pub fn text(&self, decimals: usize) -> String {
        let [least, median, most] =
            [self.least, self.median, self.most].map(|number| grouped(number, decimals));
        if least == most {
            return median;
        }
        format!("{median} ({least}–{most})")
    }
}

/// Returns the ratio of a figure between two contestants, computed round by round, since a
/// disturbance in a round affects both.
pub fn ratio(of: &[Numbers], to: &[Numbers], id: &str) -> Option<Spread> {
    let pairs = of.iter().zip(to);
    Spread::of(pairs.filter_map(|(of, to)| {
        let (of, to) = (of.get(id)?, to.get(id)?);
        (*to > 0.0).then(|| of / to)
    }))
}

/// A bound within which a ratio should stay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(bound) => ratio <= bound,
            Self::AtLeast(bound) => ratio >= bound,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "at most {bound}"),
            Self::AtLeast(bound) => write!(f, "at least {bound}"),
        }
    }
}

/// Formats a number with thousands separators, such as 1,234,567.8.
pub fn grouped(number: f64, decimals: usize) -> String {
    let text = format!("{number:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, digits) = whole.split_at(usize::from(whole.starts_with('-')));
    let mut out = sign.to_owned();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

#[cfg(test)]
mod tests;
