//! Negotiation: tables and tests.
