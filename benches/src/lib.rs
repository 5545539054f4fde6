//! The load generator, and the code that the benches and `etherply-bench` share.
//!
//! [`load`] puts a load on a server and checks every delivery; [`selfcheck`] makes sure that those
//! checks catch the faults they are meant to catch; [`figures`] computes medians and ratios of the
//! measurements.

#![allow(
    missing_docs,
    clippy::must_use_candidate,
    reason = "a library for the benches of this folder"
)]

pub mod figures;
pub mod load;
pub mod machine;
pub mod process;
pub mod resp;
pub mod results;
pub mod selfcheck;
pub mod tls;
pub mod url;
