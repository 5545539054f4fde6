//! Tests of state_chunk.
