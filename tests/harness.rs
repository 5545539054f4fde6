//! The parts of the bench harness that judge and reckon: what they count must be right, or its figures are worth nothing.
//! They stand in `benches/harness`, where a binary without a test harness of its own cannot test them.

#![allow(dead_code, reason = "the harness uses the rest of them")]

#[path = "../benches/harness/load/check.rs"]
mod check;
#[path = "harness/check_tests.rs"]
mod check_tests;
#[path = "../benches/harness/figures.rs"]
mod figures;
#[path = "harness/figures_tests.rs"]
mod figures_tests;
#[path = "../benches/harness/load/guest.rs"]
mod guest;
#[path = "harness/guest_tests.rs"]
mod guest_tests;
#[path = "../benches/harness/load/op.rs"]
mod op;
#[path = "harness/op_tests.rs"]
mod op_tests;
#[path = "../benches/harness/load/pace.rs"]
mod pace;
#[path = "harness/pace_tests.rs"]
mod pace_tests;
