//! The file of a run, with every number: the harness and `etherply-bench --save` write it, and
//! `etherply-bench --compare` reads it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::figures::Numbers;

/// The results of a run on a machine described by `M`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results<M> {
    pub machine: M,
    pub rounds: u32,
    pub warm_up_s: f64,
    pub measured_s: f64,
    pub cases: Vec<CaseResults>,
}

/// All measurements under one load.
#[derive(Debug, Serialize, Deserialize)]
pub struct CaseResults {
    pub scenario: String,
    pub case: String,
    pub contestants: Vec<ContestantResults>,
}

/// The measurements of one server.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContestantResults {
    pub name: String,
    /// The numbers of each round, by the id of their figure.
    pub rounds: Vec<BTreeMap<String, f64>>,
}

impl ContestantResults {
    pub fn new(name: &str, rounds: &[Numbers]) -> Self {
        let owned = |numbers: &Numbers| {
            let numbers = numbers.iter();
            numbers
                .map(|(id, number)| ((*id).to_owned(), *number))
                .collect()
        };
        Self {
            name: name.to_owned(),
            rounds: rounds.iter().map(owned).collect(),
        }
    }
}
