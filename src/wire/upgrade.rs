//! Request heads.
